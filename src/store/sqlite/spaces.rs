//! Embedding spaces.

use std::sync::Arc;

use crate::embed::Space;

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::spaces::{SpaceRow, SpaceState, StoredSpace};

impl SqliteStore {
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

    pub async fn spaces(&self) -> Result<Vec<SpaceRow>, StoreError> {
        let rows: Vec<StoredSpace> = sqlx::query_as("SELECT * FROM spaces ORDER BY space_key")
            .fetch_all(self.readers())
            .await
            .doing("reading the spaces")?;
        rows.into_iter().map(SpaceRow::try_from).collect()
    }

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

    pub async fn space_state(&self, space_key: i64) -> Result<SpaceState, StoreError> {
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM spaces WHERE space_key = ?")
            .bind(space_key)
            .fetch_optional(self.readers())
            .await
            .doing("reading a space")?;
        SpaceState::parse(&state.ok_or(StoreError::UnknownSpace { space_key })?)
    }

    pub async fn live_space(&self) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT space_key FROM spaces WHERE state = 'live'")
            .fetch_optional(self.readers())
            .await
            .doing("looking for the live space")
    }

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
        let row: StoredSpace = sqlx::query_as("SELECT * FROM spaces WHERE space_key = ?")
            .bind(space_key)
            .fetch_optional(self.readers())
            .await
            .doing("reading a space")?
            .ok_or(StoreError::UnknownSpace { space_key })?;
        let space = Arc::new(SpaceRow::try_from(row)?);
        self.remember_space(Arc::clone(&space));
        Ok(space)
    }
}
