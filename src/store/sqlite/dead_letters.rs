//! Dead letters.

use super::SqliteStore;
use crate::store::dead_letters::{
    DeadLetter, DeadLetterHead, DeadLetterHeadRow, DeadLetterRow, DeadLetterState, NewDeadLetter,
};
use crate::store::error::{Doing, StoreError};

impl SqliteStore {
    pub async fn add_dead_letter(&self, letter: &NewDeadLetter) -> Result<i64, StoreError> {
        let mut transaction = self.begin().await?;
        let id = sqlx::query_scalar(
            "INSERT INTO dead_letters (at_ms, pipeline, source, peer, stream, \"offset\", frame_index,
                 byte_offset, code, message, payload)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(letter.at_ms)
        .bind(&letter.pipeline)
        .bind(&letter.source)
        .bind(&letter.peer)
        .bind(&letter.stream)
        .bind(letter.offset.map(u64::cast_signed))
        .bind(letter.frame_index.map(u64::cast_signed))
        .bind(letter.byte_offset.map(u64::cast_signed))
        .bind(&letter.code)
        .bind(&letter.message)
        .bind(&letter.payload)
        .fetch_one(&mut *transaction)
        .await
        .doing("keeping a dead letter")?;
        transaction.commit().await.doing("keeping a dead letter")?;
        Ok(id)
    }

    pub async fn dead_letters(
        &self,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let rows: Vec<DeadLetterRow> = sqlx::query_as(
            "SELECT * FROM dead_letters WHERE id > ?1 AND (?2 IS NULL OR state = ?2) ORDER BY id LIMIT ?3",
        )
        .bind(after)
        .bind(state.map(DeadLetterState::as_str))
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing("reading the dead letters")?;
        Ok(rows.into_iter().map(DeadLetter::from).collect())
    }

    pub async fn dead_letter_heads(
        &self,
        pipeline: &str,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetterHead>, StoreError> {
        let rows: Vec<DeadLetterHeadRow> = sqlx::query_as(
            "SELECT id, at_ms, pipeline, source, peer, stream, \"offset\", frame_index, byte_offset, code, message,
                 state, redriven_ms, length(payload) AS payload_bytes
             FROM dead_letters
             WHERE id > ?1 AND pipeline = ?2 AND (?3 IS NULL OR state = ?3) ORDER BY id LIMIT ?4",
        )
        .bind(after)
        .bind(pipeline)
        .bind(state.map(DeadLetterState::as_str))
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing("reading the dead letters")?;
        Ok(rows.into_iter().map(DeadLetterHead::from).collect())
    }

    pub async fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        let row: Option<DeadLetterRow> = sqlx::query_as("SELECT * FROM dead_letters WHERE id = ?")
            .bind(id)
            .fetch_optional(self.readers())
            .await
            .doing("reading a dead letter")?;
        Ok(row.map(DeadLetter::from))
    }

    pub async fn mark_redriven(&self, id: i64, now_ms: i64) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let marked = sqlx::query(
            "UPDATE dead_letters SET state = 'redriven', redriven_ms = ? WHERE id = ? AND state = 'open'",
        )
        .bind(now_ms)
        .bind(id)
        .execute(&mut *transaction)
        .await
        .doing("marking a dead letter")?;
        transaction.commit().await.doing("marking a dead letter")?;
        Ok(marked.rows_affected() == 1)
    }
}
