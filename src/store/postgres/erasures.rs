//! What was asked to be erased, and objects that are to be deleted.

use super::segments::write_segment;
use super::session::Statement;
use super::text::{original, stored};
use super::{PostgresStore, Session};
use crate::store::erasures::{Erasure, ErasureRow, PartRow};
use crate::store::error::{Doing, StoreError};
use crate::store::forget::Subject;
use crate::store::segments::SegmentRow;

const ASKING: &str = "asking for an erasure";
const NOTING: &str = "noting an erasure";

impl PostgresStore {
    pub async fn ask_erasure(
        &self,
        subject: &Subject,
        streams: &[String],
        now_ms: i64,
    ) -> Result<i64, StoreError> {
        let mut session = self.begin().await?;
        let id: i64 = session
            .query(
                "INSERT INTO thalweg.erasures (tenant, session, asked_ms) VALUES ($1, $2, $3)
                 RETURNING erasure_id",
            )
            .bind(stored(&subject.tenant).into_owned())
            .bind(subject.session.as_deref().map(|session| stored(session).into_owned()))
            .bind(now_ms)
            .scalar(&mut session)
            .await
            .doing(ASKING)?;
        session
            .query(
                "INSERT INTO thalweg.erasure_streams (erasure_id, stream)
                 SELECT $1, stream FROM thalweg.checkpoints UNION SELECT $1, unnest($2::text[])",
            )
            .bind(id)
            .bind(streams.to_vec())
            .run(&mut session)
            .await
            .doing(ASKING)?;
        session.commit(ASKING).await?;
        Ok(id)
    }

    pub async fn erasures(&self, open_only: bool) -> Result<Vec<Erasure>, StoreError> {
        let doing = "reading the erasures";
        let mut session = self.read().await?;
        let rows: Vec<ErasureRow> = session
            .query(
                "SELECT erasure_id, tenant, session, asked_ms, done_ms FROM thalweg.erasures
                 WHERE NOT $1 OR done_ms IS NULL ORDER BY erasure_id",
            )
            .bind(open_only)
            .all(&mut session)
            .await
            .doing(doing)?;
        let mut erasures = Vec::with_capacity(rows.len());
        for row in rows {
            let parts: Vec<PartRow> = session
                .query(
                    "SELECT stream, until_offset, report, done_ms FROM thalweg.erasure_streams
                     WHERE erasure_id = $1 ORDER BY stream",
                )
                .bind(row.erasure_id)
                .all(&mut session)
                .await
                .doing(doing)?;
            erasures.push(row.with(parts, original));
        }
        Ok(erasures)
    }

    pub async fn begin_erasure(&self, erasure_id: i64, stream: &str, until: u64) -> Result<(), StoreError> {
        let set = "UPDATE thalweg.erasure_streams SET until_offset = coalesce(until_offset, $1)
                   WHERE erasure_id = $2 AND stream = $3";
        let (until, stream) = (until.cast_signed(), stream.to_owned());
        self.note(|session| session.query(set).bind(until).bind(erasure_id).bind(stream)).await
    }

    pub async fn note_erasure(
        &self,
        erasure_id: i64,
        stream: &str,
        report: &str,
        done_ms: Option<i64>,
    ) -> Result<(), StoreError> {
        let set = "UPDATE thalweg.erasure_streams SET report = $1, done_ms = $2
                   WHERE erasure_id = $3 AND stream = $4";
        let (report, stream) = (report.to_owned(), stream.to_owned());
        self.note(|session| session.query(set).bind(report).bind(done_ms).bind(erasure_id).bind(stream)).await
    }

    pub async fn forget_subject(&self, erasure_id: i64) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        for statement in [
            "DELETE FROM thalweg.api_keys WHERE tenant =
                 (SELECT tenant FROM thalweg.erasures WHERE erasure_id = $1 AND session IS NULL)",
            "DELETE FROM thalweg.jobs WHERE tenant =
                 (SELECT tenant FROM thalweg.erasures WHERE erasure_id = $1 AND session IS NULL)",
            "DELETE FROM thalweg.webhook_deliveries WHERE tenant =
                 (SELECT tenant FROM thalweg.erasures WHERE erasure_id = $1 AND session IS NULL)",
            "UPDATE thalweg.erasures SET tenant = NULL, session = NULL WHERE erasure_id = $1",
        ] {
            session.query(statement).bind(erasure_id).run(&mut session).await.doing(NOTING)?;
        }
        session.commit(NOTING).await
    }

    pub async fn close_erasure(&self, erasure_id: i64, now_ms: i64) -> Result<(), StoreError> {
        let close = "UPDATE thalweg.erasures SET done_ms = $1 WHERE erasure_id = $2";
        self.note(|session| session.query(close).bind(now_ms).bind(erasure_id)).await
    }

    async fn note(&self, statement: impl FnOnce(&Session) -> Statement) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        statement(&session).run(&mut session).await.doing(NOTING)?;
        session.commit(NOTING).await
    }

    pub async fn doom(
        &self,
        digests: &[String],
        instead: Option<&SegmentRow>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let doing = "condemning artifacts";
        let mut session = self.begin().await?;
        if let Some(segment) = instead {
            write_segment(&mut session, segment).await?;
        }
        session
            .query(
                "INSERT INTO thalweg.doomed (location, since_ms)
                 SELECT location, $1 FROM thalweg.artifacts WHERE digest = ANY($2) ON CONFLICT DO NOTHING",
            )
            .bind(now_ms)
            .bind(digests.to_vec())
            .run(&mut session)
            .await
            .doing(doing)?;
        for statement in [
            "DELETE FROM thalweg.artifacts WHERE digest = ANY($1)",
            "DELETE FROM thalweg.segments WHERE artifact = ANY($1)",
        ] {
            session.query(statement).bind(digests.to_vec()).run(&mut session).await.doing(doing)?;
        }
        session.commit(doing).await
    }

    pub async fn doomed(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT location, since_ms FROM thalweg.doomed d WHERE NOT EXISTS (
                     SELECT FROM thalweg.artifacts a WHERE a.location = d.location) ORDER BY location",
            )
            .all(&mut session)
            .await
            .doing("reading the condemned objects")
    }

    pub async fn object_deleted(&self, location: &str) -> Result<(), StoreError> {
        let location = location.to_owned();
        let delete = "DELETE FROM thalweg.doomed WHERE location = $1";
        self.note(|session| session.query(delete).bind(location)).await
    }
}
