//! Copies of the schema: `pg_dump` and `pg_restore`, and what proves them.

use std::path::Path;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool};

use super::PostgresStore;
use super::digest::digests;
use super::session::Session;
use super::tools::Tool;
use super::{connect, options, schema};
use crate::store::backup::{Copied, TableDigest};
use crate::store::error::{Doing, StoreError};
use crate::store::settings::Settings;

impl PostgresStore {
    /// Dumps the schema to the new file `to`, without keeping anybody from
    /// writing; what is said of it is of the same snapshot.
    pub async fn dump_to(
        &self,
        to: &Path,
        bin: Option<&Path>,
        (pipeline, stream): (&str, &str),
    ) -> Result<Copied, StoreError> {
        let url = self.settings().url.as_ref().map_or("", |url| url.reveal());
        let dump = Tool::new("pg_dump", bin, &options(url)?.0);
        // Held until the dump is done: the snapshot lives as long as this.
        let mut session = self.read().await?;
        let (version, snapshot): (i32, String) = session
            .query("SELECT current_setting('server_version_num')::int, pg_export_snapshot()")
            .one(&mut session)
            .await
            .doing("exporting a snapshot")?;
        dump.check(version).await?;
        let dumping = dump.run(
            ["--format=custom", "--schema=thalweg", "--no-password"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("--snapshot={snapshot}"), format!("--file={}", to.display())])
                .collect(),
        );
        let (dumped, copied) = tokio::join!(dumping, describe(&mut session, pipeline, stream));
        dumped?;
        copied
    }

    /// Loads what [`Self::dump_to`] wrote into the database at `url`, all or
    /// nothing, and returns the content that is there then.
    pub async fn restore(
        from: &Path,
        bin: Option<&Path>,
        url: &str,
        settings: &Settings,
    ) -> Result<Vec<TableDigest>, StoreError> {
        let (options, database) = options(url)?;
        let (pool, _) = connect(url, settings).await?;
        if has_schema(&pool).await.doing("looking for the schema")? {
            return Err(StoreError::Occupied {
                place: format!("the database {database} has a schema `thalweg`"),
            });
        }
        schema::make_reader(&pool)
            .await
            .map_err(|source| StoreError::Connect { database, source: source.into() })?;
        let arguments = ["--single-transaction", "--exit-on-error", "--no-password", "--no-owner"];
        let arguments = arguments.map(str::to_owned).into_iter().chain([
            format!("--dbname={}", options.get_database().unwrap_or(options.get_username())),
            from.display().to_string(),
        ]);
        Tool::new("pg_restore", bin, &options).run(arguments.collect()).await?;
        let transaction = pool.begin().await.doing("reading back what was restored")?;
        let mut session = Session::new(transaction, false);
        let restored = digests(&mut session).await.doing("digesting tables")?;
        // A dump has no statistics, and plans made without are bad ones.
        for table in &restored {
            let analyze = format!("ANALYZE thalweg.\"{}\"", table.table);
            session.query(AssertSqlSafe(analyze)).run(&mut session).await.doing("analysing tables")?;
        }
        session.commit("analysing tables").await?;
        pool.close().await;
        Ok(restored)
    }

    /// Whether `pg_restore` can read the dump `from`.
    pub async fn check_dump(from: &Path, bin: Option<&Path>) -> Result<(), StoreError> {
        let tool = Tool::new("pg_restore", bin, &PgConnectOptions::new_without_pgpass());
        tool.run(vec!["--list".into(), from.display().to_string()]).await.map(drop)
    }
}

async fn has_schema(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let mut session = Session::new(pool.begin().await?, false);
    session.query("SELECT to_regnamespace('thalweg') IS NOT NULL").scalar(&mut session).await
}

async fn describe(session: &mut Session, pipeline: &str, stream: &str) -> Result<Copied, StoreError> {
    let schema_version = session
        .query("SELECT coalesce(max(version), 0) FROM thalweg.migrations")
        .scalar(session)
        .await
        .doing("reading the schema's version")?;
    let artifacts = session
        .query("SELECT * FROM thalweg.artifacts ORDER BY location COLLATE \"C\"")
        .all(session)
        .await
        .doing("reading the artifacts")?;
    let checkpoint = session
        .query("SELECT * FROM thalweg.checkpoints WHERE pipeline = $1 AND stream = $2")
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .optional(session)
        .await
        .doing("reading a checkpoint")?;
    let needs_pgvector = session
        .query("SELECT EXISTS (SELECT FROM thalweg.spaces WHERE element <> 'jsonb')")
        .scalar(session)
        .await
        .doing("reading the spaces")?;
    let tables = digests(session).await.doing("digesting tables")?;
    Ok(Copied { schema_version, tables, artifacts, checkpoint, needs_pgvector })
}
