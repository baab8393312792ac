//! Vectors from services: OpenAI and what speaks like it, Voyage,
//! text-embeddings-inference.
//!
//! One space, several endpoints. What is decided is pure, each in its file:
//!
//! | | |
//! |---|---|
//! | [`count`], [`shape`], [`learned`] | how long texts are, and how many go into a request |
//! | [`classify`], [`headers`] | what an answer that is none means |
//! | [`unit`] | what becomes of texts whose request has failed |
//! | [`retry`], [`bucket`], [`crate::breaker`] | when to try again, how fast, whether at all |
//! | [`pace`] | how long a request to an endpoint will take |
//! | [`gate`], [`choose`] | what may be done with an endpoint, and which is asked |
//! | [`quota`] | what a day may cost |
//!
//! [`transport`] and [`endpoint`] carry it out, [`chain`] keeps the endpoints,
//! [`place`] is a request to one of them, [`job`] brings the texts of one call
//! to an end, [`state`] is what can be seen of an endpoint. `docs/providers.md`
//! says what a user sees of it.

mod answer;
mod bucket;
mod budget;
mod chain;
mod choose;
mod classify;
mod count;
mod endpoint;
mod gate;
mod headers;
mod job;
mod learned;
mod pace;
mod place;
mod quota;
mod request;
mod retry;
pub mod settings;
mod shape;
mod state;
mod transport;
mod unit;

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use self::{
    answer::Wanted,
    chain::{Asking, Chain, Policy, Random},
    count::{Counter, CounterError, Prepared},
    job::Job,
};
pub use self::{
    budget::Budget,
    count::SPECIAL_TOKENS,
    quota::{Kind as QuotaKind, QuotaState, Spending, Spent},
    state::{Circuit, EndpointState, LastFailure},
};
use super::{EmbedError, Embedder, Partial, Refused, Settings, Space, TokenSpans, Work};
use crate::{
    clock::{self, Clock},
    http_client::ClientError,
};

/// Why there is no remote embedder.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The tokenizer cannot be used.
    #[error("embed.tokenizer `{path}` {reason}")]
    Tokenizer {
        /// Its file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no way to an endpoint.
    #[error("endpoint `{name}`: {source}")]
    Endpoint {
        /// The endpoint.
        name: String,
        /// What is wrong.
        source: ClientError,
    },
}

/// The endpoints of one space as an embedder.
pub struct Remote {
    space: Space,
    prefix: Arc<str>,
    query_prefix: Arc<str>,
    counter: Counter,
    chain: Chain,
    budget: Arc<Budget>,
}

impl Remote {
    /// Prepares the ways to the endpoints; nothing is sent yet. Reads the
    /// tokenizer and this machine's certificates, and blocks meanwhile.
    pub fn open(settings: &Settings) -> Result<Self, RemoteError> {
        Self::with(settings, clock::system(), Arc::new(rand::random::<f64>), Policy::default())
    }

    fn with(settings: &Settings, clock: Clock, random: Random, policy: Policy) -> Result<Self, RemoteError> {
        let space = space(settings);
        let path = Some(settings.tokenizer.as_str()).filter(|path| !path.is_empty());
        let counter =
            Counter::open(path.map(Path::new), settings.max_tokens).map_err(|error: CounterError| {
                RemoteError::Tokenizer { path: settings.tokenizer.clone(), reason: error.to_string() }
            })?;
        let budget = Arc::new(Budget::new(&settings.quota, Arc::clone(&clock)));
        let wanted = Wanted { dimensions: space.dimensions, normalised: space.normalised };
        let chain = Chain::new(
            &settings.endpoint,
            &space.model,
            wanted,
            Arc::clone(&budget),
            (clock, random, policy),
        )
        .map_err(|(name, source)| RemoteError::Endpoint { name, source })?;
        Ok(Self {
            space,
            prefix: settings.prefix.as_str().into(),
            query_prefix: settings.query_prefix.as_str().into(),
            counter,
            chain,
            budget,
        })
    }

    /// The state of each endpoint now, in the order of the file.
    pub fn endpoints(&self) -> Vec<EndpointState> {
        self.chain.states()
    }

    async fn each(&self, texts: Vec<String>, asking: Asking) -> Partial {
        let mut partial = Partial { vectors: vec![None; texts.len()], ..Partial::default() };
        let Some(prepared) = self.prepare(texts, asking.query).await else {
            partial.failed =
                Some(EmbedError::Transient { reason: "counting tokens was interrupted".to_owned() });
            return partial;
        };
        let (mut texts, mut wanted) =
            (Vec::with_capacity(prepared.len()), Vec::with_capacity(prepared.len()));
        for (index, prepared) in prepared.into_iter().enumerate() {
            match &prepared {
                Some(_) => wanted.push(index),
                None => partial.refused.push(Refused {
                    index,
                    reason: "there is nothing in it but space and control characters".to_owned(),
                }),
            }
            texts.push(prepared.unwrap_or(Prepared { text: String::new(), tokens: 0 }));
        }
        Job::new(&self.chain, texts, wanted, partial, asking).run().await
    }

    /// Off the threads that wait for sockets: a text may have a million tokens.
    async fn prepare(&self, texts: Vec<String>, query: bool) -> Option<Vec<Option<Prepared>>> {
        let prefix = Arc::clone(if query { &self.query_prefix } else { &self.prefix });
        let counter = self.counter.clone();
        let (reply, prepared) = oneshot::channel();
        rayon::spawn(move || {
            // The caller may have gone away.
            let _ = reply.send(texts.iter().map(|text| counter.prepare(&prefix, text)).collect());
        });
        prepared.await.ok()
    }
}

impl Embedder for Remote {
    fn space(&self) -> &Space {
        &self.space
    }

    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move { self.each(texts, Asking { work: Work::Live, query: false }).await.all() })
    }

    fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
        Box::pin(self.each(texts, Asking { work, query: false }))
    }

    fn embed_query(&self, text: String) -> BoxFuture<'_, Result<Vec<f32>, EmbedError>> {
        Box::pin(async move {
            let partial = self.each(vec![text], Asking { work: Work::Live, query: true }).await;
            Ok(partial.all()?.into_iter().flatten().collect())
        })
    }

    fn tokens(&self) -> Arc<dyn TokenSpans> {
        self.counter.spans()
    }

    fn budget(&self) -> Option<&Arc<Budget>> {
        Some(&self.budget)
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        Self::endpoints(self)
    }
}

/// What a service computes with cannot be seen from here: the model's name is
/// its word for it.
fn space(settings: &Settings) -> Space {
    Space {
        provider: "remote".into(),
        model: settings.model.clone(),
        revision: String::new(),
        tokenizer: String::new(),
        dimensions: settings.dimensions,
        pooling: String::new(),
        normalised: true,
        prefix: settings.prefix.clone(),
        element: "fp32".into(),
        max_tokens: settings.max_tokens,
    }
}
