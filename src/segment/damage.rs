//! What verification found.

use std::{fmt, ops::Range};

use super::{index::IndexError, info::SegmentInfo};

/// What [`super::verify()`] found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// What the segment holds; `None` if its index is damaged.
    pub info: Option<SegmentInfo>,
    /// SHA-256 of the file as it is.
    pub object_digest: [u8; 32],
    /// SHA-256 of the frames as they are; `None` if some could not be read.
    pub content_digest: Option<[u8; 32]>,
    /// Everything that is not as it was sealed; empty for an intact segment.
    pub damage: Vec<Damage>,
}

impl VerifyReport {
    /// Whether every byte is as it was sealed.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty()
    }
}

/// One thing that is not as it was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A block.
    Block {
        /// Which block, from 0.
        block: usize,
        /// Its bytes in the file.
        bytes: Range<u64>,
        /// Its offsets, gaps included; `None` if the index is damaged too.
        offsets: Option<Range<u64>>,
        /// Records that cannot be read; `None` if the index is damaged too.
        records_lost: Option<u32>,
        /// What is wrong with it.
        reason: String,
    },
    /// The index. Frames can still be read from the front, their offsets,
    /// batches and times cannot.
    Index {
        /// Where it begins or should begin, if the seek table still says so.
        position: Option<u64>,
        /// What is wrong with it.
        reason: IndexError,
        /// Blocks that were read without it.
        readable_blocks: usize,
        /// Frames in these blocks.
        readable_frames: u64,
    },
    /// The seek table. Readers of this crate do not need it, others do.
    SeekTable {
        /// First byte in the file that is not as it must be.
        position: u64,
    },
    /// Every block can be read, and yet these are not the frames that were
    /// sealed.
    Content {
        /// What the index says.
        expected: [u8; 32],
        /// What the frames give.
        found: [u8; 32],
    },
    /// The file is not the one the caller expected.
    Object {
        /// What the caller expected.
        expected: [u8; 32],
        /// What the file gives.
        found: [u8; 32],
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { block, bytes: Range { start, end }, offsets, records_lost, reason } => {
                write!(f, "block {block} (file bytes {start}..{end}) is damaged: {reason}; ")?;
                match (records_lost, offsets) {
                    (Some(lost), Some(Range { start, end })) => {
                        write!(f, "{lost} records are lost, offsets {start}..{end}")
                    }
                    _ => f.write_str("its records are lost, their offsets unknown"),
                }
            }
            Self::Index { position, reason, readable_blocks, readable_frames } => {
                f.write_str("the index ")?;
                if let Some(position) = position {
                    write!(f, "(file bytes from {position}) ")?;
                }
                write!(
                    f,
                    "is damaged: {reason}; offsets, batches and times of all records are lost, \
                     {readable_frames} frames in {readable_blocks} blocks can still be read \
                     from the front"
                )
            }
            Self::SeekTable { position } => {
                write!(f, "the seek table is damaged from file byte {position} on; no record is lost")
            }
            Self::Content { expected, found } => write!(
                f,
                "the frames have content digest {}, sealed was {}; which records differ is unknown",
                Hex(found),
                Hex(expected)
            ),
            Self::Object { expected, found } => {
                write!(f, "the file has object digest {}, expected was {}", Hex(found), Hex(expected))
            }
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_file_position_and_offsets_lost() {
        let lost = Damage::Block {
            block: 2,
            bytes: 100..200,
            offsets: Some(7..19),
            records_lost: Some(10),
            reason: "bad".into(),
        };
        assert_eq!(
            lost.to_string(),
            "block 2 (file bytes 100..200) is damaged: bad; 10 records are lost, offsets 7..19"
        );
        let index = Damage::Index {
            position: Some(300),
            reason: IndexError::Checksum { stored: 1, computed: 2 },
            readable_blocks: 3,
            readable_frames: 40,
        };
        let text = index.to_string();
        assert!(text.starts_with("the index (file bytes from 300) is damaged: "), "{text}");
        assert!(text.ends_with("40 frames in 3 blocks can still be read from the front"), "{text}");
        let content = Damage::Content { expected: [0xAB; 32], found: [1; 32] };
        assert!(content.to_string().contains(&"ab".repeat(32)));
    }
}
