//! What the processes of a pipeline have spent on embedding.

use super::PostgresStore;
use crate::embed::{Spending, Spent};
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn add_spending(&self, pipeline: &str, spent: &Spending) -> Result<Spending, StoreError> {
        let mut session = self.begin().await?;
        let mut total = Spending { day: spent.day, ..Spending::default() };
        for (work, add, sum) in
            [("live", spent.live, &mut total.live), ("backfill", spent.backfill, &mut total.backfill)]
        {
            let (tokens, requests, micros) = session
                .query(
                    "INSERT INTO thalweg.spending AS s (pipeline, day, work, tokens, requests, micros)
                     VALUES ($1, $2, $3, $4, $5, $6)
                     ON CONFLICT (pipeline, day, work) DO UPDATE SET tokens = s.tokens + excluded.tokens,
                         requests = s.requests + excluded.requests, micros = s.micros + excluded.micros
                     RETURNING tokens, requests, micros",
                )
                .bind(pipeline.to_owned())
                .bind(spent.day)
                .bind(work)
                .bind(add.tokens)
                .bind(add.requests)
                .bind(add.micros)
                .one(&mut session)
                .await
                .doing("adding up what was spent")?;
            *sum = Spent { tokens, requests, micros };
        }
        session.commit("adding up what was spent").await?;
        Ok(total)
    }
}
