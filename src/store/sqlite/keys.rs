//! API keys.

use sqlx::{Sqlite, Transaction};

use super::SqliteStore;
use super::trail::write_act;
use crate::identity::{ApiKey, Entry};
use crate::store::error::{Doing, StoreError};
use crate::store::keys::{KeyRow, stored_roles};

const WRITING: &str = "keeping an API key";

impl SqliteStore {
    pub async fn add_key(
        &self,
        key: &ApiKey,
        old_until_ms: Option<i64>,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        insert(&mut transaction, key).await.doing(WRITING)?;
        if let Some((old, until_ms)) = key.replaces.as_ref().zip(old_until_ms) {
            sqlx::query("UPDATE api_keys SET expires_ms = min(coalesce(expires_ms, ?1), ?1) WHERE id = ?2")
                .bind(until_ms)
                .bind(old)
                .execute(&mut *transaction)
                .await
                .doing(WRITING)?;
        }
        write_act(&mut transaction, &entry.clone().into()).await.doing(WRITING)?;
        transaction.commit().await.doing(WRITING)
    }

    pub async fn revoke_key(&self, id: &str, now_ms: i64, entry: &Entry) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let revoked = sqlx::query("UPDATE api_keys SET revoked_ms = ? WHERE id = ? AND revoked_ms IS NULL")
            .bind(now_ms)
            .bind(id)
            .execute(&mut *transaction)
            .await
            .doing(WRITING)?
            .rows_affected();
        if revoked > 0 {
            write_act(&mut transaction, &entry.clone().into()).await.doing(WRITING)?;
        }
        transaction.commit().await.doing(WRITING)?;
        Ok(revoked > 0)
    }

    pub async fn note_key_uses(&self, uses: &[(String, i64)]) -> Result<(), StoreError> {
        let doing = "noting the use of API keys";
        let mut transaction = self.begin().await?;
        for (id, used_ms) in uses {
            sqlx::query("UPDATE api_keys SET used_ms = max(coalesce(used_ms, ?1), ?1) WHERE id = ?2")
                .bind(used_ms)
                .bind(id)
                .execute(&mut *transaction)
                .await
                .doing(doing)?;
        }
        transaction.commit().await.doing(doing)
    }

    pub async fn key(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let row: Option<KeyRow> = sqlx::query_as("SELECT * FROM api_keys WHERE id = ?")
            .bind(id)
            .fetch_optional(self.readers())
            .await
            .doing("reading an API key")?;
        row.map(|row| row.key(|text| text)).transpose()
    }

    pub async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let rows: Vec<KeyRow> = sqlx::query_as("SELECT * FROM api_keys ORDER BY created_ms, id")
            .fetch_all(self.readers())
            .await
            .doing("reading the API keys")?;
        rows.into_iter().map(|row| row.key(|text| text)).collect()
    }
}

async fn insert(transaction: &mut Transaction<'static, Sqlite>, key: &ApiKey) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO api_keys (id, name, digest, tenant, roles, tier, created_ms, expires_ms, replaces)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&key.id)
    .bind(&key.name)
    .bind(key.digest.as_slice())
    .bind(&key.tenant)
    .bind(stored_roles(key.roles))
    .bind(key.tier.name())
    .bind(key.created_ms)
    .bind(key.expires_ms)
    .bind(&key.replaces)
    .execute(&mut **transaction)
    .await
    .map(drop)
}
