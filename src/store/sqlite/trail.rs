//! The trail.

use sqlx::{Sqlite, Transaction};

use super::SqliteStore;
use crate::identity::TrailRow;
use crate::store::error::{Doing, StoreError};
use crate::store::trail::{ActRow, NewTrailRow};

const WRITING: &str = "writing the trail";

impl SqliteStore {
    pub async fn append_trail(&self, acts: &[NewTrailRow]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for act in acts {
            write_act(&mut transaction, act).await.doing(WRITING)?;
        }
        transaction.commit().await.doing(WRITING)
    }

    pub async fn trail(&self, before: i64, limit: u32) -> Result<Vec<TrailRow>, StoreError> {
        let rows: Vec<ActRow> = sqlx::query_as("SELECT * FROM trail WHERE id < ? ORDER BY id DESC LIMIT ?")
            .bind(before)
            .bind(limit)
            .fetch_all(self.readers())
            .await
            .doing("reading the trail")?;
        rows.into_iter().map(|row| row.row(|text| text)).collect()
    }
}

pub(super) async fn write_act(
    transaction: &mut Transaction<'static, Sqlite>,
    act: &NewTrailRow,
) -> Result<(), sqlx::Error> {
    let entry = &act.entry;
    sqlx::query(
        "INSERT INTO trail (at_ms, last_ms, times, principal, scheme, act, subject, outcome, detail, peer,
             request_id)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(entry.at_ms)
    .bind(act.last_ms)
    .bind(act.times.cast_signed())
    .bind(&*entry.principal)
    .bind(entry.scheme.name())
    .bind(&*entry.act)
    .bind(&entry.subject)
    .bind(entry.outcome.name())
    .bind(&entry.detail)
    .bind(&entry.peer)
    .bind(&entry.request_id)
    .execute(&mut **transaction)
    .await
    .map(drop)
}
