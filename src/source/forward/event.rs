//! Events as frames: `docs/forward.md` says what becomes of each field.
//!
//! A record is walked once to find its extent and the few fields that matter,
//! then copied once, in long stretches, straight into the run of frames that
//! goes to the log.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    time::Stamp,
    value::{Head, Walk, put_bin, put_repaired, put_str, put_str_head},
};
use crate::{
    frame::{OVERSIZED_HEAD_BYTES, PREFIX_BYTES, RUN_BYTES},
    record::{RecordRef, Tier},
};

/// Fields of our records: another thing of that name gets a prefix.
const OURS: [&[u8]; 7] = [b"text", b"ts", b"source", b"tenant", b"session", b"tier", b"id"];
/// What a field is called that stands in the way of one of ours.
const PREFIX: &[u8] = b"record_";
/// Where the bytes of a text go that is not UTF-8.
const TEXT_BYTES: &[u8] = b"text_bytes";
/// Where the metadata of an event goes.
const METADATA: &[u8] = b"event_metadata";
/// Most fields of a record that are not just copied. Each costs memory, and
/// only a hostile record has more: the same names again and again.
const MAX_FIELDS: usize = 64;

/// How events become frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Fields that may hold the text, the preferred first.
    pub(super) text_keys: Vec<String>,
    /// Most bytes of a frame's payload.
    pub(super) max_frame: usize,
}

impl Mapping {
    fn rank(&self, key: &[u8]) -> Option<usize> {
        self.text_keys.iter().position(|text_key| text_key.as_bytes() == key)
    }
}

/// A field that is not just copied.
#[derive(Clone, Copy, Debug)]
struct Field {
    key_at: usize,
    value_at: usize,
    end: usize,
    /// Place among the text keys.
    rank: Option<usize>,
    ours: Option<&'static [u8]>,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Put {
    /// It is the last frame of the run, or was not meant to be stored.
    Done,
    /// It became this frame, which is no record; admission says why.
    Unfit(Bytes),
    /// It is longer than a frame may be; so it begins.
    Oversized { bytes: usize, head: Bytes },
    /// It is no event.
    NoEvent,
    /// From here on there are no whole entries.
    Unreadable,
}

/// Frames that are being made.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) frames: BytesMut,
    pub(super) count: u32,
    fields: Vec<Field>,
}

impl Run {
    /// The frames made so far, and how many they are.
    pub(super) fn take(&mut self) -> (Bytes, u32) {
        (self.frames.split().freeze(), std::mem::take(&mut self.count))
    }

    /// Makes room for the frames of `entries` bytes, as far as the run goes on,
    /// so that it need not be copied as it grows.
    pub(super) fn make_room(&mut self, entries: usize) {
        let frames = entries + entries / 4 + 256;
        self.frames.reserve(frames.min((RUN_BYTES + RUN_BYTES / 16).saturating_sub(self.frames.len())));
    }

    /// Makes a frame of the entry at `walk`, which is moved past it unless it
    /// is [`Put::Unreadable`].
    pub(super) fn put_entry(&mut self, mapping: &Mapping, tag: &[u8], walk: &mut Walk<'_>) -> Put {
        let start = *walk;
        let event = match walk.head() {
            Some(Head::Array(2)) => self.put_event(mapping, tag, walk),
            Some(Head::Array(_)) => None,
            // Not entries at all, such as bytes compressed in a way that is
            // not known: a refusal for each value would be one for each byte.
            _ => {
                *walk = start;
                return Put::Unreadable;
            }
        };
        event.unwrap_or_else(|| {
            *walk = start;
            walk.value().map_or(Put::Unreadable, |_| Put::NoEvent)
        })
    }

