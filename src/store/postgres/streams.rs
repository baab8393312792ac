//! Whose a stream is.

use super::PostgresStore;
use super::text::stored;
use crate::store::StreamOwner;
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn claim_stream(
        &self,
        stream: &str,
        owner: &StreamOwner,
        take_over: bool,
    ) -> Result<StreamOwner, StoreError> {
        let mut session = self.begin().await?;
        session
            .query(
                "INSERT INTO thalweg.streams AS s (stream, identity, host, since_ms) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (stream) DO UPDATE SET identity = excluded.identity, host = excluded.host,
                     since_ms = excluded.since_ms WHERE $5 AND s.identity <> excluded.identity",
            )
            .bind(stored(stream).into_owned())
            .bind(&owner.identity)
            .bind(&owner.host)
            .bind(owner.since_ms)
            .bind(take_over)
            .run(&mut session)
            .await
            .doing("claiming a stream")?;
        let known = session
            .query("SELECT identity, host, since_ms FROM thalweg.streams WHERE stream = $1")
            .bind(stored(stream).into_owned())
            .one(&mut session)
            .await
            .doing("claiming a stream")?;
        session.commit("claiming a stream").await?;
        Ok(known)
    }
}
