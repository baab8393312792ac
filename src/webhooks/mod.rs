//! Webhooks: addresses of others that are told what happens here.
//!
//! What is to be told is queued in the store, in the transaction that makes it
//! true where there is one, and sent at least once ([`send`]), signed
//! ([`sign`]), again and again for a day ([`policy`]). [`Outbox`] is what
//! events are given to; [`Webhooks`] is what commands ask; who delivers is
//! `worker`.

mod event;
pub mod policy;
pub mod send;
pub mod settings;
pub mod sign;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use self::{event::TEST, policy::PATIENCE_MS};
pub use self::{
    event::{Event, EventKind},
    send::{Attempt, Outgoing, Sender},
    settings::WebhookSettings,
};
use crate::{
    clock::Clock,
    http_client::ClientError,
    store::{Delivery, DeliveryFilter, NewDelivery, Store, StoreError},
};

/// Draws random numbers.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// An id that sorts by time.
fn id(at_ms: i64, random: u64) -> String {
    format!("{:012x}{random:016x}", at_ms.max(0))
}

/// Turns what happens into what is told. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    pipeline: Arc<str>,
    hooks: Arc<[WebhookSettings]>,
    random: Random,
}

impl Outbox {
    /// For the webhooks of `pipeline`.
    pub fn new(pipeline: &str, hooks: &[WebhookSettings], random: Random) -> Self {
        Self { pipeline: pipeline.into(), hooks: hooks.into(), random }
    }

    /// Whether anybody wants to know.
    pub fn wants(&self, kind: EventKind) -> bool {
        self.hooks.iter().any(|hook| hook.events.contains(&kind))
    }

    /// What is to be queued for `event`: one delivery for each webhook that
    /// wants it.
    pub fn deliveries(&self, event: &Event) -> Vec<NewDelivery> {
        let (at_ms, name) = (event.at_ms, event.kind.as_str());
        let wanting = self.hooks.iter().filter(|hook| hook.events.contains(&event.kind));
        let delivery = |hook: &WebhookSettings| {
            let delivery_id = id(at_ms, (self.random)());
            NewDelivery {
                body: event::body(&delivery_id, name, (at_ms, &self.pipeline), &event.data),
                delivery_id,
                pipeline: self.pipeline.to_string(),
                webhook: hook.name.clone(),
                event: name.to_owned(),
                tenant: event.tenant.clone(),
                created_ms: at_ms,
                give_up_ms: at_ms.saturating_add(PATIENCE_MS),
            }
        };
        wanting.map(delivery).collect()
    }
}

/// Why something of webhooks cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WebhooksError {
    /// There is none with this name.
    #[error("the pipeline has no webhook `{name}`; `thalweg webhooks list` shows them")]
    UnknownHook {
        /// The name asked for.
        name: String,
    },
    /// There is no such delivery.
    #[error("there is no delivery `{id}`; `thalweg webhooks deliveries` shows them")]
    UnknownDelivery {
        /// The id asked for.
        id: String,
    },
    /// Nobody would send it.
    #[error("delivery `{id}` is for the webhook `{webhook}`, which pipeline `{pipeline}` has no more")]
    NoMoreHook {
        /// The delivery.
        id: String,
        /// Whom it is for.
        webhook: String,
        /// The pipeline that asks.
        pipeline: String,
    },
    /// No request can be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A webhook as programs see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// Where it is told, without what may be secret.
    pub url: String,
    /// What is told.
    pub events: Vec<String>,
    /// How many secrets each delivery is signed with.
    pub secrets: usize,
}

/// Some deliveries, the latest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
    /// Where the next page begins: deliveries with ids below it. None after
    /// the last page.
    pub next: Option<String>,
}

/// The webhooks of a pipeline, and what became of what they tell.
#[derive(Clone)]
pub struct Webhooks {
    pipeline: Arc<str>,
    hooks: Arc<[WebhookSettings]>,
    clock: Clock,
}

impl Webhooks {
    /// Those of `pipeline`.
    pub fn new(pipeline: &str, hooks: &[WebhookSettings], clock: Clock) -> Self {
        Self { pipeline: pipeline.into(), hooks: hooks.into(), clock }
    }

