//! What is told by webhooks.

use sqlx::{Sqlite, Transaction};

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::webhooks::{
    Delivery, DeliveryClaim, DeliveryFilter, DeliveryNote, DeliveryState, NewDelivery,
};

const ADDING: &str = "queueing what webhooks tell";
const CLAIMING: &str = "claiming deliveries of a webhook";
const NOTING: &str = "noting a delivery of a webhook";
const READING: &str = "reading the deliveries of webhooks";

impl SqliteStore {
    pub async fn add_deliveries(&self, deliveries: &[NewDelivery]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        insert_deliveries(&mut transaction, deliveries).await?;
        transaction.commit().await.doing(ADDING)
    }

    pub async fn webhooks_due(&self, pipeline: &str, now_ms: i64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT DISTINCT webhook FROM webhook_deliveries
             WHERE state = 'waiting' AND pipeline = ? AND due_ms <= ? ORDER BY webhook",
        )
        .bind(pipeline)
        .bind(now_ms)
        .fetch_all(self.readers())
        .await
        .doing(READING)
    }

    pub async fn claim_deliveries(&self, claim: DeliveryClaim<'_>) -> Result<Vec<Delivery>, StoreError> {
        // Begun as a writer, so nobody claims between reading and writing.
        let mut transaction = self.begin().await?;
        let claimed = sqlx::query_as(
            "UPDATE webhook_deliveries SET claim = claim + 1, due_ms = ?5 WHERE delivery_id IN
                 (SELECT delivery_id FROM webhook_deliveries
                  WHERE state = 'waiting' AND pipeline = ?1 AND webhook = ?2 AND due_ms <= ?3
                  ORDER BY due_ms, delivery_id LIMIT ?4)
             RETURNING *",
        )
        .bind(claim.pipeline)
        .bind(claim.webhook)
        .bind(claim.now_ms)
        .bind(claim.most)
        .bind(claim.until_ms)
        .fetch_all(&mut *transaction)
        .await
        .doing(CLAIMING)?;
        transaction.commit().await.doing(CLAIMING)?;
        Ok(claimed)
    }

    pub async fn note_delivery(
        &self,
        delivery_id: &str,
        claim: i64,
        note: &DeliveryNote,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let noted = sqlx::query(
            "UPDATE webhook_deliveries SET state = ?1, attempts = attempts + 1, tried_ms = ?2, took_ms = ?3,
                 status = ?4, error = ?5, due_ms = coalesce(?6, due_ms),
                 ended_ms = CASE WHEN ?6 IS NULL THEN ?2 + ?3 END
             WHERE delivery_id = ?7 AND claim = ?8 AND state = 'waiting'",
        )
        .bind(note.state.as_str())
        .bind(note.tried_ms)
        .bind(note.took_ms)
        .bind(note.status)
        .bind(&note.error)
        .bind(note.due_ms)
        .bind(delivery_id)
        .bind(claim)
        .execute(&mut *transaction)
        .await
        .doing(NOTING)?;
        transaction.commit().await.doing(NOTING)?;
        Ok(noted.rows_affected() == 1)
    }

    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        sqlx::query_as(
            "SELECT * FROM webhook_deliveries WHERE (?1 IS NULL OR delivery_id < ?1)
                 AND (?2 IS NULL OR webhook = ?2) AND (?3 IS NULL OR state = ?3)
             ORDER BY delivery_id DESC LIMIT ?4",
        )
        .bind(before)
        .bind(&filter.webhook)
        .bind(filter.state.map(DeliveryState::as_str))
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing(READING)
    }

    pub async fn delivery(&self, delivery_id: &str) -> Result<Option<Delivery>, StoreError> {
        sqlx::query_as("SELECT * FROM webhook_deliveries WHERE delivery_id = ?")
            .bind(delivery_id)
            .fetch_optional(self.readers())
            .await
            .doing(READING)
    }

    pub async fn redeliver(
        &self,
        delivery_id: &str,
        now_ms: i64,
        give_up_ms: i64,
    ) -> Result<Option<Delivery>, StoreError> {
        let mut transaction = self.begin().await?;
        let delivery = sqlx::query_as(
            "UPDATE webhook_deliveries SET state = 'waiting', claim = claim + 1, attempts = 0, due_ms = ?1,
                 give_up_ms = ?2, ended_ms = NULL
             WHERE delivery_id = ?3 RETURNING *",
        )
        .bind(now_ms)
        .bind(give_up_ms)
        .bind(delivery_id)
        .fetch_optional(&mut *transaction)
        .await
        .doing(NOTING)?;
        transaction.commit().await.doing(NOTING)?;
        Ok(delivery)
    }

    pub async fn remove_old_deliveries(&self, before_ms: i64) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let removed = sqlx::query("DELETE FROM webhook_deliveries WHERE coalesce(ended_ms, give_up_ms) < ?")
            .bind(before_ms)
            .execute(&mut *transaction)
            .await
            .doing(NOTING)?;
        transaction.commit().await.doing(NOTING)?;
        Ok(removed.rows_affected())
    }
}

pub(super) async fn insert_deliveries(
    transaction: &mut Transaction<'static, Sqlite>,
    deliveries: &[NewDelivery],
) -> Result<(), StoreError> {
    for new in deliveries {
        sqlx::query(
            "INSERT INTO webhook_deliveries
                 (delivery_id, pipeline, webhook, event, tenant, body, created_ms, due_ms, give_up_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8)",
        )
        .bind(&new.delivery_id)
        .bind(&new.pipeline)
        .bind(&new.webhook)
        .bind(&new.event)
        .bind(&new.tenant)
        .bind(&new.body)
        .bind(new.created_ms)
        .bind(new.give_up_ms)
        .execute(&mut **transaction)
        .await
        .doing(ADDING)?;
    }
    Ok(())
}
