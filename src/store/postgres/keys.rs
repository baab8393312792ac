//! API keys.

use super::PostgresStore;
use super::session::Session;
use super::text::{original, stored};
use super::trail::write_act;
use crate::identity::{ApiKey, Entry};
use crate::store::error::{Doing, StoreError};
use crate::store::keys::{KeyRow, stored_roles};

const WRITING: &str = "keeping an API key";

impl PostgresStore {
    pub async fn add_key(
        &self,
        key: &ApiKey,
        old_until_ms: Option<i64>,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        insert(&mut session, key).await.doing(WRITING)?;
        if let Some((old, until_ms)) = key.replaces.as_ref().zip(old_until_ms) {
            session
                .query("UPDATE thalweg.api_keys SET expires_ms = least(expires_ms, $1) WHERE id = $2")
                .bind(until_ms)
                .bind(old.clone())
                .run(&mut session)
                .await
                .doing(WRITING)?;
        }
        write_act(&mut session, &entry.clone().into()).await.doing(WRITING)?;
        session.commit(WRITING).await
    }

    pub async fn revoke_key(&self, id: &str, now_ms: i64, entry: &Entry) -> Result<bool, StoreError> {
        let mut session = self.begin().await?;
        let revoked = session
            .query("UPDATE thalweg.api_keys SET revoked_ms = $1 WHERE id = $2 AND revoked_ms IS NULL")
            .bind(now_ms)
            .bind(stored(id).into_owned())
            .run(&mut session)
            .await
            .doing(WRITING)?
            .rows_affected();
        if revoked > 0 {
            write_act(&mut session, &entry.clone().into()).await.doing(WRITING)?;
        }
        session.commit(WRITING).await?;
        Ok(revoked > 0)
    }

    pub async fn note_key_uses(&self, uses: &[(String, i64)]) -> Result<(), StoreError> {
        let doing = "noting the use of API keys";
        let mut session = self.begin().await?;
        for (id, used_ms) in uses {
            session
                .query("UPDATE thalweg.api_keys SET used_ms = greatest(used_ms, $1) WHERE id = $2")
                .bind(*used_ms)
                .bind(id.clone())
                .run(&mut session)
                .await
                .doing(doing)?;
        }
        session.commit(doing).await
    }

    pub async fn key(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let mut session = self.read().await?;
        let row: Option<KeyRow> = session
            .query("SELECT * FROM thalweg.api_keys WHERE id = $1")
            .bind(stored(id).into_owned())
            .optional(&mut session)
            .await
            .doing("reading an API key")?;
        row.map(|row| row.key(original)).transpose()
    }

    pub async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<KeyRow> = session
            .query("SELECT * FROM thalweg.api_keys ORDER BY created_ms, id COLLATE \"C\"")
            .all(&mut session)
            .await
            .doing("reading the API keys")?;
        rows.into_iter().map(|row| row.key(original)).collect()
    }
}

async fn insert(session: &mut Session, key: &ApiKey) -> Result<(), sqlx::Error> {
    let kept = |text: &str| stored(text).into_owned();
    session
        .query(
            "INSERT INTO thalweg.api_keys (id, name, digest, tenant, roles, tier, created_ms, expires_ms, replaces)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(key.id.clone())
        .bind(kept(&key.name))
        .bind(key.digest.to_vec())
        .bind(key.tenant.as_deref().map(kept))
        .bind(stored_roles(key.roles))
        .bind(key.tier.name())
        .bind(key.created_ms)
        .bind(key.expires_ms)
        .bind(key.replaces.clone())
        .run(session)
        .await
        .map(drop)
}
