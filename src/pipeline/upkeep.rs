//! Keeping the store fast while it grows: what its database wants done beside
//! the stream, such as approximate indexes over large tenants.

use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use crate::{clock, store::Store};

/// How often it is looked for something to do.
const EVERY: Duration = Duration::from_secs(30);

/// Looks after `store` until `stop`. Nothing depends on it but speed, so a
/// failure is said and tried again.
pub async fn run(store: Store, stop: CancellationToken) -> Result<()> {
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
        let kept = tokio::select! {
            // What is half done is found and taken away at the next start.
            () = stop.cancelled() => return Ok(()),
            kept = store.maintain(clock::system_ms()) => kept,
        };
        if let Err(error) = &kept
            && !failing
        {
            tracing::warn!(%error, "the store's indexes could not be looked after; tried again");
        }
        failing = kept.is_err();
    }
}
