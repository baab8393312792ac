//! The keys of several daemons, in Redis.
//!
//! ```text
//! key    prefix "idempotency:" SHA-256 of scope and key in hex
//! value  version  1   u8
//!        state    1   u8: `c` somebody is at work, `d` it is done
//!        digest  32   of the request
//!        c: token 16  of whoever is at work
//!        d: status 2  u16, little endian; kind 1, `p` a problem or `j`; the body
//! ```
//!
//! A claim lives [`CLAIM`] unless it is renewed, so that of a daemon that died
//! another can take over. Whoever loses Redis in between goes on alone: its
//! work is done, and known to those who ask the same daemon.

use std::{future::Future, time::Duration};

use axum::response::Response;
use bytes::Bytes;

use super::{Answer, Digest, Key, Outcome, Problem};
use crate::{
    artifact::hex,
    redis::{Redis, RedisError},
};

const VERSION: u8 = 1;
/// How long a claim holds that is not renewed.
const CLAIM: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// How long a request waits for another daemon: longer than a dead one's claim
/// lasts.
const PATIENCE: Duration = Duration::from_secs(20);
/// The first wait before it is looked again, doubled up to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Gives what is there, else puts the claim there.
const BEGIN: &str = "local v = redis.call('GET', KEYS[1]) if v then return v end \
     redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return false";
/// Puts the answer in the place of the claim, unless another has taken over.
const FINISH: &str = "local v = redis.call('GET', KEYS[1]) if v and v ~= ARGV[1] then return 0 end \
     redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2]) return 1";
/// Keeps the claim for longer.
const EXTEND: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end \
     return 0";
/// Takes the claim away.
const GIVE_UP: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// The keys that several daemons share.
#[derive(Clone)]
pub(super) struct SharedKeys {
    redis: Redis,
    ttl: Duration,
}

/// What a daemon has of a key.
pub(super) enum Had {
    /// Redis is away: nobody else is asked.
    Alone,
    /// The key is its own.
    Claimed(SharedClaim),
    /// It was done.
    Done(Answer),
    /// It came with another request.
    Reused,
    /// Another daemon has it, and has had it for long.
    Pending,
}

/// A key that is this daemon's.
pub(super) struct SharedClaim {
    keys: SharedKeys,
    key: String,
    digest: Digest,
    claim: Vec<u8>,
}

impl SharedKeys {
    pub fn new(redis: Redis, ttl: Duration) -> Self {
        Self { redis, ttl }
    }

    /// Takes `key`, or waits for what comes of it elsewhere.
    pub async fn have(&self, key: Key, digest: Digest) -> Had {
        let key = self.redis.key(&format!("idempotency:{}", hex(&key.id)));
        let claim = claim(digest, rand::random());
        let waiting = tokio::time::timeout(PATIENCE, async {
            let mut pause = LOOK.0;
            loop {
                let arguments: [&[u8]; 2] = [&claim, &millis(CLAIM)];
                let found: Option<Vec<u8>> = match self.run(BEGIN, &key, &arguments).await {
                    Ok(found) => found,
                    Err(_) => return Had::Alone,
                };
                match found.as_deref().map(read) {
                    None => return Had::Claimed(SharedClaim { keys: self.clone(), key, digest, claim }),
                    // Not ours, and not to be waited for.
                    Some(None) => return Had::Alone,
                    Some(Some((theirs, _))) if theirs != digest => return Had::Reused,
                    Some(Some((_, Some(answer)))) => return Had::Done(answer),
                    Some(Some((_, None))) => tokio::time::sleep(pause).await,
                }
                pause = (2 * pause).min(LOOK.1);
            }
        });
        waiting.await.unwrap_or(Had::Pending)
    }

    async fn run<T: ::redis::FromRedisValue>(
        &self,
        script: &str,
        key: &str,
        arguments: &[&[u8]],
    ) -> Result<T, RedisError> {
        let mut command = ::redis::cmd("EVAL");
        command.arg(script).arg(1).arg(key);
        for argument in arguments {
            command.arg(*argument);
        }
        self.redis.ask(&command).await
    }
}

impl SharedClaim {
    /// Does `work` and tells what came of it.
    pub async fn doing(self, work: impl Future<Output = Result<Response, Problem>>) -> Outcome {
        let mut work = std::pin::pin!(work);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                () = tokio::time::sleep(RENEW) => self.tell(EXTEND, &[&self.claim, &millis(CLAIM)]).await,
            }
        };
        let outcome = Outcome::of(result).await;
        if outcome.keep {
            let done = done(self.digest, &outcome.answer.clone().kept());
            self.tell(FINISH, &[&self.claim, &millis(self.keys.ttl), &done]).await;
        } else {
            self.tell(GIVE_UP, &[&self.claim]).await;
        }
        outcome
    }

    /// If Redis is away, the claim ends by itself.
    async fn tell(&self, script: &str, arguments: &[&[u8]]) {
        let told: Result<::redis::Value, _> = self.keys.run(script, &self.key, arguments).await;
        if let Err(error) = told {
            tracing::debug!(%error, "other daemons do not learn of an Idempotency-Key");
        }
    }
}

fn millis(span: Duration) -> Vec<u8> {
    span.as_millis().max(1).to_string().into_bytes()
}

fn claim(digest: Digest, token: [u8; 16]) -> Vec<u8> {
    [&[VERSION, b'c'][..], &digest, &token].concat()
}

fn done(digest: Digest, answer: &Answer) -> Vec<u8> {
    let kind = if answer.problem { b'p' } else { b'j' };
    [&[VERSION, b'd'][..], &digest, &answer.status.to_le_bytes(), &[kind], &answer.body].concat()
}

/// The request's digest and, if it is done, the answer; `None` if it is
/// neither a claim nor an answer.
fn read(value: &[u8]) -> Option<(Digest, Option<Answer>)> {
    let ([VERSION, state], rest) = value.split_first_chunk::<2>()? else { return None };
    let (digest, rest) = rest.split_first_chunk::<32>()?;
    match state {
        b'c' if rest.len() == 16 => Some((*digest, None)),
        b'd' => {
            let (status, rest) = rest.split_first_chunk::<2>()?;
            let (kind, body) = rest.split_first()?;
            let (status, body) = (u16::from_le_bytes(*status), Bytes::copy_from_slice(body));
            let fine = (200..600).contains(&status) && matches!(kind, b'p' | b'j');
            fine.then(|| (*digest, Some(Answer { status, problem: *kind == b'p', body })))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn claims_and_answers_are_read_as_written_and_nothing_else_is() {
        assert_eq!(read(&claim([7; 32], [9; 16])), Some(([7; 32], None)));
        let answer = Answer { status: 422, problem: true, body: Bytes::from_static(b"{}") };
        let value = done([7; 32], &answer);
        assert_eq!(read(&value), Some(([7; 32], Some(answer))));
        for cut in 0..37 {
            assert_eq!(read(&value[..cut]), None, "{cut}");
        }
        assert_eq!(read(&claim([7; 32], [9; 16])[..40]), None);
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_refused_or_read_but_never_panic(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&value);
        }
    }
}
