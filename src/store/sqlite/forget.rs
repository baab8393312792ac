//! Taking records away again.

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::insert::{insert_rows, json_array};
use super::lost;
use crate::store::error::{Doing, StoreError};
use crate::store::forget::{Forgetting, Forgotten, Going, GoingRow, Resettled, Subject};

impl SqliteStore {
    pub async fn holdings(
        &self,
        subject: &Subject,
        stream: &str,
        until: u64,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError> {
        let offsets: Vec<i64> = sqlx::query_scalar(
            "SELECT r.\"offset\" FROM tenants t CROSS JOIN records r ON r.tenant_key = t.tenant_key
             WHERE t.name = ?1 AND (?2 IS NULL OR r.session = ?2) AND r.stream = ?3 AND r.\"offset\" < ?4
             LIMIT ?5",
        )
        .bind(&subject.tenant)
        .bind(&subject.session)
        .bind(stream)
        .bind(until.cast_signed())
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing("looking for records to erase")?;
        Ok(offsets.into_iter().map(i64::cast_unsigned).collect())
    }

    pub async fn text_digests(&self, stream: &str, offsets: &[u64]) -> Result<Vec<[u8; 32]>, StoreError> {
        let digests: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT c.digest FROM records r JOIN chunks c ON c.record_key = r.record_key
             WHERE r.stream = ?1 AND r.\"offset\" IN (SELECT value FROM json_each(?2))",
        )
        .bind(stream)
        .bind(json_array(offsets.iter().map(|offset| offset.cast_signed())))
        .fetch_all(self.readers())
        .await
        .doing("reading the texts of records")?;
        Ok(digests.into_iter().filter_map(|digest| digest.try_into().ok()).collect())
    }

    pub async fn forget(
        &self,
        stream: &str,
        offsets: &[u64],
        why: Forgetting,
    ) -> Result<Forgotten, StoreError> {
        let listed = json_array(offsets.iter().map(|offset| offset.cast_signed()));
        let mut transaction = self.begin().await?;
        let rows: Vec<GoingRow> = sqlx::query_as(
            "SELECT r.record_key, r.tenant_key, r.tier, c.chunk_key, c.text
             FROM records r LEFT JOIN chunks c ON c.record_key = r.record_key
             WHERE r.stream = ?1 AND r.\"offset\" IN (SELECT value FROM json_each(?2))",
        )
        .bind(stream)
        .bind(&listed)
        .fetch_all(&mut *transaction)
        .await
        .doing("reading what is to go")?;
        let going = Going::of(rows);
        let resettled = resettle(&mut transaction, stream, offsets, &listed, why).await?;
        remove(&mut transaction, &going).await.doing("taking records away")?;
        transaction.commit().await.doing("taking records away")?;
        Ok(Forgotten {
            records: going.records.len() as u64,
            chunks: going.chunks().len() as u64,
            offsets: resettled,
        })
    }

    pub async fn drop_stale_claims(&self, stream: &str) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let dropped = sqlx::query(
            "DELETE FROM dedupe WHERE stream = ?1 AND NOT EXISTS (
                 SELECT 1 FROM records r WHERE r.stream = dedupe.stream AND r.\"offset\" = dedupe.\"offset\")",
        )
        .bind(stream)
        .execute(&mut *transaction)
        .await
        .doing("dropping claims of records that are gone")?;
        transaction.commit().await.doing("dropping claims of records that are gone")?;
        Ok(dropped.rows_affected())
    }

    pub async fn drop_empty_tenant(&self, name: &str) -> Result<bool, StoreError> {
        let doing = "forgetting a tenant";
        let mut transaction = self.begin().await?;
        let key: Option<i64> = sqlx::query_scalar(
            "DELETE FROM tenants WHERE name = ?1 AND NOT EXISTS (
                 SELECT 1 FROM records r WHERE r.tenant_key = tenants.tenant_key) RETURNING tenant_key",
        )
        .bind(name)
        .fetch_optional(&mut *transaction)
        .await
        .doing(doing)?;
        sqlx::query("DELETE FROM partitions WHERE tenant_key = ?")
            .bind(key)
            .execute(&mut *transaction)
            .await
            .doing(doing)?;
        transaction.commit().await.doing(doing)?;
        Ok(key.is_some())
    }

    pub async fn remove_dead_letters(&self, ids: &[i64]) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let removed = sqlx::query("DELETE FROM dead_letters WHERE id IN (SELECT value FROM json_each(?))")
            .bind(json_array(ids.iter().copied()))
            .execute(&mut *transaction)
            .await
            .doing("removing dead letters")?;
        transaction.commit().await.doing("removing dead letters")?;
        Ok(removed.rows_affected())
    }

    /// Writes the file anew, so that no free page keeps what was in it, nor
    /// the full-text index the terms of chunks that are gone.
    pub async fn scrub(&self) -> Result<(), StoreError> {
        let doing = "writing the store anew";
        let mut connection = self.writer().acquire().await.doing(doing)?;
        for statement in ["INSERT INTO keywords (keywords) VALUES ('optimize')", "VACUUM"] {
            sqlx::query(statement).execute(&mut *connection).await.doing(doing)?;
        }
        // Says busy, rather than failing, while somebody reads what was before.
        let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut *connection)
            .await
            .doing(doing)?;
        match busy {
            0 => Ok(()),
            _ => Err(sqlx::Error::Protocol("another process reads the store as it was before".into()))
                .doing(doing),
        }
    }
}

