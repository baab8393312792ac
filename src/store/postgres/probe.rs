//! Whether a database can be worked with, before it is.

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, FromRow};

use super::options;
use crate::store::error::{Doing, StoreError};

/// What a database says of itself and of the role that asks.
#[derive(Clone, Debug, FromRow)]
pub struct DatabaseProbe {
    /// USER@HOST:PORT/NAME.
    #[sqlx(default)]
    pub database: String,
    /// The server's version, for people.
    pub version: String,
    /// The same as a number: 180004 is 18.4.
    pub version_number: i32,
    /// Version of pgvector in this database.
    pub pgvector: Option<String>,
    /// Version of pgvector that could be installed in it.
    pub pgvector_available: Option<String>,
    /// Whether the role may make the schema, or owns it.
    pub may_make_schema: bool,
    /// Whether the role passes row-level security by itself.
    pub bypasses_security: bool,
    /// Whether the role for searches is there and may be taken on, or can be
    /// made.
    pub has_reader: bool,
    /// The server's time less the asker's, in milliseconds.
    pub ahead_ms: i64,
}

/// Asks the database at `url`; changes nothing.
pub async fn probe(url: &str, now_ms: i64) -> Result<DatabaseProbe, StoreError> {
    let (options, database) = options(url)?;
    let failed =
        |source: sqlx::Error| StoreError::Connect { database: database.clone(), source: source.into() };
    let mut connection = options.connect().await.map_err(failed)?;
    let mut transaction = connection.begin().await.map_err(failed)?;
    let number: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let privilege = if number >= 160_000 { "SET" } else { "MEMBER" };
    let statement = format!(
        "SELECT current_setting('server_version') AS version, {number} AS version_number,
                (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
                (SELECT default_version::text FROM pg_available_extensions WHERE name = 'vector')
                    AS pgvector_available,
                coalesce((SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'thalweg'),
                         has_database_privilege(current_database(), 'CREATE')) AS may_make_schema,
                (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user) AS bypasses_security,
                coalesce((SELECT pg_has_role(oid, '{privilege}') OR pg_has_role(oid, 'USAGE WITH ADMIN OPTION')
                          FROM pg_roles WHERE rolname = 'thalweg_reader'),
                         (SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user))
                    AS has_reader,
                (extract(epoch FROM clock_timestamp()) * 1000)::bigint - {now_ms} AS ahead_ms"
    );
    let found: DatabaseProbe = sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .doing("asking the database")?;
    Ok(DatabaseProbe { database, ..found })
}
