//! What every store must do: the same tests over SQLite, PostgreSQL,
//! PostgreSQL through PgBouncer, and PostgreSQL without pgvector, each with a
//! database of its own.
//!
//! The servers are those of `scripts/services up`, named by
//! `THALWEG_TEST_POSTGRES`, `THALWEG_TEST_PGBOUNCER` and
//! `THALWEG_TEST_POSTGRES_BARE`; without them those tests say that they are
//! skipped.

/// Runs each test over every database.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $name() { super::$name(super::Database::Sqlite).await })* }
        mod postgres { $(#[tokio::test] async fn $name() {
            if let Some(on) = super::Database::at("THALWEG_TEST_POSTGRES") { super::$name(on).await }
        })* }
        mod pgbouncer { $(#[tokio::test] async fn $name() {
            if let Some(on) = super::Database::at("THALWEG_TEST_PGBOUNCER") { super::$name(on).await }
        })* }
        mod without_pgvector { $(#[tokio::test] async fn $name() {
            if let Some(on) = super::Database::at("THALWEG_TEST_POSTGRES_BARE") { super::$name(on).await }
        })* }
    };
}

mod audit;
mod backup;
mod commit;
mod forget;
mod identity;
mod indexes;
mod isolation;
mod jobs;
mod measure;
mod postgres;
mod recovery;
mod retrieval;
mod webhooks;

use crate::embed::Space;
use crate::record::Tier;

use super::*;

/// Where a test's database is made.
#[derive(Clone, Debug)]
enum Database {
    Sqlite,
    /// A server, by the URL of a database on it; whether statements may be
    /// prepared.
    Postgres(String, bool),
}

impl Database {
    fn at(variable: &str) -> Option<Self> {
        match std::env::var(variable) {
            Ok(url) if !url.is_empty() => Some(Self::Postgres(url, variable != "THALWEG_TEST_PGBOUNCER")),
            _ => {
                eprintln!("SKIPPED: {variable} is not set (scripts/services up)");
                None
            }
        }
    }
}

struct Fixture {
    store: Store,
    space_key: i64,
    settings: Settings,
    // Removed when dropped, so they must outlive the store.
    directory: tempfile::TempDir,
    _database: Option<postgres::TestDatabase>,
}

impl Fixture {
    async fn new(on: Database) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (database, prepared_statements) = match on {
            Database::Sqlite => (None, true),
            Database::Postgres(url, prepared) => (Some(postgres::TestDatabase::new(&url).await), prepared),
        };
        let url = database.as_ref().map(|database| database.url.clone());
        let settings = Settings { url, prepared_statements, ..Settings::default() };
        let store = Store::open_with(&directory.path().join("store.sqlite"), &settings).await.unwrap();
        let space_key = store.register_space(&space(4), 0).await.unwrap();
        Self { store, space_key, settings, directory, _database: database }
    }

    async fn again(&self) -> Store {
        Store::open_with(&self.directory.path().join("store.sqlite"), &self.settings).await.unwrap()
    }

    async fn lease(&self) -> Lease {
        self.store.acquire("p", "s", 0, 1).await.unwrap()
    }

    fn batch(&self, from: u64, records: Vec<RecordRow>) -> Batch {
        Batch {
            from,
            to: from + records.len() as u64,
            batch_tag: "batch-1".into(),
            space_key: self.space_key,
            config_digest: "c0".into(),
            records,
            now_ms: 2,
            ..Batch::default()
        }
    }

    /// Stores `records` from offset 0 on.
    async fn filled(on: Database, records: Vec<RecordRow>) -> Self {
        let fixture = Self::new(on).await;
        let mut lease = fixture.lease().await;
        let batch = fixture.batch(0, records);
        fixture.store.commit(&mut lease, batch).await.unwrap();
        fixture
    }

    fn query(&self, tenant: &str, text: &str) -> Query {
        Query { tenant: tenant.into(), text: text.into(), space_key: self.space_key, ..Query::default() }
    }
}

fn space(dimensions: usize) -> Space {
    Space {
        provider: "test".into(),
        model: "model-1".into(),
        revision: "r1".into(),
        tokenizer: String::new(),
        dimensions,
        pooling: "mean".into(),
        normalised: true,
        prefix: String::new(),
        element: "fp32".into(),
        max_tokens: 256,
    }
}

fn record(offset: u64, tenant: &str, text: &str, vector: Option<Vec<f32>>) -> RecordRow {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&offset.to_be_bytes());
    RecordRow {
        offset,
        record_id: Some(format!("id-{offset}")),
        ts_ms: 1_000 + offset.cast_signed(),
        tenant: tenant.into(),
        session: None,
        source: "test".into(),
        tier: Tier::Event,
        attrs: "{}".into(),
        dedupe_key: None,
        chunks: vec![ChunkRow {
            chunk: 0,
            start: 0,
            end: text.len(),
            tokens: 3,
            text: text.into(),
            digest,
            vector,
        }],
    }
}

fn texts(answer: &Answer) -> Vec<&str> {
    answer.hits.iter().map(|hit| hit.text.as_str()).collect()
}
