//! What was promised, and whether it was kept.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    frame::{FrameBatch, Payloads},
    log::{Appended, Damage},
};

/// Names a frame; it is in its payload.
pub type Serial = u64;

/// What the producer of a frame was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing yet, or that the log has failed: it may be there.
    Nothing,
    /// Where it is.
    Offset,
    /// That it is not in the log, or it was found not to be.
    Refused,
}

#[derive(Debug)]
struct Handed {
    payload: Bytes,
    /// Which append it was part of.
    append: u64,
    told: Told,
    /// Whether it was sent again although it was there: where the producers'
    /// numbers were lost it may then be there twice.
    sent_again: bool,
}

/// What the disk may do, and so what the log has to answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// What was synced is there.
    Sound,
    /// Nothing the disk says can be relied on.
    Lying,
    /// What was synced may have been ruined since.
    Rotting,
}

/// Everything that was handed to the log, and what it said.
#[derive(Debug, Default)]
pub struct Oracle {
    handed: BTreeMap<Serial, Handed>,
    /// What has to be in the log.
    promised: BTreeMap<u64, Serial>,
    /// Every pair that the log ever said or showed.
    shown: BTreeSet<(u64, Serial)>,
    appends: u64,
    /// Everything before was read and is relied on by someone else.
    pub known: u64,
    /// Offsets whose bytes were ruined on purpose.
    pub ruined: BTreeSet<u64>,
}

impl Oracle {
    /// Frames on their way into the log, in one append; once more if they did
    /// not get there.
    pub fn hand_in(&mut self, frames: &Bytes, serials: &[Serial]) {
        self.appends += 1;
        for (serial, payload) in serials.iter().zip(Payloads(frames.clone())) {
            let handed = Handed { payload, append: self.appends, told: Told::Nothing, sent_again: false };
            match self.handed.get_mut(serial) {
                Some(before) if before.told != Told::Refused => before.sent_again = true,
                _ => drop(self.handed.insert(*serial, handed)),
            }
        }
    }

    /// The log knows the frames already.
    pub fn recognised(&mut self, serials: &[Serial], at: Appended, trust: Trust) {
        assert_eq!((at.count, at.duplicates as usize), (0, serials.len()), "an append is there in part");
        for serial in serials {
            let there = self.handed[serial].told == Told::Offset;
            assert!(there || trust != Trust::Sound, "frame {serial} is taken for known and is not there");
        }
    }

    fn tell(&mut self, serial: Serial, told: Told) {
        self.handed.get_mut(&serial).unwrap().told = told;
    }

    /// The append was acknowledged.
    pub fn acknowledged(&mut self, serials: &[Serial], at: Appended, trust: Trust) {
        assert_eq!(at.count as usize, serials.len());
        assert!(at.offset >= self.known, "offset {} is given again, {} is known", at.offset, self.known);
        let end = self.promised.last_key_value().map_or(0, |(offset, _)| offset + 1);
        assert!(trust != Trust::Sound || at.offset == end, "offset {} follows {end}", at.offset);
        for (offset, serial) in (at.offset..).zip(serials) {
            assert!(self.promised.insert(offset, *serial).is_none(), "offset {offset} is given twice");
            self.shown.insert((offset, *serial));
            self.tell(*serial, Told::Offset);
        }
    }

    /// Whether the log has said or shown that the append is there.
    pub fn is_shown(&self, serials: &[Serial]) -> bool {
        serials.iter().all(|serial| self.handed[serial].told == Told::Offset)
    }

    /// The append was refused. Frames that are there already stay.
    pub fn refused(&mut self, serials: &[Serial]) {
        for serial in serials {
            if self.handed[serial].told == Told::Nothing {
                self.tell(*serial, Told::Refused);
            }
        }
    }

    /// Checks what a running log shows.
    pub fn check_running(&self, batches: &[FrameBatch], trust: Trust) {
        let seen = self.read(batches, trust);
        assert_eq!(seen, self.promised, "the log shows something else than it acknowledged");
    }

    /// Checks what a recovered log shows, and holds it to that from now on.
    pub fn check_recovered(
        &mut self,
        batches: &[FrameBatch],
        end_offset: u64,
        damage: &[Damage],
        trust: Trust,
    ) {
        let seen = self.read(batches, trust);
        assert!(end_offset >= self.known, "the end {end_offset} is before {}, which is known", self.known);
        assert!(seen.range(end_offset..).next().is_none(), "frames behind the end {end_offset}");
        let new = self.check_unanswered(&seen, trust);
        match trust {
            Trust::Sound => {
                assert_eq!(damage, [], "nothing was damaged");
                let kept: BTreeMap<u64, Serial> =
                    seen.iter().filter(|(_, s)| !new.contains(s)).map(|(o, s)| (*o, *s)).collect();
                assert_eq!(kept, self.promised, "what was acknowledged has changed");
                let end = seen.last_key_value().map_or(0, |(offset, _)| offset + 1);
                assert_eq!(end_offset, end, "the end is not behind the last frame");
            }
            Trust::Lying => {}
            Trust::Rotting => self.check_damage(&seen, end_offset, damage),
        }
        for (offset, serial) in &seen {
            self.shown.insert((*offset, *serial));
            self.tell(*serial, Told::Offset);
        }
        // What was in flight when the process ended, and is not here now, is
        // not here ever; but a disk that lies may bring back what a file held
        // before it was used again.
        if trust != Trust::Lying {
            for handed in self.handed.values_mut().filter(|handed| handed.told == Told::Nothing) {
                handed.told = Told::Refused;
            }
        }
        self.promised = seen;
        self.ruined.retain(|offset| *offset < end_offset);
    }

