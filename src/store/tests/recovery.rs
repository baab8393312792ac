//! What PostgreSQL's connections must not carry over, and what a lost answer
//! must not cost.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::*;

fn unit() -> Option<Vec<f32>> {
    Some(vec![1.0, 0.0, 0.0, 0.1])
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_not_made_twice_and_fences_nobody() {
    let Some(on) = Database::at("THALWEG_TEST_POSTGRES") else { return };
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let batch = fixture.batch(0, vec![record(0, "a", "river", unit()), record(1, "a", "delta", unit())]);
    let mut unheard = Lease {
        pipeline: lease.pipeline.clone(),
        stream: lease.stream.clone(),
        epoch: lease.epoch,
        checkpoint: lease.checkpoint,
    };
    fixture.store.commit(&mut lease, batch.clone()).await.unwrap();
    let before = fixture.store.inventory().await.unwrap();
    fixture.store.commit(&mut unheard, batch).await.unwrap();
    assert_eq!(unheard.checkpoint(), lease.checkpoint());
    assert_eq!(fixture.store.inventory().await.unwrap(), before);
    // Another batch of the same length is not that one's.
    let other = fixture.batch(0, vec![record(0, "a", "other", unit())]);
    unheard.checkpoint = Checkpoint::default();
    let error = fixture.store.commit(&mut unheard, other).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
    let next = fixture.batch(2, vec![record(2, "a", "sea", unit())]);
    fixture.store.commit(&mut lease, next).await.unwrap();
}

#[tokio::test]
async fn a_search_given_up_at_any_moment_leaves_nothing_behind_on_its_connection() {
    let Some(Database::Postgres(server, _)) = Database::at("THALWEG_TEST_POSTGRES") else { return };
    let database = postgres::TestDatabase::new(&server).await;
    let settings = Settings { url: Some(database.url.clone()), connections: 2, ..Settings::default() };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_with(directory.path(), &settings).await.unwrap();
    let space_key = store.register_space(&space(4), 0).await.unwrap();
    let fixture = Fixture { store, space_key, settings, directory, _database: Some(database) };
    let mut lease = fixture.lease().await;
    let records = ["a", "b"].iter().zip(0..).map(|(tenant, o)| record(o, tenant, "river", unit())).collect();
    fixture.store.commit(&mut lease, fixture.batch(0, records)).await.unwrap();
    for micros in (0..3_000).step_by(30) {
        let query = Query { vector: unit(), ..fixture.query("a", "river") };
        let patience = Duration::from_micros(micros);
        // Whether it is answered does not matter.
        let _ = tokio::time::timeout(patience, fixture.store.search(&query)).await;
        let known = fixture.store.known(&[[1; 32]]).await;
        assert!(known.is_ok(), "given up after {micros} µs: {known:?}");
        let other = Query { vector: unit(), ..fixture.query("b", "river") };
        let hits = fixture.store.search(&other).await.unwrap().hits;
        assert_eq!(hits.iter().map(|hit| hit.tenant.as_str()).collect::<Vec<_>>(), ["b"], "{micros} µs");
    }
}

#[tokio::test]
async fn connections_that_were_cut_off_while_idle_are_replaced_unseen() {
    let Some(on) = Database::at("THALWEG_TEST_POSTGRES") else { return };
    let fixture = Fixture::filled(on, vec![record(0, "a", "river", unit())]).await;
    let query = || Query { vector: unit(), ..fixture.query("a", "river") };
    let mut lease = fixture.lease().await;
    for round in 1..4 {
        let queries: Vec<Query> = (0..8).map(|_| query()).collect();
        for answer in futures::future::join_all(queries.iter().map(|q| fixture.store.search(q))).await {
            assert_eq!(answer.unwrap().live_space, Some(fixture.space_key));
        }
        let url = fixture.settings.url.as_ref().unwrap().reveal();
        let mut other: PgConnection = url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
        let cut: i64 = sqlx::query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .fetch_one(&mut other)
        .await
        .unwrap();
        assert!(cut > 1, "{cut} connections");
        other.close().await.unwrap();
        let found = fixture.store.search(&query()).await.unwrap().hits.len() as u64;
        assert_eq!(found, round);
        let next = fixture.batch(round, vec![record(round, "a", "river", unit())]);
        fixture.store.commit(&mut lease, next).await.unwrap();
    }
}
