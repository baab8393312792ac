//! The schema and its versions: forward only.
//!
//! The migrations are sqlx's, applied by our own few lines: its migrator keeps
//! prepared statements and a lock of the session, and a pooler that lends a
//! server for one transaction at a time keeps neither.

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::{LOCKS, MIGRATING};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Makes the role that searches run as, and the right to take it on.
const READER: &str = include_str!("reader.sql");

/// Why the schema cannot be brought to this version's.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    /// The database refused.
    #[error("migration {version} failed: {source}")]
    Migration {
        /// The migration; 0 for what comes before them.
        version: i64,
        /// What it said.
        source: sqlx::Error,
    },
    /// Another version of this program made the schema.
    #[error(
        "its schema has version {found}, this program knows up to {known}: it was opened by a newer version; \
         run that one"
    )]
    Newer {
        /// The schema's version.
        found: i64,
        /// The last one known here.
        known: i64,
    },
    /// What was applied is not what this program would have applied.
    #[error(
        "migration {version} is not the one that made this schema; the schema belongs to another program"
    )]
    Differs {
        /// The migration.
        version: i64,
    },
}

/// Makes what the schema needs and no dump of it has.
pub(super) async fn make_reader(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    transaction.execute(READER).await?;
    transaction.commit().await
}

/// Brings the schema to this version's: one process at a time, all or nothing.
pub(super) async fn migrate(pool: &PgPool) -> Result<(), SchemaError> {
    let failed = |version| move |source| SchemaError::Migration { version, source };
    let begin = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({LOCKS}, {MIGRATING});
         SET LOCAL client_min_messages = warning;"
    );
    let mut transaction = pool.begin_with(AssertSqlSafe(begin)).await.map_err(failed(0))?;
    transaction.execute(READER).await.map_err(failed(0))?;
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass('thalweg.migrations') IS NOT NULL")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed(0))?;
    if !is_there {
        let first = "CREATE SCHEMA IF NOT EXISTS thalweg;
             CREATE TABLE thalweg.migrations (
                 version     bigint PRIMARY KEY,
                 description text NOT NULL,
                 checksum    bytea NOT NULL,
                 applied_at  timestamptz NOT NULL DEFAULT now()
             )";
        transaction.execute(first).await.map_err(failed(0))?;
    }
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, checksum FROM thalweg.migrations ORDER BY version")
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await
            .map_err(failed(0))?;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if let Some((found, _)) = applied.last().filter(|(version, _)| *version > known) {
        return Err(SchemaError::Newer { found: *found, known });
    }
    for migration in MIGRATIONS.iter() {
        let version = migration.version;
        match applied.iter().find(|(applied, _)| *applied == version) {
            Some((_, checksum)) if *checksum == *migration.checksum => continue,
            Some(_) => return Err(SchemaError::Differs { version }),
            None => {}
        }
        transaction.execute(AssertSqlSafe(migration.sql.as_str())).await.map_err(failed(version))?;
        sqlx::query("INSERT INTO thalweg.migrations (version, description, checksum) VALUES ($1, $2, $3)")
            .persistent(false)
            .bind(version)
            .bind(migration.description.to_string())
            .bind(migration.checksum.to_vec())
            .execute(&mut *transaction)
            .await
            .map_err(failed(version))?;
    }
    transaction.commit().await.map_err(failed(0))
}
