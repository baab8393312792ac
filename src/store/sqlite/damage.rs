//! What was found damaged.

use sqlx::SqliteConnection;

use super::SqliteStore;
use crate::store::damage::Damage;
use crate::store::error::{Doing, StoreError};

impl SqliteStore {
    pub async fn damage(&self, stream: &str) -> Result<Vec<Damage>, StoreError> {
        sqlx::query_as("SELECT * FROM damage WHERE stream = ? ORDER BY first_offset, id")
            .bind(stream)
            .fetch_all(self.readers())
            .await
            .doing("reading the damage")
    }

    pub async fn put_damage(&self, stream: &str, found: &[Damage]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        insert(&mut transaction, stream, found).await?;
        transaction.commit().await.doing("remembering damage")
    }

    pub async fn settle_damage(&self, stream: &str, settled: &[Damage]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM damage WHERE stream = ? AND settled_ms IS NULL")
            .bind(stream)
            .execute(&mut *transaction)
            .await
            .doing("settling damage")?;
        insert(&mut transaction, stream, settled).await?;
        transaction.commit().await.doing("settling damage")
    }
}

async fn insert(connection: &mut SqliteConnection, stream: &str, rows: &[Damage]) -> Result<(), StoreError> {
    for damage in rows {
        sqlx::query(
            "INSERT OR IGNORE INTO damage
                 (stream, file, kind, first_offset, next_offset, detail, found_ms, settled_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(stream)
        .bind(&damage.file)
        .bind(damage.kind.as_str())
        .bind(damage.first_offset.cast_signed())
        .bind(damage.next_offset.cast_signed())
        .bind(&damage.detail)
        .bind(damage.found_ms)
        .bind(damage.settled_ms)
        .execute(&mut *connection)
        .await
        .doing("remembering damage")?;
    }
    Ok(())
}
