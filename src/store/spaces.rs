//! Embedding spaces known to the store.

use sqlx::FromRow;

use crate::embed::Space;

use super::error::StoreError;

/// Where a space stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceState {
    /// Being filled; not searched yet.
    Building,
    /// Complete; searched beside the live one to compare.
    Shadow,
    /// Searched.
    Live,
    /// No longer written nor searched.
    Retired,
}

impl SpaceState {
    /// The stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Shadow => "shadow",
            Self::Live => "live",
            Self::Retired => "retired",
        }
    }

    /// Whether its vectors are compared in searches, by everyone or to compare
    /// models.
    pub(super) fn is_searched(self) -> bool {
        matches!(self, Self::Live | Self::Shadow)
    }

    pub(super) fn parse(name: &str) -> Result<Self, StoreError> {
        [Self::Building, Self::Shadow, Self::Live, Self::Retired]
            .into_iter()
            .find(|state| state.as_str() == name)
            .ok_or_else(|| StoreError::Damaged {
                what: "space state",
                reason: format!("unknown state `{name}`"),
            })
    }
}

/// A space with its key in this store.
#[derive(Clone, Debug, PartialEq)]
pub struct SpaceRow {
    /// Stands for the space in vector rows; means nothing in another store.
    pub space_key: i64,
    /// The space itself.
    pub space: Space,
    /// [`Space::id`], kept so that it need not be computed per hit.
    pub space_id: String,
    /// Where it stands in its life.
    pub state: SpaceState,
    /// When it was first registered, in milliseconds since the Unix epoch.
    pub created_ms: i64,
}

/// A space as both databases give it.
#[derive(FromRow)]
pub(super) struct StoredSpace {
    space_key: i64,
    space_id: String,
    json: String,
    state: String,
    created_ms: i64,
}

impl TryFrom<StoredSpace> for SpaceRow {
    type Error = StoreError;

    fn try_from(row: StoredSpace) -> Result<Self, StoreError> {
        Ok(Self {
            space_key: row.space_key,
            space: serde_json::from_str(&row.json)
                .map_err(|e| StoreError::Damaged { what: "space", reason: e.to_string() })?,
            space_id: row.space_id,
            state: SpaceState::parse(&row.state)?,
            created_ms: row.created_ms,
        })
    }
}
