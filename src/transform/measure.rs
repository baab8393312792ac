//! Measurements on labelled data, run by hand:
//!
//! ```text
//! THALWEG_DATA=DIR THALWEG_TOKENIZER=tokenizer.json \
//!     cargo test --lib transform::measure -- --ignored --nocapture
//! ```
//!
//! `docs/deriving.md` holds the numbers.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::PathBuf,
    time::Instant,
};

use serde_json::Value;
use unicode_segmentation::UnicodeSegmentation;

use super::{
    chunk::{self, chunk},
    chunk_score::{Score, best_precision, evaluate},
    pii::{self, Kind, Scanner},
    prepare,
    quality::{self, Measures, Verdict},
    tokens::TokenSpans,
};
use crate::record::Tier;

fn lines(file: &str) -> Vec<Value> {
    let dir = std::env::var("THALWEG_DATA").expect("THALWEG_DATA names the directory of the labelled data");
    let file = std::fs::File::open(PathBuf::from(dir).join(file)).unwrap();
    let text = std::io::read_to_string(zstd::Decoder::new(file).unwrap()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The model's tokenizer, which also ships a truncation that must not count.
struct WordPiece(tokenizers::Tokenizer);

impl WordPiece {
    fn from_env() -> Self {
        let path = std::env::var("THALWEG_TOKENIZER").expect("THALWEG_TOKENIZER names a tokenizer.json");
        let mut tokenizer = tokenizers::Tokenizer::from_file(path).unwrap();
        tokenizer.with_truncation(None).unwrap();
        tokenizer.with_padding(None);
        Self(tokenizer)
    }
}

impl TokenSpans for WordPiece {
    fn spans(&self, text: &str) -> Vec<(usize, usize)> {
        self.0.encode(text, false).unwrap().get_offsets().to_vec()
    }
}

/// BM25 (k1 = 1.2, b = 0.75) over stemmed lower-case words.
struct Bm25 {
    postings: HashMap<String, Vec<(usize, f64)>>,
    lengths: Vec<f64>,
}

fn terms(text: &str) -> HashMap<String, f64> {
    let stemmer = rust_stemmers::Stemmer::create(rust_stemmers::Algorithm::English);
    let mut terms = HashMap::new();
    for word in text.unicode_words() {
        *terms.entry(stemmer.stem(&word.to_lowercase()).into_owned()).or_default() += 1.0;
    }
    terms
}

impl Bm25 {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let (mut postings, mut lengths) = (HashMap::<_, Vec<_>>::new(), Vec::new());
        for (i, text) in texts.enumerate() {
            let terms = terms(text);
            lengths.push(terms.values().sum());
            for (term, n) in terms {
                postings.entry(term).or_default().push((i, n));
            }
        }
        Self { postings, lengths }
    }

    fn top(&self, query: &str, k: usize) -> Vec<usize> {
        let n = self.lengths.len() as f64;
        let mean = self.lengths.iter().sum::<f64>() / n;
        let mut scores = vec![0.0; self.lengths.len()];
        for (term, _) in terms(query) {
            let Some(list) = self.postings.get(&term) else {
                continue;
            };
            let df = list.len() as f64;
            let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
            for &(i, tf) in list {
                scores[i] += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * self.lengths[i] / mean));
            }
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(k);
        order
    }
}

struct Document {
    text: String,
    questions: Vec<(String, Vec<Range<usize>>)>,
}

fn documents() -> Vec<(String, Document)> {
    let lines = lines("chunk_eval.jsonl.zst");
    let text = |v: &Value, key: &str| v[key].as_str().unwrap().to_owned();
    let (docs, queries): (Vec<_>, Vec<_>) = lines.iter().partition(|v| v["k"] == "doc");
    docs.into_iter()
        .map(|doc| {
            let body = text(doc, "text");
            let mut byte_of: Vec<usize> = body.char_indices().map(|(at, _)| at).collect();
            byte_of.push(body.len());
            let questions = queries
                .iter()
                .filter(|q| q["doc"] == doc["id"])
                .map(|q| {
                    let at = |v: &Value| byte_of[v.as_u64().unwrap() as usize];
                    let spans = q["spans"].as_array().unwrap().iter();
                    (text(q, "text"), spans.map(|s| at(&s[0])..at(&s[1])).collect())
                })
                .collect();
            (text(doc, "id"), Document { text: body, questions })
        })
        .collect()
}

