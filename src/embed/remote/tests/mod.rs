//! The whole of it against servers that misbehave.

mod chain;
mod failures;
mod inputs;
mod server;
mod spending;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

pub use self::server::{DIMENSIONS, Reply, Seen, Server, stored};
pub use super::place::CANARY;
use super::{
    super::{EmbedError, Embedder, Partial, Settings, Work},
    Remote,
    chain::Policy,
};

/// A patience that tests can wait for.
pub const POLICY: Policy = Policy {
    attempts: 5,
    backoff: Duration::from_millis(5),
    longest_backoff: Duration::from_millis(20),
    patience: Duration::from_millis(1_500),
    query_patience: Duration::from_millis(1_500),
    second_opinion: Duration::from_millis(50),
    grace: Duration::from_millis(400),
    trust: Duration::from_secs(60),
    misconfigured: Duration::from_secs(60),
};

/// 2024-01-01 12:00 UTC.
pub const NOON: i64 = 1_704_110_400_000;

/// An endpoint at this server, with more settings.
pub fn endpoint(name: &str, server: &Server, more: &str) -> String {
    format!("[[endpoint]]\nname = '{name}'\napi = 'openai'\nurl = '{}'\n{more}\n", server.url)
}

/// An embedder over these endpoints.
pub fn remote(endpoints: &str) -> Remote {
    remote_at(endpoints, &Arc::new(AtomicI64::new(NOON)))
}

/// The same, by a clock of the test.
pub fn remote_at(more: &str, clock: &Arc<AtomicI64>) -> Remote {
    remote_with(more, clock, POLICY)
}

/// The same, with a patience of the test.
pub fn remote_with(more: &str, clock: &Arc<AtomicI64>, policy: Policy) -> Remote {
    let text =
        format!("provider = 'remote'\nmodel = 'm'\ndimensions = {DIMENSIONS}\nmax_tokens = 64\n{more}");
    let settings: Settings = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    settings.validate().unwrap();
    let clock = Arc::clone(clock);
    let now = Arc::new(move || clock.load(Ordering::Relaxed));
    Remote::with(&settings, now, Arc::new(|| 0.0), policy).unwrap()
}

pub fn texts(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("text number {n}")).collect()
}

pub async fn each(remote: &Remote, texts: &[String]) -> Partial {
    remote.embed_each(texts.to_vec(), Work::Live).await
}

/// Fails unless every vector that is there is that of its text; how many are.
#[track_caller]
pub fn good(partial: &Partial, texts: &[String]) -> usize {
    assert_eq!(partial.vectors.len(), texts.len());
    let there = partial.vectors.iter().zip(texts).filter_map(|(vector, text)| Some((vector.as_ref()?, text)));
    there.map(|(vector, text)| assert_eq!(*vector, stored(text), "{text}")).count()
}

/// Fails unless all is well.
#[track_caller]
pub fn complete(partial: &Partial, texts: &[String]) {
    assert!(partial.failed.is_none(), "{:?}", partial.failed);
    assert_eq!(partial.refused, []);
    assert_eq!(good(partial, texts), texts.len());
}

/// Fails if a text was answered more than once.
#[track_caller]
pub fn paid_once(server: &Server) {
    for (text, times) in server.served() {
        assert!(times == 1 || text == CANARY, "`{text}` was paid for {times} times");
    }
}

pub fn class(error: &EmbedError) -> &'static str {
    match error {
        EmbedError::Input { .. } => "input",
        EmbedError::Rate { .. } => "rate",
        EmbedError::Quota { .. } => "quota",
        EmbedError::Transient { .. } => "transient",
        EmbedError::Configuration { .. } => "configuration",
    }
}

/// The class of what failed.
#[track_caller]
pub fn failed(partial: &Partial) -> &'static str {
    class(partial.failed.as_ref().expect("it failed"))
}
