//! Requests that may be sent again: what is done for a key is done once, and
//! whoever comes with it again gets the same answer.
//!
//! Within one daemon the [`Table`](table::Table) decides; with a Redis, the
//! one that does the work in a daemon has to have the key there as well
//! ([`shared`]). Work is not given up when its client goes away: the next
//! request with its key has to learn what came of it. What is refused for the
//! moment (429, 5xx) was not done and is not kept.
//!
//! Answers are kept beside the log, not in it. A daemon that dies between the
//! fsync and the answer has stored the records and not said so; a request
//! with the same key is then done anew, as one without a key would be.

mod shared;
mod table;

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::to_bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use self::{
    shared::{Had, SharedKeys},
    table::{Begun, Table},
};
use super::Problem;
use crate::{metrics, redis::Redis};

const HEADER: &str = "idempotency-key";
const REPLAYED: &str = "idempotent-replayed";
const LONGEST_KEY: usize = 255;
/// Longer answers are not kept, only that there was one.
const LONGEST_ANSWER: usize = 256 << 10;

/// SHA-256 of a request: its encoding and its body.
pub(super) type Digest = [u8; 32];

/// SHA-256 of where a key holds: whose it is.
type Owner = [u8; 32];

/// What a client chose, within where it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    owner: Owner,
    /// SHA-256 of both.
    id: [u8; 32],
}

/// An answer that can be given again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    problem: bool,
    body: Bytes,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    answer: Answer,
    /// Whether whoever comes later gets it too.
    keep: bool,
}

/// What became of requests with an `Idempotency-Key`. Cheap to clone.
#[derive(Clone)]
pub struct Idempotency {
    table: Arc<Mutex<Table>>,
    shared: Option<SharedKeys>,
    under_way: TaskTracker,
}

impl Key {
    /// The key in `headers`, if there is one, within `scope`.
    pub fn of(headers: &HeaderMap, scope: &[&str]) -> Result<Option<Self>, Problem> {
        let mut given = headers.get_all(HEADER).iter();
        let Some(key) = given.next() else { return Ok(None) };
        let fine = (1..=LONGEST_KEY).contains(&key.len())
            && key.as_bytes().iter().all(u8::is_ascii_graphic)
            && given.next().is_none();
        if !fine {
            let detail = format!("an Idempotency-Key is one of 1 to {LONGEST_KEY} visible ASCII characters");
            return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_idempotency_key", detail));
        }
        let mut hash = Sha256::new();
        for part in scope {
            hash.update(part);
            hash.update([0]);
        }
        let owner = hash.clone().finalize().into();
        hash.update(key);
        Ok(Some(Self { owner, id: hash.finalize().into() }))
    }
}

/// What tells a request from another.
pub(super) fn digest(encoding: u8, body: &[u8]) -> Digest {
    Sha256::new().chain_update([encoding]).chain_update(body).finalize().into()
}

