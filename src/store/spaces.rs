//! Embedding spaces known to the store.

use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::embed::Space;

use super::error::{Doing, StoreError};
use super::sqlite::Store;

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

    fn parse(name: &str) -> Result<Self, StoreError> {
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

impl SpaceRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let json: String = row.try_get("json").doing("reading a space")?;
        let state: String = row.try_get("state").doing("reading a space")?;
        Ok(Self {
            space_key: row.try_get("space_key").doing("reading a space")?,
            space: serde_json::from_str(&json)
                .map_err(|e| StoreError::Damaged { what: "space", reason: e.to_string() })?,
            space_id: row.try_get("space_id").doing("reading a space")?,
            state: SpaceState::parse(&state)?,
            created_ms: row.try_get("created_ms").doing("reading a space")?,
        })
    }
}

impl Store {
    /// The key of `space` here. One never seen before, or retired, becomes live
    /// if no space is, else building.
    pub async fn register_space(&self, space: &Space, now_ms: i64) -> Result<i64, StoreError> {
        let json = serde_json::to_string(space)
            .map_err(|e| StoreError::Damaged { what: "space", reason: e.to_string() })?;
        let mut transaction = self.begin().await?;
        let key = sqlx::query_scalar(
            "INSERT INTO spaces (space_id, json, state, created_ms) VALUES (?, ?, 'building', ?)
             ON CONFLICT (space_id) DO UPDATE SET
                 state = CASE state WHEN 'retired' THEN 'building' ELSE state END
             RETURNING space_key",
        )
        .bind(space.id())
        .bind(json)
        .bind(now_ms)
        .fetch_one(&mut *transaction)
        .await
        .doing("registering a space")?;
        sqlx::query(
            "UPDATE spaces SET state = 'live'
             WHERE space_key = ? AND NOT EXISTS (SELECT 1 FROM spaces WHERE state = 'live')",
        )
        .bind(key)
        .execute(&mut *transaction)
        .await
        .doing("registering a space")?;
        transaction.commit().await.doing("registering a space")?;
        Ok(key)
    }

    /// Every space, oldest first.
    pub async fn spaces(&self) -> Result<Vec<SpaceRow>, StoreError> {
        sqlx::query("SELECT * FROM spaces ORDER BY space_key")
            .fetch_all(self.readers())
            .await
            .doing("reading the spaces")?
            .iter()
            .map(SpaceRow::read)
            .collect()
    }

    /// Makes a space live in place of one that has no vectors: of a model that
    /// was named and never used.
    pub async fn replace_unused(&self, space_key: i64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let unused = sqlx::query(
            "UPDATE spaces SET state = 'building' WHERE state = 'live' AND space_key <> ?
                 AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.space_key = spaces.space_key)",
        )
        .bind(space_key)
        .execute(&mut *transaction)
        .await
        .doing("replacing an unused space")?;
        if unused.rows_affected() > 0 {
            sqlx::query("UPDATE spaces SET state = 'live' WHERE space_key = ?")
                .bind(space_key)
                .execute(&mut *transaction)
                .await
                .doing("replacing an unused space")?;
        }
        transaction.commit().await.doing("replacing an unused space")?;
        self.forget_spaces();
        Ok(())
    }

    /// Where a space stands in its life, now.
    pub async fn space_state(&self, space_key: i64) -> Result<SpaceState, StoreError> {
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM spaces WHERE space_key = ?")
            .bind(space_key)
            .fetch_optional(self.readers())
            .await
            .doing("reading a space")?;
        SpaceState::parse(&state.ok_or(StoreError::UnknownSpace { space_key })?)
    }

    /// Key of the live space; there is at most one.
    pub async fn live_space(&self) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT space_key FROM spaces WHERE state = 'live'")
            .fetch_optional(self.readers())
            .await
            .doing("looking for the live space")
    }

    /// Moves a space on in its life.
    pub async fn set_space_state(&self, space_key: i64, state: SpaceState) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let changed = sqlx::query("UPDATE spaces SET state = ? WHERE space_key = ?")
            .bind(state.as_str())
            .bind(space_key)
            .execute(&mut *transaction)
            .await
            .doing("changing a space")?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::UnknownSpace { space_key });
        }
        transaction.commit().await.doing("changing a space")?;
        self.forget_space(space_key);
        Ok(())
    }

    /// The space behind a key. Its state may be older than another process's
    /// last change; its description never changes.
    pub(super) async fn space(&self, space_key: i64) -> Result<Arc<SpaceRow>, StoreError> {
        if let Some(space) = self.remembered_space(space_key) {
            return Ok(space);
        }
        let row = sqlx::query("SELECT * FROM spaces WHERE space_key = ?")
            .bind(space_key)
            .fetch_optional(self.readers())
            .await
            .doing("reading a space")?
            .ok_or(StoreError::UnknownSpace { space_key })?;
        let space = Arc::new(SpaceRow::read(&row)?);
        self.remember_space(Arc::clone(&space));
        Ok(space)
    }
}
