//! Searching: one question, embedded, put to the store, answered with
//! lineage. The HTTP interface and the command line both ask here.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::serving::{Served, Serving};
use crate::{
    config::Search,
    embed::EmbedError,
    metrics,
    record::Tier,
    store::{Answer, Hit, Mode, Query, Store, StoreError, TierScan, fusion::Fusion},
};

/// What to look for.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// Whose records. What counts is who asks: left out, it is their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The question, or the words.
    pub query: String,
    /// Hits at most.
    #[serde(default = "ten")]
    pub limit: usize,
    /// Only these tiers; all if empty.
    #[serde(default)]
    pub tiers: Vec<Tier>,
    /// Only this session.
    #[serde(default)]
    pub session: Option<String>,
    /// Which lists are asked for.
    #[serde(default)]
    pub mode: Mode,
    /// How they are united; as the pipeline says if left out.
    #[serde(default)]
    pub fusion: Option<Fusion>,
    /// Of each record only its best chunk.
    #[serde(default)]
    pub per_record: bool,
    /// Say how the vectors of each tier were compared.
    #[serde(default)]
    pub explain: bool,
}

const fn ten() -> usize {
    10
}

/// Most hits of one answer.
const MAX_LIMIT: usize = 1_000;

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SearchReply {
    /// Best first.
    pub hits: Vec<SearchHit>,
    /// How it was searched: `keyword` where a union had no vector.
    pub mode: Mode,
    /// Why a union had none, if the query could not be embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_vectors: Option<String>,
    /// How the vectors of each tier were compared, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scans: Option<Vec<TierScan>>,
    /// Time it took, in milliseconds.
    pub took_ms: f64,
}

/// One chunk found.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SearchHit {
    /// Higher is better; comparable within one answer only.
    pub score: f32,
    /// Cosine similarity.
    pub vector_score: Option<f32>,
    /// BM25.
    pub keyword_score: Option<f32>,
    /// The chunk's text.
    pub text: String,
    /// The producer's own id.
    pub id: Option<String>,
    /// When it happened, in milliseconds since the Unix epoch.
    pub ts: i64,
    /// Whose it is.
    pub tenant: String,
    /// Conversation or session.
    pub session: Option<String>,
    /// Where it came from.
    pub source: String,
    /// Which kind of memory it is.
    pub tier: Tier,
    /// Every other field of the record.
    pub attrs: Value,
    /// The way back to the bytes.
    pub lineage: SearchLineage,
}

/// From a hit back to the bytes it was derived from, and by what.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SearchLineage {
    /// The stream.
    pub stream: String,
    /// The frame in it.
    pub offset: u64,
    /// The chunk of the record.
    pub chunk: u32,
    /// Content digest of the sealed segment; null while it is active.
    pub segment_digest: Option<String>,
    /// The model that was compared; null if no vector was.
    pub model: Option<String>,
    /// Digest of its weights.
    pub model_revision: Option<String>,
    /// Id of its space.
    pub space: Option<String>,
    /// Digest of the configuration that derived the row.
    pub config_digest: String,
    /// The batch that wrote the row.
    pub batch_tag: String,
}

impl From<Hit> for SearchHit {
    fn from(hit: Hit) -> Self {
        Self {
            score: hit.score,
            vector_score: hit.vector_score,
            keyword_score: hit.keyword_score,
            text: hit.text,
            id: hit.record_id,
            ts: hit.ts_ms,
            tenant: hit.tenant,
            session: hit.session,
            source: hit.source,
            tier: hit.tier,
            attrs: serde_json::from_str(&hit.attrs).unwrap_or(Value::Null),
            lineage: SearchLineage {
                stream: hit.lineage.stream,
                offset: hit.lineage.offset,
                chunk: hit.lineage.chunk,
                segment_digest: hit.lineage.segment_digest,
                model: hit.lineage.model,
                model_revision: hit.lineage.model_revision,
                space: hit.lineage.space_id,
                config_digest: hit.lineage.config_digest,
                batch_tag: hit.lineage.batch_tag,
            },
        }
    }
}

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// More hits than are given at once.
    #[error("limit is {limit}; at most {MAX_LIMIT} hits are given at once")]
    Limit {
        /// What was asked for.
        limit: usize,
    },
    /// The query could not be embedded.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers searches.
#[derive(Clone)]
pub struct Searcher {
    /// Rows and vectors.
    pub store: Store,
    /// Embeds queries.
    pub serving: Arc<Serving>,
    /// How lists are united unless a request says otherwise.
    pub settings: Search,
}

impl Searcher {
    /// Answers one search in the records of `tenant`, whatever the request
    /// says itself.
    pub async fn search(&self, tenant: &str, request: SearchRequest) -> Result<SearchReply, SearchError> {
        let started = Instant::now();
        if request.limit > MAX_LIMIT {
            return Err(SearchError::Limit { limit: request.limit });
        }
        let last_seen = self.serving.last_seen().await?;
        let mut asked = self.ask(tenant, &request, &last_seen).await;
        // Which space is live is read along with the answer, so as not to cost
        // a question of its own; rarely it is another one.
        if !asked.as_ref().is_ok_and(|(answer, _)| self.serving.is_live(&last_seen, answer.live_space)) {
            let live = self.serving.now().await?;
            if live.space_key != last_seen.space_key {
                asked = self.ask(tenant, &request, &live).await;
            }
        }
        let (answer, without_vectors) = asked?;
        let scans = request.explain.then_some(answer.scans);
        metrics::searched(started.elapsed());
        Ok(SearchReply {
            hits: answer.hits.into_iter().map(SearchHit::from).collect(),
            mode: answer.mode,
            without_vectors,
            scans,
            took_ms: started.elapsed().as_secs_f64() * 1_000.0,
        })
    }

    /// The answer with the vectors of one space, and why it has none if the
    /// query could not be embedded.
    async fn ask(
        &self,
        tenant: &str,
        request: &SearchRequest,
        served: &Served,
    ) -> Result<(Answer, Option<String>), SearchError> {
        let embedded = match request.mode {
            Mode::Keyword => Ok(None),
            _ if request.query.trim().is_empty() => Ok(None),
            _ => served.embedder.embed_query(request.query.clone()).await.map(Some),
        };
        let (vector, without_vectors) = match embedded {
            Ok(vector) => (vector, None),
            // Words are found without an embedder; the answer says so.
            Err(error) if request.mode == Mode::Union => (None, Some(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let query = Query {
            tenant: tenant.to_owned(),
            session: request.session.clone(),
            tiers: request.tiers.clone(),
            text: request.query.clone(),
            vector,
            space_key: served.space_key,
            mode: request.mode,
            fusion: request.fusion.unwrap_or(self.settings.fusion),
            weights: self.settings.weights(),
            limit: request.limit,
            depth: self.settings.depth,
            per_record: request.per_record,
            ..Query::default()
        };
        Ok((self.store.search(&query).await?, without_vectors))
    }
}
