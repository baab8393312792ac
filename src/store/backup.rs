//! Copies of a store, and how two are found to be the same.
//!
//! The content of a table is digested row by row: SHA-256 of each row's
//! values, and of all rows the sum, which no order changes. So the digest is
//! that of the content, however a database has laid it out.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::artifacts::ArtifactRow;
use super::checkpoint::Checkpoint;

/// Which database a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// One file.
    Sqlite,
    /// The schema `thalweg` of a PostgreSQL database.
    Postgres,
}

/// One table's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    /// The table. Of SQLite's index of keywords, whose own tables depend on
    /// how it grew: `keyword_terms`, each term with how often it is found, and
    /// `keyword_lengths`, each chunk with its number of terms.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// Digest of its rows, in hex.
    pub digest: String,
}

/// What was copied, all of one moment.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Number of the schema's last change.
    pub schema_version: i64,
    /// Every table, by name.
    pub tables: Vec<TableDigest>,
    /// The registry, by location.
    pub artifacts: Vec<ArtifactRow>,
    /// Where the pipeline asked about stood in its stream.
    pub checkpoint: Option<Checkpoint>,
    /// Whether vectors are kept as types of pgvector.
    pub needs_pgvector: bool,
}

/// Adds rows up to the digest of their table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rows {
    pub rows: u64,
    pub sums: [u64; 4],
}

impl Rows {
    /// Adds a row by the SHA-256 of its values.
    pub fn add(&mut self, row: &[u8; 32]) {
        self.rows += 1;
        let (parts, _) = row.as_chunks::<8>();
        for (sum, part) in self.sums.iter_mut().zip(parts) {
            *sum = sum.wrapping_add(u64::from_be_bytes(*part));
        }
    }

    pub fn of(self, table: String) -> TableDigest {
        let mut hash = Sha256::new_with_prefix(self.rows.to_be_bytes());
        self.sums.iter().for_each(|sum| hash.update(sum.to_be_bytes()));
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        TableDigest { table, rows: self.rows, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(rows: &[u8]) -> TableDigest {
        let mut sum = Rows::default();
        rows.iter().for_each(|row| sum.add(&Sha256::digest([*row]).into()));
        sum.of("t".into())
    }

    #[test]
    fn order_is_no_content_and_everything_else_is() {
        assert_eq!(digest(&[1, 2, 3]), digest(&[3, 1, 2]));
        assert_ne!(digest(&[1, 2, 3]).digest, digest(&[1, 2]).digest);
        assert_ne!(digest(&[1, 1]).digest, digest(&[2, 2]).digest);
        assert_ne!(digest(&[]).digest, digest(&[0]).digest);
    }
}
