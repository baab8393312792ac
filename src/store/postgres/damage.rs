//! What was found damaged.

use super::text::stored;
use super::{PostgresStore, Session};
use crate::store::damage::Damage;
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn damage(&self, stream: &str) -> Result<Vec<Damage>, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT * FROM thalweg.damage WHERE stream = $1 ORDER BY first_offset, id")
            .bind(stream.to_owned())
            .all(&mut session)
            .await
            .doing("reading the damage")
    }

    pub async fn put_damage(&self, stream: &str, found: &[Damage]) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        insert(&mut session, stream, found).await?;
        session.commit("remembering damage").await
    }

    pub async fn settle_damage(&self, stream: &str, settled: &[Damage]) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session
            .query("DELETE FROM thalweg.damage WHERE stream = $1 AND settled_ms IS NULL")
            .bind(stream.to_owned())
            .run(&mut session)
            .await
            .doing("settling damage")?;
        insert(&mut session, stream, settled).await?;
        session.commit("settling damage").await
    }
}

async fn insert(session: &mut Session, stream: &str, rows: &[Damage]) -> Result<(), StoreError> {
    for damage in rows {
        session
            .query(
                "INSERT INTO thalweg.damage
                     (stream, file, kind, first_offset, next_offset, detail, found_ms, settled_ms)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            )
            .bind(stream.to_owned())
            .bind(damage.file.clone())
            .bind(damage.kind.as_str())
            .bind(damage.first_offset.cast_signed())
            .bind(damage.next_offset.cast_signed())
            .bind(stored(&damage.detail).into_owned())
            .bind(damage.found_ms)
            .bind(damage.settled_ms)
            .run(session)
            .await
            .doing("remembering damage")?;
    }
    Ok(())
}
