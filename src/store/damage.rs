//! What was found damaged in the streams' files, remembered until it is
//! repaired, and what is lost for good, remembered for ever.

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};
use sqlx::FromRow;

use super::error::StoreError;

/// What is wrong with a file of a stream.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// A stretch of a raw segment before proven data.
    Batches,
    /// The header of a raw segment.
    Header,
    /// The index of a sealed segment.
    Index,
    /// A block of a sealed segment.
    Block,
    /// A sealed segment is not as it was sealed; nothing of it is lost.
    Altered,
    /// A sealed segment holds nothing for offsets within it: what it was
    /// sealed from was damaged.
    Gap,
    /// Offsets that were in the log once are in no file.
    Missing,
    /// The system refuses to read a file.
    Unreadable,
    /// Not damage: a segment was older than segments are kept.
    Expired,
}

impl DamageKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Batches,
        Self::Header,
        Self::Index,
        Self::Block,
        Self::Altered,
        Self::Gap,
        Self::Missing,
        Self::Unreadable,
        Self::Expired,
    ];

    /// The stored name, which is also the one that programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batches => "batches",
            Self::Header => "header",
            Self::Index => "index",
            Self::Block => "block",
            Self::Altered => "altered",
            Self::Gap => "gap",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
            Self::Expired => "expired",
        }
    }
}

impl TryFrom<String> for DamageKind {
    type Error = StoreError;

    fn try_from(name: String) -> Result<Self, StoreError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| StoreError::Damaged { what: "damage", reason: format!("unknown kind `{name}`") })
    }
}

/// One thing that is damaged or gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Damage {
    /// The file, relative to the folder of the stream.
    pub file: String,
    /// What is wrong with it.
    #[sqlx(try_from = "String")]
    pub kind: DamageKind,
    /// The first offset that cannot be read.
    #[sqlx(try_from = "i64")]
    pub first_offset: u64,
    /// The offset after the last; the first one if nothing is lost.
    #[sqlx(try_from = "i64")]
    pub next_offset: u64,
    /// The particulars, for people.
    pub detail: String,
    /// When it was found, in milliseconds since the Unix epoch.
    pub found_ms: i64,
    /// When it was repaired as far as it can be; none while it is open.
    pub settled_ms: Option<i64>,
}

impl Damage {
    /// The offsets that cannot be read.
    pub fn offsets(&self) -> Range<u64> {
        self.first_offset..self.next_offset
    }

    /// Whether it is known that nothing brings the offsets back, and nobody
    /// wanted that.
    pub fn is_lost_for_good(&self) -> bool {
        self.settled_ms.is_some() && self.kind != DamageKind::Expired
    }

    /// How many offsets cannot be read.
    pub fn lost(&self) -> u64 {
        self.next_offset.saturating_sub(self.first_offset)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, kind, first_offset, next_offset, detail, .. } = self;
        write!(f, "{file} ({}): ", kind.as_str())?;
        match self.lost() {
            0 => f.write_str("no offset is lost")?,
            _ => write!(f, "offsets {first_offset}..{next_offset} cannot be read")?,
        }
        if detail.is_empty() { Ok(()) } else { write!(f, "; {detail}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn damage(file: &str, first_offset: u64, next_offset: u64) -> Damage {
        Damage {
            file: file.into(),
            kind: DamageKind::Block,
            first_offset,
            next_offset,
            detail: String::new(),
            found_ms: 1,
            settled_ms: None,
        }
    }

    #[tokio::test]
    async fn damage_is_remembered_once_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).await.unwrap();
        let (a, b) = (damage("a", 5, 9), damage("b", 2, 2));
        store.put_damage("s", &[a.clone(), b.clone()]).await.unwrap();
        store.put_damage("s", &[Damage { found_ms: 2, ..a.clone() }]).await.unwrap();
        store.put_damage("other", std::slice::from_ref(&a)).await.unwrap();
        assert_eq!(store.damage("s").await.unwrap(), [b, a.clone()]);

        let settled = Damage { settled_ms: Some(7), next_offset: 6, ..a.clone() };
        store.settle_damage("s", std::slice::from_ref(&settled)).await.unwrap();
        assert_eq!(store.damage("s").await.unwrap(), std::slice::from_ref(&settled));
        // The same file may be damaged in the same place again.
        store.put_damage("s", std::slice::from_ref(&a)).await.unwrap();
        assert_eq!(store.damage("s").await.unwrap(), [settled, a.clone()]);
        assert_eq!(store.damage("other").await.unwrap(), [a]);
    }

    #[test]
    fn kinds_are_read_back_by_their_names() {
        for kind in DamageKind::ALL {
            assert_eq!(DamageKind::try_from(kind.as_str().to_owned()).unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!(DamageKind::try_from("rust".to_owned()).is_err());
    }
}
