//! Embedding spaces, each with a table of its own.

use std::sync::{Arc, PoisonError};

use sqlx::AssertSqlSafe;

use super::vectors::{Element, VectorTable};
use super::{PostgresStore, Session};
use crate::embed::Space;
use crate::store::error::{Doing, StoreError};
use crate::store::rows::Batch;
use crate::store::spaces::{SpaceRow, SpaceState, StoredSpace};

impl PostgresStore {
    pub async fn register_space(&self, space: &Space, now_ms: i64) -> Result<i64, StoreError> {
        let json = serde_json::to_string(space)
            .map_err(|e| StoreError::Damaged { what: "space", reason: e.to_string() })?;
        let mut session = self.begin().await?;
        session.lock_spaces().await?;
        let (key, element): (i64, String) = session
            .query(
                "INSERT INTO thalweg.spaces AS s (space_id, json, state, created_ms, element, dimensions)
                 VALUES ($1, $2, 'building', $3, $4, $5)
                 ON CONFLICT (space_id) DO UPDATE SET
                     state = CASE s.state WHEN 'retired' THEN 'building' ELSE s.state END
                 RETURNING space_key, element",
            )
            .bind(space.id())
            .bind(json)
            .bind(now_ms)
            .bind(self.element().as_str())
            .bind(i32::try_from(space.dimensions).unwrap_or(i32::MAX))
            .one(&mut session)
            .await
            .doing("registering a space")?;
        session
            .query(
                "UPDATE thalweg.spaces SET state = 'live'
                 WHERE space_key = $1 AND NOT EXISTS (SELECT FROM thalweg.spaces WHERE state = 'live')",
            )
            .bind(key)
            .run(&mut session)
            .await
            .doing("registering a space")?;
        let table =
            VectorTable { space_key: key, element: Element::parse(&element)?, dimensions: space.dimensions };
        session.make_table(&table).await?;
        session.commit("registering a space").await?;
        self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        Ok(key)
    }

    pub async fn spaces(&self) -> Result<Vec<SpaceRow>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<StoredSpace> = session
            .query("SELECT * FROM thalweg.spaces ORDER BY space_key")
            .all(&mut session)
            .await
            .doing("reading the spaces")?;
        rows.into_iter().map(SpaceRow::try_from).collect()
    }

    pub async fn replace_unused(&self, space_key: i64) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session.lock_spaces().await?;
        let live: Option<i64> = session
            .query("SELECT space_key FROM thalweg.spaces WHERE state = 'live' AND space_key <> $1 FOR UPDATE")
            .bind(space_key)
            .optional_scalar(&mut session)
            .await
            .doing("replacing an unused space")?;
        let Some(live) = live else { return Ok(()) };
        let used = format!("SELECT EXISTS (SELECT FROM thalweg.vectors_{live})");
        let is_used: bool = session
            .query(AssertSqlSafe(used))
            .scalar(&mut session)
            .await
            .doing("replacing an unused space")?;
        if is_used {
            return Ok(());
        }
        session.exchange_live(space_key, "building").await?;
        session.commit("replacing an unused space").await?;
        self.forget_spaces();
        Ok(())
    }

    pub async fn space_state(&self, space_key: i64) -> Result<SpaceState, StoreError> {
        let mut session = self.read().await?;
        let state: Option<String> = session
            .query("SELECT state FROM thalweg.spaces WHERE space_key = $1")
            .bind(space_key)
            .optional_scalar(&mut session)
            .await
            .doing("reading a space")?;
        SpaceState::parse(&state.ok_or(StoreError::UnknownSpace { space_key })?)
    }

    pub async fn live_space(&self) -> Result<Option<i64>, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT space_key FROM thalweg.spaces WHERE state = 'live'")
            .optional_scalar(&mut session)
            .await
            .doing("looking for the live space")
    }

    pub async fn set_space_state(&self, space_key: i64, state: SpaceState) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session.lock_spaces().await?;
        let changed = session
            .query("UPDATE thalweg.spaces SET state = $1 WHERE space_key = $2")
            .bind(state.as_str())
            .bind(space_key)
            .run(&mut session)
            .await
            .doing("changing a space")?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::UnknownSpace { space_key });
        }
        session.commit("changing a space").await?;
        self.forget_spaces();
        Ok(())
    }

    /// The space behind a key. Its state may be older than another process's
    /// last change; its description never changes.
    pub(super) async fn space(&self, space_key: i64) -> Result<Arc<SpaceRow>, StoreError> {
        Ok(self.known_space(space_key).await?.0)
    }

    /// The table of a space's vectors.
    pub(super) async fn vector_table(&self, space_key: i64) -> Result<VectorTable, StoreError> {
        Ok(self.known_space(space_key).await?.1)
    }

    /// Where a batch's vectors go; none if it has none.
    pub(super) async fn table_of(&self, batch: &Batch) -> Result<Option<VectorTable>, StoreError> {
        match batch.has_vectors() {
            true => self.vector_table(batch.space_key).await.map(Some),
            false => Ok(None),
        }
    }

    pub(super) fn forget_spaces(&self) {
        self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn known_space(&self, space_key: i64) -> Result<(Arc<SpaceRow>, VectorTable), StoreError> {
        let known = self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).get(&space_key).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let mut session = self.read().await?;
        let row: StoredSpace = session
            .query("SELECT * FROM thalweg.spaces WHERE space_key = $1")
            .bind(space_key)
            .optional(&mut session)
            .await
            .doing("reading a space")?
            .ok_or(StoreError::UnknownSpace { space_key })?;
        let element: String = session
            .query("SELECT element FROM thalweg.spaces WHERE space_key = $1")
            .bind(space_key)
            .scalar(&mut session)
            .await
            .doing("reading a space")?;
        let space = Arc::new(SpaceRow::try_from(row)?);
        let dimensions = space.space.dimensions;
        let known = (space, VectorTable { space_key, element: Element::parse(&element)?, dimensions });
        self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).insert(space_key, known.clone());
        Ok(known)
    }
}

