//! Picking the documents of a period out of what was read.

use std::{
    collections::HashSet,
    io::{self, Write},
    ops::Range,
};

use super::{
    Meta, Period,
    format::{Writer, Written},
};
use crate::{
    artifact::hex,
    pipeline::frames::FrameRun,
    record::{Defaults, RecordRef, Tier},
};

/// A pack that was written.
pub(super) type Made = (Meta, Written);

/// The documents picked so far.
pub(super) struct Picked<W: Write> {
    writer: Writer<W>,
    period: Period,
    defaults: Defaults,
    /// Those of the period, as far as its bounds are known.
    offsets: Range<u64>,
    begun: bool,
    /// Whether the end of the period has gone by.
    pub over: bool,
    /// The offset after the last frame seen.
    next: u64,
    /// Offsets before that and within the period that no frame had.
    lost: u64,
    times: Option<(i64, i64)>,
    tenants: HashSet<String>,
}

impl<W: Write> Picked<W> {
    pub fn new(writer: Writer<W>, period: Period, defaults: Defaults, offsets: Range<u64>) -> Self {
        let begun = period.since_ms.is_none();
        let (next, tenants) = (offsets.start, HashSet::new());
        Self { writer, period, defaults, offsets, begun, over: false, next, lost: 0, times: None, tenants }
    }

    /// Takes the documents of a run but for those at the offsets `left_out`.
    pub fn take(&mut self, run: FrameRun, left_out: &HashSet<u64>) -> io::Result<()> {
        for frame in run.frames {
            if !self.begun && self.period.since_ms.is_none_or(|since| frame.appended_ms >= since) {
                self.begun = true;
                self.offsets.start = frame.offset;
                self.next = frame.offset;
            }
            self.lost += if self.begun { frame.offset.saturating_sub(self.next) } else { 0 };
            self.next = frame.offset + 1;
            if self.begun && self.period.until_ms.is_some_and(|until| frame.appended_ms >= until) {
                self.over = true;
                self.offsets.end = frame.offset;
                return Ok(());
            }
            if self.begun && !left_out.contains(&frame.offset) {
                self.put(&frame.payload, frame.appended_ms)?;
            }
        }
        Ok(())
    }

    /// Offsets of the period that no frame had, once all of it was read.
    pub fn lost(&self) -> u64 {
        let unread = if self.over || !self.begun { 0 } else { self.offsets.end.saturating_sub(self.next) };
        self.lost + unread
    }

    fn put(&mut self, payload: &[u8], appended_ms: i64) -> io::Result<()> {
        // What is no record was erased, or is a dead letter.
        let Ok(record) = RecordRef::parse(payload) else { return Ok(()) };
        if record.tier.unwrap_or(self.defaults.tier) != Tier::Doc {
            return Ok(());
        }
        let tenant = record.tenant.filter(|tenant| !tenant.is_empty()).unwrap_or(&self.defaults.tenant);
        if !self.tenants.contains(tenant) {
            self.tenants.insert(tenant.to_owned());
        }
        let (first, _) = *self.times.get_or_insert((appended_ms, appended_ms));
        self.times = Some((first, appended_ms));
        self.writer.put(payload)
    }

