//! Long work.

use super::text::{original, stored};
use super::{LOCKS, PostgresStore, Session};
use crate::store::error::{Doing, StoreError};
use crate::store::jobs::{
    ChooseJob, HeldJob, JobClaim, JobEnd, JobFilter, JobProgress, JobRow, JobState, NewJob,
};
use crate::store::webhooks::NewDelivery;

const ASKING: &str = "queueing a job";
const CLAIMING: &str = "claiming a job";
const NOTING: &str = "noting a job";
const OPEN: &str = "SELECT * FROM thalweg.jobs WHERE state IN ('queued', 'running') ORDER BY job_id";
/// Advisory lock of whoever claims, so that nobody else does between reading
/// and writing.
const CLAIMS: i32 = 3;

fn kept(text: &str) -> String {
    stored(text).into_owned()
}

fn given(row: JobRow) -> JobRow {
    JobRow {
        tenant: row.tenant.map(original),
        asked_by: original(row.asked_by),
        note: original(row.note),
        error: row.error.map(original),
        ..row
    }
}

impl PostgresStore {
    pub async fn add_job(&self, job: &NewJob) -> Result<i64, StoreError> {
        let mut session = self.begin().await?;
        let id = session.insert_job(job, None).await?;
        session.commit(ASKING).await?;
        id.ok_or(StoreError::Damaged { what: "job", reason: "it was not stored".into() })
    }

    pub async fn schedule_seen(&self, schedule: &str, stream: &str, now_ms: i64) -> Result<i64, StoreError> {
        let doing = "reading a schedule";
        let mut session = self.begin().await?;
        session
            .query(
                "INSERT INTO thalweg.schedules (schedule, stream, settled_ms) VALUES ($1, $2, $3)
                 ON CONFLICT DO NOTHING",
            )
            .bind(schedule.to_owned())
            .bind(stream.to_owned())
            .bind(now_ms)
            .run(&mut session)
            .await
            .doing(doing)?;
        let settled = session
            .query("SELECT settled_ms FROM thalweg.schedules WHERE schedule = $1 AND stream = $2")
            .bind(schedule.to_owned())
            .bind(stream.to_owned())
            .scalar(&mut session)
            .await
            .doing(doing)?;
        session.commit(doing).await?;
        Ok(settled)
    }

    pub async fn settle_due(
        &self,
        schedule: &str,
        stream: &str,
        due_ms: i64,
        job: Option<&NewJob>,
    ) -> Result<Option<i64>, StoreError> {
        let mut session = self.begin().await?;
        let mine = session
            .query(
                "UPDATE thalweg.schedules SET settled_ms = $1
                 WHERE schedule = $2 AND stream = $3 AND settled_ms < $1",
            )
            .bind(due_ms)
            .bind(schedule.to_owned())
            .bind(stream.to_owned())
            .run(&mut session)
            .await
            .doing(ASKING)?;
        let id = match job {
            Some(job) if mine.rows_affected() == 1 => {
                session.insert_job(job, Some((schedule, due_ms))).await?
            }
            _ => None,
        };
        session.commit(ASKING).await?;
        Ok(id)
    }

