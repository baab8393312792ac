//! What the log knows of its producers: pure.
//!
//! A producer numbers its frames from 0 in each *epoch*, those that admission
//! refuses included, and the log takes each number once, in order. So a frame
//! that comes again is known, a hole is noticed, and an epoch that is opened
//! ends the earlier ones.
//!
//! # The table
//! Each batch carries, before its frames, the state after it of every producer
//! that it changes; a segment begins with the state of all. Integers are
//! big-endian.
//!
//! ```text
//! table = entry*                  least recently used first
//! entry = length:u8 name epoch:u64 next:u64
//! ```
//!
//! An entry says what holds, not what changed: so of several the last counts,
//! and one that is lost to damage is made good by the next.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf, BufMut};

/// Longest name of a producer, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Bytes of the longest entry of a table.
pub(super) const MAX_ENTRY_BYTES: usize = MAX_NAME_BYTES + ENTRY_BYTES;

/// Bytes of an entry without its name.
const ENTRY_BYTES: usize = 17;

/// Numbers that a producer wants to be taken, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The producer's name, of 1 to [`MAX_NAME_BYTES`] bytes.
    pub producer: Arc<str>,
    /// Its epoch.
    pub epoch: u64,
    /// The first number.
    pub first: u64,
    /// How many.
    pub count: u32,
}

/// How far a producer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its latest epoch.
    pub epoch: u64,
    /// The number that its next frame has.
    pub next: u64,
}

/// Why numbers were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// A later epoch was opened; whoever writes in this one is not the
    /// producer any more.
    #[error(
        "epoch {epoch} of producer `{producer}` has ended: epoch {latest} was opened since; only one may write, so stop this one or open a later epoch"
    )]
    Fenced {
        /// The producer.
        producer: Arc<str>,
        /// The epoch that was claimed.
        epoch: u64,
        /// The one that counts.
        latest: u64,
    },
    /// The frames between were never taken.
    #[error(
        "frame {got} of producer `{producer}` came where {expected} is the next of epoch {epoch}; send from {expected} on, or open a later epoch if those before are settled"
    )]
    OutOfSequence {
        /// The producer.
        producer: Arc<str>,
        /// The epoch.
        epoch: u64,
        /// The number that comes next.
        expected: u64,
        /// The number that came.
        got: u64,
    },
}

impl ProducerError {
    /// The stable code of the wire protocol (`docs/protocol.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "fenced",
            Self::OutOfSequence { .. } => "out_of_sequence",
        }
    }
}

/// The producers of a stream. Changes are tried first and settled once they
/// are durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Producers {
    known: HashMap<Arc<str>, Known>,
    /// Producers that changed since the last settling, in the order of their
    /// first change, with their position before.
    changed: Vec<(Arc<str>, Option<Position>)>,
    /// Settled changes so far.
    uses: u64,
    table_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    at: Position,
    /// When it was settled last, in uses.
    used: u64,
    changed: bool,
}

impl Producers {
    /// Takes the numbers of `claim` and tells how many of them, from the
    /// first on, were taken before.
    pub fn take(&mut self, claim: &Claim) -> Result<u32, ProducerError> {
        let expected = match self.position(&claim.producer) {
            Some(at) if claim.epoch < at.epoch => return Err(fenced(&claim.producer, claim.epoch, at)),
            Some(at) if claim.epoch == at.epoch => at.next,
            _ => 0,
        };
        let Some(known) = expected.checked_sub(claim.first) else {
            return Err(out_of_sequence(&claim.producer, claim.epoch, expected, claim.first));
        };
        let end = claim.first.saturating_add(claim.count.into());
        if end > expected {
            self.set(&claim.producer, Position { epoch: claim.epoch, next: end });
        }
        Ok(u32::try_from(known).unwrap_or(u32::MAX).min(claim.count))
    }

    /// Opens `epoch`, or the one after the latest, and tells where it stands.
    /// Without a change where it is the latest already. `sequence` is the
    /// number that the producer means to go on with.
    pub fn open(
        &mut self,
        producer: &Arc<str>,
        epoch: Option<u64>,
        sequence: Option<u64>,
    ) -> Result<Position, ProducerError> {
        let known = self.position(producer);
        let epoch = match (epoch, known) {
            (Some(epoch), Some(at)) if epoch < at.epoch => return Err(fenced(producer, epoch, at)),
            (Some(epoch), _) => epoch,
            (None, Some(at)) => at.epoch.saturating_add(1),
            (None, None) => 0,
        };
        let next = known.filter(|at| at.epoch == epoch).map_or(0, |at| at.next);
        if let Some(got) = sequence.filter(|sequence| *sequence > next) {
            return Err(out_of_sequence(producer, epoch, next, got));
        }
        let position = Position { epoch, next };
        if known != Some(position) {
            self.set(producer, position);
        }
        Ok(position)
    }