impl Idempotency {
    /// Keeps answers for `ttl`, in `redis` as well if there is one.
    pub fn new(ttl: Duration, redis: Option<Redis>) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table::new(ttl))),
            shared: redis.map(|redis| SharedKeys::new(redis, ttl)),
            under_way: TaskTracker::new(),
        }
    }

    /// Waits for the work that is under way.
    pub async fn drain(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// Does `work` unless it was done for `key`, or is being done; gives its
    /// answer.
    pub(super) async fn once<W>(&self, key: Key, digest: Digest, work: W) -> Result<Response, Problem>
    where
        W: Future<Output = Result<Response, Problem>> + Send + 'static,
    {
        let answer = loop {
            let begun = self.table().begin(key, digest, Instant::now());
            match begun {
                Begun::Claimed(told) => {
                    let working =
                        self.clone().work(Claim { key, told, table: self.table.clone() }, digest, work);
                    let done = self.under_way.spawn(working.in_current_span()).await;
                    return done.unwrap_or_else(|error| {
                        let detail = "the daemon failed at this request; its log says how, by the request id";
                        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
                            .because(error))
                    });
                }
                Begun::Done(answer) => break answer,
                Begun::Reused => return Err(reused()),
                Begun::Full => {
                    return Err(Problem::unavailable(
                        "overloaded",
                        "too many keys are in use at the moment",
                        1,
                    ));
                }
                // Whoever had it may end without an answer; then it is free.
                Begun::UnderWay(mut told) => match told.wait_for(Option::is_some).await.as_deref() {
                    Ok(Some(outcome)) => break outcome.answer.clone(),
                    _ => continue,
                },
            }
        };
        metrics::idempotent("replayed");
        Ok(answer.response(true))
    }

    async fn work<W>(self, claim: Claim, digest: Digest, work: W) -> Result<Response, Problem>
    where
        W: Future<Output = Result<Response, Problem>>,
    {
        let had = match &self.shared {
            Some(shared) => shared.have(claim.key, digest).await,
            None => Had::Alone,
        };
        let (outcome, replayed) = match had {
            Had::Alone => (Outcome::of(work.await).await, false),
            Had::Claimed(shared) => (shared.doing(work).await, false),
            // Redis keeps it for the rest of its time.
            Had::Done(answer) => (Outcome { answer, keep: false }, true),
            Had::Reused => (Outcome { keep: false, ..Outcome::of(Err(reused())).await }, false),
            Had::Pending => {
                let detail = "another daemon is at work on this key; send again";
                (Outcome::of(Err(Problem::unavailable("idempotency_pending", detail, 1))).await, false)
            }
        };
        metrics::idempotent(match (replayed, outcome.keep) {
            (true, _) => "replayed",
            (false, true) => "done",
            (false, false) => "refused",
        });
        let answer = outcome.answer.clone();
        claim.finish(digest, outcome);
        Ok(answer.response(replayed))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reused() -> Problem {
    let detail = "this Idempotency-Key came with another request before; take a new one for each request";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail)
}

/// A key whose work is done here; free again when dropped.
struct Claim {
    key: Key,
    told: watch::Sender<Option<Outcome>>,
    table: Arc<Mutex<Table>>,
}

impl Claim {
    fn finish(self, digest: Digest, outcome: Outcome) {
        if outcome.keep {
            let answer = outcome.answer.clone().kept();
            lock(&self.table).finish(self.key, digest, answer, Instant::now());
        }
        self.told.send_replace(Some(outcome));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.table).release(self.key);
    }
}

impl Outcome {
    async fn of(result: Result<Response, Problem>) -> Self {
        let response = result.unwrap_or_else(Problem::into_response);
        let status = response.status();
        let problem = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes() == b"application/problem+json");
        // It is in memory, and has a length.
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
        let keep = !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS;
        Self { answer: Answer { status: status.as_u16(), problem, body }, keep }
    }
}