    /// Every frame, by its offset. None is there that was not handed in, or
    /// twice, or under an offset that was another's. (A disk that lies may
    /// bring back an earlier frame where a later one is lost.)
    fn read(&self, batches: &[FrameBatch], trust: Trust) -> BTreeMap<u64, Serial> {
        let (mut seen, mut serials, mut end) = (BTreeMap::new(), BTreeSet::new(), 0);
        for batch in batches {
            assert!(batch.base_offset >= end, "offset {} follows {end}", batch.base_offset);
            end = batch.end_offset();
            assert_eq!(
                batch.payloads().count(),
                batch.count as usize,
                "a batch of other frames than it says"
            );
            for (offset, payload) in batch.payloads() {
                let serial = serial_of(&payload);
                let handed = self.handed.get(&serial).unwrap_or_else(|| panic!("{serial} was never sent"));
                assert_eq!(handed.payload, payload, "frame {serial} at offset {offset}");
                assert_ne!(handed.told, Told::Refused, "frame {serial} was refused");
                let once = serials.insert(serial) || (trust != Trust::Sound && handed.sent_again);
                assert!(once, "frame {serial} is there twice");
                let given = handed.told == Told::Nothing || self.shown.contains(&(offset, serial));
                assert!(given, "frame {serial} was not given offset {offset}");
                let other = self.promised.get(&offset).filter(|other| **other != serial);
                assert!(
                    trust == Trust::Lying || other.is_none(),
                    "frame {serial} is at the offset of {other:?}"
                );
                seen.insert(offset, serial);
            }
        }
        seen
    }

    /// The frames that are there and were not acknowledged: at the end only,
    /// in the order they were sent, whole appends.
    fn check_unanswered(&self, seen: &BTreeMap<u64, Serial>, trust: Trust) -> BTreeSet<Serial> {
        let answered = |serial: &Serial| self.handed[serial].told != Told::Nothing;
        let tail: Vec<(u64, Serial)> = seen.iter().map(|(o, s)| (*o, *s)).collect();
        let first = tail.iter().position(|(_, serial)| !answered(serial)).unwrap_or(tail.len());
        let tail = &tail[first..];
        assert!(tail.iter().all(|(_, serial)| !answered(serial)), "an unanswered frame before answered ones");
        assert!(tail.windows(2).all(|two| two[0].1 < two[1].1), "unanswered frames are out of order");
        assert!(
            trust != Trust::Sound || tail.windows(2).all(|two| two[0].0 + 1 == two[1].0),
            "a gap between unanswered frames"
        );
        let new: BTreeSet<Serial> = tail.iter().map(|(_, serial)| *serial).collect();
        let appends: BTreeSet<u64> = new.iter().map(|serial| self.handed[serial].append).collect();
        for (serial, handed) in &self.handed {
            let here = new.contains(serial);
            assert!(here || !appends.contains(&handed.append), "half of an append: {serial} is missing");
        }
        new
    }

    /// All is there that was not ruined; what is reported is what was ruined;
    /// and all that was ruined is reported unless it was the end of the log.
    fn check_damage(&self, seen: &BTreeMap<u64, Serial>, end_offset: u64, damage: &[Damage]) {
        for (offset, serial) in &self.promised {
            let there = seen.get(offset) == Some(serial);
            assert!(there || self.ruined.contains(offset), "offset {offset} is gone and was not ruined");
        }
        let reported: BTreeSet<u64> = damage.iter().flat_map(|d| d.first_offset..d.next_offset).collect();
        for offset in &reported {
            assert!(!seen.contains_key(offset), "offset {offset} is reported as lost and is there");
            let was = self.ruined.contains(offset) || !self.promised.contains_key(offset);
            assert!(was, "offset {offset} is reported as lost and was not ruined");
        }
        for offset in self.promised.keys().filter(|offset| **offset < end_offset) {
            let there = seen.contains_key(offset) || reported.contains(offset);
            assert!(there, "offset {offset} is gone and nobody says so");
        }
    }

    /// The offset after the last promised one.
    pub fn end_offset(&self) -> u64 {
        self.promised.last_key_value().map_or(0, |(offset, _)| offset + 1)
    }
}

/// A payload that names itself: its serial, then bytes that follow from it.
pub fn payload(serial: Serial, length: usize) -> Vec<u8> {
    let filler = (0..).map(|n: u64| (serial.wrapping_mul(0x9e37_79b9) >> (n % 24)) as u8 ^ n as u8);
    serial.to_be_bytes().into_iter().chain(filler).take(length.max(8)).collect()
}

fn serial_of(payload: &[u8]) -> Serial {
    let head = payload.get(..8).unwrap_or_else(|| panic!("a frame of {} bytes", payload.len()));
    u64::from_be_bytes(head.try_into().unwrap())
}