    fn position(&self, producer: &str) -> Option<Position> {
        self.known.get(producer).map(|known| known.at)
    }

    fn set(&mut self, producer: &Arc<str>, at: Position) {
        let before = match self.known.get_mut(producer) {
            Some(known) => {
                let before = known.at;
                known.at = at;
                if std::mem::replace(&mut known.changed, true) {
                    return;
                }
                Some(before)
            }
            None => {
                self.known.insert(producer.clone(), Known { at, used: self.uses, changed: true });
                self.table_bytes += entry_bytes(producer);
                None
            }
        };
        self.changed.push((producer.clone(), before));
    }

    /// Bytes of the table of all producers.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// Appends the table of those that changed.
    pub fn put_changes(&self, out: &mut Vec<u8>) {
        for (producer, _) in &self.changed {
            if let Some(known) = self.known.get(producer) {
                put_entry(out, producer, known.at);
            }
        }
    }

    /// The table of all; only when everything is settled.
    pub fn table(&self) -> Vec<u8> {
        debug_assert!(self.changed.is_empty(), "a table of what may not become durable");
        let mut all: Vec<_> = self.known.iter().collect();
        all.sort_unstable_by_key(|(_, known)| known.used);
        let mut out = Vec::with_capacity(self.table_bytes);
        all.iter().for_each(|(producer, known)| put_entry(&mut out, producer, known.at));
        out
    }

    /// What changed is durable.
    pub fn settle(&mut self) {
        for (producer, _) in self.changed.drain(..) {
            if let Some(known) = self.known.get_mut(&producer) {
                self.uses += 1;
                known.used = self.uses;
                known.changed = false;
            }
        }
    }

    /// What changed never will be.
    pub fn undo(&mut self) {
        for (producer, before) in std::mem::take(&mut self.changed) {
            match (before, self.known.get_mut(&producer)) {
                (Some(at), Some(known)) => (known.at, known.changed) = (at, false),
                _ => self.forget(&producer),
            }
        }
    }

    /// Forgets those whose last change is longest ago, until at most `most`
    /// are left; only when everything is settled.
    pub fn keep(&mut self, most: usize) {
        let over = self.known.len().saturating_sub(most);
        if over == 0 {
            return;
        }
        let mut by_use: Vec<_> = self.known.iter().map(|(id, known)| (known.used, id.clone())).collect();
        by_use.select_nth_unstable_by_key(over - 1, |(used, _)| *used);
        by_use.iter().take(over).for_each(|(_, producer)| self.forget(producer));
    }

    fn forget(&mut self, producer: &str) {
        if self.known.remove(producer).is_some() {
            self.table_bytes -= entry_bytes(producer);
        }
    }

    /// Takes up a table as it was written; stops where it is none.
    pub fn replay(&mut self, mut table: &[u8]) {
        while let Some((producer, at)) = take_entry(&mut table) {
            self.set(&producer, at);
        }
        self.settle();
    }
}

fn fenced(producer: &Arc<str>, epoch: u64, at: Position) -> ProducerError {
    ProducerError::Fenced { producer: producer.clone(), epoch, latest: at.epoch }
}

fn out_of_sequence(producer: &Arc<str>, epoch: u64, expected: u64, got: u64) -> ProducerError {
    ProducerError::OutOfSequence { producer: producer.clone(), epoch, expected, got }
}

/// Bytes of the entry of `producer` in a table.
pub(super) fn entry_bytes(producer: &str) -> usize {
    ENTRY_BYTES + producer.len()
}

fn put_entry(out: &mut Vec<u8>, producer: &str, at: Position) {
    out.put_u8(u8::try_from(producer.len()).unwrap_or(u8::MAX));
    out.put_slice(producer.as_bytes());
    out.put_u64(at.epoch);
    out.put_u64(at.next);
}

fn take_entry(table: &mut &[u8]) -> Option<(Arc<str>, Position)> {
    let length = usize::from(table.try_get_u8().ok()?);
    let (name, rest) = table.split_at_checked(length)?;
    *table = rest;
    let at = Position { epoch: table.try_get_u64().ok()?, next: table.try_get_u64().ok()? };
    Some((std::str::from_utf8(name).ok()?.into(), at))
}

#[cfg(test)]
mod tests;
