//! Long work.

use sqlx::{Sqlite, Transaction};

use super::SqliteStore;
use super::webhooks::insert_deliveries;
use crate::store::error::{Doing, StoreError};
use crate::store::jobs::{
    ChooseJob, HeldJob, JobClaim, JobEnd, JobFilter, JobProgress, JobRow, JobState, NewJob,
};
use crate::store::webhooks::NewDelivery;

const ASKING: &str = "queueing a job";
const CLAIMING: &str = "claiming a job";
const NOTING: &str = "noting a job";
const OPEN: &str = "SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY job_id";

impl SqliteStore {
    pub async fn add_job(&self, job: &NewJob) -> Result<i64, StoreError> {
        let mut transaction = self.begin().await?;
        let id = insert(&mut transaction, job, None).await?;
        transaction.commit().await.doing(ASKING)?;
        id.ok_or(StoreError::Damaged { what: "job", reason: "it was not stored".into() })
    }

    pub async fn schedule_seen(&self, schedule: &str, stream: &str, now_ms: i64) -> Result<i64, StoreError> {
        let doing = "reading a schedule";
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT OR IGNORE INTO schedules (schedule, stream, settled_ms) VALUES (?, ?, ?)")
            .bind(schedule)
            .bind(stream)
            .bind(now_ms)
            .execute(&mut *transaction)
            .await
            .doing(doing)?;
        let settled =
            sqlx::query_scalar("SELECT settled_ms FROM schedules WHERE schedule = ? AND stream = ?")
                .bind(schedule)
                .bind(stream)
                .fetch_one(&mut *transaction)
                .await
                .doing(doing)?;
        transaction.commit().await.doing(doing)?;
        Ok(settled)
    }

    pub async fn settle_due(
        &self,
        schedule: &str,
        stream: &str,
        due_ms: i64,
        job: Option<&NewJob>,
    ) -> Result<Option<i64>, StoreError> {
        let mut transaction = self.begin().await?;
        let mine = sqlx::query(
            "UPDATE schedules SET settled_ms = ?1 WHERE schedule = ?2 AND stream = ?3 AND settled_ms < ?1",
        )
        .bind(due_ms)
        .bind(schedule)
        .bind(stream)
        .execute(&mut *transaction)
        .await
        .doing(ASKING)?;
        let id = match job {
            Some(job) if mine.rows_affected() == 1 => {
                insert(&mut transaction, job, Some((schedule, due_ms))).await?
            }
            _ => None,
        };
        transaction.commit().await.doing(ASKING)?;
        Ok(id)
    }

