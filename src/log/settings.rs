//! Settings of the log.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    format::{BATCH_HEADER_BYTES, FILE_HEADER_BYTES},
    producers::MAX_ENTRY_BYTES,
};
use crate::{
    frame::{DEFAULT_MAX_FRAME, PREFIX_BYTES, RUN_BYTES},
    setting::SettingError,
    units::{ByteSize, Period},
};

/// Bytes of the headers of a file that begins with a table and holds one more
/// batch.
const HEADERS_BYTES: usize = FILE_HEADER_BYTES + 2 * BATCH_HEADER_BYTES;

/// The `[log]` section of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A segment is closed, and then sealed, when it reaches this size ...
    pub segment_bytes: ByteSize,
    /// ... or when its first frame is this old, whichever comes first.
    pub segment_age: Period,
    /// Largest payload of a frame.
    pub max_frame_bytes: ByteSize,
    /// Most bytes that one write and one fsync take together.
    pub group_bytes: ByteSize,
    /// Bytes that may wait for the writer before sources are held back.
    pub queue_bytes: ByteSize,
    /// When frames are acknowledged; each acknowledgement says it as its level.
    pub ack: Ack,
    /// Numbered producers that are known at most; the one whose last frame is
    /// longest ago is forgotten. In small segments fewer are kept, so that a
    /// frame fits beside them.
    pub max_producers: usize,
}

/// When frames are acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// After the fsync that covers them: they outlive a power cut.
    #[default]
    Disk,
    /// When the system has them in memory, to be synced within a second: they
    /// outlive the process, not a failure of the machine.
    Memory,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: ByteSize::mib(64),
            segment_age: Period::secs(600),
            max_frame_bytes: DEFAULT_MAX_FRAME,
            group_bytes: ByteSize::mib(4),
            queue_bytes: ByteSize::mib(64),
            ack: Ack::Disk,
            max_producers: 10_000,
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        let most = ByteSize::mib(1 << 10);
        let frame = self.max_frame_bytes;
        SettingError::unless(
            frame.0 >= 1 && frame <= most,
            "max_frame_bytes",
            "must be between 1 byte and 1GiB",
        )?;
        let needed = ByteSize(frame.0.max(64 << 10) + (1 << 20));
        SettingError::unless(
            (needed.0..=4 * most.0).contains(&self.segment_bytes.0),
            "segment_bytes",
            format!(
                "a segment of {} has no room for a frame of {frame} (max_frame_bytes) and its headers, or is over 4GiB; write at least {needed}",
                self.segment_bytes
            ),
        )?;
        SettingError::unless(
            self.queue_bytes.0 > frame.0 && self.queue_bytes <= most,
            "queue_bytes",
            format!("must be over max_frame_bytes ({frame}) and at most 1GiB"),
        )?;
        SettingError::unless(
            self.group_bytes.0 >= 4 << 10 && self.group_bytes <= most,
            "group_bytes",
            "must be between 4KiB and 1GiB",
        )?;
        SettingError::unless(
            (1..=1_000_000).contains(&self.max_producers),
            "max_producers",
            format!("must be between 1 and 1000000, not {}", self.max_producers),
        )?;
        SettingError::unless(!self.segment_age.0.is_zero(), "segment_age", "must be over 0s")
    }

    /// How many producers are kept: as many as wanted, as long as their table
    /// leaves room in a segment for the longest append.
    pub(super) fn producers_kept(&self) -> usize {
        let longest = self.max_frame_bytes.as_usize().saturating_add(PREFIX_BYTES).max(RUN_BYTES);
        let left = self.segment_bytes.as_usize().saturating_sub(longest + HEADERS_BYTES);
        // The smaller segments of tests have room for two with short names.
        (left / MAX_ENTRY_BYTES).saturating_sub(1).max(2).min(self.max_producers)
    }
}
