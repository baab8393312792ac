//! A pipeline, checked and complete.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    artifact, embed, identity, jobs, log, rate_limit, record, redis, segment, store, transform, webhooks,
};

use super::{
    retention::Retention,
    schema::accept_variables,
    sections::{Http, Search, Shutdown},
    sessions::Sessions,
    source::Source,
};

/// A pipeline file as it is written. The JSON Schema is made from this
/// struct, and with it everything that is said about unknown keys.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Thalweg pipeline file")]
pub(super) struct Written {
    /// The pipeline's name: 1 to 64 of `a-z`, `0-9`, `_` and `-`.
    #[schemars(regex(pattern = "^[a-z0-9_-]{1,64}$"))]
    name: String,
    /// Folder for everything the pipeline keeps, relative to the working
    /// directory.
    #[serde(default = "data_dir")]
    data_dir: PathBuf,
    /// The stream that the sources append to; the pipeline's name if left out.
    stream: Option<String>,
    /// Name of this ingestion batch; the pipeline's name and the UTC date of
    /// the start if left out.
    batch_tag: Option<String>,
    /// What holds for records that leave a field out.
    #[serde(default)]
    defaults: record::Defaults,
    /// Where frames come from; at least one.
    #[serde(default)]
    #[schemars(extend("minItems" = 1))]
    pub(super) source: Vec<Source>,
    /// Connections to the socket sources.
    #[serde(default)]
    sessions: Sessions,
    /// The durable log.
    #[serde(default)]
    log: log::Settings,
    /// Sealed segments.
    #[serde(default)]
    segment: segment::Settings,
    /// What is done to each record.
    #[serde(default)]
    derive: transform::Settings,
    /// Texts to vectors.
    #[serde(default)]
    embed: embed::Settings,
    /// The model to migrate to, with the keys of `[embed]`: its vectors are
    /// built beside the others.
    #[serde(default)]
    #[schemars(with = "embed::Settings")]
    migrate: Option<embed::Settings>,
    /// The database that holds rows, vectors and the catalog.
    #[serde(default)]
    store: store::Settings,
    /// The object store.
    #[serde(default)]
    artifacts: artifact::Settings,
    /// What several daemons share; without it, each has its own.
    #[serde(default)]
    #[schemars(with = "redis::Settings")]
    redis: Option<redis::Settings>,
    /// How long things are kept.
    #[serde(default)]
    retention: Retention,
    /// Requests a minute.
    #[serde(default)]
    limits: rate_limit::Settings,
    /// Long work beside the streams.
    #[serde(default)]
    jobs: jobs::Settings,
    /// Jobs that come again.
    #[serde(default)]
    schedule: Vec<jobs::ScheduleSettings>,
    /// Addresses that are told what happens.
    #[serde(default)]
    webhook: Vec<webhooks::WebhookSettings>,
    /// How the lists of a query become one.
    #[serde(default)]
    search: Search,
    /// The HTTP server.
    #[serde(default)]
    http: Http,
    /// Who is let in; without it, everybody is.
    #[serde(default)]
    #[schemars(with = "identity::Settings")]
    auth: Option<identity::Settings>,
    /// How the pipeline stops.
    #[serde(default)]
    shutdown: Shutdown,
}

fn data_dir() -> PathBuf {
    "./data".into()
}

/// A pipeline whose every setting is known and has been checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pipeline {
    /// The pipeline's name.
    pub name: String,
    /// Folder for everything the pipeline keeps.
    pub data_dir: PathBuf,
    /// The stream that the sources append to.
    pub stream: String,
    /// Name of the ingestion batch; `None`: made from name and date at start.
    pub batch_tag: Option<String>,
    /// What holds for records that leave a field out.
    pub defaults: record::Defaults,
    /// Where frames come from; at least one, names unique.
    pub sources: Vec<Source>,
    /// Connections to the socket sources.
    pub sessions: Sessions,
    /// The durable log.
    pub log: log::Settings,
    /// Sealed segments.
    pub segment: segment::Settings,
    /// What is done to each record.
    pub derive: transform::Settings,
    /// Texts to vectors.
    pub embed: embed::Settings,
    /// The model to migrate to.
    pub migrate: Option<embed::Settings>,
    /// The database.
    pub store: store::Settings,
    /// The object store.
    pub artifacts: artifact::Settings,
    /// What several daemons share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<redis::Settings>,
    /// How long things are kept.
    pub retention: Retention,
    /// Requests a minute.
    pub limits: rate_limit::Settings,
    /// Long work beside the streams.
    pub jobs: jobs::Settings,
    /// Jobs that come again, as they are written; names unique.
    pub schedules: Vec<jobs::ScheduleSettings>,
    /// Addresses that are told what happens; names unique.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<webhooks::WebhookSettings>,
    /// How the lists of a query become one.
    pub search: Search,
    /// The HTTP server.
    pub http: Http,
    /// Who is let in; `None`: everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<identity::Settings>,
    /// How the pipeline stops.
    pub shutdown: Shutdown,
}

