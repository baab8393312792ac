//! Chunking: how much of the text that answers a question lies in the chunks
//! nearest to it, and how much else does.
//!
//! The five documents are cut and embedded with the engine's own functions and
//! the chunks of a question's document ranked by their vectors. No daemon:
//! labels are places in the text as it came, which deriving would normalise.

use std::{ops::Range, path::Path};

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::{dataset::lines, ranking::mean};
use crate::{
    bench::progress,
    embed::Embedder,
    transform::{
        chunk::{Settings, chunk},
        chunk_score::{Score, evaluate},
    },
};

/// Chunks retrieved for a question.
const TOP_CHUNKS: usize = 5;

#[derive(Deserialize)]
#[serde(tag = "k", rename_all = "lowercase")]
enum Line {
    Doc { id: String, text: String },
    Query { doc: String, text: String, spans: Vec<(usize, usize)> },
}

/// A document and what is asked about it.
struct Document {
    id: String,
    text: String,
    questions: Vec<Question>,
}

struct Question {
    text: String,
    /// Bytes of the document.
    spans: Vec<Range<usize>>,
}

/// What one way of cutting gave.
pub struct Cut {
    /// How it was cut.
    pub settings: Settings,
    /// Chunks in all.
    pub chunks: usize,
    /// Means over the questions, for the five nearest chunks.
    pub nearest: Score,
}

/// The default, and others beside it.
pub fn candidates(all: bool) -> Vec<Settings> {
    let of = |max_tokens, min_tokens, overlap_tokens| Settings { max_tokens, min_tokens, overlap_tokens };
    let mut candidates = vec![Settings::default(), of(128, 32, 0), of(64, 16, 0)];
    if all {
        candidates.extend([of(192, 48, 0), of(254, 127, 0), of(254, 64, 32), of(128, 32, 32)]);
    }
    candidates
}

/// Cuts the documents in every way and asks every question.
pub async fn measure(fixtures: &Path, embedder: &dyn Embedder, all: bool) -> Result<Vec<Cut>> {
    let documents = load(fixtures)?;
    let mut questions = Vec::new();
    for document in &documents {
        let texts = document.questions.iter().map(|question| question.text.clone()).collect();
        questions.push(embedder.embed(texts).await?);
    }
    let mut cuts = Vec::new();
    for settings in candidates(all) {
        progress(format_args!("embedding chunks of {} tokens at most", settings.max_tokens));
        let (mut scores, mut count) = (Vec::new(), 0);
        for (document, asked) in documents.iter().zip(&questions) {
            let chunks = chunk(&document.text, &settings, &*embedder.tokens());
            let ranges: Vec<_> = chunks.into_iter().map(|chunk| chunk.range).collect();
            let texts = ranges.iter().filter_map(|range| document.text.get(range.clone()));
            let vectors = embedder.embed(texts.map(str::to_owned).collect()).await?;
            count += ranges.len();
            for (question, vector) in document.questions.iter().zip(asked) {
                scores.push(evaluate(&ranges, &question.spans, &nearest(vector, &vectors)));
            }
        }
        cuts.push(Cut { settings, chunks: count, nearest: average(&scores) });
    }
    Ok(cuts)
}

fn load(fixtures: &Path) -> Result<Vec<Document>> {
    let mut documents: Vec<Document> = Vec::new();
    let mut asked = Vec::new();
    for line in lines(&fixtures.join("chunk_eval.jsonl.zst"))? {
        match line {
            Line::Doc { id, text } => documents.push(Document { id, text, questions: Vec::new() }),
            Line::Query { doc, text, spans } => asked.push((doc, text, spans)),
        }
    }
    for document in &mut documents {
        let mut bytes: Vec<usize> = document.text.char_indices().map(|(at, _)| at).collect();
        bytes.push(document.text.len());
        let at = |character: &usize| bytes.get(*character).copied().unwrap_or(document.text.len());
        for (_, text, spans) in asked.iter().filter(|(doc, _, _)| *doc == document.id) {
            let spans = spans.iter().map(|(start, end)| at(start)..at(end)).collect();
            document.questions.push(Question { text: text.clone(), spans });
        }
    }
    let placed: usize = documents.iter().map(|document| document.questions.len()).sum();
    ensure!(
        placed == asked.len(),
        "{} questions are about documents that are not there",
        asked.len() - placed
    );
    Ok(documents)
}

/// The chunks nearest to a question; all vectors have length 1.
fn nearest(question: &[f32], chunks: &[Vec<f32>]) -> Vec<usize> {
    let similarity = |chunk: &[f32]| chunk.iter().zip(question).map(|(a, b)| a * b).sum::<f32>();
    let mut falling: Vec<(usize, f32)> = chunks.iter().map(|chunk| similarity(chunk)).enumerate().collect();
    falling.sort_by(|a, b| b.1.total_cmp(&a.1));
    falling.into_iter().take(TOP_CHUNKS).map(|(chunk, _)| chunk).collect()
}

fn average(scores: &[Score]) -> Score {
    let of = |part: fn(&Score) -> f64| mean(scores.iter().map(part));
    Score { recall: of(|s| s.recall), precision: of(|s| s.precision), iou: of(|s| s.iou) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_chunks_come_first_and_only_so_many() {
        let chunks: Vec<Vec<f32>> =
            (0..8).map(|n| vec![f32::cos(n as f32 / 8.0), f32::sin(n as f32 / 8.0)]).collect();
        assert_eq!(nearest(&[1.0, 0.0], &chunks), [0, 1, 2, 3, 4]);
        assert_eq!(nearest(&[0.0, 1.0], &chunks[..3]), [2, 1, 0]);
    }

    #[test]
    fn the_default_is_measured_first() {
        assert_eq!(candidates(false).first(), Some(&Settings::default()));
        assert!(candidates(false).len() >= 3);
    }
}
