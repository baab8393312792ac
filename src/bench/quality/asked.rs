//! A daemon that is given records and asked questions over HTTP.

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use crate::{
    api::Status,
    bench::daemon::Daemon,
    pipeline::search::{SearchReply, SearchRequest},
};

/// Records of one request.
const RECORDS_PER_REQUEST: usize = 500;

/// Questions asked at once: enough that no core waits for the network.
const ASKED_AT_ONCE: usize = 4;

/// Sends `records` and waits until every one is derived.
pub async fn ingest(daemon: &Daemon, records: &[Value]) -> Result<Status> {
    for some in records.chunks(RECORDS_PER_REQUEST) {
        let lines: String = some.iter().map(|record| format!("{record}\n")).collect();
        let request = daemon
            .http()
            .post(daemon.url("/api/v1/ingest"))
            .header("content-type", "application/x-ndjson")
            .body(lines);
        let reply: Value = request.send().await?.error_for_status()?.json().await?;
        let taken = reply.get("acknowledged").and_then(Value::as_u64);
        ensure!(taken == Some(some.len() as u64), "not every record was taken: {reply}");
    }
    daemon.derived(records.len() as u64).await
}

/// Asks all `requests`; the answers are in their order.
pub async fn ask(daemon: &Daemon, requests: Vec<SearchRequest>) -> Result<Vec<SearchReply>> {
    let replies = requests.into_iter().map(|request| search(daemon, request));
    stream::iter(replies).buffered(ASKED_AT_ONCE).try_collect().await
}

async fn search(daemon: &Daemon, request: SearchRequest) -> Result<SearchReply> {
    let reply = daemon.http().post(daemon.url("/api/v1/search")).json(&request).send().await?;
    let status = reply.status();
    let body = reply.text().await?;
    ensure!(status.is_success(), "a search was answered with {status}: {body}");
    Ok(serde_json::from_str(&body)?)
}
