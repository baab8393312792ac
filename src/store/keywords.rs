//! Terms of a text, and how well a text matches a query's terms.
//!
//! Analysis: words by Unicode's rules, split further at anything that is not
//! a letter or digit, without case and accents, reduced to their English
//! stems. Each term is stored with its tenant and tier in front, so a query
//! can only ever name terms of its own tenant, document frequencies are the
//! tenant's own, and what a query costs depends on that tenant alone.
//!
//! Scoring: BM25 as in Robertson and Zaragoza, "The Probabilistic Relevance
//! Framework" (2009), with the never-negative inverse document frequency that
//! Lucene uses. The full-text index only lists which chunks hold a term: its
//! own BM25 has fixed parameters, counts the documents of every tenant, and
//! costs several times more per chunk than listing it.

use std::collections::HashMap;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

use super::stems::Stems;
use crate::transform::words;

/// Bytes of a word that count, so that no pasted blob becomes a term.
const MAX_WORD_BYTES: usize = 64;

/// Terms of a query that count; the rest of a longer one is ignored.
pub const MAX_QUERY_TERMS: usize = 32;

/// Words that say nothing of what a text is about. Sorted.
const STOP_WORDS: [&str; 97] = [
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but",
    "by", "can", "could", "d", "did", "do", "does", "during", "for", "from", "had", "has", "have", "he",
    "her", "hers", "him", "his", "how", "i", "if", "in", "into", "is", "it", "its", "ll", "m", "may", "me",
    "might", "mine", "my", "no", "nor", "not", "of", "on", "or", "our", "re", "s", "shall", "she", "should",
    "so", "some", "such", "t", "than", "that", "the", "their", "them", "then", "there", "these", "they",
    "this", "those", "to", "too", "us", "ve", "very", "was", "we", "were", "what", "when", "where", "which",
    "while", "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
];

/// The terms of a text, in order, with repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// A space after each, which none of them holds: one allocation instead of
    /// one a word.
    joined: String,
    count: usize,
}

impl Terms {
    /// Those of `text`.
    pub fn of(text: &str) -> Self {
        let mut terms = Self { joined: String::with_capacity(text.len()), count: 0 };
        Stems::of_thread(|stems| {
            each_word(text, |word| {
                terms.joined.push_str(stems.of(word));
                terms.joined.push(' ');
                terms.count += 1;
            });
        });
        terms
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the text has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Each, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.joined.split_terminator(' ')
    }
}

/// The distinct terms of a query, in order, without stop words unless there
/// is nothing else; [`MAX_QUERY_TERMS`] at most.
pub fn query_terms(query: &str) -> Vec<String> {
    let stemmer = Stemmer::create(Algorithm::English);
    let (mut telling, mut stopped) = (Vec::new(), Vec::new());
    each_word(query, |word| {
        let kept = if STOP_WORDS.binary_search(&word).is_ok() { &mut stopped } else { &mut telling };
        if kept.len() < MAX_QUERY_TERMS {
            let term = stemmer.stem(word).into_owned();
            if !kept.contains(&term) {
                kept.push(term);
            }
        }
    });
    if telling.is_empty() { stopped } else { telling }
}

fn each_word(text: &str, mut found: impl FnMut(&str)) {
    let mut folded = String::new();
    let mut each_part = |part: &str| {
        fold(part, &mut folded);
        if !folded.is_empty() {
            found(&folded);
        }
    };
    for part in words::parts(text) {
        if part.is_ascii {
            // Words part nowhere else.
            words::ascii_runs(part.text).for_each(&mut each_part);
        } else {
            let parts = part.text.unicode_words().flat_map(|word| word.split(|c: char| !c.is_alphanumeric()));
            parts.filter(|part| !part.is_empty()).for_each(&mut each_part);
        }
    }
}

