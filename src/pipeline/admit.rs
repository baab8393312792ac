//! Admission: each frame is proved once, before it enters the log.
//!
//! Where frames may be of one tenant only, that is proved here as well, for
//! every way in: a frame that names another tenant is refused, and one that
//! names none is given the tenant's name, because the log is all that is read
//! afterwards. Nothing else is ever changed in a frame.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::shown::is_hello;
use crate::{
    frame::{PREFIX_BYTES, RUN_BYTES},
    msgpack::{Scalar, put_amended_map},
    record::{Fault, RecordRef},
};

/// A part of a run of frames, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Frames that are records, as they came or with their tenant.
    Good {
        /// The frames, end to end.
        frames: Bytes,
        /// How many.
        count: u32,
        /// Bytes that they had when they came.
        bytes: usize,
    },
    /// One frame that is not.
    Bad {
        /// Which frame of the run, from 0.
        index: u32,
        /// Where it begins, in bytes from the start of the run.
        at: usize,
        /// What is wrong with it.
        reason: Reason,
        /// Its payload.
        payload: Bytes,
    },
}

/// Why a frame may not enter the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is no record.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It is a record of another tenant.
    #[error(
        "the record names another tenant than its sender speaks for; leave `tenant` out, or name the own one"
    )]
    TenantForbidden,
    /// It says who sends, where that is not asked.
    #[error("a hello is the first frame of a connection, and none of a request; what it shows is not kept")]
    Hello,
    /// It has no room for the name of its tenant.
    #[error("with the tenant's name the frame has {bytes} bytes, over the cap of {most}; send a shorter one")]
    NoRoomForTenant {
        /// What it would have.
        bytes: usize,
        /// What it may have.
        most: usize,
    },
}

impl Reason {
    /// The stable code of the wire protocol (`docs/protocol.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.code(),
            Self::TenantForbidden => "tenant_forbidden",
            Self::Hello => "bad_hello",
            Self::NoRoomForTenant { .. } => "oversized",
        }
    }
}

/// Splits a run of whole frames into the stretches that may enter the log and
/// the frames that may not. Copies nothing, unless frames are given a name:
/// those of `tenant`, if one is said, that name none, and they have up to
/// `max_frame` bytes with it. As much is made at a time as a run holds, so a
/// long name in many short frames takes no more memory than a run.
pub fn admit<'a>(run: &Bytes, tenant: Option<&'a str>, max_frame: usize) -> Admission<'a> {
    Admission { rest: run.clone(), at: 0, index: 0, tenant, max_frame, bad: None, amended: BytesMut::new() }
}

/// What [`admit`] found; goes on as it is asked.
#[derive(Debug)]
pub struct Admission<'a> {
    rest: Bytes,
    /// Where `rest` begins in the run.
    at: usize,
    /// Number of its first frame.
    index: u32,
    tenant: Option<&'a str>,
    max_frame: usize,
    /// Comes after the stretch before it.
    bad: Option<Piece>,
    /// The frame that was judged last, with its tenant's name.
    amended: BytesMut,
}

/// What is to be done with one frame.
enum Verdict {
    AsItCame,
    /// As [`Admission::amended`] has it.
    Amended,
    Refused(Reason),
}

/// Frames that may enter the log, one after the other.
#[derive(Default)]
struct Stretch {
    count: u32,
    /// Bytes that they had when they came.
    bytes: usize,
    /// They themselves, where one of them was given a name.
    amended: Option<BytesMut>,
}

impl Iterator for Admission<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if let Some(bad) = self.bad.take() {
            return Some(bad);
        }
        let from = self.rest.clone();
        let mut stretch = Stretch::default();
        while let Some((range, payload)) = frame_at(&from, stretch.bytes) {
            let amended = match self.judge(payload) {
                Verdict::AsItCame => None,
                Verdict::Amended => Some(&*self.amended),
                Verdict::Refused(reason) => {
                    let (index, at) = (self.index + stretch.count, self.at + stretch.bytes);
                    self.bad = Some(Piece::Bad { index, at, reason, payload: from.slice(range) });
                    break;
                }
            };
            if stretch.is_full(payload, amended) {
                break;
            }
            stretch.add(&from, payload, amended);
        }
        self.pass(stretch.bytes, stretch.count);
        if let Some(Piece::Bad { payload, .. }) = &self.bad {
            self.pass(PREFIX_BYTES + payload.len(), 1);
        }
        let Stretch { count, bytes, amended } = stretch;
        if count == 0 {
            return self.bad.take();
        }
        let frames = amended.map_or_else(|| from.slice(..bytes), BytesMut::freeze);
        Some(Piece::Good { frames, count, bytes })
    }
}