/// Moves the counters of every pipeline that has read some of the offsets, and
/// notes why they are not indexed any more. Returns how many changed sides.
async fn resettle(
    connection: &mut SqliteConnection,
    stream: &str,
    offsets: &[u64],
    listed: &str,
    why: Forgetting,
) -> Result<u64, StoreError> {
    let readers: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT pipeline, start_offset, next_offset FROM checkpoints WHERE stream = ?")
            .bind(stream)
            .fetch_all(&mut *connection)
            .await
            .doing("reading checkpoints")?;
    let mut changed = 0;
    for (pipeline, start, next) in readers {
        let noted: Vec<(i64, String, String)> = sqlx::query_as(
            "DELETE FROM outcomes WHERE pipeline = ?1 AND stream = ?2
                 AND \"offset\" IN (SELECT value FROM json_each(?3)) RETURNING \"offset\", kind, reason",
        )
        .bind(&pipeline)
        .bind(stream)
        .bind(listed)
        .fetch_all(&mut *connection)
        .await
        .doing("settling outcomes")?;
        let read = start.cast_unsigned()..next.cast_unsigned();
        let mut read: Vec<u64> = offsets.iter().copied().filter(|offset| read.contains(offset)).collect();
        read.sort_unstable();
        // What a repair has brought back is lost no more.
        lost::take_back(connection, &pipeline, stream, &read).await?;
        let moved = Resettled::of(read.iter().copied(), &noted, why);
        if moved.dead_lettered > 0 {
            sqlx::query(
                "DELETE FROM dead_letters WHERE stream = ?1
                     AND \"offset\" IN (SELECT value FROM json_each(?2))",
            )
            .bind(stream)
            .bind(listed)
            .execute(&mut *connection)
            .await
            .doing("removing dead letters")?;
        }
        let head = "INSERT INTO outcomes (pipeline, stream, \"offset\", kind, reason, detail) ";
        insert_rows(connection, head, "", &read, |values, offset| {
            values.push_bind(pipeline.as_str()).push_bind(stream).push_bind(offset.cast_signed());
            values.push_bind("rejected").push_bind(why.as_str()).push_bind("");
        })
        .await
        .doing("writing outcomes")?;
        sqlx::query(
            "UPDATE checkpoints SET indexed = indexed - ?1, rejected = rejected + ?2 - ?3,
                 deduplicated = deduplicated - ?4, deferred = deferred - ?5, dead_lettered = dead_lettered - ?6
             WHERE pipeline = ?7 AND stream = ?8",
        )
        .bind(moved.indexed)
        .bind(i64::try_from(moved.offsets.len()).unwrap_or(i64::MAX))
        .bind(moved.rejected)
        .bind(moved.deduplicated)
        .bind(moved.deferred)
        .bind(moved.dead_lettered)
        .bind(&pipeline)
        .bind(stream)
        .execute(&mut *connection)
        .await
        .doing("settling counters")?;
        changed = changed.max(moved.offsets.len() as u64);
    }
    Ok(changed)
}

async fn remove(connection: &mut SqliteConnection, going: &Going) -> Result<(), sqlx::Error> {
    let spaces: Vec<i64> =
        sqlx::query_scalar("SELECT space_key FROM spaces").fetch_all(&mut *connection).await?;
    for ((tenant_key, tier), chunks) in &going.partitions {
        let keys = json_array(chunks.keys.iter().copied());
        for space_key in &spaces {
            sqlx::query(
                "DELETE FROM vectors WHERE space_key = ? AND tenant_key = ? AND tier = ?
                     AND chunk_key IN (SELECT value FROM json_each(?))",
            )
            .bind(space_key)
            .bind(tenant_key)
            .bind(tier)
            .bind(&keys)
            .execute(&mut *connection)
            .await?;
        }
        sqlx::query(
            "UPDATE partitions SET chunks = chunks - ?, terms = terms - ?, generation = generation + 1
             WHERE tenant_key = ? AND tier = ?",
        )
        .bind(i64::try_from(chunks.keys.len()).unwrap_or(i64::MAX))
        .bind(chunks.terms)
        .bind(tenant_key)
        .bind(tier)
        .execute(&mut *connection)
        .await?;
    }
    let (records, chunks) = (json_array(going.records.iter().copied()), json_array(going.chunks()));
    sqlx::query(
        "UPDATE forgotten_keys SET
             record_key = max(record_key, coalesce((SELECT max(value) FROM json_each(?1)), 0)),
             chunk_key = max(chunk_key, coalesce((SELECT max(value) FROM json_each(?2)), 0))",
    )
    .bind(&records)
    .bind(&chunks)
    .execute(&mut *connection)
    .await?;
    for (statement, keys) in [
        ("DELETE FROM keywords WHERE rowid IN (SELECT value FROM json_each(?))", &chunks),
        ("DELETE FROM chunks WHERE chunk_key IN (SELECT value FROM json_each(?))", &chunks),
        ("DELETE FROM records WHERE record_key IN (SELECT value FROM json_each(?))", &records),
    ] {
        sqlx::query(statement).bind(keys).execute(&mut *connection).await?;
    }
    Ok(())
}
