//! Times of events: whole seconds, `EventTime`, and `EventTime` with metadata.

use bytes::{BufMut, BytesMut};

use super::value::{Head, Walk, put_int};

/// Extension type of `EventTime`: seconds and nanoseconds, 32 bits each.
const EVENT_TIME: i8 = 0;
/// Fluent Bit puts markers around the records of a group, with the metadata
/// they share: entries at these times, -1 and -2.
const GROUP_MARKERS: [i64; 2] = [0xffff_ffff, 0xffff_fffe];

/// When an event happened, as it stands in an entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stamp<'a> {
    seconds: i64,
    nanos: u32,
    /// A map, where the entry has one.
    metadata: Option<&'a [u8]>,
}

impl<'a> Stamp<'a> {
    /// Reads a time; `None` if it is something else.
    pub(super) fn read(walk: &mut Walk<'a>) -> Option<Self> {
        let before = *walk;
        let Some(Head::Array(elements @ 1..=2)) = walk.head() else {
            *walk = before;
            let (seconds, nanos) = time(walk)?;
            return Some(Self { seconds, nanos, metadata: None });
        };
        let (seconds, nanos) = time(walk)?;
        let metadata = if elements == 2 { Some(walk.value()?) } else { None };
        let map = |value: &&[u8]| matches!(Walk::new(value).head(), Some(Head::Map(_)));
        if metadata.is_some_and(|value| !map(&value)) {
            return None;
        }
        Some(Self { seconds, nanos, metadata: Some(metadata.unwrap_or(b"\x80")) })
    }

    /// Whether there is a time: as in Fluentd, 0 stands for none.
    pub(super) fn is_known(&self) -> bool {
        self.seconds != 0 || self.nanos != 0
    }

    /// Whether the time is surely one that a record may have.
    pub(super) fn is_usual(&self) -> bool {
        (0..1 << 34).contains(&self.seconds) && self.nanos < 1_000_000_000
    }

    /// Whether the entry only marks the beginning or the end of a group.
    pub(super) fn is_group_marker(&self) -> bool {
        self.metadata.is_some() && GROUP_MARKERS.contains(&self.seconds)
    }

    /// The metadata, unless it is empty.
    pub(super) fn metadata(&self) -> Option<&'a [u8]> {
        self.metadata.filter(|map| Walk::new(map).head() != Some(Head::Map(0)))
    }

    /// Appends the time as a `ts`: in milliseconds if it is a whole number of
    /// them, else as a MessagePack timestamp.
    pub(super) fn put(&self, out: &mut BytesMut) {
        let Self { seconds, nanos, .. } = *self;
        let ms = seconds.checked_mul(1_000).and_then(|ms| ms.checked_add(i64::from(nanos) / 1_000_000));
        match (ms, u64::try_from(seconds)) {
            (Some(ms), _) if nanos.is_multiple_of(1_000_000) && nanos < 1_000_000_000 => put_int(out, ms),
            (_, Ok(seconds)) if seconds < 1 << 34 && nanos < 1 << 30 => {
                out.put_slice(&[0xd7, 0xff]);
                out.put_u64(u64::from(nanos) << 34 | seconds);
            }
            _ => {
                out.put_slice(&[0xc7, 12, 0xff]);
                out.put_u32(nanos);
                out.put_i64(seconds);
            }
        }
    }
}

/// Seconds since the Unix epoch and nanoseconds.
fn time(walk: &mut Walk<'_>) -> Option<(i64, u32)> {
    let head = walk.head()?;
    let content = walk.content(head)?;
    Some(match head {
        Head::Nil => (0, 0),
        Head::Uint(seconds) => (i64::try_from(seconds).unwrap_or(i64::MAX), 0),
        Head::Int(seconds) => (seconds, 0),
        Head::Float(seconds) => float(seconds)?,
        Head::Ext(EVENT_TIME, 8) => {
            let (seconds, nanos) = content.split_first_chunk::<4>()?;
            (u32::from_be_bytes(*seconds).into(), u32::from_be_bytes(nanos.try_into().ok()?))
        }
        _ => return None,
    })
}

/// Seconds with a fraction, which a few clients send.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "in range; a fraction of a second"
)]
fn float(time: f64) -> Option<(i64, u32)> {
    let seconds = time.floor();
    let nanos = ((time - seconds) * 1e9) as u32;
    (seconds.abs() < 1e15).then_some((seconds as i64, nanos.min(999_999_999)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordRef;

    /// The milliseconds that a record has at this time.
    fn ms(time: &[u8]) -> Result<Option<i64>, String> {
        let stamp = Stamp::read(&mut Walk::new(time)).ok_or("no time")?;
        let mut payload = BytesMut::from(&b"\x82\xa4text\xa1x\xa2ts"[..]);
        stamp.put(&mut payload);
        let record = RecordRef::parse(&payload).map_err(|fault| fault.code().to_owned())?;
        Ok(record.ts_ms.filter(|_| stamp.is_known()))
    }

    #[test]
    fn every_form_of_a_time_is_read() {
        let event_time = |seconds: u32, nanos: u32| [seconds.to_be_bytes(), nanos.to_be_bytes()].concat();
        let now = 1_714_979_289u32;
        let cases: [(Vec<u8>, i64); 9] = [
            ([&[0xce][..], &now.to_be_bytes()].concat(), 1_714_979_289_000),
            (vec![0xff], -1_000),
            ([&[0xd7, 0][..], &event_time(now, 0)].concat(), 1_714_979_289_000),
            ([&[0xd7, 0][..], &event_time(now, 123_000_000)].concat(), 1_714_979_289_123),
            ([&[0xc7, 8, 0][..], &event_time(now, 123_456_789)].concat(), 1_714_979_289_123),
            ([&[0xd7, 0][..], &event_time(u32::MAX, 999_999_999)].concat(), 4_294_967_295_999),
            ([&[0x92, 0xd7, 0][..], &event_time(now, 0), &[0x80]].concat(), 1_714_979_289_000),
            ([&[0x91, 0xd7, 0][..], &event_time(now, 0)].concat(), 1_714_979_289_000),
            ([&[0xcb][..], &1_714_979_289.25f64.to_be_bytes()].concat(), 1_714_979_289_250),
        ];
        for (time, expected) in cases {
            assert_eq!(ms(&time), Ok(Some(expected)), "{time:x?}");
        }
        assert_eq!(ms(&[0xc0]), Ok(None));
        assert_eq!(ms(&[0x00]), Ok(None));
    }

    #[test]
    fn what_is_no_time_is_told_apart_from_a_time_out_of_range() {
        for none in [
            &b"\xa1x"[..],
            b"\x90",
            b"\x93\x01\x80\x80",
            b"\x92\x01\x02",
            b"\xd6\x00\0\0\0\0",
            b"\xd7\x05\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(ms(none), Err("no time".into()), "{none:x?}");
        }
        let far = [&[0xcf][..], &u64::MAX.to_be_bytes()].concat();
        let too_many_nanos = [&[0xd7, 0, 0, 0, 0, 1][..], &2_000_000_000u32.to_be_bytes()].concat();
        for bad in [far, too_many_nanos] {
            assert_eq!(ms(&bad), Err("bad_timestamp".into()), "{bad:x?}");
        }
        assert_eq!(ms(&[&[0xcb][..], &f64::NAN.to_be_bytes()].concat()), Err("no time".into()));
    }
}