    pub async fn open_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        sqlx::query_as(OPEN).fetch_all(self.readers()).await.doing("reading the jobs")
    }

    pub async fn jobs(
        &self,
        filter: &JobFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<JobRow>, StoreError> {
        sqlx::query_as(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR job_id < ?1) AND (?2 IS NULL OR state = ?2)
                 AND (?3 IS NULL OR kind = ?3) ORDER BY job_id DESC LIMIT ?4",
        )
        .bind(before)
        .bind(filter.state.map(JobState::as_str))
        .bind(&filter.kind)
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing("reading the jobs")
    }

    pub async fn job(&self, job_id: i64) -> Result<Option<JobRow>, StoreError> {
        sqlx::query_as("SELECT * FROM jobs WHERE job_id = ?")
            .bind(job_id)
            .fetch_optional(self.readers())
            .await
            .doing("reading a job")
    }

    pub async fn claim_job(
        &self,
        claim: &JobClaim,
        choose: ChooseJob<'_>,
    ) -> Result<Option<JobRow>, StoreError> {
        // Begun as a writer, so nobody claims between reading and writing.
        let mut transaction = self.begin().await?;
        let open: Vec<JobRow> = sqlx::query_as(OPEN).fetch_all(&mut *transaction).await.doing(CLAIMING)?;
        let Some(job_id) = choose(&open) else { return Ok(None) };
        let row = sqlx::query_as(
            "UPDATE jobs SET state = 'running', epoch = epoch + 1, attempts = attempts + 1, worker = ?1,
                 claimed_ms = ?2, started_ms = coalesce(started_ms, ?2), lease_ms = ?3, done_before = done
             WHERE job_id = ?4 RETURNING *",
        )
        .bind(&claim.worker)
        .bind(claim.now_ms)
        .bind(claim.lease_ms)
        .bind(job_id)
        .fetch_optional(&mut *transaction)
        .await
        .doing(CLAIMING)?;
        transaction.commit().await.doing(CLAIMING)?;
        Ok(row)
    }

    pub async fn report_job(
        &self,
        held: HeldJob,
        progress: &JobProgress,
        lease_ms: i64,
    ) -> Result<Option<bool>, StoreError> {
        let mut transaction = self.begin().await?;
        let cancelled = sqlx::query_scalar(
            "UPDATE jobs SET done = ?, total = ?, note = ?, place = coalesce(?, place), lease_ms = ?
             WHERE job_id = ? AND epoch = ? AND state = 'running' RETURNING cancel_ms IS NOT NULL",
        )
        .bind(progress.done.cast_signed())
        .bind(progress.total.map(u64::cast_signed))
        .bind(&progress.note)
        .bind(&progress.place)
        .bind(lease_ms)
        .bind(held.job_id)
        .bind(held.epoch.cast_signed())
        .fetch_optional(&mut *transaction)
        .await
        .doing(NOTING)?;
        transaction.commit().await.doing(NOTING)?;
        Ok(cancelled)
    }

    pub async fn end_job(
        &self,
        held: HeldJob,
        end: &JobEnd,
        told: &[NewDelivery],
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let ended = sqlx::query(
            "UPDATE jobs SET state = ?1, result = ?2, error = ?3, attempts = CASE WHEN ?5 IS NOT NULL AND done > done_before
                     THEN 1 ELSE attempts + ?4 END,
                 not_before_ms = coalesce(?5, not_before_ms), ended_ms = CASE WHEN ?6 THEN ?7 END,
                 lease_ms = NULL, place = CASE WHEN NOT ?6 THEN place END
             WHERE job_id = ?8 AND epoch = ?9 AND state = 'running'",
        )
        .bind(end.state().as_str())
        .bind(end.result())
        .bind(end.error())
        .bind(end.attempts())
        .bind(end.not_before())
        .bind(end.state().is_end())
        .bind(now_ms)
        .bind(held.job_id)
        .bind(held.epoch.cast_signed())
        .execute(&mut *transaction)
        .await
        .doing(NOTING)?;
        let is_mine = ended.rows_affected() == 1;
        if is_mine {
            insert_deliveries(&mut transaction, told).await?;
        }
        transaction.commit().await.doing(NOTING)?;
        Ok(is_mine)
    }

    pub async fn cancel_job(&self, job_id: i64, now_ms: i64) -> Result<Option<JobState>, StoreError> {
        let mut transaction = self.begin().await?;
        let state: Option<String> = sqlx::query_scalar(
            "UPDATE jobs SET cancel_ms = coalesce(cancel_ms, ?1),
                 ended_ms = CASE WHEN state = 'queued' THEN ?1 END,
                 state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END
             WHERE job_id = ?2 AND state IN ('queued', 'running') RETURNING state",
        )
        .bind(now_ms)
        .bind(job_id)
        .fetch_optional(&mut *transaction)
        .await
        .doing(NOTING)?;
        transaction.commit().await.doing(NOTING)?;
        state.map(JobState::try_from).transpose()
    }

    pub async fn remove_old_jobs(&self, before_ms: i64) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let removed = sqlx::query("DELETE FROM jobs WHERE ended_ms < ?")
            .bind(before_ms)
            .execute(&mut *transaction)
            .await
            .doing("forgetting old jobs")?;
        transaction.commit().await.doing("forgetting old jobs")?;
        Ok(removed.rows_affected())
    }
}

/// None if the due time has its job already.
async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    job: &NewJob,
    due: Option<(&str, i64)>,
) -> Result<Option<i64>, StoreError> {
    sqlx::query_scalar(
        "INSERT INTO jobs (kind, work, pipeline, stream, tenant, asked_by, schedule, due_ms, priority,
             asked_ms, not_before_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10) ON CONFLICT DO NOTHING RETURNING job_id",
    )
    .bind(&job.kind)
    .bind(&job.work)
    .bind(&job.pipeline)
    .bind(&job.stream)
    .bind(&job.tenant)
    .bind(&job.asked_by)
    .bind(due.map(|(schedule, _)| schedule))
    .bind(due.map(|(_, due_ms)| due_ms))
    .bind(job.priority)
    .bind(job.asked_ms)
    .fetch_optional(&mut **transaction)
    .await
    .doing(ASKING)
}