    /// All of them.
    pub fn list(&self) -> Vec<Hook> {
        let shown = |hook: &WebhookSettings| Hook {
            name: hook.name.clone(),
            url: hook.shown_url(),
            events: hook.events.iter().map(|kind| kind.as_str().to_owned()).collect(),
            secrets: hook.secrets().len(),
        };
        self.hooks.iter().map(shown).collect()
    }

    /// Deliveries with ids below `before`, the latest first, `limit` of them.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn deliveries(
        &self,
        store: &Store,
        filter: &DeliveryFilter,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Page, WebhooksError> {
        let mut deliveries = store.deliveries(filter, before, limit.saturating_add(1)).await?;
        let more = deliveries.len() > limit as usize;
        deliveries.truncate(limit as usize);
        let next = deliveries.last().map(|last| last.delivery_id.clone()).filter(|_| more);
        Ok(Page { deliveries, next })
    }

    /// Has a daemon of the pipeline send a delivery again, whatever became of
    /// it.
    ///
    /// # Errors
    /// [`WebhooksError::UnknownDelivery`], [`WebhooksError::NoMoreHook`], or if
    /// the store fails.
    pub async fn redeliver(&self, store: &Store, id: &str) -> Result<Delivery, WebhooksError> {
        let unknown = || WebhooksError::UnknownDelivery { id: id.to_owned() };
        let known = store.delivery(id).await?.ok_or_else(unknown)?;
        let is_mine = *known.pipeline == *self.pipeline;
        if !is_mine || self.hooks.iter().all(|hook| hook.name != known.webhook) {
            let (webhook, pipeline) = (known.webhook, self.pipeline.to_string());
            return Err(WebhooksError::NoMoreHook { id: known.delivery_id, webhook, pipeline });
        }
        let now_ms = (self.clock)();
        store.redeliver(id, now_ms, now_ms.saturating_add(PATIENCE_MS)).await?.ok_or_else(unknown)
    }

    /// A signed request that says nothing, for the webhook `name`, and who
    /// would send it.
    ///
    /// # Errors
    /// [`WebhooksError::UnknownHook`].
    pub fn test(&self, name: &str, random: u64) -> Result<(&WebhookSettings, Outgoing), WebhooksError> {
        let unknown = || WebhooksError::UnknownHook { name: name.to_owned() };
        let hook = self.hooks.iter().find(|hook| hook.name == name).ok_or_else(unknown)?;
        let now_ms = (self.clock)();
        let id = id(now_ms, random);
        let data: Value = json!({"webhook": hook.name});
        let body = event::body(&id, TEST, (now_ms, &self.pipeline), &data);
        Ok((hook, Outgoing::new(hook, (&id, TEST), body, now_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str, events: &str) -> WebhookSettings {
        let text = format!(
            "name = \"{name}\"\nurl = \"https://example.com/\"\nevents = {events}\nsecret = \"0123456789abcdef\""
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn each_webhook_that_wants_an_event_gets_a_delivery_of_its_own() {
        let hooks = [
            hook("a", "[\"job.done\"]"),
            hook("b", "[\"job.failed\"]"),
            hook("c", "[\"job.failed\", \"job.done\"]"),
        ];
        let drawn = std::sync::atomic::AtomicU64::new(6);
        let random = move || drawn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let outbox = Outbox::new("p", &hooks, Arc::new(random));
        let event = Event { kind: EventKind::JobDone, at_ms: 255, tenant: None, data: json!({"job": 3}) };
        let told = outbox.deliveries(&event);
        let names: Vec<_> = told.iter().map(|new| (new.webhook.as_str(), new.delivery_id.as_str())).collect();
        assert_eq!(names, [("a", "0000000000ff0000000000000006"), ("c", "0000000000ff0000000000000007")]);
        let body: Value = serde_json::from_str(&told[1].body).unwrap();
        let expected = json!({"id": "0000000000ff0000000000000007", "event": "job.done", "at_ms": 255,
            "pipeline": "p", "data": {"job": 3}});
        assert_eq!(body, expected);
        assert!(outbox.wants(EventKind::JobFailed) && !outbox.wants(EventKind::SegmentSealed));
    }
}
