//! What was asked to be erased, and objects that are to be deleted.

use std::collections::BTreeSet;

use super::SqliteStore;
use super::insert::insert_rows;
use super::segments::write_segment;
use crate::store::erasures::{Erasure, ErasureRow, PartRow};
use crate::store::error::{Doing, StoreError};
use crate::store::forget::Subject;
use crate::store::segments::SegmentRow;

const ASKING: &str = "asking for an erasure";
const NOTING: &str = "noting an erasure";

impl SqliteStore {
    pub async fn ask_erasure(
        &self,
        subject: &Subject,
        streams: &[String],
        now_ms: i64,
    ) -> Result<i64, StoreError> {
        let mut transaction = self.begin().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO erasures (tenant, session, asked_ms) VALUES (?, ?, ?) RETURNING erasure_id",
        )
        .bind(&subject.tenant)
        .bind(&subject.session)
        .bind(now_ms)
        .fetch_one(&mut *transaction)
        .await
        .doing(ASKING)?;
        let known: Vec<String> = sqlx::query_scalar("SELECT DISTINCT stream FROM checkpoints")
            .fetch_all(&mut *transaction)
            .await
            .doing(ASKING)?;
        let parts: BTreeSet<&String> = streams.iter().chain(&known).collect();
        let parts: Vec<&String> = parts.into_iter().collect();
        let head = "INSERT INTO erasure_streams (erasure_id, stream) ";
        insert_rows(&mut transaction, head, "", &parts, |values, stream| {
            values.push_bind(id).push_bind(stream.as_str());
        })
        .await
        .doing(ASKING)?;
        transaction.commit().await.doing(ASKING)?;
        Ok(id)
    }

    pub async fn erasures(&self, open_only: bool) -> Result<Vec<Erasure>, StoreError> {
        let doing = "reading the erasures";
        let rows: Vec<ErasureRow> = sqlx::query_as(
            "SELECT erasure_id, tenant, session, asked_ms, done_ms FROM erasures
             WHERE NOT ?1 OR done_ms IS NULL ORDER BY erasure_id",
        )
        .bind(open_only)
        .fetch_all(self.readers())
        .await
        .doing(doing)?;
        let mut erasures = Vec::with_capacity(rows.len());
        for row in rows {
            let parts: Vec<PartRow> = sqlx::query_as(
                "SELECT stream, until_offset, report, done_ms FROM erasure_streams
                 WHERE erasure_id = ? ORDER BY stream",
            )
            .bind(row.erasure_id)
            .fetch_all(self.readers())
            .await
            .doing(doing)?;
            erasures.push(row.with(parts, |name| name));
        }
        Ok(erasures)
    }

    pub async fn begin_erasure(&self, erasure_id: i64, stream: &str, until: u64) -> Result<(), StoreError> {
        self.note(
            sqlx::query(
                "UPDATE erasure_streams SET until_offset = coalesce(until_offset, ?)
                 WHERE erasure_id = ? AND stream = ?",
            )
            .bind(until.cast_signed())
            .bind(erasure_id)
            .bind(stream),
        )
        .await
    }

    pub async fn note_erasure(
        &self,
        erasure_id: i64,
        stream: &str,
        report: &str,
        done_ms: Option<i64>,
    ) -> Result<(), StoreError> {
        self.note(
            sqlx::query(
                "UPDATE erasure_streams SET report = ?, done_ms = ? WHERE erasure_id = ? AND stream = ?",
            )
            .bind(report)
            .bind(done_ms)
            .bind(erasure_id)
            .bind(stream),
        )
        .await
    }

    pub async fn forget_subject(&self, erasure_id: i64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for statement in [
            "DELETE FROM api_keys WHERE tenant =
                 (SELECT tenant FROM erasures WHERE erasure_id = ? AND session IS NULL)",
            "DELETE FROM jobs WHERE tenant =
                 (SELECT tenant FROM erasures WHERE erasure_id = ? AND session IS NULL)",
            "DELETE FROM webhook_deliveries WHERE tenant =
                 (SELECT tenant FROM erasures WHERE erasure_id = ? AND session IS NULL)",
            "UPDATE erasures SET tenant = NULL, session = NULL WHERE erasure_id = ?",
        ] {
            sqlx::query(statement).bind(erasure_id).execute(&mut *transaction).await.doing(NOTING)?;
        }
        transaction.commit().await.doing(NOTING)
    }

    pub async fn close_erasure(&self, erasure_id: i64, now_ms: i64) -> Result<(), StoreError> {
        let close = "UPDATE erasures SET done_ms = ? WHERE erasure_id = ?";
        self.note(sqlx::query(close).bind(now_ms).bind(erasure_id)).await
    }

    async fn note(
        &self,
        statement: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        statement.execute(&mut *transaction).await.doing(NOTING)?;
        transaction.commit().await.doing(NOTING)
    }

    pub async fn doom(
        &self,
        digests: &[String],
        instead: Option<&SegmentRow>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let doing = "condemning artifacts";
        let mut transaction = self.begin().await?;
        if let Some(segment) = instead {
            write_segment(&mut transaction, segment).await?;
        }
        for digest in digests {
            sqlx::query(
                "INSERT OR IGNORE INTO doomed (location, since_ms)
                 SELECT location, ? FROM artifacts WHERE digest = ?",
            )
            .bind(now_ms)
            .bind(digest)
            .execute(&mut *transaction)
            .await
            .doing(doing)?;
            for statement in
                ["DELETE FROM artifacts WHERE digest = ?", "DELETE FROM segments WHERE artifact = ?"]
            {
                sqlx::query(statement).bind(digest).execute(&mut *transaction).await.doing(doing)?;
            }
        }
        transaction.commit().await.doing(doing)
    }

    pub async fn doomed(&self) -> Result<Vec<(String, i64)>, StoreError> {
        sqlx::query_as(
            "SELECT location, since_ms FROM doomed WHERE location NOT IN (SELECT location FROM artifacts) ORDER BY location",
        )
        .fetch_all(self.readers())
        .await
        .doing("reading the condemned objects")
    }

    pub async fn object_deleted(&self, location: &str) -> Result<(), StoreError> {
        self.note(sqlx::query("DELETE FROM doomed WHERE location = ?").bind(location)).await
    }
}
