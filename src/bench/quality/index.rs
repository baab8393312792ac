//! The full-text index by itself: FTS5's own BM25, with its fixed k1 = 1.2
//! and b = 0.75 and document counts of all tenants together.

use anyhow::Result;
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};

use super::dataset::{Dataset, Question, TOP};
use crate::{bench::daemon::Folder, store::keywords};

/// The database that a daemon left.
pub struct Index {
    pool: SqlitePool,
}

impl Index {
    /// Opens it for reading.
    pub async fn open(folder: &Folder) -> Result<Self> {
        let pipeline = folder.pipeline()?;
        let path = pipeline.in_data_dir(pipeline.store.path.as_ref());
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        Ok(Self { pool: SqlitePool::connect_with(options).await? })
    }

    /// The best records for each question, as the index orders them.
    pub async fn rank(&self, dataset: &Dataset) -> Result<Vec<Vec<String>>> {
        let mut rankings = Vec::new();
        for question in &dataset.questions {
            rankings.push(self.rank_one(question).await?);
        }
        Ok(rankings)
    }

    async fn rank_one(&self, question: &Question) -> Result<Vec<String>> {
        let partition: Option<(i64, i64)> = sqlx::query_as(
            "SELECT p.tenant_key, p.tier FROM partitions p JOIN tenants t USING (tenant_key) WHERE t.name = ?",
        )
        .bind(&question.tenant)
        .fetch_optional(&self.pool)
        .await?;
        let Some((tenant_key, tier)) = partition else { return Ok(Vec::new()) };
        let terms = keywords::query_terms(&question.text);
        let scope = keywords::scope(tenant_key, tier);
        let any = terms.iter().map(|term| keywords::quoted(&scope, term)).collect::<Vec<_>>().join(" OR ");
        // Several chunks of one record may stand above the next record's.
        let limit = i64::try_from(TOP * 10)?;
        let found: Vec<(Option<String>,)> = sqlx::query_as(
            "SELECT r.record_id FROM keywords
             CROSS JOIN chunks c ON c.chunk_key = keywords.rowid
             CROSS JOIN records r ON r.record_key = c.record_key
             WHERE keywords MATCH ? ORDER BY rank LIMIT ?",
        )
        .bind(any)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let mut ranked: Vec<String> = Vec::new();
        for id in found.into_iter().filter_map(|(id,)| id) {
            if !ranked.contains(&id) {
                ranked.push(id);
            }
        }
        Ok(ranked)
    }
}
