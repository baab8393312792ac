//! Copies of the file.

use std::path::Path;

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, TypeInfo, ValueRef};

use super::SqliteStore;
use crate::durable;
use crate::store::backup::{Copied, Rows, TableDigest};
use crate::store::error::{Doing, StoreError};

const DOING: &str = "digesting the database";

impl SqliteStore {
    /// Copies the database to the new file `to`, on one snapshot and without
    /// keeping anybody from writing, and reads the copy back.
    pub async fn copy_to(&self, to: &Path, (pipeline, stream): (&str, &str)) -> Result<Copied, StoreError> {
        let doing = "copying the database";
        // The writer's connection would keep this process's commits waiting.
        let options = (*self.readers().connect_options()).clone().pragma("query_only", "off");
        let mut copying = options.connect().await.doing(doing)?;
        sqlx::query("VACUUM INTO ?")
            .bind(to.display().to_string())
            .execute(&mut copying)
            .await
            .doing(doing)?;
        copying.close().await.doing(doing)?;
        let mut connection = open(to).await?;
        let schema_version =
            sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success")
                .fetch_one(&mut connection)
                .await
                .doing("reading the schema's version")?;
        let artifacts = sqlx::query_as("SELECT * FROM artifacts ORDER BY location")
            .fetch_all(&mut connection)
            .await
            .doing("reading the artifacts")?;
        let checkpoint = sqlx::query_as("SELECT * FROM checkpoints WHERE pipeline = ? AND stream = ?")
            .bind(pipeline)
            .bind(stream)
            .fetch_optional(&mut connection)
            .await
            .doing("reading a checkpoint")?;
        let tables = digests(&mut connection).await.doing(DOING)?;
        connection.close().await.doing(DOING)?;
        Ok(Copied { schema_version, tables, artifacts, checkpoint, needs_pgvector: false })
    }

    /// Puts the copy `from` at `path`, durably, and reads it back.
    pub async fn restore(from: &Path, path: &Path) -> Result<Vec<TableDigest>, StoreError> {
        for suffix in ["", "-wal", "-shm"] {
            let mut taken = path.as_os_str().to_owned();
            taken.push(suffix);
            if Path::new(&taken).symlink_metadata().is_ok() {
                return Err(StoreError::Occupied { place: format!("there is a file {}", taken.display()) });
            }
        }
        let (source, target) = (from.to_owned(), path.to_owned());
        let copying = move || {
            std::fs::create_dir_all(target.parent().unwrap_or(Path::new(".")))?;
            let mut source = std::fs::File::open(source)?;
            durable::publish(&target, |file| std::io::copy(&mut source, file)).map(drop)
        };
        let copied = tokio::task::spawn_blocking(copying).await.map_err(std::io::Error::other).flatten();
        copied.map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        Self::content_of(path).await
    }

    /// The content of the database file at `path`, which nobody writes.
    pub async fn content_of(path: &Path) -> Result<Vec<TableDigest>, StoreError> {
        let mut connection = open(path).await?;
        let tables = digests(&mut connection).await.doing(DOING)?;
        connection.close().await.doing(DOING)?;
        Ok(tables)
    }
}

async fn open(path: &Path) -> Result<SqliteConnection, StoreError> {
    // Neither journal nor shared memory may appear beside a copy.
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    options.connect().await.doing("opening the copy")
}

async fn digests(connection: &mut SqliteConnection) -> Result<Vec<TableDigest>, sqlx::Error> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'
             AND name NOT GLOB 'keyword*' ORDER BY name",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut content: Vec<_> =
        tables.into_iter().map(|table| (format!("SELECT * FROM \"{table}\""), table)).collect();
    content.push(("SELECT term, doc, cnt FROM keyword_terms".into(), "keyword_terms".into()));
    content.push(("SELECT id, sz FROM keywords_docsize".into(), "keyword_lengths".into()));
    let mut digests = Vec::with_capacity(content.len());
    for (select, table) in content {
        let mut sum = Rows::default();
        let mut rows = sqlx::query(AssertSqlSafe(select)).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            sum.add(&digest(&row)?);
        }
        digests.push(sum.of(table));
    }
    digests.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(digests)
}

/// SHA-256 of a row's values, each with its type and its length.
fn digest(row: &SqliteRow) -> Result<[u8; 32], sqlx::Error> {
    let mut hash = Sha256::new();
    for column in 0..row.len() {
        let kind = row.try_get_raw(column)?.type_info().name().to_owned();
        let bytes: &[u8] = match kind.as_str() {
            "NULL" => &[],
            "INTEGER" => &row.try_get_unchecked::<i64, _>(column)?.to_be_bytes(),
            "REAL" => &row.try_get_unchecked::<f64, _>(column)?.to_be_bytes(),
            _ => row.try_get_unchecked(column)?,
        };
        hash.update(kind.as_bytes());
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    Ok(hash.finalize().into())
}
