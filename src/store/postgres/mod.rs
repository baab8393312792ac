//! A store in PostgreSQL: connections, transactions, schema. The SQL stands in
//! the files beside this one, one noun each.
//!
//! Everything lies in the schema `thalweg` and is named in full, so nothing
//! depends on settings of a session. Every statement is part of a
//! transaction, so that a pooler which lends a server for one transaction at
//! a time may stand in between.
//!
//! The engine works as the role it logs in as, which owns the tables.
//! Searches run as `thalweg_reader`, whom row-level security shows the rows of
//! one tenant.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool};

pub use self::probe::{DatabaseProbe, probe};
use self::session::Session;
use self::vectors::{Element, VectorTable};
use super::error::{Doing, StoreError};
use super::frequencies::Frequencies;
use super::settings::Settings;
use super::spaces::SpaceRow;

mod artifacts;
mod audit;
mod backup;
mod canaries;
mod checkpoint;
mod commit;
mod copy;
mod damage;
mod dead_letters;
mod digest;
mod erasures;
mod forget;
mod index_plan;
mod indexes;
mod inspect;
mod jobs;
mod keys;
mod lists;
mod lost;
mod migration;
mod nearest;
mod new_rows;
mod nodelay;
mod probe;
mod progress;
mod replay;
mod retention;
mod schema;
mod segments;
mod session;
mod spaces;
mod spending;
mod stored;
mod streams;
mod text;
mod texts;
mod tools;
mod trail;
mod vectors;
mod waiting;
mod webhooks;

/// How long a call waits for a connection before it fails as transient.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// Advisory locks of this schema: all in the space of one key.
const LOCKS: i32 = 0x7468_616c;
/// Held while the schema is changed.
const MIGRATING: i32 = 1;
/// Held, shared, from drawing keys until their rows are committed.
const DRAWING_KEYS: i32 = 2;

/// One database. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub(super) struct PostgresStore {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    settings: Settings,
    /// What new spaces hold their vectors in.
    element: Element,
    /// For searches only: a key that was given up finds nothing.
    tenants: Mutex<HashMap<String, i64>>,
    spaces: Mutex<HashMap<i64, (Arc<SpaceRow>, VectorTable)>>,
    frequencies: Frequencies,
}

impl PostgresStore {
    /// Connects to the database at `url` and brings its schema to this
    /// version's.
    pub async fn connect(url: &str, settings: &Settings) -> Result<Self, StoreError> {
        let (pool, database) = connect(url, settings).await?;
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Connect {
            database: database.clone(),
            source,
        };
        schema::migrate(&pool).await.map_err(|e| failed(e.into()))?;
        let element = Element::available(&pool, settings.vectors).await?;
        if element == Element::Jsonb {
            tracing::warn!(
                database,
                "PostgreSQL has no pgvector: vectors are kept as jsonb and every search compares all of a \
                 tenant's in this process; `CREATE EXTENSION vector` as a superuser, before the first record"
            );
        }
        Ok(Self {
            inner: Arc::new(Inner {
                pool,
                settings: settings.clone(),
                element,
                tenants: Mutex::default(),
                spaces: Mutex::default(),
                frequencies: Frequencies::default(),
            }),
        })
    }