/// Where the payload of the frame is that begins at byte `at`, and its bytes.
fn frame_at(run: &Bytes, at: usize) -> Option<(Range<usize>, &[u8])> {
    let (length, payload) = run.get(at..)?.split_first_chunk::<PREFIX_BYTES>()?;
    let length = (u32::from_be_bytes(*length) as usize).min(payload.len());
    let from = at + PREFIX_BYTES;
    Some((from..from + length, payload.get(..length)?))
}

impl Admission<'_> {
    fn pass(&mut self, bytes: usize, frames: u32) {
        self.rest.advance(bytes.min(self.rest.len()));
        self.at += bytes;
        self.index += frames;
    }

    fn judge(&mut self, payload: &[u8]) -> Verdict {
        let record = match RecordRef::parse(payload) {
            Ok(record) => record,
            Err(Fault::MissingText) if is_hello(payload) => return Verdict::Refused(Reason::Hello),
            Err(fault) => return Verdict::Refused(fault.into()),
        };
        match (self.tenant, record.tenant.filter(|name| !name.is_empty())) {
            (None, _) => Verdict::AsItCame,
            (Some(own), Some(name)) if own == name => Verdict::AsItCame,
            (Some(_), Some(_)) => Verdict::Refused(Reason::TenantForbidden),
            (Some(own), None) => self.name(payload, own),
        }
    }

    fn name(&mut self, payload: &[u8], tenant: &str) -> Verdict {
        let amended = &mut self.amended;
        amended.clear();
        // A record is always a map with strings for keys.
        if put_amended_map(amended, payload, ("tenant", Scalar::Str(tenant))).is_none() {
            return Verdict::Refused(Reason::TenantForbidden);
        }
        match amended.len() > self.max_frame {
            true => Verdict::Refused(Reason::NoRoomForTenant { bytes: amended.len(), most: self.max_frame }),
            false => Verdict::Amended,
        }
    }
}

impl Stretch {
    /// Whether the next frame, which came with `payload` and is to be `amended`,
    /// is to begin another stretch. One in which nothing is changed is as long
    /// as it came.
    fn is_full(&self, payload: &[u8], amended: Option<&[u8]>) -> bool {
        let made = match (&self.amended, amended) {
            (None, None) => return false,
            (None, Some(_)) => self.bytes,
            (Some(made), _) => made.len(),
        };
        self.count > 0 && made + PREFIX_BYTES + amended.unwrap_or(payload).len() > RUN_BYTES
    }

    /// Adds a frame that came with `payload`; `from` begins with the stretch
    /// as it came.
    fn add(&mut self, from: &Bytes, payload: &[u8], amended: Option<&[u8]>) {
        if amended.is_some() && self.amended.is_none() {
            let mut frames = BytesMut::with_capacity((from.len() + from.len() / 8 + 64).min(RUN_BYTES));
            frames.put_slice(from.get(..self.bytes).unwrap_or_default());
            self.amended = Some(frames);
        }
        if let Some(frames) = &mut self.amended {
            let payload = amended.unwrap_or(payload);
            frames.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
            frames.put_slice(payload);
        }
        self.count += 1;
        self.bytes += PREFIX_BYTES + payload.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Payloads, put_frame};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const MAX: usize = 1 << 20;

    fn packed(record: &Value) -> Vec<u8> {
        rmp_serde::to_vec_named(record).unwrap()
    }

