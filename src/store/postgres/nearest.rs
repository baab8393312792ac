//! The vectors nearest to a query, found the way that suits their number.
//!
//! Up to `store.index.above` chunks of a tenant's tier are compared one by
//! one: their rows are found by the key, and nothing is missed. Beyond that,
//! approximate indexes (`indexes.rs`), each over a range of this one tier of
//! this one tenant, are asked; so no other tenant's vector takes a place among
//! the candidates. What is newer than the last index is compared exactly.

use sqlx::{AssertSqlSafe, Row};

use super::lists::OfTenant;
use super::session::{Session, Statement};
use super::text::{original, stored};
use super::vectors::{Element, VectorTable, parse_json, small};
use crate::store::error::{Doing, StoreError};
use crate::store::search::{Completed, Filter, Lists, Near, Partition, Scan};
use crate::store::vector::make_unit;

impl OfTenant {
    pub(super) async fn nearest_in(
        &self,
        table: &VectorTable,
        partition: Partition,
        filter: &Filter,
        query: &[f32],
        depth: usize,
    ) -> Result<(Vec<Near>, Scan), StoreError> {
        let mut session = self.session.lock().await;
        let of = OfPartition { table, tenant_key: self.tenant_key, tier: partition.tier, query, depth };
        if !filter.passes_all() {
            return Ok((of.filtered(&mut session, filter).await?, Scan::Filtered));
        }
        if partition.chunks > self.index.above && table.element.most_indexed().is_some() {
            let ranges = of.indexed_ranges(&mut session).await?;
            if !ranges.is_empty() {
                let near = of.by_index(&mut session, &ranges).await?;
                // An index that was just dropped, or one whose rows are gone
                // in large part, comes short.
                let expected = (depth as u64).min(partition.chunks / 2);
                if near.len() as u64 >= expected {
                    return Ok((near, Scan::Index));
                }
                return Ok((of.exact(&mut session).await?, Scan::IndexThenExact));
            }
        }
        Ok((of.exact(&mut session).await?, Scan::Exact))
    }

    pub(super) async fn complete_in(
        &self,
        table: &VectorTable,
        tier: i64,
        query: &[f32],
        unseen: &[i64],
        unread: &[i64],
    ) -> Result<Completed, StoreError> {
        let of = OfPartition { table, tenant_key: self.tenant_key, tier, query, depth: unseen.len() };
        if table.element == Element::Jsonb {
            let near = of.of_keys(&mut *self.session.lock().await, unseen).await?;
            return Ok((near, self.texts(unread).await?));
        }
        of.complete(&mut *self.session.lock().await, unseen, unread).await
    }
}

/// One tier of one tenant in one space, and what is looked for in it.
struct OfPartition<'a> {
    table: &'a VectorTable,
    tenant_key: i64,
    tier: i64,
    query: &'a [f32],
    depth: usize,
}

