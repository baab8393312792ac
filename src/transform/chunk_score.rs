//! How well chunks serve questions whose answers are known as spans of text:
//! the token-wise measures of Smith and Troynikov, "Evaluating Chunking
//! Strategies for Retrieval" (Chroma technical report, 2024).
//!
//! Lengths are counted in whatever unit the ranges use (bytes here; the report
//! counts tokens): all measures are ratios. Spans of one question must not
//! overlap each other.

use std::ops::Range;

/// What retrieving some chunks gave for one question; each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Share of the answer's text that lies in a retrieved chunk.
    pub recall: f64,
    /// Share of the retrieved text that is answer. Text retrieved twice,
    /// through overlapping chunks, counts twice as retrieved and once as
    /// answer.
    pub precision: f64,
    /// Answer retrieved over answer and retrieved text together.
    pub iou: f64,
}

/// Scores the chunks with the indices `retrieved` against the answer's
/// `spans`. Indices past the end retrieve nothing.
pub fn evaluate(chunks: &[Range<usize>], spans: &[Range<usize>], retrieved: &[usize]) -> Score {
    let got: Vec<_> = retrieved.iter().filter_map(|i| chunks.get(*i)).cloned().collect();
    let hit = answered(&got, spans);
    let answer: usize = spans.iter().map(ExactSizeIterator::len).sum();
    let text: usize = got.iter().map(ExactSizeIterator::len).sum();
    Score { recall: ratio(hit, answer), precision: ratio(hit, text), iou: ratio(hit, text + answer - hit) }
}

/// Precision if exactly the chunks that touch the answer were retrieved
/// (`Precision Ω` of the report): what the chunking alone allows.
pub fn best_precision(chunks: &[Range<usize>], spans: &[Range<usize>]) -> f64 {
    let touching: Vec<usize> = chunks
        .iter()
        .enumerate()
        .filter(|(_, chunk)| spans.iter().any(|span| span.start < chunk.end && chunk.start < span.end))
        .map(|(i, _)| i)
        .collect();
    evaluate(chunks, spans, &touching).precision
}

/// Length of the part of `spans` that lies in any of `chunks`.
fn answered(chunks: &[Range<usize>], spans: &[Range<usize>]) -> usize {
    spans
        .iter()
        .map(|span| {
            let parts = chunks
                .iter()
                .map(|chunk| chunk.start.max(span.start)..chunk.end.min(span.end))
                .filter(|part| part.start < part.end);
            union_len(parts.collect())
        })
        .sum()
}

fn union_len(mut ranges: Vec<Range<usize>>) -> usize {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut covered_to = 0;
    ranges
        .into_iter()
        .map(|range| {
            let fresh = range.end.saturating_sub(range.start.max(covered_to));
            covered_to = covered_to.max(range.end);
            fresh
        })
        .sum()
}

#[expect(clippy::cast_precision_loss, reason = "lengths of texts stay far below 2^52")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_half_in_the_answer_scores_half() {
        let score = evaluate(&[0..10, 10..20], std::slice::from_ref(&(5..15)), &[0]);
        assert_eq!(score, Score { recall: 0.5, precision: 0.5, iou: 5.0 / 15.0 });
    }

    #[test]
    fn overlapping_chunks_count_once_as_answer_and_twice_as_text() {
        let score = evaluate(&[0..10, 5..15], std::slice::from_ref(&(5..10)), &[0, 1]);
        assert_eq!(score, Score { recall: 1.0, precision: 0.25, iou: 0.25 });
    }

    #[test]
    fn nothing_retrieved_scores_nothing() {
        assert_eq!(evaluate(std::slice::from_ref(&(0..10)), &[0..10, 12..14], &[7]), Score::default());
    }

    #[test]
    fn best_precision_takes_the_chunks_that_touch_the_answer() {
        let chunks = [0..10, 10..20, 20..30];
        assert!((best_precision(&chunks, &[8..10, 12..15]) - 0.25).abs() < 1e-12);
    }
}
