//! Searches of large tenants in PostgreSQL: which way is taken, and that what
//! it finds is right.

use super::*;

const DIMENSIONS: usize = 16;

fn scattered(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..DIMENSIONS)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 2_001) as f32 / 1_000.0 - 1.0
        })
        .collect()
}

/// A store that builds indexes above 500 chunks.
async fn small_indexes() -> Option<(Fixture, i64)> {
    let Database::Postgres(server, _) = Database::at("THALWEG_TEST_POSTGRES")? else { return None };
    let database = postgres::TestDatabase::new(&server).await;
    let index = VectorIndex { above: 500, ..VectorIndex::default() };
    let settings = Settings { url: Some(database.url.clone()), index, ..Settings::default() };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_with(directory.path(), &settings).await.unwrap();
    let space_key = store.register_space(&space(DIMENSIONS), 0).await.unwrap();
    Some((Fixture { store, space_key, settings, directory, _database: Some(database) }, space_key))
}

async fn load(fixture: &Fixture, lease: &mut Lease, tenant: &str, count: u64) {
    let from = lease.checkpoint().next_offset;
    let records = (from..from + count).map(|o| record(o, tenant, "river", Some(scattered(o)))).collect();
    fixture.store.commit(lease, fixture.batch(from, records)).await.unwrap();
}

/// How the tenant's vectors were compared, and how many of the ten nearest by
/// brute force were among the ten found.
async fn search(fixture: &Fixture, tenant: &str, offsets: std::ops::Range<u64>, seed: u64) -> (Scan, usize) {
    let vector = scattered(seed);
    let query = Query { vector: Some(vector.clone()), mode: Mode::Vector, ..fixture.query(tenant, "") };
    let answer = fixture.store.search(&query).await.unwrap();
    assert!(answer.hits.iter().all(|hit| hit.tenant == tenant));
    let unit = |v: &[f32]| {
        let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        v.iter().map(|x| x / length).collect::<Vec<_>>()
    };
    let asked = unit(&vector);
    let mut all: Vec<(f32, u64)> =
        offsets.map(|o| (unit(&scattered(o)).iter().zip(&asked).map(|(a, b)| a * b).sum(), o)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let nearest: Vec<u64> = all.iter().take(10).map(|(_, o)| *o).collect();
    let found = answer.hits.iter().filter(|hit| nearest.contains(&hit.lineage.offset)).count();
    (answer.scans[0].scan, found)
}

#[tokio::test]
async fn a_large_tenant_is_searched_by_index_and_what_is_newer_exactly() {
    let Some((fixture, _)) = small_indexes().await else { return };
    let mut lease = fixture.lease().await;
    load(&fixture, &mut lease, "small", 300).await;
    load(&fixture, &mut lease, "large", 2_000).await;
    assert_eq!(search(&fixture, "large", 300..2_300, 7).await, (Scan::Exact, 10), "no index yet");
    assert_eq!(fixture.store.maintain(1).await.unwrap(), 1);
    assert_eq!(fixture.store.maintain(1).await.unwrap(), 0, "nothing is left to build");
    assert_eq!(search(&fixture, "small", 0..300, 7).await, (Scan::Exact, 10));
    let mut found = 0;
    for seed in 10_000..10_020 {
        let (scan, right) = search(&fixture, "large", 300..2_300, seed).await;
        assert_eq!(scan, Scan::Index);
        found += right;
    }
    assert!(found >= 196, "{found} of 200");

    load(&fixture, &mut lease, "large", 100).await;
    let (scan, right) = search(&fixture, "large", 300..2_400, 2_399).await;
    assert!(scan == Scan::Index && right >= 9, "the newest row is found before it is indexed: {right}");
    let newest = Query { vector: Some(scattered(2_399)), mode: Mode::Vector, ..fixture.query("large", "") };
    assert_eq!(fixture.store.search(&newest).await.unwrap().hits[0].lineage.offset, 2_399);

    load(&fixture, &mut lease, "large", 1_500).await;
    assert_eq!(fixture.store.maintain(2).await.unwrap(), 1, "both are built anew as one");
    let (scan, right) = search(&fixture, "large", 300..3_900, 3_000).await;
    assert!(scan == Scan::Index && right >= 9, "{right}");
}

#[tokio::test]
async fn an_index_left_unfinished_is_taken_away_and_built_anew() {
    let Some((fixture, space_key)) = small_indexes().await else { return };
    let mut lease = fixture.lease().await;
    load(&fixture, &mut lease, "large", 600).await;
    let pool = sqlx::PgPool::connect(fixture.settings.url.as_ref().unwrap().reveal()).await.unwrap();
    sqlx::query(
        "INSERT INTO thalweg.vector_indexes VALUES ('vectors_x', $1, 1, 0, 0, 100, 100, 'building', 5)",
    )
    .bind(space_key)
    .execute(&pool)
    .await
    .unwrap();
    assert_eq!(fixture.store.maintain(6).await.unwrap(), 0, "somebody may be at it");
    assert_eq!(search(&fixture, "large", 0..600, 7).await, (Scan::Exact, 10));
    assert_eq!(fixture.store.maintain(120_000).await.unwrap(), 1);
    assert_eq!(search(&fixture, "large", 0..600, 7).await.0, Scan::Index);
    // An index that somebody dropped behind our back costs time, nothing else.
    let name: String =
        sqlx::query_scalar("SELECT name FROM thalweg.vector_indexes").fetch_one(&pool).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP INDEX thalweg.{name}"))).execute(&pool).await.unwrap();
    assert_eq!(search(&fixture, "large", 0..600, 7).await, (Scan::Index, 10));
    pool.close().await;
}
