//! Dead letters.

use super::PostgresStore;
use super::text::{original, stored};
use crate::store::dead_letters::{
    DeadLetter, DeadLetterHead, DeadLetterHeadRow, DeadLetterRow, DeadLetterState, NewDeadLetter,
};
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn add_dead_letter(&self, letter: &NewDeadLetter) -> Result<i64, StoreError> {
        let kept = |text: &str| stored(text).into_owned();
        let mut session = self.begin().await?;
        let id = session
            .query(
                "INSERT INTO thalweg.dead_letters (at_ms, pipeline, source, peer, stream, \"offset\",
                     frame_index, byte_offset, code, message, payload)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING id",
            )
            .bind(letter.at_ms)
            .bind(kept(&letter.pipeline))
            .bind(kept(&letter.source))
            .bind(letter.peer.as_deref().map(kept))
            .bind(letter.stream.as_deref().map(kept))
            .bind(letter.offset.map(u64::cast_signed))
            .bind(letter.frame_index.map(u64::cast_signed))
            .bind(letter.byte_offset.map(u64::cast_signed))
            .bind(kept(&letter.code))
            .bind(kept(&letter.message))
            .bind(letter.payload.clone())
            .scalar(&mut session)
            .await
            .doing("keeping a dead letter")?;
        session.commit("keeping a dead letter").await?;
        Ok(id)
    }

    pub async fn dead_letters(
        &self,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<DeadLetterRow> = session
            .query(
                "SELECT * FROM thalweg.dead_letters WHERE id > $1 AND ($2::text IS NULL OR state = $2)
                 ORDER BY id LIMIT $3",
            )
            .bind(after)
            .bind(state.map(DeadLetterState::as_str))
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing("reading the dead letters")?;
        Ok(rows.into_iter().map(|row| DeadLetter::from(row.map_texts(original))).collect())
    }

    pub async fn dead_letter_heads(
        &self,
        pipeline: &str,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetterHead>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<DeadLetterHeadRow> = session
            .query(
                "SELECT id, at_ms, pipeline, source, peer, stream, \"offset\", frame_index, byte_offset, code,
                     message, state, redriven_ms, octet_length(payload)::bigint AS payload_bytes
                 FROM thalweg.dead_letters
                 WHERE id > $1 AND pipeline = $2 AND ($3::text IS NULL OR state = $3) ORDER BY id LIMIT $4",
            )
            .bind(after)
            .bind(stored(pipeline).into_owned())
            .bind(state.map(DeadLetterState::as_str))
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing("reading the dead letters")?;
        Ok(rows.into_iter().map(|row| DeadLetterHead::from(row.map_texts(original))).collect())
    }

    pub async fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        let mut session = self.read().await?;
        let row: Option<DeadLetterRow> = session
            .query("SELECT * FROM thalweg.dead_letters WHERE id = $1")
            .bind(id)
            .optional(&mut session)
            .await
            .doing("reading a dead letter")?;
        Ok(row.map(|row| DeadLetter::from(row.map_texts(original))))
    }

    pub async fn mark_redriven(&self, id: i64, now_ms: i64) -> Result<bool, StoreError> {
        let mut session = self.begin().await?;
        let marked = session
            .query(
                "UPDATE thalweg.dead_letters SET state = 'redriven', redriven_ms = $1
                 WHERE id = $2 AND state = 'open'",
            )
            .bind(now_ms)
            .bind(id)
            .run(&mut session)
            .await
            .doing("marking a dead letter")?;
        session.commit("marking a dead letter").await?;
        Ok(marked.rows_affected() == 1)
    }
}
