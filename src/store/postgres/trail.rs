//! The trail.

use super::PostgresStore;
use super::session::Session;
use super::text::{original, stored};
use crate::identity::TrailRow;
use crate::store::error::{Doing, StoreError};
use crate::store::trail::{ActRow, NewTrailRow};

const WRITING: &str = "writing the trail";

impl PostgresStore {
    pub async fn append_trail(&self, acts: &[NewTrailRow]) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        for act in acts {
            write_act(&mut session, act).await.doing(WRITING)?;
        }
        session.commit(WRITING).await
    }

    pub async fn trail(&self, before: i64, limit: u32) -> Result<Vec<TrailRow>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<ActRow> = session
            .query("SELECT * FROM thalweg.trail WHERE id < $1 ORDER BY id DESC LIMIT $2")
            .bind(before)
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing("reading the trail")?;
        rows.into_iter().map(|row| row.row(original)).collect()
    }
}

pub(super) async fn write_act(session: &mut Session, act: &NewTrailRow) -> Result<(), sqlx::Error> {
    let kept = |text: &str| stored(text).into_owned();
    let entry = &act.entry;
    session
        .query(
            "INSERT INTO thalweg.trail (at_ms, last_ms, times, principal, scheme, act, subject, outcome, detail,
                 peer, request_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(entry.at_ms)
        .bind(act.last_ms)
        .bind(act.times.cast_signed())
        .bind(kept(&entry.principal))
        .bind(entry.scheme.name())
        .bind(kept(&entry.act))
        .bind(kept(&entry.subject))
        .bind(entry.outcome.name())
        .bind(kept(&entry.detail))
        .bind(entry.peer.as_deref().map(kept))
        .bind(entry.request_id.as_deref().map(kept))
        .run(session)
        .await
        .map(drop)
}
