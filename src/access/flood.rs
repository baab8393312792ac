//! Refusals, so few of them that no flood fills the disk.
//!
//! Of equal refusals the first is a row at once, and those of the minute
//! after it are one more. In a minute no more than [`KINDS`] different ones
//! have rows; the others are counted together. So an attack of any size writes
//! at most two rows per kind and minute, about 60 MB a day.

use std::{collections::HashMap, net::SocketAddr};

use crate::{
    clock::is_within,
    identity::{Entry, Outcome},
    store::NewTrailRow,
};

/// How long equal refusals are counted in one row, in milliseconds.
const WINDOW_MS: i64 = 60_000;
/// Different refusals that have rows within that time.
const KINDS: usize = 100;
/// Longest text of a refusal that is kept, in bytes: others choose them.
const MAX_TEXT: usize = 256;

/// What makes two refusals equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    principal: String,
    act: String,
    subject: String,
    detail: String,
    peer: Option<String>,
}

/// Refusals of the minute.
#[derive(Debug, Default)]
pub(super) struct Flood {
    counted: HashMap<Kind, NewTrailRow>,
    /// Refusals without a row of their own since then, in milliseconds.
    beyond: Option<(u64, i64)>,
}

impl Flood {
    /// Takes a refusal; the row that is to be written of it now, if any.
    pub fn take(&mut self, mut refusal: Entry) -> Option<NewTrailRow> {
        shorten(&mut refusal);
        let kind = Kind {
            principal: refusal.principal.to_string(),
            act: refusal.act.to_string(),
            subject: refusal.subject.clone(),
            detail: refusal.detail.clone(),
            peer: refusal.peer.clone(),
        };
        let at_ms = refusal.at_ms;
        if let Some(row) = self.counted.get_mut(&kind) {
            if row.times == 0 {
                row.entry = refusal;
            }
            row.times += 1;
            row.last_ms = at_ms;
            return None;
        }
        if self.counted.len() >= KINDS {
            self.beyond.get_or_insert((0, at_ms)).0 += 1;
            return None;
        }
        let rest = NewTrailRow { entry: refusal.clone(), times: 0, last_ms: at_ms };
        self.counted.insert(kind, rest);
        Some(refusal.into())
    }

    /// The rows of what has been counted for a minute, or of everything if
    /// this is the `end`; and how many refusals are in none.
    pub fn settle(&mut self, now_ms: i64, end: bool) -> (Vec<NewTrailRow>, u64) {
        let is_over = |since_ms: i64| end || !is_within(since_ms, WINDOW_MS, now_ms);
        let over: Vec<_> =
            self.counted.extract_if(|_, row| is_over(row.entry.at_ms)).map(|(_, row)| row).collect();
        let mut rows: Vec<_> = over.into_iter().filter(|row| row.times > 0).collect();
        let order =
            |row: &NewTrailRow| (row.entry.at_ms, row.entry.detail.clone(), row.entry.principal.clone());
        rows.sort_by_cached_key(order);
        let mut dropped = 0;
        if let Some((count, since_ms)) = self.beyond.take_if(|(_, since_ms)| is_over(*since_ms)) {
            dropped = count;
            let entry = Entry {
                outcome: Outcome::Refused,
                ..Entry::unknown(since_ms, "many", "more kinds of refusals than have rows in a minute")
            };
            rows.push(NewTrailRow { entry, times: count, last_ms: now_ms.max(since_ms) });
        }
        (rows, dropped)
    }
}

/// Cuts what others chose to a length, and the port off the peer's address:
/// each connection has another.
fn shorten(refusal: &mut Entry) {
    let cut = |text: &mut String| text.truncate(text.floor_char_boundary(MAX_TEXT));
    if let Some(address) = refusal.peer.as_ref().and_then(|peer| peer.parse::<SocketAddr>().ok()) {
        refusal.peer = Some(address.ip().to_string());
    }
    cut(&mut refusal.subject);
    cut(&mut refusal.detail);
    refusal.act.to_mut();
    if refusal.act.len() > MAX_TEXT {
        cut(refusal.act.to_mut());
    }
    refusal.peer.as_mut().map(cut);
    refusal.request_id.as_mut().map(cut);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(at_ms: i64, act: &str, peer: &str) -> Entry {
        Entry { peer: Some(peer.into()), ..Entry::unknown(at_ms, act.to_owned(), "unknown_key") }
    }

    #[test]
    fn equal_refusals_of_a_minute_are_two_rows() {
        let mut flood = Flood::default();
        let first = flood.take(refusal(1_000, "search", "10.0.0.1:5000")).unwrap();
        assert_eq!((first.times, first.entry.peer.as_deref()), (1, Some("10.0.0.1")));
        for n in 1..=500 {
            assert_eq!(flood.take(refusal(1_000 + n, "search", &format!("10.0.0.1:{n}"))), None);
        }
        assert_eq!(flood.settle(60_999, false), (vec![], 0));
        let (rows, dropped) = flood.settle(61_001, false);
        assert_eq!(dropped, 0);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].times, rows[0].entry.at_ms, rows[0].last_ms), (500, 1_001, 1_500));
        assert!(flood.take(refusal(61_002, "search", "10.0.0.1:1")).is_some(), "a new minute");
    }

    #[test]
    fn a_single_refusal_is_one_row() {
        let mut flood = Flood::default();
        assert!(flood.take(refusal(0, "search", "10.0.0.1")).is_some());
        assert_eq!(flood.settle(60_000, false), (vec![], 0));
        assert!(flood.counted.is_empty());
    }

    #[test]
    fn however_many_kinds_there_are_the_rows_are_few() {
        let mut flood = Flood::default();
        let mut rows = 0;
        for n in 0..10_000 {
            rows += usize::from(flood.take(refusal(n, &format!("act {n}"), "10.0.0.1")).is_some());
        }
        assert_eq!(rows, KINDS);
        let (rest, dropped) = flood.settle(10_000, true);
        assert_eq!((rest.len(), dropped), (1, 10_000 - KINDS as u64));
        assert_eq!((rest[0].times, &*rest[0].entry.act), (dropped, "many"));
    }

    #[test]
    fn what_others_chose_is_cut() {
        let mut flood = Flood::default();
        let mut long = refusal(0, &"é".repeat(1_000), &"p".repeat(1_000));
        long.subject = "s".repeat(1_000);
        let row = flood.take(long).unwrap();
        let entry = row.entry;
        for length in [entry.act.len(), entry.subject.len(), entry.peer.unwrap().len()] {
            assert_eq!(length, MAX_TEXT);
        }
    }
}
