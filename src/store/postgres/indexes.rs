//! Approximate indexes over the vectors of large tenants: building them beside
//! the stream, and dropping those that others took the place of.
//!
//! An index has a row in `vector_indexes`: `building` from before it is begun,
//! `ready` when searches may ask it, `dropping` until it is gone. Whoever finds
//! a row that is not `ready`, and nobody at work on it, takes the index away.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, FromRow};
use tokio_util::task::AbortOnDropHandle;

use super::index_plan::{Build, Indexed, plan};
use super::vectors::{Element, VectorTable};
use super::{PostgresStore, Session};
use crate::store::error::{Doing, StoreError};

/// How old a row must be before nobody can be about to begin its index.
const ABANDONED_MS: i64 = 60_000;

/// How often the progress of a build is said.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// One tenant's tier in one space, and how many vectors no index holds.
#[derive(FromRow)]
struct Grown {
    tenant_key: i64,
    tier: i64,
}

impl PostgresStore {
    pub async fn maintain(&self, now_ms: i64) -> Result<u64, StoreError> {
        self.take_away_abandoned(now_ms).await?;
        let mut built = 0;
        for space in self.spaces().await? {
            let table = self.vector_table(space.space_key).await?;
            let takes = table.element.most_indexed().is_some_and(|most| table.dimensions <= most);
            if !takes || !space.state.is_searched() {
                continue;
            }
            for grown in self.grown(&table).await? {
                while let Some((name, build)) = self.claim(&table, &grown, now_ms).await? {
                    // One tenant's failure is not the others'.
                    if let Err(error) = self.build(&table, &grown, &name, &build).await {
                        tracing::warn!(index = name, %error, "an approximate index could not be built");
                        break;
                    }
                    built += 1;
                }
            }
        }
        Ok(built)
    }

    /// The tiers that are too large to be compared exactly.
    async fn grown(&self, table: &VectorTable) -> Result<Vec<Grown>, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT p.tenant_key, p.tier::bigint FROM thalweg.partitions p
                 WHERE p.chunks > $2 + coalesce(
                     (SELECT sum(rows) FROM thalweg.vector_indexes i
                      WHERE i.space_key = $1 AND i.tenant_key = p.tenant_key AND i.tier = p.tier
                        AND i.state = 'ready'), 0)
                 ORDER BY p.chunks DESC",
            )
            .bind(table.space_key)
            .bind(self.settings().index.above.cast_signed())
            .all(&mut session)
            .await
            .doing("looking for large tenants")
    }

    /// Plans an index and writes down that it is being built; none if there is
    /// nothing to build, or another process is at it.
    async fn claim(
        &self,
        table: &VectorTable,
        grown: &Grown,
        now_ms: i64,
    ) -> Result<Option<(String, Build)>, StoreError> {
        let Grown { tenant_key, tier } = *grown;
        let mut session = self.begin().await?;
        session
            .query("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))")
            .bind(format!("{}/{tenant_key}/{tier}", table.space_key))
            .run(&mut session)
            .await
            .doing("claiming an index")?;
        let rows: Vec<(String, i64, i64, i64, String)> = session
            .query(
                "SELECT name, first_key, next_key, rows, state FROM thalweg.vector_indexes
                 WHERE space_key = $1 AND tenant_key = $2 AND tier::bigint = $3 ORDER BY first_key",
            )
            .bind(table.space_key)
            .bind(tenant_key)
            .bind(tier)
            .all(&mut session)
            .await
            .doing("claiming an index")?;
        if rows.iter().any(|row| row.4 == "building") {
            return Ok(None);
        }
        let indexed: Vec<Indexed> = rows
            .into_iter()
            .filter(|row| row.4 == "ready")
            .map(|(name, first_key, next_key, rows, _)| Indexed {
                name,
                first_key,
                next_key,
                rows: rows.cast_unsigned(),
            })
            .collect();
        let at = indexed.last().map_or(0, |last| last.next_key);
        let (open, last_key) = session.open(table, grown, at).await?;
        let Some(build) = plan(&indexed, open, self.settings().index.above) else { return Ok(None) };
        let next_key = last_key + 1;
        let name = format!("vectors_{}_{tenant_key}_{tier}_{}_{next_key}", table.space_key, build.first_key);
        session
            .query("INSERT INTO thalweg.vector_indexes VALUES ($1, $2, $3, $4::smallint, $5, $6, $7, 'building', $8)")
            .bind(name.clone())
            .bind(table.space_key)
            .bind(tenant_key)
            .bind(i16::try_from(tier).unwrap_or_default())
            .bind(build.first_key)
            .bind(next_key)
            .bind(build.rows.cast_signed())
            .bind(now_ms)
            .run(&mut session)
            .await
            .doing("claiming an index")?;
        session.commit("claiming an index").await?;
        Ok(Some((name, build)))
    }

    async fn build(
        &self,
        table: &VectorTable,
        grown: &Grown,
        name: &str,
        build: &Build,
    ) -> Result<(), StoreError> {
        let doing = "building an index";
        let next_key: i64 = {
            let mut session = self.read().await?;
            session
                .query("SELECT next_key FROM thalweg.vector_indexes WHERE name = $1")
                .bind(name.to_owned())
                .scalar(&mut session)
                .await
                .doing(doing)?
        };
        let settings = self.settings().index;
        let create = format!(
            "CREATE INDEX CONCURRENTLY {name} ON {} USING hnsw (vector {}_cosine_ops)
             WITH (m = {}, ef_construction = {})
             WHERE tenant_key = {} AND tier = {} AND chunk_key >= {} AND chunk_key < {next_key}",
            table.name(),
            match table.element {
                Element::Halfvec => "halfvec",
                Element::Vector | Element::Jsonb => "vector",
            },
            settings.m,
            settings.ef_construction,
            grown.tenant_key,
            grown.tier,
            build.first_key,
        );
        tracing::info!(index = name, vectors = build.rows, "building an approximate index");
        let started = std::time::Instant::now();
        let _progress = AbortOnDropHandle::new(tokio::spawn(say_progress(self.clone(), name.to_owned())));
        let mut connection = self.inner.pool.acquire().await.doing(doing)?;
        // Nobody inherits what is set below, nor waits for a build that was
        // given up: the server gives it up, too.
        connection.close_on_drop();
        self.lend_memory(&mut connection).await.doing(doing)?;
        let created = connection.execute(AssertSqlSafe(create)).await.doing(doing);
        drop(connection);
        if let Err(error) = created {
            self.take_away(name).await?;
            return Err(error);
        }
        let mut session = self.begin().await?;
        session.make_ready(name, &build.replaced).await?;
        session.commit(doing).await?;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(index = name, vectors = build.rows, seconds, "an approximate index is ready");
        for replaced in &build.replaced {
            self.take_away(replaced).await?;
        }
        Ok(())
    }

    /// A graph that fits the memory of whoever builds it is built several
    /// times faster. Not behind a pooler, whose next client would inherit it.
    async fn lend_memory(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if !self.settings().prepared_statements {
            return Ok(());
        }
        let kib = self.settings().index.build_memory.as_usize() / 1024;
        let set =
            format!("SET maintenance_work_mem = '{kib}kB'; SET client_connection_check_interval = '10s'");
        connection.execute(AssertSqlSafe(set)).await.map(drop)
    }

    /// Drops an index, whatever became of it, and forgets it.
    async fn take_away(&self, name: &str) -> Result<(), StoreError> {
        let doing = "dropping an index";
        let mut session = self.begin().await?;
        let condemned: Option<String> = session
            .query(
                "UPDATE thalweg.vector_indexes SET state = 'dropping' WHERE name = $1 AND state <> 'ready'
                 RETURNING name",
            )
            .bind(name)
            .optional_scalar(&mut session)
            .await
            .doing(doing)?;
        session.commit(doing).await?;
        if condemned.is_none() {
            return Ok(());
        }
        let mut connection = self.inner.pool.acquire().await.doing(doing)?;
        let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS thalweg.{name}");
        connection.execute(AssertSqlSafe(drop)).await.doing(doing)?;
        std::mem::drop(connection);
        let mut session = self.begin().await?;
        session
            .query("DELETE FROM thalweg.vector_indexes WHERE name = $1 AND state <> 'ready'")
            .bind(name.to_owned())
            .run(&mut session)
            .await
            .doing(doing)?;
        session.commit(doing).await
    }

    /// Takes away what a process that died has left half-made.
    async fn take_away_abandoned(&self, now_ms: i64) -> Result<(), StoreError> {
        let mut session = self.read().await?;
        let abandoned: Vec<String> = session
            .query(
                "SELECT i.name FROM thalweg.vector_indexes i
                 WHERE i.state <> 'ready' AND i.since_ms < $1 AND NOT EXISTS (
                     SELECT FROM pg_stat_progress_create_index p
                     WHERE p.index_relid = to_regclass('thalweg.' || i.name))",
            )
            .bind(now_ms - ABANDONED_MS)
            .scalars(&mut session)
            .await
            .doing("looking for abandoned indexes")?;
        drop(session);
        for name in abandoned {
            tracing::warn!(index = name, "an index was left unfinished and is taken away");
            self.take_away(&name).await?;
        }
        Ok(())
    }
}

