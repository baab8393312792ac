//! What commands share that run until they are told to stop.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing_subscriber::EnvFilter;

use crate::reload::{By, Reloads};

/// Logs what passes `filter` to standard error, as JSON.
///
/// # Errors
/// If it is not a filter.
pub(super) fn start_logging(filter: &str) -> Result<()> {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        // The S3 client says every attempt; what came of them is said once, by
        // whoever asked for them.
        .with_env_filter(EnvFilter::try_new(format!("object_store=warn,{filter}")).context("--log")?)
        .init();
    Ok(())
}

/// Cancels `stop` at the first SIGTERM or SIGINT, and ends the process at the
/// second, until the handle is dropped.
pub(super) fn stop_at_signals(stop: CancellationToken) -> AbortOnDropHandle<Result<()>> {
    AbortOnDropHandle::new(tokio::spawn(watch_signals(stop)))
}

/// Has the pipeline file taken anew at each SIGHUP, until the handle is
/// dropped. The daemon's log says what came of it.
///
/// # Errors
/// If signals cannot be waited for.
pub(super) fn reload_at_signals(reloads: Reloads) -> Result<AbortOnDropHandle<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let watching = async move {
        while hangup.recv().await.is_some() {
            let _ = reloads.ask(false, By::Signal).await;
        }
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(watching)))
}

async fn watch_signals(stop: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for _ in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            tracing::warn!("stopped at once by a second signal");
            std::process::exit(i32::from(super::FOUND_WRONG));
        }
        stop.cancel();
    }
    Ok(())
}
