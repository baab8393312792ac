//! What goes wrong on a simulated disk, and when.

use rand::{RngExt, rngs::SmallRng};

/// The kinds of calls, as far as faults tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Look,
    Read,
    Create,
    Rename,
    Remove,
    Write,
    Sync,
    SyncNames,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Works,
    /// Writes less than it was given.
    Short,
    /// No space is left.
    Full,
    /// The medium failed.
    Fails,
    /// Says that it synced, and did not.
    Lies,
    /// The process is gone before it.
    DiesBefore,
}

/// A crash at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The call, counted from 1.
    pub at: u64,
    /// Whether the call still reached the system. A sync did not.
    pub reached: bool,
}

/// What goes wrong. Nothing, by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub crash: Option<Crash>,
    /// Share of writes that are cut short.
    pub short: f64,
    /// Share of writes and creations that find no space.
    pub full: f64,
    /// Bytes that all files together may have.
    pub budget: Option<usize>,
    /// Share of writes that fail.
    pub write_fails: f64,
    /// How many of the next reads fail. The same works when tried again.
    pub reads_that_fail: u32,
    /// Share of syncs that fail.
    pub sync_fails: f64,
    /// Share of syncs that do nothing and say otherwise.
    pub sync_lies: f64,
}

impl Faults {
    pub fn judge(&self, call: Call, number: u64, rng: &mut SmallRng) -> Verdict {
        if self.crash.is_some_and(|crash| crash.at == number && !crash.reached) {
            return Verdict::DiesBefore;
        }
        let shares: &[(f64, Verdict)] = match call {
            Call::Write => &[
                (self.write_fails, Verdict::Fails),
                (self.full, Verdict::Full),
                (self.short, Verdict::Short),
            ],
            Call::Create => &[(self.full, Verdict::Full)],
            Call::Sync | Call::SyncNames => {
                &[(self.sync_fails, Verdict::Fails), (self.sync_lies, Verdict::Lies)]
            }
            Call::Look | Call::Read | Call::Rename | Call::Remove => &[],
        };
        let happens = shares.iter().find(|(share, _)| *share > 0.0 && rng.random_bool(*share));
        happens.map_or(Verdict::Works, |(_, verdict)| *verdict)
    }

    pub fn dies_after(&self, number: u64) -> bool {
        self.crash.is_some_and(|crash| crash.at == number && crash.reached)
    }
}