/// Lower case, accents of alphabetic scripts removed, cut to
/// [`MAX_WORD_BYTES`].
fn fold(word: &str, folded: &mut String) {
    folded.clear();
    if word.is_ascii() {
        folded.push_str(word.get(..MAX_WORD_BYTES).unwrap_or(word));
        folded.make_ascii_lowercase();
        return;
    }
    let plain = word.nfkd().filter(|c| !('\u{300}'..='\u{36f}').contains(c)).nfc();
    for c in plain.flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric()) {
        if folded.len() + c.len_utf8() > MAX_WORD_BYTES {
            break;
        }
        folded.push(c);
    }
}

/// What stands in front of every term of one tenant's tier. Digits, `k`, one
/// digit: no term of one partition can be read as a term of another.
pub(crate) fn scope(tenant_key: i64, tier_code: i64) -> String {
    format!("{tenant_key}k{tier_code}")
}

/// The terms as the full-text index stores them.
pub(super) fn scoped(scope: &str, terms: &Terms) -> String {
    let mut text = String::with_capacity(terms.joined.len() + terms.len() * scope.len());
    for term in terms.iter() {
        text.push_str(scope);
        text.push_str(term);
        text.push(' ');
    }
    text
}

/// A full-text query for one term. Terms hold letters and digits only;
/// quoted, none is an operator.
pub(crate) fn quoted(scope: &str, term: &str) -> String {
    format!("\"{scope}{term}\"")
}

/// The rarest of `frequencies` (term, documents), as long as together they
/// occur in no more than `postings` documents; the rarest of all in any case.
/// What is left out could add little to a score and would cost most to find.
pub(super) fn rarest<'a>(frequencies: &[(&'a str, u64)], postings: u64) -> Vec<&'a str> {
    let mut rising: Vec<_> = frequencies.iter().filter(|(_, documents)| *documents > 0).collect();
    rising.sort_by_key(|(_, documents)| *documents);
    let mut sum = 0u64;
    rising
        .iter()
        .enumerate()
        .take_while(|(i, (_, documents))| {
            sum = sum.saturating_add(*documents);
            *i == 0 || sum <= postings
        })
        .map(|(_, (term, _))| *term)
        .collect()
}

/// The two numbers that BM25 leaves open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bm25Parameters {
    /// How soon repeating a term stops to help.
    pub k1: f32,
    /// How much a long document is discounted, from 0 to 1.
    pub b: f32,
}

impl Default for Bm25Parameters {
    /// Anserini's values; `docs/retrieval.md` measures them beside others.
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4 }
    }
}

/// BM25 over the documents of one tenant.
#[derive(Clone, Debug)]
pub struct Bm25 {
    /// Inverse document frequency by term.
    weights: HashMap<String, f32>,
    mean_terms: f32,
    parameters: Bm25Parameters,
}

impl Bm25 {
    /// For `documents` documents of `terms` terms in all, and how many
    /// documents hold each term of the query.
    #[expect(clippy::cast_precision_loss, reason = "counts, used as statistics")]
    pub fn new(
        documents: u64,
        terms: u64,
        frequencies: impl IntoIterator<Item = (String, u64)>,
        parameters: Bm25Parameters,
    ) -> Self {
        let weigh = |holding: u64| {
            // Frequencies may be a commit ahead of the document count.
            let holding = holding as f32;
            let lacking = documents as f32 - holding;
            (1.0 + (lacking.max(0.0) + 0.5) / (holding + 0.5)).ln()
        };
        Self {
            weights: frequencies.into_iter().map(|(term, holding)| (term, weigh(holding))).collect(),
            mean_terms: (terms as f32 / documents.max(1) as f32).max(1.0),
            parameters,
        }
    }

    /// How telling a term is: its inverse document frequency.
    pub fn weight(&self, term: &str) -> f32 {
        self.weights.get(term).copied().unwrap_or(0.0)
    }

