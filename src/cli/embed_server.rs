//! `thalweg embed-server`.

use std::{
    env,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::service;
use crate::{
    config::Listen,
    embed::{DeviceChoice, ElementChoice, Settings},
    embed_server::{self, ApiKey, Ended, Limits, Options, Ready},
    metrics,
    secret::Secret,
    units::{ByteSize, Period},
};

/// Where a key may stand, besides in a file.
const KEY_VARIABLE: &str = "THALWEG_EMBED_API_KEY";

/// Serve the local model to others: an embedding service as OpenAI's
///
/// `POST /v1/embeddings`, `GET /v1/models`, `/health/live`, `/health/ready`
/// and `/metrics`. docs/embed-server.md has the rest.
///
/// With a key, in the environment (THALWEG_EMBED_API_KEY) or in a file, every
/// request but those for health has to bring it. Without one the service
/// listens on loopback only.
///
/// SIGTERM and SIGINT stop it: it is not ready any more, and answers what it
/// took. Exit codes: 0 stopped and everything answered; 1 failed; 2 the
/// arguments are wrong; 3 stopped with requests left unanswered.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg embed-server
  thalweg embed-server --element int8 --threads 4
  thalweg embed-server --listen 0.0.0.0:7480 --api-key-file /run/secrets/embed-key
  curl -d '{\"model\":\"all-MiniLM-L6-v2\",\"input\":[\"hello\"]}' http://127.0.0.1:7480/v1/embeddings")]
pub struct EmbedServer {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7480")]
    listen: Listen,
    /// Name of the model
    #[arg(long, value_name = "NAME", default_value_t = Settings::default().model)]
    model: String,
    /// Folder of its files [default: that name in $THALWEG_MODELS, else in `models`]
    #[arg(long, value_name = "DIR")]
    model_dir: Option<String>,
    /// What clients have to call the model [default: its name]
    #[arg(long, value_name = "NAME")]
    served_name: Option<String>,
    /// Numbers to compute with
    #[arg(long, value_name = "ELEMENT", default_value = "auto")]
    element: ElementChoice,
    /// What computes
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Threads that compute, or tokenise for a device; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// File with the key that requests have to bring
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Largest body of a request, unpacked
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::mib(16))]
    max_body: ByteSize,
    /// Most texts of a request
    #[arg(long, value_name = "N", default_value_t = 2_048)]
    max_inputs: usize,
    /// Most texts of all requests that are being answered; beyond that, 429
    #[arg(long, value_name = "N", default_value_t = 8_192)]
    max_queue_texts: usize,
    /// Most bytes of all requests that are being answered; beyond that, 429
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::mib(64))]
    max_queue_bytes: ByteSize,
    /// Longest time for a request, once its body is there; then 503
    #[arg(long, value_name = "TIME", default_value_t = Period::secs(60))]
    request_timeout: Period,
    /// How long a stop waits for what was taken
    #[arg(long, value_name = "TIME", default_value_t = Period::secs(30))]
    drain: Period,
    /// What to log: a level, or `target=level` pairs
    #[arg(long, value_name = "FILTER", env = "THALWEG_LOG", default_value = "info")]
    log: String,
}

impl EmbedServer {
    pub(super) fn run(self) -> Result<ExitCode> {
        let options = match self.options(env::var(KEY_VARIABLE).ok()) {
            Ok(options) => options,
            Err(error) => {
                super::output::error(&error);
                return Ok(ExitCode::from(2));
            }
        };
        service::start_logging(&self.log)?;
        let metrics = metrics::install()?;
        let ended = super::block_on(async move {
            let stop = CancellationToken::new();
            let _watching = service::stop_at_signals(stop.clone());
            Ok(embed_server::run(options, metrics, stop, announce).await?)
        })?;
        Ok(match ended {
            Ended::Drained => {
                tracing::info!("stopped; everything taken is answered");
                ExitCode::SUCCESS
            }
            Ended::Unanswered(requests) => {
                tracing::warn!(requests, "stopped at the deadline, without an answer to these");
                ExitCode::from(super::FOUND_WRONG)
            }
        })
    }

    /// What the arguments, and the key in the environment, come to.
    fn options(&self, key_of_environment: Option<String>) -> Result<Options> {
        let embed = Settings {
            model: self.model.clone(),
            model_dir: self.model_dir.clone().unwrap_or_default(),
            element: self.element,
            threads: self.threads,
            ..Settings::default()
        };
        embed.validate()?;
        self.check_device()?;
        let limits = Limits {
            body_bytes: self.max_body,
            inputs: self.max_inputs,
            queue_texts: self.max_queue_texts,
            queue_bytes: self.max_queue_bytes,
            request_timeout: self.request_timeout.0,
        };
        self.check_limits(&limits)?;
        Ok(Options {
            listen: self.listen,
            embed,
            device: self.device,
            name: self.served_name.clone().unwrap_or_default(),
            key: self.key(key_of_environment)?,
            limits,
            drain: self.drain.0,
        })
    }

    /// Refuses a device on which this build, or nothing here, computes.
    fn check_device(&self) -> Result<()> {
        if let Some(reason) = self.device.missing() {
            bail!("{reason}");
        }
        if self.device == DeviceChoice::Cuda && self.element == ElementChoice::Int8 {
            bail!("--device cuda does not compute int8: choose --element bf16 or fp32, or --device cpu");
        }
        Ok(())
    }

    /// Refuses limits with which a request that is allowed could never be
    /// answered: an eighth of the queue is kept for small ones.
    fn check_limits(&self, limits: &Limits) -> Result<()> {
        if limits.inputs == 0 || limits.request_timeout == Duration::ZERO {
            bail!("--max-inputs and --request-timeout cannot be 0");
        }
        if limits.queue_texts - limits.queue_texts / 8 < limits.inputs {
            bail!(
                "--max-queue-texts {} is too little for --max-inputs {}",
                self.max_queue_texts,
                self.max_inputs
            );
        }
        if limits.queue_bytes.0 - limits.queue_bytes.0 / 8 < limits.body_bytes.0 {
            bail!(
                "--max-queue-bytes {} is too little for --max-body {}",
                self.max_queue_bytes,
                self.max_body
            );
        }
        Ok(())
    }

    fn key(&self, of_environment: Option<String>) -> Result<Option<ApiKey>> {
        let key = match (&self.api_key_file, of_environment) {
            (Some(_), Some(_)) => bail!("there are two keys: in {KEY_VARIABLE} and in --api-key-file"),
            (Some(file), None) => Some(
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
            ),
            (None, key) => key,
        };
        Ok(key.map(|key| ApiKey::new(&Secret::from(key))).transpose()?)
    }
}

/// Tells people, and programs that wait for this line, where the service is.
fn announce(ready: &Ready) {
    let mut out = std::io::stdout().lock();
    let text = if out.is_terminal() {
        format!("ready  http://{}/v1  {}  on {}\n", ready.http, ready.space, ready.device)
    } else {
        serde_json::json!({"ready": true, "http": ready.http, "model": ready.model, "device": ready.device})
            .to_string()
            + "\n"
    };
    // Nobody may be reading; the service works all the same.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