    /// Makes a frame of the time and the record at `walk`. `None` if they are
    /// something else.
    pub(super) fn put_event(&mut self, mapping: &Mapping, tag: &[u8], walk: &mut Walk<'_>) -> Option<Put> {
        let stamp = Stamp::read(walk)?;
        if stamp.is_group_marker() {
            walk.value()?;
            return Some(Put::Done);
        }
        let record_at = walk.position();
        let Some(Head::Map(pairs)) = walk.head() else { return None };
        let body_at = walk.position();
        let sound = self.survey(mapping, walk, pairs)?;
        let record = walk.since(record_at);
        let oversized = |bytes| Put::Oversized {
            bytes,
            head: Bytes::copy_from_slice(record.get(..OVERSIZED_HEAD_BYTES).unwrap_or(record)),
        };
        if record.len() > mapping.max_frame {
            return Some(oversized(record.len()));
        }
        let start = self.frames.len();
        let text = self.text(walk);
        let body = Body { walk: *walk, from: body_at, utf8: sound.utf8 };
        self.put_frame(tag, &stamp, pairs, &body, text.as_ref());
        let payload = self.frames.len() - start - PREFIX_BYTES;
        if payload > mapping.max_frame {
            self.frames.truncate(start);
            return Some(oversized(payload));
        }
        let length = u32::try_from(payload).unwrap_or(u32::MAX);
        if let Some(prefix) = self.frames.get_mut(start..start + PREFIX_BYTES) {
            prefix.copy_from_slice(&length.to_be_bytes());
        }
        // Admission proves it in any case. What may fail there is looked at
        // before, so that it is told apart with its own place.
        let doubtful = text.is_none() || !sound.flat || !stamp.is_usual();
        if doubtful && self.frames.get(start + PREFIX_BYTES..).is_none_or(|p| RecordRef::parse(p).is_err()) {
            return Some(Put::Unfit(self.frames.split_off(start).freeze()));
        }
        self.count += 1;
        Some(Put::Done)
    }

    /// Walks over the pairs of a record and notes the fields that matter.
    fn survey(&mut self, mapping: &Mapping, walk: &mut Walk<'_>, pairs: u32) -> Option<Soundness> {
        self.fields.clear();
        let mut sound = Soundness { utf8: true, flat: true };
        for _ in 0..pairs {
            let key_at = walk.position();
            let (key, key_utf8) = walk.proved()?;
            let mut key = Walk::new(key);
            let key = match key.head()? {
                head @ Head::Str(_) => key.content(head)?,
                _ => {
                    sound.flat = false;
                    &[]
                }
            };
            let value_at = walk.position();
            let (value, value_utf8) = walk.proved()?;
            sound.utf8 &= key_utf8 & value_utf8;
            sound.flat &= !matches!(Walk::new(value).head(), Some(Head::Array(_) | Head::Map(_)));
            let rank = mapping.rank(key);
            let ours = OURS.into_iter().find(|ours| *ours == key);
            if rank.is_some() || ours.is_some() {
                if self.fields.len() == MAX_FIELDS {
                    return None;
                }
                self.fields.push(Field { key_at, value_at, end: walk.position(), rank, ours });
            }
        }
        Some(sound)
    }

    /// The text of the record surveyed: that of the preferred field which has
    /// one.
    fn text<'a>(&self, walk: &Walk<'a>) -> Option<Text<'a>> {
        let ranked = self.fields.iter().enumerate().filter_map(|(index, field)| {
            let content = textual(walk.between(field.value_at, field.end))?;
            Some((field.rank?, index, content))
        });
        let (_, field, content) = ranked.min_by_key(|(rank, index, _)| (*rank, *index))?;
        Some(Text { field, content, text: String::from_utf8_lossy(content) })
    }

    fn put_frame(
        &mut self,
        tag: &[u8],
        stamp: &Stamp<'_>,
        pairs: u32,
        body: &Body<'_>,
        text: Option<&Text<'_>>,
    ) {
        let tag = String::from_utf8_lossy(tag);
        let raw_text = text.filter(|text| matches!(text.text, Cow::Owned(_)));
        let added = [stamp.is_known(), !tag.is_empty(), stamp.metadata().is_some(), raw_text.is_some()];
        let added = added.into_iter().map(u32::from).sum::<u32>();
        let out = &mut self.frames;
        out.put_u32(0);
        let _ = rmp::encode::write_map_len(&mut out.writer(), pairs.saturating_add(added));
        if stamp.is_known() {
            put_str(out, b"ts");
            stamp.put(out);
        }
        if !tag.is_empty() {
            put_str(out, b"source");
            put_str(out, tag.as_bytes());
        }
        if let Some(metadata) = stamp.metadata() {
            put_str(out, METADATA);
            put_repaired(out, &mut Walk::new(metadata));
        }
        if let Some(text) = raw_text {
            put_str(out, TEXT_BYTES);
            put_bin(out, text.content);
        }
        body.put(out, &self.fields, text);
    }
}