impl OfPartition<'_> {
    /// Every vector.
    async fn exact(&self, session: &mut Session) -> Result<Vec<Near>, StoreError> {
        let from = format!("{} v WHERE v.tenant_key = $2 AND v.tier = $3", self.table.name());
        self.compare(session, &from, |q| q).await
    }

    /// From the records that pass to their vectors, so that a short session of
    /// a large tenant costs little.
    async fn filtered(&self, session: &mut Session, filter: &Filter) -> Result<Vec<Near>, StoreError> {
        let by_session = if filter.session.is_some() { "AND r.session = $6" } else { "" };
        let from = format!(
            "thalweg.records r JOIN thalweg.chunks c USING (record_key)
             JOIN {} v ON v.tenant_key = $2 AND v.tier = $3 AND v.chunk_key = c.chunk_key
             WHERE r.tenant_key = $2 AND r.tier = $3 AND r.ts_ms >= $4 AND r.ts_ms < $5 {by_session}",
            self.table.name()
        );
        self.compare(session, &from, |q| {
            let q = q.bind(filter.from_ms).bind(filter.until_ms);
            match &filter.session {
                Some(session) => q.bind(stored(session).into_owned()),
                None => q,
            }
        })
        .await
    }

    /// The vectors of some chunks.
    async fn of_keys(&self, session: &mut Session, chunk_keys: &[i64]) -> Result<Vec<Near>, StoreError> {
        let from = format!(
            "{} v WHERE v.tenant_key = $2 AND v.tier = $3 AND v.chunk_key = ANY($4)",
            self.table.name()
        );
        self.compare(session, &from, |q| q.bind(chunk_keys.to_vec())).await
    }

    /// The similarities of some chunks and the texts of others, for one answer
    /// to wait for.
    async fn complete(
        &self,
        session: &mut Session,
        unseen: &[i64],
        unread: &[i64],
    ) -> Result<Completed, StoreError> {
        let statement = format!(
            "SELECT v.chunk_key, (1 - ({}))::real AS similarity, NULL AS text FROM {} v
             WHERE v.tenant_key = $2 AND v.tier = $3 AND v.chunk_key = ANY($4)
             UNION ALL
             SELECT chunk_key, NULL, text FROM thalweg.chunks WHERE chunk_key = ANY($5)",
            self.table.distance(),
            self.table.name()
        );
        let rows: Vec<(i64, Option<f32>, Option<String>)> = session
            .query(AssertSqlSafe(statement))
            .bind(self.query.to_vec())
            .bind(self.tenant_key)
            .bind(small(self.tier))
            .bind(unseen.to_vec())
            .bind(unread.to_vec())
            .all(session)
            .await
            .doing("completing scores")?;
        let (mut near, mut texts) = (Vec::new(), Vec::new());
        for (key, similarity, text) in rows {
            near.extend(similarity.map(|similarity| (key, similarity)));
            texts.extend(text.map(|text| (key, original(text))));
        }
        Ok((near, texts))
    }

    /// Compares what `from` selects, and keeps the nearest. The query is `$1`,
    /// tenant and tier are `$2` and `$3`, `bind` brings the rest.
    async fn compare(
        &self,
        session: &mut Session,
        from: &str,
        bind: impl FnOnce(Statement) -> Statement,
    ) -> Result<Vec<Near>, StoreError> {
        if self.table.element == Element::Jsonb {
            return self.compare_here(session, from, bind).await;
        }
        // Not the bare distance: an approximate index could take that for its
        // own.
        let statement = format!(
            "SELECT v.chunk_key, (1 - ({}))::real AS similarity FROM {from}
             ORDER BY similarity DESC, v.chunk_key LIMIT {}",
            self.table.distance(),
            self.depth
        );
        let query = session
            .query(AssertSqlSafe(statement))
            .bind(self.query.to_vec())
            .bind(self.tenant_key)
            .bind(small(self.tier));
        let rows = bind(query).rows(session).await.doing("scanning vectors")?;
        rows.iter().map(near).collect()
    }

    /// As [`Self::compare`] in this process, for a database that cannot.
    async fn compare_here(
        &self,
        session: &mut Session,
        from: &str,
        bind: impl FnOnce(Statement) -> Statement,
    ) -> Result<Vec<Near>, StoreError> {
        let statement =
            format!("SELECT v.chunk_key, v.vector::text AS vector, $1::real[] IS NULL FROM {from}");
        let query = session
            .query(AssertSqlSafe(statement))
            .bind(Vec::<f32>::new())
            .bind(self.tenant_key)
            .bind(small(self.tier));
        let rows = bind(query).rows(session).await.doing("scanning vectors")?;
        let mut nearest: Vec<Near> = Vec::with_capacity(rows.len());
        for row in &rows {
            let key = row.try_get("chunk_key").doing("scanning vectors")?;
            let mut vector = parse_json(row.try_get("vector").doing("scanning vectors")?)?;
            make_unit(&mut vector);
            nearest.push((key, vector.iter().zip(self.query).map(|(a, b)| a * b).sum()));
        }
        sort(&mut nearest);
        nearest.truncate(self.depth);
        Ok(nearest)
    }

    /// The ranges of chunk keys that have an index, ascending.
    async fn indexed_ranges(&self, session: &mut Session) -> Result<Vec<(i64, i64)>, StoreError> {
        session
            .query(
                "SELECT first_key, next_key FROM thalweg.vector_indexes
                 WHERE space_key = $1 AND tenant_key = $2 AND tier = $3 AND state = 'ready' ORDER BY first_key",
            )
            .bind(self.table.space_key)
            .bind(self.tenant_key)
            .bind(small(self.tier))
            .all(session)
            .await
            .doing("looking for indexes")
    }

    /// The nearest of each indexed range, and of what no index holds.
    async fn by_index(&self, session: &mut Session, ranges: &[(i64, i64)]) -> Result<Vec<Near>, StoreError> {
        // The index must be taken, even where the planner takes sorting all of
        // the range for cheaper.
        session.query("SET LOCAL enable_sort = off").run(session).await.doing("asking for indexes")?;
        let distance = self.table.distance();
        let (name, depth) = (self.table.name(), self.depth);
        // Tenant, tier and range as numbers in the text, for they must be seen
        // to imply the condition of the index.
        let condition = format!("v.tenant_key = {} AND v.tier = {}", self.tenant_key, self.tier);
        let mut parts: Vec<String> = ranges
            .iter()
            .map(|(first, next)| {
                format!(
                    "(SELECT v.chunk_key, {distance} AS distance FROM {name} v
                      WHERE {condition} AND v.chunk_key >= {first} AND v.chunk_key < {next}
                      ORDER BY {distance} LIMIT {depth})"
                )
            })
            .collect();
        for (first, next) in between(ranges) {
            parts.push(format!(
                "(SELECT v.chunk_key, {distance} AS distance FROM {name} v
                  WHERE {condition} AND v.chunk_key >= {first} AND v.chunk_key < {next}
                  ORDER BY ({distance}) + 0 LIMIT {depth})"
            ));
        }
        let statement = format!(
            "SELECT chunk_key, (1 - distance)::real AS similarity FROM ({}) AS parts",
            parts.join(" UNION ALL ")
        );
        let rows = session
            .query(AssertSqlSafe(statement))
            .bind(self.query.to_vec())
            .rows(session)
            .await
            .doing("searching the index")?;
        // What else this search asks wants its sorts.
        session.query("SET LOCAL enable_sort = on").run(session).await.doing("asking for indexes")?;
        let mut nearest: Vec<Near> = rows.iter().map(near).collect::<Result<_, _>>()?;
        sort(&mut nearest);
        nearest.truncate(self.depth);
        Ok(nearest)
    }
}

/// The ranges of keys that `ranges`, ascending and apart, leave open.
fn between(ranges: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let mut open = Vec::new();
    let mut at = 0;
    for (first, next) in ranges {
        if *first > at {
            open.push((at, *first));
        }
        at = *next;
    }
    open.push((at, i64::MAX));
    open
}

fn near(row: &sqlx::postgres::PgRow) -> Result<Near, StoreError> {
    let read = || Ok((row.try_get("chunk_key")?, row.try_get("similarity")?));
    read().doing("scanning vectors")
}

/// Best first, older ones first among equals.
fn sort(nearest: &mut [Near]) {
    nearest.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_index_holds_lies_before_between_and_behind_them() {
        assert_eq!(between(&[(0, 5)]), [(5, i64::MAX)]);
        assert_eq!(between(&[(2, 5), (5, 9), (12, 20)]), [(0, 2), (9, 12), (20, i64::MAX)]);
    }
}
