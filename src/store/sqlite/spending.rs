//! What the processes of a pipeline have spent on embedding.

use super::SqliteStore;
use crate::embed::{Spending, Spent};
use crate::store::error::{Doing, StoreError};

impl SqliteStore {
    pub async fn add_spending(&self, pipeline: &str, spent: &Spending) -> Result<Spending, StoreError> {
        let mut transaction = self.begin().await?;
        let mut total = Spending { day: spent.day, ..Spending::default() };
        for (work, add, sum) in
            [("live", spent.live, &mut total.live), ("backfill", spent.backfill, &mut total.backfill)]
        {
            let (tokens, requests, micros) = sqlx::query_as(
                "INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens,
                     requests = requests + excluded.requests, micros = micros + excluded.micros
                 RETURNING tokens, requests, micros",
            )
            .bind(pipeline)
            .bind(spent.day)
            .bind(work)
            .bind(add.tokens)
            .bind(add.requests)
            .bind(add.micros)
            .fetch_one(&mut *transaction)
            .await
            .doing("adding up what was spent")?;
            *sum = Spent { tokens, requests, micros };
        }
        transaction.commit().await.doing("adding up what was spent")?;
        Ok(total)
    }
}