/// What was seen on the walk over a record.
#[derive(Clone, Copy, Debug)]
struct Soundness {
    /// All strings are UTF-8.
    utf8: bool,
    /// All keys are strings and no value is a container.
    flat: bool,
}

/// A record's text.
#[derive(Debug)]
struct Text<'a> {
    /// Which of the noted fields holds it.
    field: usize,
    /// Its bytes, without the line break at the end.
    content: &'a [u8],
    /// Owned where the bytes are not UTF-8.
    text: Cow<'a, str>,
}

/// The text in a value, without the line break at its end; none if it is
/// empty. Binary counts if it is UTF-8, a string in any case.
fn textual(value: &[u8]) -> Option<&[u8]> {
    let mut walk = Walk::new(value);
    let head = walk.head()?;
    let content = walk.content(head)?;
    let fits = match head {
        Head::Str(_) => true,
        Head::Bin(_) => std::str::from_utf8(content).is_ok(),
        _ => false,
    };
    let line = content.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    Some(line.unwrap_or(content)).filter(|text| fits && !text.is_empty())
}

/// The pairs of a record.
struct Body<'a> {
    /// At their end.
    walk: Walk<'a>,
    from: usize,
    utf8: bool,
}

impl Body<'_> {
    fn put(&self, out: &mut BytesMut, fields: &[Field], text: Option<&Text<'_>>) {
        let mut copied = self.from;
        let mut taken: Vec<&[u8]> = Vec::new();
        for (index, field) in fields.iter().enumerate() {
            if let Some(text) = text.filter(|text| text.field == index) {
                self.put_pairs(out, copied, field.key_at);
                put_str(out, b"text");
                put_str(out, text.text.as_bytes());
            } else if let Some(ours) = field.ours {
                let value = self.walk.between(field.value_at, field.end);
                if !taken.contains(&ours) && keeps_its_name(ours, value) {
                    taken.push(ours);
                    continue;
                }
                self.put_pairs(out, copied, field.key_at);
                put_str_head(out, PREFIX.len() + ours.len());
                out.put_slice(PREFIX);
                out.put_slice(ours);
                put_repaired(out, &mut Walk::new(value));
            } else {
                continue;
            }
            copied = field.end;
        }
        self.put_pairs(out, copied, self.walk.position());
    }

    /// Copies whole pairs as they are, or mends their strings if some string
    /// of the record is not UTF-8.
    fn put_pairs(&self, out: &mut BytesMut, from: usize, to: usize) {
        let pairs = self.walk.between(from, to);
        if self.utf8 {
            return out.put_slice(pairs);
        }
        let mut walk = Walk::new(pairs);
        while walk.position() < pairs.len() {
            let mut key = walk;
            match key.head() {
                Some(head @ Head::Str(_)) => {
                    let name = key.content(head).unwrap_or_default();
                    put_str(out, String::from_utf8_lossy(name).as_bytes());
                    walk = key;
                }
                _ => drop(put_repaired(out, &mut walk)),
            }
            if put_repaired(out, &mut walk).is_none() {
                return;
            }
        }
    }
}

/// Whether a field of the record is the one of ours that it is called.
/// `text`, `ts` and `source` come from elsewhere.
fn keeps_its_name(ours: &[u8], value: &[u8]) -> bool {
    let mut walk = Walk::new(value);
    let Some(head) = walk.head() else { return false };
    let string = || walk.clone().content(head).and_then(|content| std::str::from_utf8(content).ok());
    match (ours, head) {
        (b"tenant" | b"session" | b"id", Head::Str(_)) => string().is_some(),
        (b"id", Head::Uint(_) | Head::Int(_)) => true,
        (b"tier", Head::Str(_)) => string().and_then(Tier::named).is_some(),
        _ => false,
    }
}