impl From<Written> for Pipeline {
    fn from(written: Written) -> Self {
        Self {
            stream: written.stream.unwrap_or_else(|| written.name.clone()),
            name: written.name,
            data_dir: written.data_dir,
            batch_tag: written.batch_tag,
            defaults: written.defaults,
            sources: written.source,
            sessions: written.sessions,
            log: written.log,
            segment: written.segment,
            derive: written.derive,
            embed: written.embed,
            migrate: written.migrate,
            store: written.store,
            artifacts: written.artifacts,
            redis: written.redis,
            retention: written.retention,
            limits: written.limits,
            jobs: written.jobs,
            schedules: written.schedule,
            webhooks: written.webhook,
            search: written.search,
            http: written.http,
            auth: written.auth,
            shutdown: written.shutdown,
        }
    }
}

/// Keys of `[embed]` that say how fast and from where, not what comes out:
/// the same vectors on a bigger machine are no other configuration.
const WITHOUT_EFFECT_ON_VECTORS: [&str; 8] = [
    "model_dir",
    "threads",
    "batch_tokens",
    "patience",
    "backfill_rate",
    "cache_memory",
    "endpoint",
    "quota",
];
/// Keys of `[embed]` that mean nothing unless the provider is `remote`.
const OF_REMOTE_MODELS: [&str; 5] = ["dimensions", "max_tokens", "tokenizer", "prefix", "query_prefix"];

impl Pipeline {
    /// `path` as it is if absolute, else below `data_dir`.
    pub fn in_data_dir(&self, path: &Path) -> PathBuf {
        self.data_dir.join(path)
    }

    /// The configuration digest of rows derived by this pipeline: SHA-256, in
    /// hex, of the settings that decide what is derived from a frame
    /// (`derive`, `embed`, `defaults`), defaults filled in, as JSON with
    /// sorted keys. Files that differ only in how they are written, or in
    /// where and how fast the work is done, share it.
    pub fn digest(&self) -> String {
        let mut keys = json!(self.embed);
        if let Some(embed) = keys.as_object_mut() {
            let remote = self.embed.provider == embed::Provider::Remote;
            embed.retain(|key, _| {
                let key = key.as_str();
                !WITHOUT_EFFECT_ON_VECTORS.contains(&key) && (remote || !OF_REMOTE_MODELS.contains(&key))
            });
        }
        sha256_hex(&json!({"defaults": self.defaults, "derive": self.derive, "embed": keys}))
    }

    /// The schedules in force.
    pub fn schedules(&self) -> Vec<jobs::Schedule> {
        jobs::settings::schedules(&self.schedules, self.retention.is_set())
    }

    /// SHA-256, in hex, of all settings, defaults filled in, as JSON with
    /// sorted keys.
    pub fn full_digest(&self) -> String {
        sha256_hex(&json!(self))
    }

    /// JSON Schema of a pipeline file, for editors; committed as
    /// `config/pipeline.schema.json`. A string with a variable in it is
    /// allowed wherever it could become what is wanted.
    pub fn schema() -> Value {
        let mut schema = written_schema();
        accept_variables(&mut schema);
        schema
    }
}

/// The schema of a file whose variables are in.
pub(super) fn written_schema() -> Value {
    schemars::schema_for!(Written).to_value()
}

fn sha256_hex(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// JSON with sorted keys and no spaces. serde_json sorts too, but only until
/// some crate of the build turns its `preserve_order` on.
fn write_canonical(value: &Value, out: &mut String) {
    let separated = |out: &mut String, i: usize| out.push_str(if i == 0 { "" } else { "," });
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                separated(out, i);
                let _ = write!(out, "{}:", json!(key));
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separated(out, i);
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => {
            let _ = write!(out, "{scalar}");
        }
    }
}
