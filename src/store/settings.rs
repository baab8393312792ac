//! The `store` section of a pipeline file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;
use crate::setting::SettingError;
use crate::units::ByteSize;

/// The `store` section of a pipeline file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The SQLite file, relative to the data directory. Not used with `url`.
    pub path: String,
    /// A PostgreSQL database, `postgres://USER:PASSWORD@HOST:PORT/NAME`, in
    /// place of the SQLite file.
    pub url: Option<Secret>,
    /// Memory for the vectors of large tenants, which are compared there
    /// instead of in SQLite; 0 turns it off.
    pub vector_memory: ByteSize,
    /// What PostgreSQL keeps new spaces' vectors in; `halfvec` halves them.
    pub vectors: VectorElement,
    /// Most connections to PostgreSQL.
    #[schemars(range(min = 2))]
    pub connections: u32,
    /// Whether statements are prepared once per connection to PostgreSQL. Turn
    /// it off behind PgBouncer in transaction mode unless that keeps prepared
    /// statements (1.21 and `max_prepared_statements`).
    pub prepared_statements: bool,
    /// The approximate index over the vectors of large tenants in PostgreSQL.
    pub index: VectorIndex,
}

/// How PostgreSQL keeps the numbers of a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VectorElement {
    /// 4 bytes a number, as computed.
    #[default]
    Vector,
    /// 2 bytes a number, rounded.
    Halfvec,
}

/// How approximate indexes are made and used (HNSW).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VectorIndex {
    /// A tenant's tier of at most this many chunks is compared exactly.
    #[schemars(range(min = 1))]
    pub above: u64,
    /// Neighbours of each vector in the index.
    #[schemars(range(min = 2, max = 100))]
    pub m: u32,
    /// Candidates looked at for each vector while the index is built.
    #[schemars(range(min = 4, max = 1000))]
    pub ef_construction: u32,
    /// Candidates looked at in a search, at least.
    #[schemars(range(min = 10, max = 1000))]
    pub ef_search: u32,
    /// Memory that PostgreSQL may take to build one, for `prepared_statements`
    /// only.
    pub build_memory: ByteSize,
}

impl Default for VectorIndex {
    fn default() -> Self {
        Self { above: 10_000, m: 16, ef_construction: 64, ef_search: 300, build_memory: ByteSize::mib(256) }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "store.sqlite".into(),
            url: None,
            vector_memory: ByteSize::mib(256),
            vectors: VectorElement::default(),
            connections: 16,
            prepared_statements: true,
            index: VectorIndex::default(),
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(
            !self.path.trim().is_empty(),
            "path",
            "must name the database file, such as `store.sqlite`",
        )?;
        let is_postgres =
            |url: &Secret| ["postgres://", "postgresql://"].iter().any(|s| url.reveal().starts_with(s));
        SettingError::unless(
            self.url.as_ref().is_none_or(is_postgres),
            "url",
            "must begin with `postgres://`",
        )?;
        SettingError::unless(
            self.connections >= 2,
            "connections",
            "must be at least 2: one writes, one searches",
        )?;
        let VectorIndex { above, m, ef_construction, ef_search, build_memory: _ } = self.index;
        SettingError::unless(above >= 1, "index.above", "must be at least 1")?;
        SettingError::unless((2..=100).contains(&m), "index.m", "must be 2 to 100")?;
        SettingError::unless(
            (2 * m..=1_000).contains(&ef_construction),
            "index.ef_construction",
            "must be twice `m` to 1000",
        )?;
        SettingError::unless((10..=1_000).contains(&ef_search), "index.ef_search", "must be 10 to 1000")
    }
}