    fn run_of<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
        let mut run = BytesMut::new();
        payloads.into_iter().for_each(|payload| put_frame(&mut run, payload));
        run.freeze()
    }

    fn tenants(frames: &Bytes) -> Vec<String> {
        let tenant =
            |payload: Bytes| RecordRef::parse(&payload).unwrap().tenant.unwrap_or_default().to_owned();
        Payloads(frames.clone()).map(tenant).collect()
    }

    #[test]
    fn a_bad_frame_costs_only_itself() {
        let good = packed(&json!({"text": "x"}));
        let run = run_of([&good[..], &good, &[0xc1], &[], &good]);
        let size = good.len() + 4;
        let pieces: Vec<_> = admit(&run, None, MAX).collect();
        assert_eq!(pieces[0], Piece::Good { frames: run.slice(..2 * size), count: 2, bytes: 2 * size });
        assert!(matches!(&pieces[1], Piece::Bad { index: 2, at, reason, .. }
            if *at == 2 * size && reason.code() == "not_messagepack"));
        assert!(matches!(&pieces[2], Piece::Bad { index: 3, reason: Reason::Fault(Fault::Empty), .. }));
        let last = Piece::Good { frames: run.slice(2 * size + 9..), count: 1, bytes: size };
        assert_eq!(pieces[3], last);
        assert_eq!(pieces.len(), 4);
    }

    #[test]
    fn frames_that_name_no_tenant_are_their_senders() {
        let (own, none) =
            (packed(&json!({"text": "x", "tenant": "a"})), packed(&json!({"text": "y", "n": [1]})));
        let (nil, empty) =
            (packed(&json!({"tenant": null, "text": "z"})), packed(&json!({"text": "z", "tenant": ""})));
        let run = run_of([&own[..], &none, &nil, &empty, &own]);
        let pieces: Vec<_> = admit(&run, Some("a"), MAX).collect();
        let [Piece::Good { frames, count: 5, bytes }] = &pieces[..] else { panic!("{pieces:?}") };
        assert_eq!(*bytes, run.len());
        assert_eq!(tenants(frames), ["a"; 5]);
        let amended: Vec<_> = Payloads(frames.clone()).collect();
        let second = RecordRef::parse(&amended[1]).unwrap();
        assert_eq!((second.text, Value::Object(second.attrs())), ("y", json!({"n": [1]})));
        assert_eq!(
            (&amended[0][..], &amended[4][..]),
            (&own[..], &own[..]),
            "what is right is left as it is"
        );
    }

    #[test]
    fn a_frame_of_another_tenant_is_refused_however_it_is_named() {
        let mine = packed(&json!({"text": "x", "tenant": "a"}));
        for other in ["b", "A", "a ", "a\0", "аcme", "*"] {
            let theirs = packed(&json!({"tenant": other, "text": "x"}));
            let run = run_of([&mine[..], &theirs, &mine]);
            let pieces: Vec<_> = admit(&run, Some("a"), MAX).collect();
            assert_eq!(pieces.len(), 3, "{other}");
            assert!(
                matches!(&pieces[1], Piece::Bad { index: 1, at, reason: Reason::TenantForbidden, payload }
                if *at == mine.len() + 4 && *payload == theirs),
                "{other}"
            );
            assert!(
                matches!(&pieces[2], Piece::Good { frames, count: 1, .. } if *frames == run.slice(run.len() - mine.len() - 4..))
            );
        }
        let twice = [&b"\x83\xa6tenant\xa1a\xa6tenant\xa1b\xa4text\xa1x"[..]];
        let refused: Vec<_> = admit(&run_of(twice), Some("a"), MAX).collect();
        assert!(matches!(&refused[..], [Piece::Bad { reason, .. }] if reason.code() == "duplicate_field"));
    }

    #[test]
    fn a_frame_that_has_no_room_for_its_tenant_is_refused() {
        let long = packed(&json!({"text": "x".repeat(100)}));
        let of = |max| admit(&run_of([&long[..]]), Some("abc"), max).collect::<Vec<_>>();
        let with = long.len() + 7 + 4;
        assert!(matches!(&of(with)[..], [Piece::Good { .. }]));
        assert!(matches!(&of(with - 1)[..], [Piece::Bad { reason, .. }] if reason.code() == "oversized"));
    }

    #[test]
    fn a_long_name_in_short_frames_makes_no_long_piece() {
        let (frame, tenant) = (packed(&json!({"text": "x"})), "t".repeat(1_000));
        let run = run_of(std::iter::repeat_n(&frame[..], 20_000));
        let (mut frames, mut bytes_before) = (0, 0);
        for piece in admit(&run, Some(&tenant), MAX) {
            let Piece::Good { frames: made, count, bytes } = piece else { panic!("refused") };
            assert!(made.len() <= RUN_BYTES, "{}", made.len());
            assert_eq!(tenants(&made), vec![tenant.clone(); count as usize]);
            (frames, bytes_before) = (frames + count, bytes_before + bytes);
        }
        assert_eq!((frames, bytes_before), (20_000, run.len()));
    }

    proptest! {
        #[test]
        fn whatever_comes_every_byte_and_frame_is_accounted_for(
            payloads in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                Just(packed(&json!({"text": "x"}))),
                Just(packed(&json!({"text": "x", "tenant": "a"}))),
                Just(packed(&json!({"text": "x", "tenant": "b"}))),
            ], 0..30),
            tenant in prop::option::of(Just("a")),
        ) {
            let run = run_of(payloads.iter().map(Vec::as_slice));
            let (mut at, mut index) = (0, 0);
            for piece in admit(&run, tenant, MAX) {
                match piece {
                    Piece::Good { frames, count, bytes } => {
                        let of_a = tenants(&frames);
                        prop_assert_eq!(of_a.len(), count as usize);
                        prop_assert!(tenant.is_none() || of_a.iter().all(|name| name == "a"));
                        (at, index) = (at + bytes, index + count);
                    }
                    Piece::Bad { index: bad, at: place, payload, .. } => {
                        prop_assert_eq!((bad, place), (index, at));
                        prop_assert_eq!(&payload, &payloads[bad as usize]);
                        (at, index) = (at + 4 + payload.len(), index + 1);
                    }
                }
            }
            prop_assert_eq!((at, index as usize), (run.len(), payloads.len()));
        }
    }
}
