//! `thalweg webhooks`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Output, PipelineFile, offline,
    output::{facts, table, time},
};
use crate::{
    clock,
    config::Pipeline,
    store::{Delivery, DeliveryFilter, DeliveryState},
    webhooks::{Hook, Outgoing, Page, Sender, Webhooks as Hooks},
};

/// Addresses that are told what happens: which there are, and what became of
/// what they were told.
///
/// What is told is queued in the store; a daemon of the pipeline sends it, and
/// tries for a day. `[[webhook]]` in the pipeline file makes webhooks.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg webhooks test ops --dry-run
  thalweg webhooks deliveries --webhook ops --state failed
  thalweg webhooks redeliver 019a3c5e7d10f2b64c0e9d7a1835")]
pub struct Webhooks {
    #[command(flatten)]
    pipeline: PipelineFile,
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The webhooks of the pipeline
    List,
    /// What was told, or is to be, the latest first
    Deliveries {
        /// Only to this one
        #[arg(long, value_name = "NAME")]
        webhook: Option<String>,
        /// Only in this state
        #[arg(long)]
        state: Option<DeliveryState>,
        /// Only deliveries with smaller ids
        #[arg(long, value_name = "ID")]
        before: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Send a signed request that says nothing, from here and at once. Exit
    /// code 1 if the receiver does not take it
    Test {
        /// The webhook
        name: String,
        /// Print the request, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Have a delivery sent again, whatever became of it
    Redeliver {
        /// Its id
        id: String,
    },
}

impl Webhooks {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(self.on(pipeline))
    }

    async fn on(self, pipeline: Pipeline) -> Result<ExitCode> {
        let hooks = Hooks::new(&pipeline.name, &pipeline.webhooks, clock::system());
        match self.what {
            What::List => self.output.print(&hooks.list(), |all| listed(all))?,
            What::Test { name, dry_run } => return test(&hooks, &name, dry_run, self.output).await,
            What::Deliveries { webhook, state, before, limit } => {
                let store = offline::store(&pipeline).await?;
                let filter = DeliveryFilter { webhook, state };
                let page = hooks.deliveries(&store, &filter, before.as_deref(), limit).await;
                store.close().await;
                self.output.print(&page?, deliveries)?;
            }
            What::Redeliver { id } => {
                let store = offline::store(&pipeline).await?;
                let delivery = hooks.redeliver(&store, &id).await;
                store.close().await;
                self.output.print(&delivery?, shown)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn test(hooks: &Hooks, name: &str, dry_run: bool, output: Output) -> Result<ExitCode> {
    let (hook, outgoing) = hooks.test(name, rand::random())?;
    if dry_run {
        output.print(&outgoing, request)?;
        return Ok(ExitCode::SUCCESS);
    }
    let hook = hook.clone();
    let sender = tokio::task::spawn_blocking(|| Sender::new(hook)).await??;
    let attempt = sender.send(outgoing).await;
    if let Some(error) = &attempt.error {
        bail!("webhook `{name}` was not told: {error}");
    }
    let text = format!("webhook `{name}` was told, in {} ms", attempt.took_ms);
    output
        .print(&json!({"webhook": name, "status": attempt.status, "took_ms": attempt.took_ms}), |_| text)?;
    Ok(ExitCode::SUCCESS)
}

fn request(outgoing: &Outgoing) -> String {
    let headers = outgoing.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
    format!("POST {}\n{}\n{}", outgoing.to, headers.collect::<String>(), outgoing.body)
}

fn listed(all: &[Hook]) -> String {
    if all.is_empty() {
        return "no webhooks; `[[webhook]]` in the pipeline file makes them\n".into();
    }
    let heading = ["webhook", "to", "secrets", "events"].map(str::to_owned).to_vec();
    let row = |hook: &Hook| {
        vec![hook.name.clone(), hook.url.clone(), hook.secrets.to_string(), hook.events.join(" ")]
    };
    table(&std::iter::once(heading).chain(all.iter().map(row)).collect::<Vec<_>>())
}

fn deliveries(page: &Page) -> String {
    if page.deliveries.is_empty() {
        return "no deliveries\n".into();
    }
    let heading =
        ["delivery", "webhook", "event", "happened", "state", "attempts", "status", "took", "error"]
            .map(str::to_owned)
            .to_vec();
    let row = |one: &Delivery| {
        vec![
            one.delivery_id.clone(),
            one.webhook.clone(),
            one.event.clone(),
            time(one.created_ms),
            one.state.as_str().into(),
            one.attempts.to_string(),
            one.status.map_or_else(|| "-".into(), |status| status.to_string()),
            one.took_ms.map_or_else(|| "-".into(), |took| format!("{took} ms")),
            one.error.clone().unwrap_or_default(),
        ]
    };
    let more = page.next.as_ref().map(|next| format!("there are more: --before {next}\n"));
    let rows: Vec<_> = std::iter::once(heading).chain(page.deliveries.iter().map(row)).collect();
    table(&rows) + &more.unwrap_or_default()
}

fn shown(delivery: &Delivery) -> String {
    facts(&[
        ("delivery", delivery.delivery_id.clone()),
        ("webhook", delivery.webhook.clone()),
        ("event", delivery.event.clone()),
        ("state", delivery.state.as_str().into()),
        ("due", time(delivery.due_ms)),
    ])
}