#[test]
#[ignore = "needs THALWEG_DATA and THALWEG_TOKENIZER"]
fn chunking_of_labelled_documents() {
    let tokens = WordPiece::from_env();
    let documents = documents();
    println!(
        "max min overlap | chunks tokens | recall@5 precision@5 IoU@5 | precision omega | recall in 1,280 tokens"
    );
    for (max_tokens, min_tokens, overlap_tokens) in [
        (64, 16, 0),
        (64, 32, 0),
        (128, 32, 0),
        (128, 64, 0),
        (128, 32, 16),
        (128, 32, 32),
        (192, 48, 0),
        (192, 96, 0),
        (254, 64, 0),
        (254, 127, 0),
        (254, 200, 0),
        (254, 64, 32),
        (254, 127, 32),
        (254, 64, 64),
    ] {
        let settings = chunk::Settings { max_tokens, min_tokens, overlap_tokens };
        let (mut sum, mut omega, mut budget, mut asked) = (Score::default(), 0.0, 0.0, 0.0);
        let (mut count, mut length) = (0, 0);
        for (_, document) in &documents {
            let chunks = chunk(&document.text, &settings, &tokens);
            let ranges: Vec<_> = chunks.iter().map(|c| c.range.clone()).collect();
            let index = Bm25::new(ranges.iter().map(|r| &document.text[r.clone()]));
            count += chunks.len();
            length += chunks.iter().map(|c| c.tokens).sum::<usize>();
            for (question, spans) in &document.questions {
                let ranked = index.top(question, 40);
                let score = evaluate(&ranges, spans, &ranked[..5.min(ranked.len())]);
                let mut room = 1_280;
                let fitting = ranked.iter().take_while(|i| {
                    let fits = chunks[**i].tokens <= room;
                    room = room.saturating_sub(chunks[**i].tokens);
                    fits
                });
                budget += evaluate(&ranges, spans, &fitting.copied().collect::<Vec<_>>()).recall;
                sum.recall += score.recall;
                sum.precision += score.precision;
                sum.iou += score.iou;
                omega += best_precision(&ranges, spans);
                asked += 1.0;
            }
        }
        println!(
            "{max_tokens:>3} {min_tokens:>3} {overlap_tokens:>3} | {count:>5} {:>6.1} | {:.3} {:.3} {:.3} | {:.3} | {:.3}",
            length as f64 / count as f64,
            sum.recall / asked,
            sum.precision / asked,
            sum.iou / asked,
            omega / asked,
            budget / asked
        );
    }
}

#[test]
#[ignore = "needs THALWEG_DATA and THALWEG_TOKENIZER"]
fn speed_of_chunking() {
    let tokens = WordPiece::from_env();
    let text: String =
        lines("rfc_std.jsonl.zst").iter().map(|v| v["text"].as_str().unwrap().to_owned()).collect();
    for size in [1_000_000, 2_000_000, 4_000_000] {
        let text = &text[..text.floor_char_boundary(size)];
        let begin = Instant::now();
        let spans = tokens.spans(text);
        let tokenised = begin.elapsed();
        let chunks = chunk(text, &chunk::Settings::default(), &Known(spans));
        println!(
            "{size} bytes: tokenise {tokenised:?}, chunk {:?}, {} chunks",
            begin.elapsed() - tokenised,
            chunks.len()
        );
    }
}

/// Spans found before.
struct Known(Vec<(usize, usize)>);

impl TokenSpans for Known {
    fn spans(&self, _: &str) -> Vec<(usize, usize)> {
        self.0.clone()
    }
}

const LABELS: [(&str, Kind); 7] = [
    ("DOMAIN_NAME", Kind::Url),
    ("EMAIL_ADDRESS", Kind::Email),
    ("IBAN_CODE", Kind::Iban),
    ("CREDIT_CARD", Kind::CreditCard),
    ("US_SSN", Kind::UsSsn),
    ("IP_ADDRESS", Kind::IpAddress),
    ("PHONE_NUMBER", Kind::Phone),
];

fn everything() -> Scanner {
    Scanner::new(&pii::Settings { action: pii::Action::Detect, kinds: Kind::ALL.to_vec() })
}

