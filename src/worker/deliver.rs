//! Delivers what webhooks tell.
//!
//! Deliveries are claimed for somewhat longer than an attempt may take, so of
//! several daemons one tries, and what a killed one had claimed is tried again.
//! Each webhook has a task of its own while something is due, so that one that
//! hangs holds up no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    http_client::ClientError,
    metrics,
    pipeline::progress::Progress,
    store::{Delivery, DeliveryClaim, DeliveryNote, DeliveryState, Store, StoreError},
    webhooks::{Outgoing, Random, Sender, WebhookSettings, policy},
};

/// How often it is looked for something to deliver.
const LOOKING: Duration = Duration::from_millis(500);
/// Deliveries to one webhook that are under way at once.
const AT_ONCE: u32 = 4;
/// How long noting what came of an attempt may take, in milliseconds.
const NOTING_MS: i64 = 10_000;
/// How long attempts may take to end when the daemon stops.
const LINGER: Duration = Duration::from_secs(2);
/// How often old deliveries are forgotten, in milliseconds.
const FORGETTING_MS: i64 = 3_600_000;
/// How long deliveries are remembered that have ended, in milliseconds.
const KEEP_MS: i64 = 14 * 24 * 3_600 * 1_000;

/// Delivers for the webhooks of one pipeline.
#[derive(Clone)]
pub struct Deliverer {
    store: Store,
    pipeline: Arc<str>,
    senders: Arc<BTreeMap<String, Sender>>,
    random: Random,
    clock: Clock,
}

impl Deliverer {
    /// For the webhooks `hooks` of `pipeline`.
    ///
    /// # Errors
    /// If no client can be made.
    pub async fn open(
        (pipeline, hooks): (&str, Vec<WebhookSettings>),
        store: Store,
        random: Random,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let senders = tokio::task::spawn_blocking(|| {
            let sender = |hook: WebhookSettings| Ok((hook.name.clone(), Sender::new(hook)?));
            hooks.into_iter().map(sender).collect::<Result<_, ClientError>>()
        });
        Ok(Self { store, pipeline: pipeline.into(), senders: Arc::new(senders.await??), random, clock })
    }

    /// Delivers until `stop`. A store that fails is shown in `progress`, and
    /// asked again.
    pub async fn run(self, progress: Arc<Progress>, stop: CancellationToken) -> anyhow::Result<()> {
        let (mut under_way, mut busy, mut forget_ms) = (JoinSet::new(), BTreeSet::new(), i64::MIN);
        while !stop.is_cancelled() {
            match self.begin(&mut under_way, &mut busy, &mut forget_ms).await {
                Ok(()) => progress.well("webhooks"),
                Err(error) => progress.trouble("webhooks", error.to_string()),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = under_way.join_next() => {
                    match ended {
                        Ok((name, Ok(()))) => drop(busy.remove(&name)),
                        Ok((name, Err(error))) => {
                            busy.remove(&name);
                            progress.trouble("webhooks", StoreError::to_string(&error));
                            // Not at once: a store that is away stays so for a while.
                            stop.run_until_cancelled(tokio::time::sleep(LOOKING)).await;
                        }
                        Err(error) => {
                            tracing::error!(%error, "delivering broke off; its claims are over soon");
                            busy.clear();
                        }
                    }
                }
                () = tokio::time::sleep(LOOKING) => {}
            }
        }
        // Who hangs is dropped, and told again when the claim is over.
        let _ = tokio::time::timeout(LINGER, async { while under_way.join_next().await.is_some() {} }).await;
        Ok(())
    }

    /// Begins to deliver to each webhook that has something due and is not
    /// busy.
    async fn begin(
        &self,
        under_way: &mut JoinSet<(String, Result<(), StoreError>)>,
        busy: &mut BTreeSet<String>,
        forget_ms: &mut i64,
    ) -> Result<(), StoreError> {
        let now_ms = (self.clock)();
        if now_ms >= *forget_ms {
            self.store.remove_old_deliveries(now_ms.saturating_sub(KEEP_MS)).await?;
            *forget_ms = now_ms.saturating_add(FORGETTING_MS);
        }
        for name in self.store.webhooks_due(&self.pipeline, now_ms).await? {
            // One that is not in the pipeline file any more may come back.
            let is_known = self.senders.contains_key(&name);
            if is_known && busy.insert(name.clone()) {
                let this = self.clone();
                under_way.spawn(async move {
                    let delivered = this.deliver_to(&name).await;
                    (name, delivered)
                });
            }
        }
        Ok(())
    }

    /// Delivers some of what is due to one webhook.
    async fn deliver_to(&self, name: &str) -> Result<(), StoreError> {
        let Some(sender) = self.senders.get(name) else { return Ok(()) };
        let now_ms = (self.clock)();
        let timeout_ms = i64::try_from(sender.hook().timeout.0.as_millis()).unwrap_or(i64::MAX);
        let claim = DeliveryClaim {
            pipeline: &self.pipeline,
            webhook: name,
            most: AT_ONCE,
            now_ms,
            until_ms: now_ms.saturating_add(timeout_ms).saturating_add(NOTING_MS),
        };
        let claimed = self.store.claim_deliveries(claim).await?;
        let attempts = claimed.into_iter().map(|delivery| self.attempt(sender, delivery));
        futures::future::join_all(attempts).await.into_iter().collect()
    }

    async fn attempt(&self, sender: &Sender, delivery: Delivery) -> Result<(), StoreError> {
        let (id, event) = (delivery.delivery_id.as_str(), delivery.event.as_str());
        let tried_ms = (self.clock)();
        let outgoing = Outgoing::new(sender.hook(), (id, event), delivery.body, tried_ms);
        let attempt = sender.send(outgoing).await;
        let attempts = delivery.attempts.saturating_add(1);
        let until = ((self.clock)(), delivery.give_up_ms);
        let (state, due_ms) = policy::after(attempts, attempt.status, until, (self.random)());
        let (webhook, error) = (delivery.webhook.as_str(), attempt.error.as_deref().unwrap_or_default());
        metrics::webhook_attempted(webhook, state.as_str());
        match state {
            DeliveryState::Delivered => tracing::debug!(webhook, event, delivery = id, "a webhook was told"),
            DeliveryState::Waiting => {
                tracing::warn!(
                    webhook,
                    event,
                    delivery = id,
                    attempts,
                    error,
                    "a webhook could not be told; it is tried again"
                );
            }
            DeliveryState::Failed => {
                tracing::error!(
                    webhook,
                    event,
                    delivery = id,
                    attempts,
                    error,
                    "a webhook could not be told; it is given up"
                );
            }
        }
        let (took_ms, status) = (attempt.took_ms, attempt.status);
        let note = DeliveryNote { tried_ms, took_ms, status, error: attempt.error, state, due_ms };
        if !self.store.note_delivery(id, delivery.claim, &note).await? {
            tracing::warn!(
                webhook,
                delivery = id,
                "somebody else delivers this too: the attempt took too long to note, or it was asked for again"
            );
        }
        Ok(())
    }
}
