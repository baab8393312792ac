//! A database of one test's own on a PostgreSQL server.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::secret::Secret;

/// Made for a test, gone with it.
pub(super) struct TestDatabase {
    pub url: Secret,
    server: String,
    name: String,
}

impl TestDatabase {
    /// On the server that has the database at `server`.
    pub async fn new(server: &str) -> Self {
        let name = format!("thalweg_test_{:016x}", rand::random::<u64>());
        run(server, format!("CREATE DATABASE {name}")).await;
        let url = plain_url(PgConnectOptions::from_str(server).unwrap().database(&name));
        Self { url: url.into(), server: server.to_owned(), name }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server, statement) =
            (self.server.clone(), format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(run(&server, statement));
        });
        if dropped.join().is_err() {
            eprintln!("the database {} is left behind", self.name);
        }
    }
}

async fn run(server: &str, statement: String) {
    let mut connection = PgConnectOptions::from_str(server).unwrap().connect().await.unwrap();
    connection.execute(AssertSqlSafe(statement)).await.unwrap();
    connection.close().await.unwrap();
}

/// A URL without the parameters that only this driver knows.
fn plain_url(options: PgConnectOptions) -> String {
    let mut url = options.to_url_lossy();
    url.set_query(None);
    url.to_string()
}