/// A finding is right if it is labelled with its kind at exactly its place.
#[test]
#[ignore = "needs THALWEG_DATA"]
fn personal_data_in_labelled_texts() {
    let scanner = everything();
    // Per kind: labelled, found, right, and labelled covered by any finding.
    let mut counts: BTreeMap<Kind, [usize; 4]> = BTreeMap::new();
    let mut missed: BTreeMap<String, usize> = BTreeMap::new();
    let show = std::env::var("THALWEG_SHOW").is_ok();
    for line in lines("pii_large.jsonl.zst") {
        let text = line["text"].as_str().unwrap();
        let mut bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        bytes.push(text.len());
        let at = |v: &Value| bytes[v.as_u64().unwrap() as usize];
        let findings = scanner.findings(text);
        let mut labelled = Vec::new();
        for span in line["spans"].as_array().unwrap() {
            let range = at(&span[0])..at(&span[1]);
            let label = span[2].as_str().unwrap();
            let Some((_, kind)) = LABELS.iter().find(|(name, _)| *name == label) else {
                *missed.entry(label.to_owned()).or_default() += 1;
                continue;
            };
            let entry = counts.entry(*kind).or_default();
            entry[0] += 1;
            entry[3] += usize::from(
                findings.iter().any(|f| f.range.start <= range.start && range.end <= f.range.end),
            );
            labelled.push(pii::Finding { kind: *kind, range });
        }
        for finding in &findings {
            let entry = counts.entry(finding.kind).or_default();
            entry[1] += 1;
            entry[2] += usize::from(labelled.contains(finding));
        }
        if show {
            for f in findings.iter().filter(|f| !labelled.contains(f)) {
                println!("false {} `{}` in {text:?}", f.kind, &text[f.range.clone()]);
            }
            for f in labelled.iter().filter(|f| !findings.contains(f)) {
                println!("missed {} `{}` in {text:?}", f.kind, &text[f.range.clone()]);
            }
        }
    }
    println!("kind | labelled | found | precision | recall | recall by any finding");
    for (kind, [labelled, found, right, covered]) in counts {
        let share = |a: usize, b: usize| a as f64 / b as f64;
        println!(
            "{kind} | {labelled} | {found} | {:.3} | {:.3} | {:.3}",
            share(right, found),
            share(right, labelled),
            share(covered, labelled)
        );
    }
    println!("without a pattern: {missed:?}");
}

/// Technical text: whatever is found here other than addresses is wrong.
#[test]
#[ignore = "needs THALWEG_DATA"]
fn personal_data_in_technical_texts() {
    let scanner = everything();
    for (file, field) in [
        ("python311.jsonl.zst", "text"),
        ("postgresql15.jsonl.zst", "text"),
        ("rfc_std.jsonl.zst", "text"),
        ("scifact_train.jsonl.zst", "text"),
        ("irc_ubuntu.jsonl.zst", "text"),
        ("loghub.jsonl.zst", "raw"),
    ] {
        let (mut bytes, mut found) = (0, BTreeMap::<Kind, Vec<String>>::new());
        let begin = Instant::now();
        for line in lines(file) {
            let Some(text) = line[field].as_str() else {
                continue;
            };
            bytes += text.len();
            for f in scanner.findings(text) {
                let from = text.floor_char_boundary(f.range.start.saturating_sub(24));
                let to = text.ceil_char_boundary((f.range.end + 10).min(text.len()));
                found.entry(f.kind).or_default().push(format!(
                    "`{}` in {:?}",
                    &text[f.range],
                    &text[from..to]
                ));
            }
        }
        println!("{file}: {bytes} bytes in {:?}", begin.elapsed());
        for (kind, all) in found {
            println!("  {kind}: {}", all.len());
            let shown =
                if std::env::var("THALWEG_SHOW").is_ok_and(|k| k.contains(kind.name())) { 60 } else { 0 };
            all.iter().step_by((all.len() / 60).max(1)).take(shown).for_each(|one| println!("    {one}"));
        }
    }
}

/// What the default thresholds refuse of texts that are all worth keeping.
#[test]
#[ignore = "needs THALWEG_DATA"]
fn quality_of_good_texts() {
    for (file, field, tier) in [
        ("irc_ubuntu.jsonl.zst", "text", Tier::Event),
        ("loghub.jsonl.zst", "raw", Tier::Event),
        ("scifact_train.jsonl.zst", "text", Tier::Doc),
        ("python311.jsonl.zst", "text", Tier::Doc),
        ("postgresql15.jsonl.zst", "text", Tier::Doc),
        ("rfc_std.jsonl.zst", "text", Tier::Doc),
    ] {
        let (mut total, mut refused) = (0, BTreeMap::<&str, (usize, Vec<String>)>::new());
        for line in lines(file).iter().filter(|line| line["k"] != "query") {
            let Some(text) = line[field].as_str() else {
                continue;
            };
            let text = prepare::canonical(text);
            total += 1;
            let verdict = Measures::of(&text).judge(tier, &quality::Settings::default(), 0);
            if let Verdict::Reject { reason, detail } = verdict {
                let entry = refused.entry(reason).or_default();
                entry.0 += 1;
                entry.1.push(format!("{detail}: {:?}", text.chars().take(100).collect::<String>()));
            }
        }
        println!(
            "{file}: {total} texts, refused {:?}",
            refused.iter().map(|(r, (n, _))| (r, n)).collect::<Vec<_>>()
        );
        refused
            .values()
            .for_each(|(_, examples)| examples.iter().take(6).for_each(|one| println!("    {one}")));
    }
}