impl Answer {
    fn response(self, replayed: bool) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.body).into_response();
        let headers = response.headers_mut();
        let kind = if self.problem { "application/problem+json" } else { "application/json" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if status.is_server_error() {
            headers.insert(header::RETRY_AFTER, 1.into());
        }
        if replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }

    /// Itself, or, if it is too long to be kept, that there was one.
    fn kept(self) -> Self {
        if self.body.len() <= LONGEST_ANSWER {
            return self;
        }
        let detail = format!(
            "the request with this Idempotency-Key was handled with status {}; its answer of {} bytes was too long \
             to be kept",
            self.status,
            self.body.len()
        );
        let problem = Problem::new(StatusCode::CONFLICT, "answer_not_kept", detail);
        Self { status: 409, problem: true, body: problem.into_json().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { owner: [0; 32], id: [1; 32] };

    fn headers(keys: &[&str]) -> HeaderMap {
        keys.iter().map(|key| (HEADER.parse().unwrap(), HeaderValue::from_str(key).unwrap())).collect()
    }

    #[test]
    fn a_key_is_short_visible_and_alone_and_holds_within_its_scope() {
        let key = |keys: &[&str], scope: &[&str]| Key::of(&headers(keys), scope);
        assert_eq!(key(&[], &["a"]).unwrap(), None);
        let one = key(&["k"], &["a", "b"]).unwrap().unwrap();
        assert_eq!(Some(one), key(&["k"], &["a", "b"]).unwrap());
        for other in [key(&["l"], &["a", "b"]), key(&["k"], &["a", "c"]), key(&["k"], &["ab", ""])] {
            assert_ne!(Some(one), other.unwrap());
        }
        for bad in [&["a", "b"][..], &[""], &["a b"], &[&"x".repeat(256)]] {
            assert_eq!(key(bad, &[]).unwrap_err().code, "bad_idempotency_key", "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_for_the_moment_is_told_to_those_who_wait_and_not_kept() {
        let idempotency = Idempotency::new(Duration::from_secs(60), None);
        let (key, digest) = (KEY, [2; 32]);
        let (gate, opened) = tokio::sync::oneshot::channel::<()>();
        let first = tokio::spawn({
            let idempotency = idempotency.clone();
            async move {
                let work = async {
                    opened.await.unwrap();
                    Err(Problem::unavailable("overloaded", "x", 1))
                };
                idempotency.once(key, digest, work).await.unwrap().status().as_u16()
            }
        });
        tokio::task::yield_now().await;
        let second = tokio::spawn({
            let idempotency = idempotency.clone();
            async move {
                idempotency
                    .once(key, digest, async { panic!("it is under way") })
                    .await
                    .unwrap()
                    .status()
                    .as_u16()
            }
        });
        tokio::task::yield_now().await;
        gate.send(()).unwrap();
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (503, 503));
        let done = idempotency.once(key, digest, async { Ok("{}".into_response()) }).await.unwrap();
        assert_eq!(done.status(), 200);
        let again = idempotency.once(key, digest, async { panic!("it is done") }).await.unwrap();
        assert_eq!((again.status().as_u16(), again.headers()[REPLAYED].to_str().unwrap()), (200, "true"));
    }

    #[tokio::test]
    async fn work_is_finished_and_kept_although_its_client_goes_away() {
        let idempotency = Idempotency::new(Duration::from_secs(60), None);
        let (gate, opened) = tokio::sync::oneshot::channel::<()>();
        let work = async {
            opened.await.unwrap();
            Ok("{}".into_response())
        };
        let gone = idempotency.once(KEY, [2; 32], work);
        assert!(tokio::time::timeout(Duration::from_millis(10), gone).await.is_err());
        gate.send(()).unwrap();
        let again = idempotency.once(KEY, [2; 32], async { panic!("it is done") }).await.unwrap();
        assert_eq!(again.status(), 200);
        idempotency.drain().await;
    }

    #[tokio::test]
    async fn work_that_panics_leaves_its_key_free() {
        let idempotency = Idempotency::new(Duration::from_secs(60), None);
        let key = KEY;
        let failed = idempotency.once(key, [2; 32], async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(failed.code, "internal");
        let done = idempotency.once(key, [2; 32], async { Ok("{}".into_response()) }).await.unwrap();
        assert_eq!(done.status(), 200);
    }

    #[test]
    fn an_answer_too_long_kept_is_remembered_as_one() {
        let long = Answer { status: 200, problem: false, body: vec![b' '; LONGEST_ANSWER + 1].into() };
        let kept = long.kept();
        assert!(kept.status == 409 && kept.problem && kept.body.len() < 400);
        let told: serde_json::Value = serde_json::from_slice(&kept.body).unwrap();
        assert_eq!(told["type"], "urn:thalweg:problem:answer_not_kept");
        let short = Answer { status: 200, problem: false, body: Bytes::from_static(b"{}") };
        assert_eq!(short.clone().kept(), short);
    }
}
