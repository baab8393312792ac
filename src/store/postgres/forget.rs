//! Taking records away again.

use sqlx::{AssertSqlSafe, Executor};

use super::lost;
use super::text::stored;
use super::vectors::small;
use super::{PostgresStore, Session, array};
use crate::store::error::{Doing, StoreError};
use crate::store::forget::{Forgetting, Forgotten, Going, GoingRow, Resettled, Subject};

const REMOVING: &str = "taking records away";

impl PostgresStore {
    pub async fn holdings(
        &self,
        subject: &Subject,
        stream: &str,
        until: u64,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError> {
        let mut session = self.read().await?;
        let offsets: Vec<i64> = session
            .query(
                "SELECT r.\"offset\" FROM thalweg.tenants t JOIN thalweg.records r USING (tenant_key)
                 WHERE t.name = $1 AND ($2::text IS NULL OR r.session = $2) AND r.stream = $3
                   AND r.\"offset\" < $4 LIMIT $5",
            )
            .bind(stored(&subject.tenant).into_owned())
            .bind(subject.session.as_deref().map(|session| stored(session).into_owned()))
            .bind(stream.to_owned())
            .bind(until.cast_signed())
            .bind(i64::from(limit))
            .scalars(&mut session)
            .await
            .doing("looking for records to erase")?;
        Ok(offsets.into_iter().map(i64::cast_unsigned).collect())
    }

    pub async fn text_digests(&self, stream: &str, offsets: &[u64]) -> Result<Vec<[u8; 32]>, StoreError> {
        let mut session = self.read().await?;
        let digests: Vec<Vec<u8>> = session
            .query(
                "SELECT c.digest FROM thalweg.records r JOIN thalweg.chunks c USING (record_key)
                 WHERE r.stream = $1 AND r.\"offset\" = ANY($2)",
            )
            .bind(stream.to_owned())
            .bind(array(offsets.iter().copied()))
            .scalars(&mut session)
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
        let listed = array(offsets.iter().copied());
        let mut session = self.begin().await?;
        // Checkpoints first, as a commit does.
        let resettled = resettle(&mut session, stream, offsets, why).await?;
        let rows: Vec<GoingRow> = session
            .query(
                "SELECT r.record_key, r.tenant_key, r.tier::bigint, c.chunk_key, c.text
                 FROM thalweg.records r LEFT JOIN thalweg.chunks c USING (record_key)
                 WHERE r.stream = $1 AND r.\"offset\" = ANY($2)",
            )
            .bind(stream.to_owned())
            .bind(listed)
            .all(&mut session)
            .await
            .doing("reading what is to go")?;
        let going = Going::of(rows);
        remove(&mut session, &going).await.doing(REMOVING)?;
        session.commit(REMOVING).await?;
        Ok(Forgotten {
            records: going.records.len() as u64,
            chunks: going.chunks().len() as u64,
            offsets: resettled,
        })
    }

    pub async fn drop_stale_claims(&self, stream: &str) -> Result<u64, StoreError> {
        let doing = "dropping claims of records that are gone";
        let mut session = self.begin().await?;
        let dropped = session
            .query(
                "DELETE FROM thalweg.dedupe d WHERE d.stream = $1 AND NOT EXISTS (
                     SELECT FROM thalweg.records r WHERE r.stream = d.stream AND r.\"offset\" = d.\"offset\")",
            )
            .bind(stream.to_owned())
            .run(&mut session)
            .await
            .doing(doing)?;
        session.commit(doing).await?;
        Ok(dropped.rows_affected())
    }

    pub async fn drop_empty_tenant(&self, name: &str) -> Result<bool, StoreError> {
        let doing = "forgetting a tenant";
        let mut session = self.begin().await?;
        // Whoever is about to write rows of the tenant holds this row, and is
        // waited for; what it wrote is seen below.
        let key: Option<i64> = session
            .query("SELECT tenant_key FROM thalweg.tenants WHERE name = $1 FOR UPDATE")
            .bind(stored(name).into_owned())
            .optional_scalar(&mut session)
            .await
            .doing(doing)?;
        let Some(key) = key else { return Ok(false) };
        let gone = session
            .query(
                "DELETE FROM thalweg.tenants t WHERE t.tenant_key = $1 AND NOT EXISTS (
                     SELECT FROM thalweg.records r WHERE r.tenant_key = $1)",
            )
            .bind(key)
            .run(&mut session)
            .await
            .doing(doing)?
            .rows_affected();
        if gone == 0 {
            return Ok(false);
        }
        for statement in [
            "DELETE FROM thalweg.partitions WHERE tenant_key = $1",
            "UPDATE thalweg.vector_indexes SET state = 'dropping', since_ms = 0 WHERE tenant_key = $1",
        ] {
            session.query(statement).bind(key).run(&mut session).await.doing(doing)?;
        }
        session.commit(doing).await?;
        Ok(true)
    }

    pub async fn remove_dead_letters(&self, ids: &[i64]) -> Result<u64, StoreError> {
        let doing = "removing dead letters";
        let mut session = self.begin().await?;
        let removed = session
            .query("DELETE FROM thalweg.dead_letters WHERE id = ANY($1)")
            .bind(ids.to_vec())
            .run(&mut session)
            .await
            .doing(doing)?;
        session.commit(doing).await?;
        Ok(removed.rows_affected())
    }

