//! The buckets of several daemons, in Redis: `limit:<route>\0<whose>` holds
//! when the bucket is full, in microseconds of Redis' own clock, so that the
//! daemons' clocks need not agree.

use super::bucket::{Decision, share_us};
use crate::redis::{Redis, RedisError};

/// The same arithmetic as [`super::bucket::take`].
const TAKE: &str = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2] \
     local full = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) \
     local taken = full + tonumber(ARGV[1]) \
     if taken - now > 60000000 then return {0, full - now} end \
     redis.call('SET', KEYS[1], string.format('%.0f', taken), 'PX', 60000) return {1, taken - now}";

pub(super) async fn take(redis: &Redis, bucket: &str, limit: u32) -> Result<Decision, RedisError> {
    let mut command = ::redis::cmd("EVAL");
    command.arg(TAKE).arg(1).arg(redis.key(&format!("limit:{bucket}"))).arg(share_us(limit));
    let (allowed, ahead_us): (i64, i64) = redis.ask(&command).await?;
    Ok(Decision::of(allowed == 1, ahead_us, limit))
}
