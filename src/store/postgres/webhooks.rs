//! What is told by webhooks.

use super::text::{original, stored};
use super::{PostgresStore, Session};
use crate::store::error::{Doing, StoreError};
use crate::store::webhooks::{
    Delivery, DeliveryClaim, DeliveryFilter, DeliveryNote, DeliveryState, NewDelivery,
};

const ADDING: &str = "queueing what webhooks tell";
const CLAIMING: &str = "claiming deliveries of a webhook";
const NOTING: &str = "noting a delivery of a webhook";
const READING: &str = "reading the deliveries of webhooks";

fn kept(text: &str) -> String {
    stored(text).into_owned()
}

fn given(row: Delivery) -> Delivery {
    Delivery { body: original(row.body), error: row.error.map(original), ..row }
}

impl PostgresStore {
    pub async fn add_deliveries(&self, deliveries: &[NewDelivery]) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session.insert_deliveries(deliveries).await?;
        session.commit(ADDING).await
    }

    pub async fn webhooks_due(&self, pipeline: &str, now_ms: i64) -> Result<Vec<String>, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT DISTINCT webhook FROM thalweg.webhook_deliveries
                 WHERE state = 'waiting' AND pipeline = $1 AND due_ms <= $2 ORDER BY webhook",
            )
            .bind(pipeline.to_owned())
            .bind(now_ms)
            .scalars(&mut session)
            .await
            .doing(READING)
    }

    pub async fn claim_deliveries(&self, claim: DeliveryClaim<'_>) -> Result<Vec<Delivery>, StoreError> {
        let mut session = self.begin().await?;
        let claimed: Vec<Delivery> = session
            .query(
                "UPDATE thalweg.webhook_deliveries SET claim = claim + 1, due_ms = $5 WHERE delivery_id IN
                     (SELECT delivery_id FROM thalweg.webhook_deliveries
                      WHERE state = 'waiting' AND pipeline = $1 AND webhook = $2 AND due_ms <= $3
                      ORDER BY due_ms, delivery_id LIMIT $4 FOR UPDATE SKIP LOCKED)
                 RETURNING *",
            )
            .bind(claim.pipeline.to_owned())
            .bind(claim.webhook.to_owned())
            .bind(claim.now_ms)
            .bind(i64::from(claim.most))
            .bind(claim.until_ms)
            .all(&mut session)
            .await
            .doing(CLAIMING)?;
        session.commit(CLAIMING).await?;
        Ok(claimed.into_iter().map(given).collect())
    }

    pub async fn note_delivery(
        &self,
        delivery_id: &str,
        claim: i64,
        note: &DeliveryNote,
    ) -> Result<bool, StoreError> {
        let mut session = self.begin().await?;
        let noted = session
            .query(
                "UPDATE thalweg.webhook_deliveries SET state = $1, attempts = attempts + 1, tried_ms = $2,
                     took_ms = $3, status = $4, error = $5, due_ms = coalesce($6::bigint, due_ms),
                     ended_ms = CASE WHEN $6::bigint IS NULL THEN $2 + $3 END
                 WHERE delivery_id = $7 AND claim = $8 AND state = 'waiting'",
            )
            .bind(note.state.as_str())
            .bind(note.tried_ms)
            .bind(note.took_ms)
            .bind(note.status.map(i64::from))
            .bind(note.error.as_deref().map(kept))
            .bind(note.due_ms)
            .bind(delivery_id.to_owned())
            .bind(claim)
            .run(&mut session)
            .await
            .doing(NOTING)?;
        session.commit(NOTING).await?;
        Ok(noted.rows_affected() == 1)
    }

    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<Delivery> = session
            .query(
                "SELECT * FROM thalweg.webhook_deliveries WHERE ($1::text IS NULL OR delivery_id < $1)
                     AND ($2::text IS NULL OR webhook = $2) AND ($3::text IS NULL OR state = $3)
                 ORDER BY delivery_id DESC LIMIT $4",
            )
            .bind(before.map(kept))
            .bind(filter.webhook.as_deref().map(kept))
            .bind(filter.state.map(DeliveryState::as_str))
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing(READING)?;
        Ok(rows.into_iter().map(given).collect())
    }

    pub async fn delivery(&self, delivery_id: &str) -> Result<Option<Delivery>, StoreError> {
        let mut session = self.read().await?;
        let row: Option<Delivery> = session
            .query("SELECT * FROM thalweg.webhook_deliveries WHERE delivery_id = $1")
            .bind(kept(delivery_id))
            .optional(&mut session)
            .await
            .doing(READING)?;
        Ok(row.map(given))
    }

    pub async fn redeliver(
        &self,
        delivery_id: &str,
        now_ms: i64,
        give_up_ms: i64,
    ) -> Result<Option<Delivery>, StoreError> {
        let mut session = self.begin().await?;
        let delivery: Option<Delivery> = session
            .query(
                "UPDATE thalweg.webhook_deliveries SET state = 'waiting', claim = claim + 1, attempts = 0,
                     due_ms = $1, give_up_ms = $2, ended_ms = NULL
                 WHERE delivery_id = $3 RETURNING *",
            )
            .bind(now_ms)
            .bind(give_up_ms)
            .bind(kept(delivery_id))
            .optional(&mut session)
            .await
            .doing(NOTING)?;
        session.commit(NOTING).await?;
        Ok(delivery.map(given))
    }

    pub async fn remove_old_deliveries(&self, before_ms: i64) -> Result<u64, StoreError> {
        let mut session = self.begin().await?;
        let removed = session
            .query("DELETE FROM thalweg.webhook_deliveries WHERE coalesce(ended_ms, give_up_ms) < $1")
            .bind(before_ms)
            .run(&mut session)
            .await
            .doing(NOTING)?;
        session.commit(NOTING).await?;
        Ok(removed.rows_affected())
    }
}

impl Session {
    pub(super) async fn insert_deliveries(&mut self, deliveries: &[NewDelivery]) -> Result<(), StoreError> {
        for new in deliveries {
            self.query(
                "INSERT INTO thalweg.webhook_deliveries
                     (delivery_id, pipeline, webhook, event, tenant, body, created_ms, due_ms, give_up_ms)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
            )
            .bind(new.delivery_id.clone())
            .bind(new.pipeline.clone())
            .bind(new.webhook.clone())
            .bind(new.event.clone())
            .bind(new.tenant.as_deref().map(kept))
            .bind(kept(&new.body))
            .bind(new.created_ms)
            .bind(new.give_up_ms)
            .run(self)
            .await
            .doing(ADDING)?;
        }
        Ok(())
    }
}