    /// Frees the rows that are gone. Their bytes stay in PostgreSQL's files
    /// until the space is used again, and in its write-ahead log until that is
    /// recycled: `docs/erasure.md` says what more can be done.
    pub async fn scrub(&self) -> Result<(), StoreError> {
        let doing = "vacuuming";
        let mut session = self.read().await?;
        let tables = vector_tables(&mut session).await.doing(doing)?;
        drop(session);
        let mut connection = self.inner.pool.acquire().await.doing(doing)?;
        let rows = [
            "records",
            "chunks",
            "tenants",
            "partitions",
            "dedupe",
            "outcomes",
            "dead_letters",
            "erasures",
            "jobs",
            "webhook_deliveries",
        ];
        for table in rows.iter().map(|table| format!("thalweg.{table}")).chain(tables) {
            connection.execute(AssertSqlSafe(format!("VACUUM (ANALYZE) {table}"))).await.doing(doing)?;
        }
        Ok(())
    }
}

/// The tables of all spaces.
async fn vector_tables(session: &mut Session) -> Result<Vec<String>, sqlx::Error> {
    session
        .query(
            "SELECT 'thalweg.' || tablename FROM pg_tables
             WHERE schemaname = 'thalweg' AND tablename ~ '^vectors_[0-9]+$' ORDER BY 1",
        )
        .scalars(session)
        .await
}

/// Moves the counters of every pipeline that has read some of the offsets, and
/// notes why they are not indexed any more. Returns how many changed sides.
async fn resettle(
    session: &mut Session,
    stream: &str,
    offsets: &[u64],
    why: Forgetting,
) -> Result<u64, StoreError> {
    let readers: Vec<(String, i64, i64)> = session
        .query(
            "SELECT pipeline, start_offset, next_offset FROM thalweg.checkpoints WHERE stream = $1
             ORDER BY pipeline FOR UPDATE",
        )
        .bind(stream.to_owned())
        .all(session)
        .await
        .doing("reading checkpoints")?;
    let mut changed = 0;
    for (pipeline, start, next) in readers {
        let noted: Vec<(i64, String, String)> = session
            .query(
                "DELETE FROM thalweg.outcomes WHERE pipeline = $1 AND stream = $2 AND \"offset\" = ANY($3)
                 RETURNING \"offset\", kind, reason",
            )
            .bind(pipeline.clone())
            .bind(stream.to_owned())
            .bind(array(offsets.iter().copied()))
            .all(session)
            .await
            .doing("settling outcomes")?;
        let read = start.cast_unsigned()..next.cast_unsigned();
        let mut read: Vec<u64> = offsets.iter().copied().filter(|offset| read.contains(offset)).collect();
        read.sort_unstable();
        // What a repair has brought back is lost no more.
        lost::take_back(session, &pipeline, stream, &read).await?;
        let moved = Resettled::of(read.iter().copied(), &noted, why);
        if moved.dead_lettered > 0 {
            session
                .query("DELETE FROM thalweg.dead_letters WHERE stream = $1 AND \"offset\" = ANY($2)")
                .bind(stream.to_owned())
                .bind(array(read.iter().copied()))
                .run(session)
                .await
                .doing("removing dead letters")?;
        }
        session
            .query(
                "INSERT INTO thalweg.outcomes (pipeline, stream, \"offset\", kind, reason, detail)
                 SELECT $1, $2, at, 'rejected', $4, '' FROM unnest($3::bigint[]) AS u(at)",
            )
            .bind(pipeline.clone())
            .bind(stream.to_owned())
            .bind(array(read.iter().copied()))
            .bind(why.as_str())
            .run(session)
            .await
            .doing("writing outcomes")?;
        session
            .query(
                "UPDATE thalweg.checkpoints SET indexed = indexed - $1, rejected = rejected + $2 - $3,
                     deduplicated = deduplicated - $4, deferred = deferred - $5,
                     dead_lettered = dead_lettered - $6
                 WHERE pipeline = $7 AND stream = $8",
            )
            .bind(moved.indexed)
            .bind(i64::try_from(moved.offsets.len()).unwrap_or(i64::MAX))
            .bind(moved.rejected)
            .bind(moved.deduplicated)
            .bind(moved.deferred)
            .bind(moved.dead_lettered)
            .bind(pipeline)
            .bind(stream.to_owned())
            .run(session)
            .await
            .doing("settling counters")?;
        changed = changed.max(moved.offsets.len() as u64);
    }
    Ok(changed)
}

async fn remove(session: &mut Session, going: &Going) -> Result<(), sqlx::Error> {
    let chunks = going.chunks();
    // First: whoever adds vectors to chunks meanwhile holds these.
    session.query("DELETE FROM thalweg.chunks WHERE chunk_key = ANY($1)").bind(chunks).run(session).await?;
    for table in vector_tables(session).await? {
        for ((tenant_key, tier), chunks) in &going.partitions {
            let delete =
                format!("DELETE FROM {table} WHERE tenant_key = $1 AND tier = $2 AND chunk_key = ANY($3)");
            session
                .query(AssertSqlSafe(delete))
                .bind(*tenant_key)
                .bind(small(*tier))
                .bind(chunks.keys.clone())
                .run(session)
                .await?;
        }
    }
    session
        .query("DELETE FROM thalweg.records WHERE record_key = ANY($1)")
        .bind(going.records.iter().copied().collect::<Vec<_>>())
        .run(session)
        .await?;
    // In the order of keys and last, as new rows are counted.
    for ((tenant_key, tier), chunks) in &going.partitions {
        session
            .query(
                "UPDATE thalweg.partitions SET chunks = chunks - $1, terms = terms - $2
                 WHERE tenant_key = $3 AND tier = $4",
            )
            .bind(i64::try_from(chunks.keys.len()).unwrap_or(i64::MAX))
            .bind(chunks.terms)
            .bind(*tenant_key)
            .bind(small(*tier))
            .run(session)
            .await?;
    }
    Ok(())
}
