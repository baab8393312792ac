//! What a repair found and did.

use std::ops::Range;

use serde::Serialize;

use crate::{pipeline::Offsets, store::DamageKind};

/// What a repair found and did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Whether anything had to be done.
    pub changed: bool,
    /// Files that were not as they should be.
    pub files: Vec<FileReport>,
    /// Segments written or put back, by their first offset.
    pub restored: Vec<Restored>,
    /// What was wrong with the catalog.
    pub rows: Rows,
    /// Objects that were missing or altered, and are in the object store
    /// again.
    pub objects_restored: Vec<String>,
    /// Objects that are not what their name says, and that nothing here can
    /// replace.
    pub objects_altered: Vec<String>,
    /// Offsets that this repair declares lost for good.
    pub lost: Vec<Lost>,
    /// All offsets lost for good, those of earlier repairs included.
    pub lost_in_all: u64,
    /// Offsets that no file here gives and that may still come back: the files
    /// that hold them cannot be judged.
    pub undecided: Vec<Lost>,
}

/// One file that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Where it was, relative to the folder of the stream.
    pub file: String,
    /// What kind of damage it has.
    pub kind: DamageKind,
    /// What is wrong with it.
    pub wrong: String,
    /// Where it is now.
    pub now: String,
    /// Offsets that only it still held, and that are in a segment again.
    pub salvaged: Vec<(u64, u64)>,
    /// Offsets that it should hold and that are lost.
    pub lost: Vec<(u64, u64)>,
    /// Frames in it that can be read, but of which nothing proves that they
    /// are what was acknowledged, or at which offset.
    pub unproven: u64,
}

/// A segment written or put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The file, relative to the folder of the stream.
    pub file: String,
    /// Its first offset.
    pub first_offset: u64,
    /// The offset after its last.
    pub next_offset: u64,
    /// Frames in it.
    pub records: u64,
    /// Where it comes from: a file or an object.
    pub from: String,
}

/// What was wrong with the catalog, by the first offsets of segments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// Were missing.
    pub added: Vec<u64>,
    /// Said something else than the file.
    pub corrected: Vec<u64>,
    /// Were of segments that exist no more.
    pub removed: Vec<u64>,
}

/// Offsets and the file that held them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The first.
    pub first_offset: u64,
    /// The offset after the last.
    pub next_offset: u64,
    /// The file, where it is now; or the name it would have.
    pub file: String,
}

impl FileReport {
    pub(super) fn new(file: String, kind: DamageKind, wrong: impl Into<String>) -> Self {
        let now = file.clone();
        Self { file, kind, wrong: wrong.into(), now, salvaged: Vec::new(), lost: Vec::new(), unproven: 0 }
    }

    pub(super) fn is_set_aside(&self) -> bool {
        self.now.starts_with("quarantine/")
    }
}

impl Report {
    /// Whether nothing was wrong, or everything was put right.
    pub fn is_whole(&self) -> bool {
        let unproven = self.files.iter().any(|file| file.unproven > 0);
        self.lost.is_empty()
            && self.undecided.is_empty()
            && self.objects_altered.is_empty()
            && !unproven
            && !(self.dry_run && self.changed)
    }
}

/// Ranges as programs read them.
pub(super) fn pairs(offsets: &Offsets) -> Vec<(u64, u64)> {
    offsets.ranges().map(|Range { start, end }| (start, end)).collect()
}
