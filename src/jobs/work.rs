//! What a job does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::record::Tier;

/// A kind of job.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// Derives again what is in the log.
    Replay,
    /// Fills the embedding space of `[migrate]`.
    ReEmbed,
    /// Puts documents into the object store as one artifact.
    Pack,
    /// Trains a dictionary for sealed segments.
    TrainDictionary,
    /// Takes away what is older than it is to be kept.
    Retention,
    /// Holds the counters to the rows.
    Audit,
    /// Compares objects with the registry.
    OrphanCheck,
    /// Copies the store.
    Backup,
    /// Keeps the database fast.
    Maintain,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Replay,
        Self::ReEmbed,
        Self::Pack,
        Self::TrainDictionary,
        Self::Retention,
        Self::Audit,
        Self::OrphanCheck,
        Self::Backup,
        Self::Maintain,
    ];

    /// The name that people and programs use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::ReEmbed => "re_embed",
            Self::Pack => "pack",
            Self::TrainDictionary => "train_dictionary",
            Self::Retention => "retention",
            Self::Audit => "audit",
            Self::OrphanCheck => "orphan_check",
            Self::Backup => "backup",
            Self::Maintain => "maintain",
        }
    }

    /// Whether it is of one stream, and needs the log of that.
    pub const fn is_of_a_stream(self) -> bool {
        match self {
            Self::Replay | Self::Pack | Self::TrainDictionary | Self::Retention | Self::Audit => true,
            Self::ReEmbed | Self::OrphanCheck | Self::Backup | Self::Maintain => false,
        }
    }
}

/// What a job does, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Derives again what is in the log.
    Replay(Replay),
    /// Fills the embedding space of `[migrate]`, until it lacks nothing that
    /// the live one has.
    ReEmbed(ReEmbed),
    /// Puts the documents of a period into the object store, as one artifact.
    Pack(Pack),
    /// Trains a dictionary on the latest sealed segments, and adopts it if it
    /// wins.
    TrainDictionary(TrainDictionary),
    /// Takes away what is older than `[retention]` says.
    Retention(Retention),
    /// Counts every row and holds the counters to them.
    Audit(Audit),
    /// Compares the objects of the object store with the registry.
    OrphanCheck(OrphanCheck),
    /// Copies the store into a folder.
    Backup(Backup),
    /// Has the database look after its statistics, indexes and free space.
    Maintain(Maintain),
}

/// What a replay does with what it derives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplayMode {
    /// Compare it with what is stored; write nothing. Texts are compared;
    /// that each has a vector is checked.
    #[default]
    Verify,
    /// As `Verify`, and every vector is computed anew and compared.
    Recompute,
    /// Store what is missing.
    Restore,
}

/// Of which records, and to what end. Only what the pipeline has derived by
/// the time it begins is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Replay {
    /// What is done with what is derived.
    pub mode: ReplayMode,
    /// From this offset on; from the beginning of the log if left out.
    pub from: Option<u64>,
    /// Up to this offset, itself excluded; to the end if left out.
    pub to: Option<u64>,
    /// Only records of this tenant.
    pub tenant: Option<String>,
    /// Only records of this tier.
    #[schema(value_type = Option<String>)]
    pub tier: Option<Tier>,
    /// Only records of this time or later, in milliseconds since the Unix
    /// epoch.
    pub since_ms: Option<i64>,
    /// Only records before this time.
    pub until_ms: Option<i64>,
}

/// Nothing to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReEmbed {}

/// Which period, by append.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pack {
    /// From the first record appended then or later, in milliseconds since the
    /// Unix epoch; where the last pack ended if left out.
    pub since_ms: Option<i64>,
    /// Up to the first record appended then or later; all that is derived if
    /// left out.
    pub until_ms: Option<i64>,
}

/// When it is worth it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainDictionary {
    /// Only if at least so many segments were sealed since the last training;
    /// in any case if left out.
    pub if_new_segments: Option<u64>,
}

/// Whether in earnest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Only say what would go.
    pub dry_run: bool,
}

/// Nothing to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Audit {}

/// Nothing to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrphanCheck {}

/// Where to, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// The folder in which the backup makes one of its own, named after
    /// pipeline and time; `backups` in `data_dir` if left out, and relative to
    /// that.
    pub to: Option<String>,
    /// Copy the objects of the registry, too.
    pub objects: bool,
}

/// How thoroughly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Maintain {
    /// Write a SQLite file anew, without what it holds of free pages: writers
    /// wait meanwhile. PostgreSQL's tables are vacuumed in any case, beside
    /// all other work.
    pub vacuum: bool,
}

/// What a job does to what is stored, as far as others must not do the
/// contrary meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing that others could hurt, or be hurt by.
    Beside,
    /// It must not change meanwhile, but for what live streams add.
    Reads,
    /// Sealed segments or rows are rewritten or go.
    Rewrites,
}

impl Work {
    /// Of `kind`, with the parameters of a JSON object.
    ///
    /// # Errors
    /// Says which parameter is unknown or of another type.
    pub fn of(
        kind: Kind,
        parameters: serde_json::Map<String, serde_json::Value>,
    ) -> serde_json::Result<Self> {
        let mut tagged = parameters;
        tagged.insert("kind".to_owned(), kind.as_str().into());
        serde_json::from_value(tagged.into())
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Replay(_) => Kind::Replay,
            Self::ReEmbed(_) => Kind::ReEmbed,
            Self::Pack(_) => Kind::Pack,
            Self::TrainDictionary(_) => Kind::TrainDictionary,
            Self::Retention(_) => Kind::Retention,
            Self::Audit(_) => Kind::Audit,
            Self::OrphanCheck(_) => Kind::OrphanCheck,
            Self::Backup(_) => Kind::Backup,
            Self::Maintain(_) => Kind::Maintain,
        }
    }

    /// What it does to what is stored.
    pub fn access(&self) -> Access {
        match self {
            Self::Replay(replay) if replay.mode == ReplayMode::Restore => Access::Rewrites,
            Self::Retention(retention) if !retention.dry_run => Access::Rewrites,
            Self::Maintain(maintain) if maintain.vacuum => Access::Rewrites,
            Self::Replay(_) | Self::Pack(_) | Self::TrainDictionary(_) | Self::Backup(_) => Access::Reads,
            // A space that is filled is not searched, and chunks that go
            // meanwhile are passed over.
            Self::ReEmbed(_) => Access::Beside,
            Self::Retention(_) | Self::Audit(_) | Self::OrphanCheck(_) | Self::Maintain(_) => Access::Beside,
        }
    }

    /// The tenant that it names.
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Self::Replay(replay) => replay.tenant.as_deref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: Kind, parameters: serde_json::Value) -> serde_json::Result<Work> {
        Work::of(kind, parameters.as_object().unwrap().clone())
    }

    #[test]
    fn every_kind_is_read_back_by_its_name_and_without_parameters() {
        for kind in Kind::ALL {
            assert_eq!(json!(kind), kind.as_str());
            let work = of(kind, json!({})).unwrap();
            assert_eq!(work.kind(), kind);
            assert_eq!(serde_json::from_value::<Work>(json!(work)).unwrap(), work);
        }
    }

    #[test]
    fn unknown_parameters_are_refused_by_name() {
        for kind in Kind::ALL {
            let error = of(kind, json!({"colour": 1})).unwrap_err().to_string();
            assert!(error.contains("unknown field `colour`"), "{kind:?}: {error}");
        }
        assert!(of(Kind::Pack, json!({"since_ms": "yesterday"})).is_err());
    }
}
