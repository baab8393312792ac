//! What clients send and ask.

use std::{
    fmt::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use serde_json::json;

use super::client::{Kind, Request};
use crate::bench::data::Corpus;

/// Records of a large request.
pub const MANY: usize = 100;
/// Tenants who are searched, and those who are sent to. They are others, so
/// that a search costs the same at the end of a run as at its beginning.
const SEARCHED: usize = 16;
const SENT_TO: usize = 64;
/// Words of a question.
const WORDS: usize = 6;

/// Chat messages. No two records that are made of them are alike.
pub struct Texts {
    /// As JSON has them, without the quotes.
    escaped: Vec<String>,
    questions: Vec<String>,
    made: AtomicU64,
}

impl Texts {
    /// Those of the fixtures in `dir`.
    pub fn load(dir: &Path) -> Result<Self> {
        let texts = Corpus::load(dir, "irc_ubuntu")?.texts()?;
        let escaped = texts.iter().map(|text| {
            let quoted = serde_json::to_string(text)?;
            Ok(quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned())
        });
        Ok(Self {
            escaped: escaped.collect::<Result<_>>()?,
            questions: texts.iter().map(|text| first_words(text)).filter(|q| !q.is_empty()).collect(),
            made: AtomicU64::new(0),
        })
    }

    /// The `n`th request of a client: it searches every other time, and of
    /// what it sends, every fifth request has [`MANY`] records.
    pub fn mixed(&self, client: usize, n: usize) -> Request {
        match (client + n) % 10 {
            place if place.is_multiple_of(2) => self.search(client * 7 + n),
            9 => self.ingest(Some(&sent_to(client)), MANY),
            _ => self.ingest(Some(&sent_to(client)), 1),
        }
    }

    /// `count` records; of the pipeline's default tenant if `tenant` is left out.
    pub fn ingest(&self, tenant: Option<&str>, count: usize) -> Request {
        let mut body = String::with_capacity(count * 200);
        let first = self.made.fetch_add(count as u64, Ordering::Relaxed);
        let texts =
            self.escaped.iter().cycle().skip(usize::try_from(first).unwrap_or(0) % self.escaped.len());
        for (text, n) in texts.zip(first..first + count as u64) {
            // Writing to a string does not fail.
            let _ = match tenant {
                Some(tenant) => writeln!(body, r#"{{"tenant":"{tenant}","text":"{text} ({n})"}}"#),
                None => writeln!(body, r#"{{"text":"{text} ({n})"}}"#),
            };
        }
        Request { kind: Kind::Ingest { records: count as u64 }, body }
    }

    /// What has to be there before anybody searches: requests that bring
    /// `each` records for every tenant who is searched.
    pub fn seeds(&self, each: usize) -> impl Iterator<Item = Request> {
        (0..SEARCHED).flat_map(move |tenant| {
            let parts = each.div_ceil(MANY);
            (0..parts).map(move |_| self.ingest(Some(&searched(tenant)), each / parts))
        })
    }

    fn search(&self, n: usize) -> Request {
        let question = self.questions.get(n % self.questions.len()).map_or("help", String::as_str);
        let body = json!({"tenant": searched(n % SEARCHED), "query": question}).to_string();
        Request { kind: Kind::Search, body }
    }
}

fn searched(n: usize) -> String {
    format!("searched-{n}")
}

fn sent_to(client: usize) -> String {
    format!("sent-to-{}", client % SENT_TO)
}

fn first_words(text: &str) -> String {
    text.split_whitespace().take(WORDS).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Texts {
        let escaped = vec![r#"say \"hi\""#.to_owned(), "bye".to_owned()];
        Texts { escaped, questions: vec!["hi".into()], made: AtomicU64::new(0) }
    }

    #[test]
    fn half_of_the_requests_search_and_a_tenth_bring_many_records() {
        let texts = texts();
        let kinds: Vec<Kind> = (0..20).map(|n| texts.mixed(3, n).kind).collect();
        let count = |kind| kinds.iter().filter(|k| **k == kind).count();
        assert_eq!(count(Kind::Search), 10);
        assert_eq!(count(Kind::Ingest { records: 1 }), 8);
        assert_eq!(count(Kind::Ingest { records: MANY as u64 }), 2);
    }

    #[test]
    fn no_two_records_are_alike() {
        let texts = texts();
        let bodies = [texts.ingest(Some("a"), 3).body, texts.ingest(None, 2).body].concat();
        let records: Vec<serde_json::Value> =
            bodies.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let said: Vec<&str> = records.iter().map(|record| record["text"].as_str().unwrap()).collect();
        assert_eq!(said, ["say \"hi\" (0)", "bye (1)", "say \"hi\" (2)", "bye (3)", "say \"hi\" (4)"]);
        assert_eq!((&records[0]["tenant"], records[4].get("tenant")), (&"a".into(), None));
    }
}
