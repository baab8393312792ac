//! Messages on a channel that say: there is something to do.
//!
//! Publish and subscribe keep nothing for whoever is away. That is enough: a
//! message only ends a pause early, so one that is lost costs the rest of
//! that pause, and a stream with its groups and acknowledgements would keep
//! what nobody needs to have.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::connection::Redis;
use crate::metrics;

/// How long to wait before the next attempt to subscribe.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a silent subscription is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(15);
/// How long it may take to answer that, and to be made.
const PATIENCE: Duration = Duration::from_secs(2);

/// Hands messages of one channel on.
pub struct Trigger {
    /// Where they come from.
    pub redis: Redis,
    /// The channel.
    pub channel: String,
    /// Who waits for them; several that come at once count as one.
    pub wake: Arc<Notify>,
}

impl Trigger {
    /// Listens until `stop`; what is said of Redis is said by [`Redis`].
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                ended = self.listen() => {
                    tracing::debug!(channel = self.channel, reason = ended, "the subscription ended");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(AGAIN) => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Until the subscription breaks; gives the reason.
    async fn listen(&self) -> String {
        let subscribed = timeout(PATIENCE, async {
            let mut subscription = self.redis.client().get_async_pubsub().await?;
            subscription.subscribe(&self.channel).await?;
            Ok::<_, ::redis::RedisError>(subscription)
        });
        let (mut sink, mut messages) = match subscribed.await {
            Ok(Ok(subscription)) => subscription.split(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer in time".into(),
        };
        // What was published before the subscription stood is not told.
        self.wake.notify_one();
        loop {
            match timeout(SILENCE, messages.next()).await {
                Ok(Some(_)) => {
                    metrics::redis_triggered();
                    self.wake.notify_one();
                }
                Ok(None) => return "closed".into(),
                Err(_) => match timeout(PATIENCE, sink.ping::<::redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return "silent".into(),
                },
            }
        }
    }
}