    pub async fn open_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let mut session = self.read().await?;
        let rows = session.query(OPEN).all(&mut session).await.doing("reading the jobs")?;
        Ok(rows.into_iter().map(given).collect())
    }

    pub async fn jobs(
        &self,
        filter: &JobFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<JobRow>, StoreError> {
        let mut session = self.read().await?;
        let rows = session
            .query(
                "SELECT * FROM thalweg.jobs WHERE ($1::bigint IS NULL OR job_id < $1)
                     AND ($2::text IS NULL OR state = $2) AND ($3::text IS NULL OR kind = $3)
                 ORDER BY job_id DESC LIMIT $4",
            )
            .bind(before)
            .bind(filter.state.map(JobState::as_str))
            .bind(filter.kind.as_deref().map(kept))
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing("reading the jobs")?;
        Ok(rows.into_iter().map(given).collect())
    }

    pub async fn job(&self, job_id: i64) -> Result<Option<JobRow>, StoreError> {
        let mut session = self.read().await?;
        let row: Option<JobRow> = session
            .query("SELECT * FROM thalweg.jobs WHERE job_id = $1")
            .bind(job_id)
            .optional(&mut session)
            .await
            .doing("reading a job")?;
        Ok(row.map(given))
    }

    pub async fn claim_job(
        &self,
        claim: &JobClaim,
        choose: ChooseJob<'_>,
    ) -> Result<Option<JobRow>, StoreError> {
        let mut session =
            self.session(format!("BEGIN; SELECT pg_advisory_xact_lock({LOCKS}, {CLAIMS})")).await?;
        let open: Vec<JobRow> = session.query(OPEN).all(&mut session).await.doing(CLAIMING)?;
        let open: Vec<JobRow> = open.into_iter().map(given).collect();
        let Some(job_id) = choose(&open) else { return Ok(None) };
        let row: Option<JobRow> = session
            .query(
                "UPDATE thalweg.jobs SET state = 'running', epoch = epoch + 1, attempts = attempts + 1,
                     worker = $1, claimed_ms = $2, started_ms = coalesce(started_ms, $2), lease_ms = $3,
                     done_before = done
                 WHERE job_id = $4 AND state IN ('queued', 'running') RETURNING *",
            )
            .bind(kept(&claim.worker))
            .bind(claim.now_ms)
            .bind(claim.lease_ms)
            .bind(job_id)
            .optional(&mut session)
            .await
            .doing(CLAIMING)?;
        session.commit(CLAIMING).await?;
        Ok(row.map(given))
    }

    pub async fn report_job(
        &self,
        held: HeldJob,
        progress: &JobProgress,
        lease_ms: i64,
    ) -> Result<Option<bool>, StoreError> {
        let mut session = self.begin().await?;
        let cancelled = session
            .query(
                "UPDATE thalweg.jobs SET done = $1, total = $2, note = $3, place = coalesce($4, place),
                     lease_ms = $5
                 WHERE job_id = $6 AND epoch = $7 AND state = 'running' RETURNING cancel_ms IS NOT NULL",
            )
            .bind(progress.done.cast_signed())
            .bind(progress.total.map(u64::cast_signed))
            .bind(kept(&progress.note))
            .bind(progress.place.clone())
            .bind(lease_ms)
            .bind(held.job_id)
            .bind(held.epoch.cast_signed())
            .optional_scalar(&mut session)
            .await
            .doing(NOTING)?;
        session.commit(NOTING).await?;
        Ok(cancelled)
    }

    pub async fn end_job(
        &self,
        held: HeldJob,
        end: &JobEnd,
        told: &[NewDelivery],
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut session = self.begin().await?;
        let ended = session
            .query(
                "UPDATE thalweg.jobs SET state = $1, result = $2, error = $3, attempts = CASE WHEN $5::bigint IS NOT NULL AND done > done_before
                     THEN 1 ELSE attempts + $4 END,
                     not_before_ms = coalesce($5::bigint, not_before_ms), ended_ms = $6::bigint, lease_ms = NULL,
                     place = CASE WHEN $6::bigint IS NULL THEN place END
                 WHERE job_id = $7 AND epoch = $8 AND state = 'running'",
            )
            .bind(end.state().as_str())
            .bind(end.result().map(str::to_owned))
            .bind(end.error().map(kept))
            .bind(end.attempts())
            .bind(end.not_before())
            .bind(end.state().is_end().then_some(now_ms))
            .bind(held.job_id)
            .bind(held.epoch.cast_signed())
            .run(&mut session)
            .await
            .doing(NOTING)?;
        let is_mine = ended.rows_affected() == 1;
        if is_mine {
            session.insert_deliveries(told).await?;
        }
        session.commit(NOTING).await?;
        Ok(is_mine)
    }

    pub async fn cancel_job(&self, job_id: i64, now_ms: i64) -> Result<Option<JobState>, StoreError> {
        let mut session = self.begin().await?;
        let state: Option<String> = session
            .query(
                "UPDATE thalweg.jobs SET cancel_ms = coalesce(cancel_ms, $1),
                     ended_ms = CASE WHEN state = 'queued' THEN $1 END,
                     state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END
                 WHERE job_id = $2 AND state IN ('queued', 'running') RETURNING state",
            )
            .bind(now_ms)
            .bind(job_id)
            .optional_scalar(&mut session)
            .await
            .doing(NOTING)?;
        session.commit(NOTING).await?;
        state.map(JobState::try_from).transpose()
    }

    pub async fn remove_old_jobs(&self, before_ms: i64) -> Result<u64, StoreError> {
        let mut session = self.begin().await?;
        let removed = session
            .query("DELETE FROM thalweg.jobs WHERE ended_ms < $1")
            .bind(before_ms)
            .run(&mut session)
            .await
            .doing("forgetting old jobs")?;
        session.commit("forgetting old jobs").await?;
        Ok(removed.rows_affected())
    }
}

impl Session {
    /// None if the due time has its job already.
    async fn insert_job(
        &mut self,
        job: &NewJob,
        due: Option<(&str, i64)>,
    ) -> Result<Option<i64>, StoreError> {
        self.query(
            "INSERT INTO thalweg.jobs (kind, work, pipeline, stream, tenant, asked_by, schedule, due_ms,
                 priority, asked_ms, not_before_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10) ON CONFLICT DO NOTHING RETURNING job_id",
        )
        .bind(job.kind.clone())
        .bind(job.work.clone())
        .bind(job.pipeline.clone())
        .bind(job.stream.clone())
        .bind(job.tenant.as_deref().map(kept))
        .bind(kept(&job.asked_by))
        .bind(due.map(|(schedule, _)| schedule.to_owned()))
        .bind(due.map(|(_, due_ms)| due_ms))
        .bind(job.priority)
        .bind(job.asked_ms)
        .optional_scalar(self)
        .await
        .doing(ASKING)
    }
}
