//! Labelled data: records to send, questions to ask, and what answers them.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ranking::{Relevant, mean, ndcg, recall};

/// Records and questions about them.
pub struct Dataset {
    /// What it is called in tables.
    pub name: &'static str,
    /// What is sent, as JSON records with ids that are unique in the dataset.
    pub records: Vec<Value>,
    /// What is asked.
    pub questions: Vec<Question>,
}

/// A question and its answers.
pub struct Question {
    /// Whose records are searched.
    pub tenant: String,
    /// The words.
    pub text: String,
    /// Ids of the records that answer it.
    pub relevant: Relevant,
}

/// Hits that count.
pub const TOP: usize = 10;

/// Means over all questions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// nDCG@10.
    pub ndcg: f64,
    /// Recall@10.
    pub recall: f64,
}

impl Dataset {
    /// Whose each record is, by its id.
    pub fn owners(&self) -> HashMap<&str, &str> {
        self.records.iter().map(|record| (field(record, "id"), field(record, "tenant"))).collect()
    }

    /// The id of each record.
    pub fn ids(&self) -> Vec<&str> {
        self.records.iter().map(|record| field(record, "id")).collect()
    }

    /// The text of each record.
    pub fn texts(&self) -> Vec<String> {
        self.records.iter().map(|record| field(record, "text").to_owned()).collect()
    }

    /// Scores one ranking of record ids for each question.
    pub fn score<S: AsRef<str>>(&self, rankings: &[Vec<S>]) -> Figures {
        let each = |measure: fn(&[S], &Relevant, usize) -> f64| {
            mean(self.questions.iter().zip(rankings).map(|(q, ranked)| measure(ranked, &q.relevant, TOP)))
        };
        Figures { ndcg: each(ndcg), recall: each(recall) }
    }
}

/// The lines of a Zstandard-compressed file of JSON Lines.
pub fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let text = BufReader::new(zstd::Decoder::new(file)?);
    text.lines()
        .zip(1..)
        .map(|(line, number)| {
            let place = || format!("{} line {number}", path.display());
            serde_json::from_str(&line.with_context(place)?).with_context(place)
        })
        .collect()
}

fn field<'a>(record: &'a Value, key: &str) -> &'a str {
    record.get(key).and_then(Value::as_str).unwrap_or_default()
}
