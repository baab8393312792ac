//! Redis.

use redis::cmd;

use super::Check;
use crate::{config::Pipeline, redis::Redis};

/// Asks Redis for its version and writes a key that expires at once.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    let Some(settings) = &pipeline.redis else {
        return vec![Check::ok("redis", "none named; what it would share is kept in the daemon")];
    };
    let answered = async {
        let redis = Redis::open(settings).await?;
        let info: String = redis.ask(cmd("INFO").arg("server")).await?;
        let key = redis.key("doctor");
        redis.ask::<String>(cmd("SET").arg(&key).arg(1).arg("PX").arg(1_000)).await?;
        Ok::<_, crate::redis::RedisError>(info)
    };
    match answered.await {
        Ok(info) => {
            let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
            vec![Check::ok("redis", format!("{} answers and can be written", version.unwrap_or("it").trim()))]
        }
        Err(error) => vec![Check::warning(
            "redis",
            error.to_string(),
            "the daemon works without it, slower; see docs/redis.md",
        )],
    }
}
