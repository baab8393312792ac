//! The sections of a pipeline file that belong to no other module.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::listen::Listen;
use crate::{
    setting::SettingError,
    store::fusion::{Fusion, Weights},
    tls,
    units::{ByteSize, Period},
};

/// `[search]`: how the lists of a query become one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// How lists are united.
    pub fusion: Fusion,
    /// Weight of the nearest vectors, 0 or more.
    pub vector_weight: f64,
    /// Weight of the keyword matches, 0 or more.
    pub keyword_weight: f64,
    /// Hits taken from each list before they are united, 1 to 10000.
    pub depth: usize,
}

/// `[http]`: queries, status, metrics, and ingest where a source has type `http`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port to listen on.
    pub listen: Listen,
    /// Bytes of the bodies of ingest requests that are held at once; of one
    /// request, and of all of one tenant, half of it at most. A request that
    /// finds no room is refused and told when to come again.
    pub body_bytes: ByteSize,
    /// How long the answer to an ingest request with an `Idempotency-Key` is
    /// kept.
    pub idempotency_ttl: Period,
    /// How long a request may take.
    pub request_timeout: Period,
    /// Requests that are done at once; more are refused and told when to come
    /// again.
    pub max_requests: u32,
    /// Connections that are open at once; more are refused.
    pub max_connections: u32,
    /// The certificate for `https`; without it, connections are not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "tls::Settings")]
    pub tls: Option<tls::Settings>,
    /// Whether other machines may connect without TLS: it ends at a proxy in
    /// front, or the network is trusted.
    pub cleartext: bool,
}

/// `[shutdown]`: how a pipeline stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long work in flight may take to finish; after it, what is left is
    /// named and abandoned, and done again at the next start.
    pub deadline: Period,
}

impl Default for Search {
    fn default() -> Self {
        Self { fusion: Fusion::MinMax, vector_weight: 0.5, keyword_weight: 0.5, depth: 100 }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: Listen::local(7400),
            body_bytes: ByteSize::mib(128),
            idempotency_ttl: Period::secs(24 * 3_600),
            request_timeout: Period::secs(90),
            max_requests: 256,
            max_connections: 1_024,
            tls: None,
            cleartext: false,
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { deadline: Period::secs(20) }
    }
}

impl Http {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        let fine = (ByteSize::kib(64)..=ByteSize::mib(4 << 10)).contains(&self.body_bytes);
        SettingError::unless(fine, "body_bytes", "must be between 64KiB and 4GiB")?;
        let fine = (Period::secs(1)..=Period::secs(30 * 24 * 3_600)).contains(&self.idempotency_ttl);
        SettingError::unless(fine, "idempotency_ttl", "must be between 1s and 30d")?;
        let fine = (Period::secs(1)..=Period::secs(3_600)).contains(&self.request_timeout);
        SettingError::unless(fine, "request_timeout", "must be between 1s and 1h")?;
        for (key, value) in [("max_requests", self.max_requests), ("max_connections", self.max_connections)] {
            let fine = (1..=1_000_000).contains(&value);
            SettingError::unless(fine, key, "must be between 1 and 1000000")?;
        }
        Ok(())
    }
}

impl Search {
    /// The weights as the store takes them.
    #[expect(clippy::cast_possible_truncation, reason = "a weight needs no more digits")]
    pub fn weights(&self) -> Weights {
        Weights {
            vector: self.vector_weight as f32,
            keyword: self.keyword_weight as f32,
            ..Weights::default()
        }
    }

    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        for (key, weight) in [("vector_weight", self.vector_weight), ("keyword_weight", self.keyword_weight)]
        {
            let fine = weight.is_finite() && weight >= 0.0;
            SettingError::unless(fine, key, format!("a weight is 0 or more, not {weight}"))?;
        }
        let some = self.vector_weight > 0.0 || self.keyword_weight > 0.0;
        let message =
            "vector_weight and keyword_weight are both 0, so no query could find anything; raise one";
        SettingError::unless(some, "vector_weight", message)?;
        let depth = (1..=10_000).contains(&self.depth);
        SettingError::unless(depth, "depth", format!("the depth is from 1 to 10000, not {}", self.depth))
    }
}