impl Session {
    /// Those that change spaces come one after the other; commits, which only
    /// look, are not kept waiting by this.
    pub(super) async fn lock_spaces(&mut self) -> Result<(), StoreError> {
        self.query("LOCK TABLE thalweg.spaces IN SHARE ROW EXCLUSIVE MODE")
            .run(self)
            .await
            .doing("waiting for another change of spaces")
            .map(drop)
    }

    /// Makes the table of a space, and the view for people who come with SQL
    /// show the space's vectors if it is the live one.
    async fn make_table(&mut self, table: &VectorTable) -> Result<(), StoreError> {
        let is_there: bool = self
            .query("SELECT to_regclass($1) IS NOT NULL")
            .bind(table.name())
            .scalar(self)
            .await
            .doing("looking for a space's table")?;
        if !is_there {
            self.script(table.create()).await.doing("making a space's table")?;
        }
        self.show_live_space().await
    }

    /// Makes a space live; the one before gets another state.
    pub(super) async fn exchange_live(
        &mut self,
        space_key: i64,
        before: &'static str,
    ) -> Result<(), StoreError> {
        self.query("UPDATE thalweg.spaces SET state = $2 WHERE state = 'live' AND space_key <> $1")
            .bind(space_key)
            .bind(before)
            .run(self)
            .await
            .doing("switching spaces")?;
        self.query("UPDATE thalweg.spaces SET state = 'live' WHERE space_key = $1")
            .bind(space_key)
            .run(self)
            .await
            .doing("switching spaces")?;
        self.show_live_space().await
    }

    /// `thalweg.doc_embeddings`: each chunk with its record and its vector in
    /// the live space. It obeys the rights of who reads it.
    async fn show_live_space(&mut self) -> Result<(), StoreError> {
        let live: Option<i64> = self
            .query("SELECT space_key FROM thalweg.spaces WHERE state = 'live'")
            .optional_scalar(self)
            .await
            .doing("looking for the live space")?;
        let Some(live) = live else { return Ok(()) };
        let is_shown: bool = self
            .query(
                "SELECT EXISTS (
                     SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                     WHERE w.ev_class = to_regclass('thalweg.doc_embeddings') AND d.refobjid = to_regclass($1))",
            )
            .bind(format!("thalweg.vectors_{live}"))
            .scalar(self)
            .await
            .doing("looking for the view")?;
        if is_shown {
            return Ok(());
        }
        let view = format!(
            "SET LOCAL client_min_messages = warning;
             DROP VIEW IF EXISTS thalweg.doc_embeddings;
             CREATE VIEW thalweg.doc_embeddings WITH (security_invoker = true) AS
             SELECT c.chunk_key, t.name AS tenant, r.session,
                    (ARRAY['event', 'summary', 'doc', 'profile', 'artifact'])[r.tier + 1] AS tier,
                    r.source, b.batch_tag, r.stream, r.\"offset\", c.chunk,
                    encode(c.digest, 'hex') AS content_digest, c.text, r.record_id, r.attrs,
                    to_timestamp(r.ts_ms / 1000.0) AS ts, v.vector AS embedding, s.space_id,
                    s.json::json ->> 'model' AS model
             FROM thalweg.chunks c
             JOIN thalweg.records r USING (record_key)
             JOIN thalweg.tenants t ON t.tenant_key = r.tenant_key
             JOIN thalweg.batches b USING (batch_key)
             JOIN thalweg.spaces s ON s.space_key = {live}
             LEFT JOIN thalweg.vectors_{live} v ON v.tenant_key = c.tenant_key AND v.tier = c.tier
                                               AND v.chunk_key = c.chunk_key;
             GRANT SELECT ON thalweg.doc_embeddings TO thalweg_reader;"
        );
        self.script(view).await.doing("showing the live space")
    }
}