    /// Whether the database at `url` has a store's schema.
    pub async fn exists(url: &str) -> Result<bool, StoreError> {
        let (options, database) = options(url)?;
        let failed =
            |source: sqlx::Error| StoreError::Connect { database: database.clone(), source: source.into() };
        let mut connection = options.connect().await.map_err(failed)?;
        let mut transaction = connection.begin().await.map_err(failed)?;
        sqlx::query_scalar("SELECT to_regclass('thalweg.migrations') IS NOT NULL")
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)
    }

    pub async fn close(&self) {
        self.inner.pool.close().await;
    }

    fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    fn element(&self) -> Element {
        self.inner.element
    }

    fn frequencies(&self) -> &Frequencies {
        &self.inner.frequencies
    }

    /// Begins to write.
    async fn begin(&self) -> Result<Session, StoreError> {
        self.session("BEGIN".into()).await
    }

    /// Begins to write rows whose keys are drawn within: see
    /// [`Self::keys_drawn`].
    async fn begin_drawing_keys(&self) -> Result<Session, StoreError> {
        self.session(format!("BEGIN; SELECT pg_advisory_xact_lock_shared({LOCKS}, {DRAWING_KEYS})")).await
    }

    /// Begins to read, on one snapshot.
    async fn read(&self) -> Result<Session, StoreError> {
        self.session("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".into()).await
    }

    /// Begins to read as one who sees one tenant's rows only.
    async fn read_as_tenant(&self, tenant_key: i64, more: &str) -> Result<Session, StoreError> {
        self.session(format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL ROLE thalweg_reader; \
             SET LOCAL thalweg.tenant = '{tenant_key}'{more}"
        ))
        .await
    }

    /// A connection that was cut off while it was idle shows that here, where
    /// nothing is lost by taking another: until all of them were tried.
    async fn session(&self, begin: String) -> Result<Session, StoreError> {
        let mut others = self.settings().connections;
        let transaction = loop {
            match self.inner.pool.begin_with(AssertSqlSafe(begin.clone())).await {
                Err(error) if others > 0 && is_cut_off(&error) => others -= 1,
                begun => break begun.doing("beginning a transaction")?,
            }
        };
        Ok(Session::new(transaction, self.settings().prepared_statements))
    }

    /// A key below which no row can be committed any more: whoever draws keys
    /// holds a lock until its rows are visible, and this waits for it.
    async fn keys_drawn(&self) -> Result<i64, StoreError> {
        let mut session =
            self.session(format!("BEGIN; SELECT pg_advisory_xact_lock({LOCKS}, {DRAWING_KEYS})")).await?;
        session
            .query(
                "SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END FROM thalweg.chunk_keys",
            )
            .scalar(&mut session)
            .await
            .doing("reading the last key")
    }

    fn remembered_tenant(&self, name: &str) -> Option<i64> {
        self.inner.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    fn remember_tenant(&self, name: &str, key: i64) {
        self.inner.tenants.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), key);
    }

    fn forget_tenant(&self, name: &str) {
        self.inner.tenants.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// The connections to the database at `url`, and its name as people may see
/// it.
async fn connect(url: &str, settings: &Settings) -> Result<(PgPool, String), StoreError> {
    let (options, database) = options(url)?;
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Connect {
        database: database.clone(),
        source,
    };
    let options = options
        .application_name("thalweg")
        // Statements that a pooler's server does not know must not be kept.
        .statement_cache_capacity(if settings.prepared_statements { 200 } else { 0 });
    let port = options.get_port();
    let pool = PgPoolOptions::new()
        // A call that is dropped, or fails, while its transaction begins
        // leaves it behind unnoticed by the driver: role, tenant and all.
        // One that still stands is ended here; one that has failed makes
        // this fail, and the connection is closed.
        .after_release(|connection, _| {
            Box::pin(async move { connection.execute("BEGIN; ROLLBACK").await.map(|_| true) })
        })
        .after_connect(move |_, _| {
            nodelay::set(port);
            Box::pin(async { Ok(()) })
        })
        .max_connections(settings.connections)
        // The beginning of each transaction is test enough: see `session`.
        .test_before_acquire(false)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|e| failed(e.into()))?;
    Ok((pool, database))
}

/// Whether the server ended the connection, or it is gone.
fn is_cut_off(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => {
            // Ended by an administrator, for its idleness, or by a server that
            // stops or crashed.
            error.code().is_some_and(|code| code.starts_with("57P"))
        }
        _ => false,
    }
}

/// What the driver knows in a URL. It logs what it does not know, value and
/// all, and that may be a password under a name with a slip in it.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// What a URL says, and the database's name as people may see it.
fn options(url: &str) -> Result<(PgConnectOptions, String), StoreError> {
    let parameters: Vec<_> =
        Url::parse(url).iter().flat_map(|url| url.query_pairs().into_owned().collect::<Vec<_>>()).collect();
    let is_known = |name: &str| PARAMETERS.contains(&name) || name.starts_with("options[");
    if let Some((name, _)) = parameters.iter().find(|(name, _)| !is_known(name)) {
        let known = PARAMETERS.join(", ");
        let reason = format!("it has the unknown parameter `{name}`; known are {known}");
        return Err(StoreError::Url { reason });
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        let values = parameters.iter().filter(|(_, value)| !value.is_empty());
        let reason = values.fold(error.to_string(), |reason, (_, value)| reason.replace(value, "(secret)"));
        StoreError::Url { reason }
    })?;
    let database = format!(
        "{}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    Ok((options, database))
}

/// Many keys or offsets as one array, for `= ANY($1)`.
fn array(keys: impl IntoIterator<Item = u64>) -> Vec<i64> {
    keys.into_iter().map(u64::cast_signed).collect()
}