    /// The offsets of the period, and what was written if there were
    /// documents.
    pub fn finish(self, stream: String) -> io::Result<(Range<u64>, Option<Made>)> {
        let lost = self.lost();
        let offsets = if self.begun { self.offsets } else { self.offsets.end..self.offsets.end };
        let Some((first_append_ms, last_append_ms)) = self.times else { return Ok((offsets, None)) };
        let (_, written) = self.writer.finish()?;
        let meta = Meta {
            stream,
            first_offset: offsets.start,
            next_offset: offsets.end,
            first_append_ms,
            last_append_ms,
            documents: written.documents,
            tenants: self.tenants.len() as u64,
            lost,
            plain_bytes: written.plain_bytes,
            content_digest: hex(&written.content_digest),
            continues: self.period.since_ms.is_none(),
            thalweg: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok((offsets, Some((meta, written))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pipeline::deriver::Frame;

    fn frame(offset: u64, appended_ms: i64, record: &serde_json::Value) -> Frame {
        Frame { offset, appended_ms, payload: rmp_serde::to_vec(record).unwrap().into() }
    }

    /// Offsets 10 to 19, appended at 100, 110 and so on; of two tenants in
    /// turn.
    fn documents() -> Vec<Frame> {
        let document = |n: u64| {
            let record = json!({"tier": "doc", "text": format!("text {n}"), "tenant": format!("t{}", n % 2)});
            frame(n, 10 * i64::try_from(n).unwrap(), &record)
        };
        (10..20).map(document).collect()
    }

    fn pick(frames: Vec<Frame>, period: Period, left_out: &[u64]) -> (Range<u64>, Option<Made>) {
        let writer = Writer::new(io::sink(), 3).unwrap();
        let mut picked = Picked::new(writer, period, Defaults::default(), 10..20);
        let left_out = left_out.iter().copied().collect();
        picked.take(FrameRun { frames, lost: 0 }, &left_out).unwrap();
        picked.finish("main".into()).unwrap()
    }

    #[test]
    fn a_period_is_from_the_first_frame_of_its_time_to_the_first_after_it() {
        let offsets = |since_ms, until_ms| pick(documents(), Period { since_ms, until_ms }, &[]).0;
        assert_eq!(offsets(None, None), 10..20);
        assert_eq!(offsets(Some(120), Some(150)), 12..15);
        assert_eq!(offsets(Some(121), Some(151)), 13..16);
        assert_eq!(offsets(None, Some(150)), 10..15);
        assert_eq!(offsets(Some(150), None), 15..20);
        assert_eq!(offsets(Some(191), None), 20..20);
        assert_eq!(offsets(None, Some(0)), 10..10);
        // A clock that was set back belongs to the period that it lies in.
        let mut frames = documents();
        frames[3].appended_ms = 5;
        let back = pick(frames, Period { since_ms: Some(120), until_ms: Some(150) }, &[]);
        assert_eq!((back.0, back.1.unwrap().0.documents), (12..15, 3));
    }

    #[test]
    fn only_documents_that_were_kept_are_packed() {
        let mut frames = documents();
        frames[1] = frame(11, 110, &json!({"tier": "event", "text": "said"}));
        frames[2] = frame(12, 120, &json!({"text": "the default tier is event"}));
        frames[3] = Frame { offset: 13, appended_ms: 130, payload: bytes::Bytes::new() };
        let (offsets, made) = pick(frames, Period::default(), &[10, 14]);
        let (meta, _) = made.unwrap();
        assert_eq!((offsets, meta.documents, meta.tenants), (10..20, 5, 2));
        assert_eq!((meta.first_offset, meta.next_offset), (10, 20));
        assert_eq!((meta.first_append_ms, meta.last_append_ms), (150, 190));
        assert_eq!(pick(Vec::new(), Period::default(), &[]).1, None);
    }

    #[test]
    fn offsets_that_no_frame_has_are_counted_within_the_period_only() {
        let lost = |since_ms, until_ms| {
            let mut frames = documents();
            frames.drain(2..4);
            frames.pop();
            pick(frames, Period { since_ms, until_ms }, &[]).1.unwrap().0.lost
        };
        assert_eq!(lost(None, None), 3, "two within, one at the end");
        assert_eq!(lost(None, Some(180)), 2);
        assert_eq!(lost(Some(140), Some(180)), 0);
        assert_eq!(lost(Some(140), None), 1);
    }

    #[test]
    fn the_same_documents_are_the_same_bytes_whatever_lies_between() {
        let (_, alone) = pick(documents(), Period::default(), &[]);
        let mut frames = documents();
        frames.insert(5, frame(99, 1, &json!({"text": "an event"})));
        let (_, among) = pick(frames, Period::default(), &[]);
        assert_eq!(alone.unwrap().1, among.unwrap().1);
    }
}
