//! Sending a delivery.

use std::time::Instant;

use reqwest::{Client, redirect::Policy};
use serde::Serialize;

use super::{settings::WebhookSettings, sign::signature};
use crate::http_client::{self, ClientError};

/// A request as it is sent, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outgoing {
    /// Where it goes, without what may be secret.
    pub to: String,
    /// Its headers, but for those that every request has.
    pub headers: [(&'static str, String); 4],
    /// Its body.
    pub body: String,
}

impl Outgoing {
    /// The delivery `id` of what `event` names, signed at `now_ms`.
    pub fn new(hook: &WebhookSettings, (id, event): (&str, &str), body: String, now_ms: i64) -> Self {
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("thalweg-event", event.to_owned()),
            ("thalweg-delivery", id.to_owned()),
            ("thalweg-signature", signature(&hook.secrets(), now_ms.div_euclid(1_000), &body)),
        ];
        Self { to: hook.shown_url(), headers, body }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// How long it took, in milliseconds.
    pub took_ms: i64,
    /// HTTP status of the answer; none if there was none.
    pub status: Option<u16>,
    /// Why it is not delivered. Neither the address nor the answer stands here.
    pub error: Option<String>,
}

/// Sends to one webhook.
#[derive(Clone, Debug)]
pub struct Sender {
    hook: WebhookSettings,
    client: Client,
}

impl Sender {
    /// To `hook`. Reads the certificates that this machine trusts, and blocks
    /// meanwhile.
    ///
    /// # Errors
    /// If there are none, or no client can be made.
    pub fn new(hook: WebhookSettings) -> Result<Self, ClientError> {
        let builder =
            if hook.is_plain() { http_client::plain()?.no_proxy() } else { http_client::trusting()? };
        // Who is sent elsewhere would be told what was meant for another.
        let client = builder.redirect(Policy::none()).timeout(hook.timeout.0).build()?;
        Ok(Self { hook, client })
    }

    /// The webhook.
    pub fn hook(&self) -> &WebhookSettings {
        &self.hook
    }

    /// Sends it, and waits for the head of the answer.
    pub async fn send(&self, outgoing: Outgoing) -> Attempt {
        let begun = Instant::now();
        let mut request = self.client.post(self.hook.url.reveal()).body(outgoing.body);
        for (name, value) in outgoing.headers {
            request = request.header(name, value);
        }
        let answer = request.send().await;
        let took_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        match answer {
            Ok(answer) => {
                let status = answer.status();
                let error = (!status.is_success()).then(|| format!("the receiver answered {status}"));
                Attempt { took_ms, status: Some(status.as_u16()), error }
            }
            Err(error) => Attempt { took_ms, status: None, error: Some(why(error)) },
        }
    }
}

/// What went wrong, with its innermost cause and without the address.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return "the receiver did not answer in time".into();
    }
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    match causes.last() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
