//! A copy is what was copied, however either is laid out.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::*;

fn records(texts: std::ops::Range<u64>) -> Vec<RecordRow> {
    let vector = |n: u64| (!n.is_multiple_of(3)).then(|| vec![1.0, n as f32, 0.5, 0.1]);
    texts
        .map(|n| record(n, ["a", "b"][n as usize % 2], &format!("river {n} delta {}", n % 7), vector(n)))
        .collect()
}

/// What a copy of the store says, and where it is.
async fn copied(fixture: &Fixture, name: &str) -> (Copied, std::path::PathBuf) {
    let to = fixture.directory.path().join(name);
    (fixture.store.copy_to(&to, None, ("p", "s")).await.unwrap(), to)
}

#[tokio::test]
async fn sqlite_is_digested_the_same_however_its_file_is_laid_out() {
    let fixture = Fixture::filled(Database::Sqlite, records(0..300)).await;
    let (first, copy) = copied(&fixture, "first").await;
    assert_eq!(first.checkpoint.unwrap().next_offset, 300);
    let known = fixture.store.inventory().await.unwrap();
    for TableCount { table, rows } in known {
        let digest = first.tables.iter().find(|one| one.table == table).unwrap();
        assert_eq!(digest.rows, rows, "{table}");
    }
    let read_back = Store::content_of_copy(&copy, None, Engine::Sqlite).await.unwrap().unwrap();
    assert_eq!(read_back, first.tables);

    let path = fixture.directory.path().join("store.sqlite");
    let mut connection =
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    connection.execute("INSERT INTO keywords (keywords) VALUES ('optimize'); REINDEX; VACUUM").await.unwrap();
    assert_eq!(copied(&fixture, "second").await.0.tables, first.tables);
    connection.execute("UPDATE records SET attrs = '{\"a\":1}' WHERE record_key = 7").await.unwrap();
    let changed = copied(&fixture, "third").await.0.tables;
    let differing: Vec<_> = changed.iter().zip(&first.tables).filter(|(a, b)| a != b).collect();
    assert_eq!(differing.len(), 1);
    assert_eq!((differing[0].0.table.as_str(), differing[0].0.rows), ("records", 300));
}

#[tokio::test]
async fn postgres_is_digested_the_same_however_its_tables_are_laid_out() {
    for variable in ["THALWEG_TEST_POSTGRES", "THALWEG_TEST_POSTGRES_BARE"] {
        let Some(on) = Database::at(variable) else { return };
        let Ok(bin) = std::env::var("THALWEG_TEST_PG_BIN") else {
            eprintln!("SKIPPED: THALWEG_TEST_PG_BIN is not set (scripts/services up)");
            return;
        };
        let fixture = Fixture::filled(on, records(0..300)).await;
        let dump = async |name: &str| {
            let to = fixture.directory.path().join(name);
            fixture.store.copy_to(&to, Some(bin.as_ref()), ("p", "s")).await.unwrap()
        };
        let first = dump("first").await;
        assert_eq!(first.needs_pgvector, variable == "THALWEG_TEST_POSTGRES");
        for TableCount { table, rows } in fixture.store.inventory().await.unwrap() {
            assert_eq!(first.tables.iter().find(|one| one.table == table).unwrap().rows, rows, "{table}");
        }
        let url = fixture.settings.url.as_ref().unwrap().reveal();
        let mut connection =
            sqlx::PgConnection::connect_with(&url.parse::<PgConnectOptions>().unwrap()).await.unwrap();
        // Every row moves to the end of its table.
        connection.execute("UPDATE thalweg.records SET tier = tier WHERE record_key % 2 = 0").await.unwrap();
        connection.execute("VACUUM FULL thalweg.records").await.unwrap();
        assert_eq!(dump("second").await.tables, first.tables);
        let change =
            format!("UPDATE thalweg.vectors_{} SET chunk_key = -1 WHERE chunk_key = 2", fixture.space_key);
        connection.execute(AssertSqlSafe(change)).await.unwrap();
        let changed = dump("third").await.tables;
        let differing = changed.iter().zip(&first.tables).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 1, "{changed:?}");
    }
}
