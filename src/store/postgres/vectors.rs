//! The vectors of one space: a narrow table that is never updated.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, Row, postgres::PgRow};

use super::Session;
use super::copy::CopyRows;
use crate::store::error::{Doing, StoreError};
use crate::store::settings::VectorElement;

/// The most bytes of a vector that lie within its row, whose page has 8 KiB.
/// Elsewhere, each would cost a scan one more read.
const MOST_INLINE_BYTES: usize = 8_000;

/// What the numbers of a space are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Element {
    /// pgvector's `vector`: 4 bytes a number.
    Vector,
    /// pgvector's `halfvec`: 2 bytes a number.
    Halfvec,
    /// Without pgvector: a JSON array.
    Jsonb,
}

impl Element {
    /// What a database offers, of what is wanted.
    pub async fn available(pool: &PgPool, wanted: VectorElement) -> Result<Self, StoreError> {
        let mut transaction = pool.begin().await.doing("looking for pgvector")?;
        let installed: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')")
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await
                .doing("looking for pgvector")?;
        Ok(match (installed, wanted) {
            (false, _) => Self::Jsonb,
            (true, VectorElement::Vector) => Self::Vector,
            (true, VectorElement::Halfvec) => Self::Halfvec,
        })
    }

    /// The stored name, which is the type's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vector => "vector",
            Self::Halfvec => "halfvec",
            Self::Jsonb => "jsonb",
        }
    }

    pub fn parse(name: &str) -> Result<Self, StoreError> {
        [Self::Vector, Self::Halfvec, Self::Jsonb]
            .into_iter()
            .find(|element| element.as_str() == name)
            .ok_or_else(|| StoreError::Damaged { what: "space", reason: format!("its element is `{name}`") })
    }

    /// Most dimensions that an approximate index takes; none if there is none.
    pub fn most_indexed(self) -> Option<usize> {
        match self {
            Self::Vector => Some(2_000),
            Self::Halfvec => Some(4_000),
            Self::Jsonb => None,
        }
    }
}

/// The table of a space.
#[derive(Clone, Copy, Debug)]
pub(super) struct VectorTable {
    pub space_key: i64,
    pub element: Element,
    pub dimensions: usize,
}

impl VectorTable {
    pub fn name(&self) -> String {
        format!("thalweg.vectors_{}", self.space_key)
    }

    /// The column's type.
    fn column(&self) -> String {
        match self.element {
            Element::Jsonb => "jsonb".into(),
            element => format!("{}({})", element.as_str(), self.dimensions),
        }
    }

    /// The distance between the column and the parameter `$1`, a `real[]`.
    pub fn distance(&self) -> String {
        format!("v.vector <=> $1::real[]::{}", self.column())
    }

    /// The column's numbers, as [`Self::read`] takes them.
    pub fn numbers(&self) -> &'static str {
        match self.element {
            Element::Jsonb => "v.vector::text",
            Element::Vector | Element::Halfvec => "v.vector::real[]",
        }
    }

    /// A vector out of a column selected as [`Self::numbers`].
    pub fn read(&self, row: &PgRow, column: &str) -> Result<Option<Vec<f32>>, StoreError> {
        if self.element != Element::Jsonb {
            return row.try_get(column).doing("reading a vector");
        }
        let json: Option<&str> = row.try_get(column).doing("reading a vector")?;
        json.map(parse_json).transpose()
    }

    /// What makes the table and the reader's right to one tenant's rows.
    pub fn create(&self) -> String {
        let (name, column, key) = (self.name(), self.column(), self.space_key);
        let bytes = match self.element {
            Element::Vector => self.dimensions * 4,
            Element::Halfvec => self.dimensions * 2,
            Element::Jsonb => usize::MAX,
        };
        let storage = match bytes {
            0..=MOST_INLINE_BYTES => format!("ALTER TABLE {name} ALTER COLUMN vector SET STORAGE PLAIN;"),
            _ => String::new(),
        };
        format!(
            "SET LOCAL client_min_messages = warning;
             CREATE TABLE IF NOT EXISTS {name} (
                 chunk_key  bigint NOT NULL,
                 tenant_key bigint NOT NULL,
                 tier       smallint NOT NULL,
                 vector     {column} NOT NULL,
                 CONSTRAINT vectors_{key}_key PRIMARY KEY (tenant_key, tier, chunk_key)
             );
             {storage}
             ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;
             DROP POLICY IF EXISTS of_tenant ON {name};
             CREATE POLICY of_tenant ON {name} FOR SELECT TO thalweg_reader
                 USING (tenant_key = thalweg.current_tenant());
             GRANT SELECT ON {name} TO thalweg_reader;"
        )
    }

    /// Adds a row to be copied into the table.
    pub fn encode(
        &self,
        rows: &mut CopyRows,
        chunk_key: i64,
        (tenant_key, tier): (i64, i64),
        vector: &[f32],
    ) {
        let row = rows.row().bigint(chunk_key).bigint(tenant_key).smallint(small(tier));
        match self.element {
            Element::Vector => row.vector(vector),
            Element::Halfvec => row.halfvec(vector),
            Element::Jsonb => row.json_numbers(vector),
        };
    }

    /// Rows for [`Self::encode`].
    pub fn rows() -> CopyRows {
        CopyRows::new(4)
    }

    /// Copies rows into the table, where none of them may be.
    pub async fn copy(&self, session: &mut Session, rows: CopyRows) -> Result<(), sqlx::Error> {
        session.copy(&self.name(), rows).await
    }

    /// Adds rows of which some may be there, which stay, or whose chunks may
    /// be gone, which are left out: by way of a table of this transaction.
    pub async fn merge(&self, session: &mut Session, rows: CopyRows) -> Result<u64, sqlx::Error> {
        if rows.rows() == 0 {
            return Ok(0);
        }
        let name = self.name();
        let create = format!("CREATE TEMP TABLE incoming (LIKE {name}) ON COMMIT DROP");
        session.query(sqlx::AssertSqlSafe(create)).planned_anew().run(session).await?;
        session.copy("pg_temp.incoming", rows).await?;
        let insert = format!(
            "INSERT INTO {name} SELECT i.* FROM pg_temp.incoming i
             JOIN thalweg.chunks c ON c.chunk_key = i.chunk_key ORDER BY i.chunk_key
             FOR KEY SHARE OF c ON CONFLICT DO NOTHING"
        );
        let added = session.query(sqlx::AssertSqlSafe(insert)).planned_anew().run(session).await?;
        session.query("DROP TABLE pg_temp.incoming").planned_anew().run(session).await?;
        Ok(added.rows_affected())
    }
}

/// The numbers of a JSON array.
pub(super) fn parse_json(json: &str) -> Result<Vec<f32>, StoreError> {
    serde_json::from_str(json).map_err(|e| StoreError::Damaged { what: "vector", reason: e.to_string() })
}

/// A tier's code, which is a single digit.
pub(super) fn small(tier: i64) -> i16 {
    i16::try_from(tier).unwrap_or(i16::MAX)
}