    /// How well a document of these terms matches; 0 if it holds none.
    #[expect(clippy::cast_precision_loss, reason = "a document's length")]
    pub fn score(&self, document: &Terms) -> f32 {
        let mut counts: HashMap<&str, (f32, f32)> = HashMap::new();
        for term in document.iter() {
            if let Some(weight) = self.weights.get(term) {
                counts.entry(term).or_insert((*weight, 0.0)).1 += 1.0;
            }
        }
        let Bm25Parameters { k1, b } = self.parameters;
        let length = 1.0 - b + b * document.len() as f32 / self.mean_terms;
        // Sorted, so that equal documents get equal sums.
        let mut parts: Vec<f32> = counts
            .values()
            .map(|(weight, count)| weight * count * (k1 + 1.0) / (count + k1 * length))
            .collect();
        parts.sort_by(f32::total_cmp);
        parts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(text: &str) -> Vec<String> {
        let terms = Terms::of(text);
        let listed: Vec<String> = terms.iter().map(str::to_owned).collect();
        assert_eq!((terms.len(), terms.is_empty()), (listed.len(), listed.is_empty()));
        listed
    }

    #[test]
    fn stop_words_are_sorted() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn words_meet_across_case_accents_and_endings() {
        assert_eq!(terms("Running CAFÉS, naïve"), ["run", "cafe", "naiv"]);
        assert_eq!(terms("cafe\u{301}"), terms("café"));
        assert_eq!(terms("see example.com/a_b"), ["see", "exampl", "com", "a", "b"]);
        assert_eq!(terms("Übung – 東京"), ["ubung", "東", "京"]);
    }

    #[test]
    fn a_pasted_blob_is_one_term_of_bounded_length() {
        for blob in ["x".repeat(5_000), "é".repeat(5_000), "ж".repeat(5_000)] {
            let found = terms(&blob);
            assert_eq!(found.len(), 1);
            assert!(found[0].len() <= MAX_WORD_BYTES, "{}", found[0].len());
        }
    }

    #[test]
    fn stop_words_count_only_when_nothing_else_is_asked() {
        assert_eq!(query_terms("What is the river, the River?"), ["river"]);
        assert_eq!(query_terms("to be or not to be"), ["to", "be", "or", "not"]);
    }

    #[test]
    fn only_the_rarest_terms_look_for_candidates() {
        let frequencies = [("river", 40), ("delta", 3), ("the", 9_000), ("nowhere", 0)];
        assert_eq!(rarest(&frequencies, 50), ["delta", "river"]);
        assert_eq!(rarest(&frequencies, 1), ["delta"]);
        assert!(rarest(&[("nowhere", 0)], 50).is_empty());
    }

    #[test]
    fn a_rare_term_outweighs_a_common_one_and_length_is_discounted() {
        let bm25 =
            Bm25::new(100, 1_000, [("delta".into(), 2), ("water".into(), 60)], Bm25Parameters::default());
        let document = |text: &str| bm25.score(&Terms::of(text));
        assert!(document("delta stone") > document("water stone"));
        assert!(document("delta stone") > document("delta stone sand mud clay silt rock"));
        assert_eq!(document("stone"), 0.0);
        // By hand: ln(1 + 98.5/2.5), one of two terms, mean length 10.
        let expected = (1.0f32 + 98.5 / 2.5).ln() * 1.9 / (1.0 + 0.9 * (0.6 + 0.4 * 0.2));
        assert!((document("delta stone") - expected).abs() < 1e-5);
    }

    proptest! {
        #[test]
        fn any_text_gives_terms_of_letters_and_digits(text in ".{0,200}") {
            for term in terms(&text) {
                prop_assert!(!term.is_empty() && term.len() <= MAX_WORD_BYTES);
                prop_assert!(term.chars().all(char::is_alphanumeric), "{term:?}");
            }
            prop_assert!(query_terms(&text).len() <= MAX_QUERY_TERMS);
        }
    }
}
