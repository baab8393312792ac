//! What PostgreSQL itself keeps apart: the role that searches run as, with SQL
//! of its own.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use super::*;

const TENANTS: [&str; 2] = ["a", "b"];

/// A store with records of two tenants, and a connection that logs in as a
/// role that may only do what searches do.
async fn as_reader(fixture: &Fixture) -> PgConnection {
    let url = fixture.settings.url.as_ref().unwrap().reveal();
    let role = format!("reader_{:016x}", rand::random::<u64>());
    let mut owner: PgConnection = url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
    owner.execute(AssertSqlSafe(format!("CREATE ROLE {role} LOGIN IN ROLE thalweg_reader"))).await.unwrap();
    owner.close().await.unwrap();
    url.parse::<PgConnectOptions>().unwrap().username(&role).connect().await.unwrap()
}

async fn filled() -> Option<Fixture> {
    let on = Database::at("THALWEG_TEST_POSTGRES")?;
    let records = (0..20).map(|offset| {
        record(offset, TENANTS[offset as usize % 2], "the same river", Some(vec![1.0, 0.0, 0.0, 0.1]))
    });
    Some(Fixture::filled(on, records.collect()).await)
}

async fn count(reader: &mut PgConnection, from: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {from}"))).fetch_one(reader).await.unwrap()
}

/// Every table and view of the schema that the reader may read at all.
async fn readable(reader: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'thalweg'::regnamespace
             AND c.relkind IN ('r', 'v') AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1",
    )
    .fetch_all(reader)
    .await
    .unwrap()
}

#[tokio::test]
async fn the_reading_role_sees_nothing_without_a_tenant_and_one_tenant_with() {
    let Some(fixture) = filled().await else { return };
    let mut reader = as_reader(&fixture).await;
    let vectors = format!("thalweg.vectors_{}", fixture.space_key);
    let of_tenants = [
        "thalweg.records",
        "thalweg.chunks",
        "thalweg.tenants",
        "thalweg.partitions",
        "thalweg.doc_embeddings",
        vectors.as_str(),
    ];
    let readable = readable(&mut reader).await;
    for table in of_tenants {
        assert!(readable.iter().any(|name| name == table), "{table} of {readable:?}");
        assert_eq!(count(&mut reader, table).await, 0, "{table} without a tenant");
    }
    // Whatever else it may read names no tenant and holds no text.
    let rest: Vec<_> = readable.iter().filter(|name| !of_tenants.contains(&name.as_str())).collect();
    assert_eq!(rest, ["thalweg.batches", "thalweg.segments", "thalweg.spaces", "thalweg.vector_indexes"]);
    for key in [1, 2] {
        reader.execute(AssertSqlSafe(format!("SET thalweg.tenant = '{key}'"))).await.unwrap();
        assert_eq!(count(&mut reader, "thalweg.records").await, 10);
        assert_eq!(count(&mut reader, &format!("{vectors} WHERE tenant_key <> {key}")).await, 0);
        assert_eq!(count(&mut reader, "thalweg.records WHERE true OR tenant_key = 1 + 1").await, 10);
        let named: Vec<String> = sqlx::query_scalar("SELECT DISTINCT tenant FROM thalweg.doc_embeddings")
            .fetch_all(&mut reader)
            .await
            .unwrap();
        assert_eq!(named.len(), 1, "{named:?}");
        let found: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum(cardinality(chunk_keys)), 0)::bigint
             FROM thalweg.postings(0::smallint, ARRAY['river', '0river'' | ''1k0river', '1k0river'], 100)",
        )
        .fetch_one(&mut reader)
        .await
        .unwrap();
        assert_eq!(found, 10, "only the tenant's own, whatever the words");
    }
}

#[tokio::test]
async fn the_reading_role_cannot_write_nor_become_another() {
    let Some(fixture) = filled().await else { return };
    let mut reader = as_reader(&fixture).await;
    let vectors = format!("thalweg.vectors_{}", fixture.space_key);
    reader.execute("SET thalweg.tenant = '1'").await.unwrap();
    for statement in [
        "INSERT INTO thalweg.tenants (name) VALUES ('c')".to_owned(),
        "UPDATE thalweg.records SET tenant_key = 1".to_owned(),
        "DELETE FROM thalweg.chunks".to_owned(),
        format!("TRUNCATE {vectors}"),
        format!("ALTER TABLE {vectors} DISABLE ROW LEVEL SECURITY"),
        "DROP POLICY of_tenant ON thalweg.records".to_owned(),
        "ALTER ROLE thalweg_reader BYPASSRLS".to_owned(),
        "SET ROLE thalweg".to_owned(),
        "SET SESSION AUTHORIZATION thalweg".to_owned(),
        "SELECT * FROM thalweg.dead_letters".to_owned(),
        "SELECT * FROM thalweg.outcomes".to_owned(),
        "CREATE TABLE thalweg.mine (x int)".to_owned(),
        "SET row_security = off; SELECT count(*) FROM thalweg.records".to_owned(),
    ] {
        let answer = reader.execute(AssertSqlSafe(statement.clone())).await;
        assert!(answer.is_err(), "{statement}: {answer:?}");
        reader.execute("RESET row_security").await.unwrap();
    }
    assert_eq!(count(&mut reader, "thalweg.records").await, 10);
}

#[tokio::test]
async fn what_a_pooler_mixes_up_stays_each_tenants_own() {
    let Some(on) = Database::at("THALWEG_TEST_PGBOUNCER") else { return };
    let records = (0..400).map(|offset| {
        record(offset, &format!("tenant-{}", offset % 8), "the same river", Some(vec![1.0, 0.0, 0.0, 0.1]))
    });
    let fixture = std::sync::Arc::new(Fixture::filled(on, records.collect()).await);
    let ask = |i: usize| {
        let fixture = std::sync::Arc::clone(&fixture);
        async move {
            let tenant = format!("tenant-{}", i % 8);
            let query = Query {
                vector: Some(vec![1.0, 0.0, 0.0, 0.1]),
                limit: 100,
                ..fixture.query(&tenant, "river")
            };
            for _ in 0..20 {
                let answer = fixture.store.search(&query).await.unwrap();
                assert_eq!(answer.hits.len(), 50, "{tenant}");
                assert!(answer.hits.iter().all(|hit| hit.tenant == tenant), "{tenant}");
            }
        }
    };
    futures::future::join_all((0..16).map(ask)).await;
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused_and_many_openers_make_it_once() {
    let Some(Database::Postgres(server, _)) = Database::at("THALWEG_TEST_POSTGRES") else { return };
    let database = postgres::TestDatabase::new(&server).await;
    let settings = Settings { url: Some(database.url.clone()), connections: 2, ..Settings::default() };
    let path = std::path::Path::new("unused");
    let opened = futures::future::join_all((0..6).map(|_| Store::open_with(path, &settings))).await;
    for store in opened {
        assert!(store.unwrap().schema_version().await.unwrap() >= 1);
    }
    let pool = PgPoolOptions::new().connect(database.url.reveal()).await.unwrap();
    pool.execute("INSERT INTO thalweg.migrations VALUES (9999, 'later', '\\x00')").await.unwrap();
    let error = Store::open_with(path, &settings).await.err().unwrap().to_string();
    assert!(error.contains("9999") && error.contains("newer version"), "{error}");
    pool.close().await;
}