impl Session {
    /// How many vectors of a tier lie at `from` or beyond, and the last key.
    async fn open(&mut self, table: &VectorTable, of: &Grown, from: i64) -> Result<(u64, i64), StoreError> {
        let statement = format!(
            "SELECT count(*), coalesce(max(chunk_key), 0) FROM {}
             WHERE tenant_key = $1 AND tier = $2 AND chunk_key >= $3",
            table.name()
        );
        let (open, last): (i64, i64) = self
            .query(AssertSqlSafe(statement))
            .bind(of.tenant_key)
            .bind(i16::try_from(of.tier).unwrap_or_default())
            .bind(from)
            .one(self)
            .await
            .doing("counting new vectors")?;
        Ok((open.cast_unsigned(), last))
    }

    /// Searches ask `name` from here on, and none of `replaced`.
    async fn make_ready(&mut self, name: &str, replaced: &[String]) -> Result<(), StoreError> {
        let doing = "building an index";
        let ready = self
            .query("UPDATE thalweg.vector_indexes SET state = 'ready' WHERE name = $1 AND state = 'building'")
            .bind(name)
            .run(self)
            .await
            .doing(doing)?;
        if ready.rows_affected() == 0 {
            // Somebody took it for abandoned and takes it away.
            return Err(StoreError::Database { doing, source: sqlx::Error::RowNotFound });
        }
        self.query("UPDATE thalweg.vector_indexes SET state = 'dropping' WHERE name = ANY($1)")
            .bind(replaced.to_vec())
            .run(self)
            .await
            .doing(doing)
            .map(drop)
    }
}

/// Says how far a build is, until it is aborted.
async fn say_progress(store: PostgresStore, name: String) {
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let Ok(mut session) = store.read().await else { continue };
        let found: Result<Option<(i64, i64)>, _> = session
            .query(
                "SELECT tuples_done, tuples_total FROM pg_stat_progress_create_index
                 WHERE index_relid = to_regclass('thalweg.' || $1)",
            )
            .bind(name.clone())
            .optional(&mut session)
            .await;
        if let Ok(Some((done, total))) = found {
            tracing::info!(index = name, done, total, "building an approximate index");
        }
    }
}
