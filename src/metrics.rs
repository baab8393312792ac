//! Every metric, by name, in one place.

use std::time::Duration;

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Buckets for times, in seconds.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Installs the recorder of this process and says what each metric means. The
/// handle renders them in the Prometheus text format.
///
/// # Errors
/// If a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    describe_counter!("ingest_processed_total", "Frames acknowledged as durable.");
    describe_counter!("ingest_rejected_total", "Frames refused at the door, by code.");
    describe_counter!("ingest_duplicates_total", "Frames acknowledged that were in the log already.");
    describe_counter!(
        "ingest_connections_refused_total",
        "Connections refused before their first frame, by reason."
    );
    describe_gauge!("ingest_connections_open", "Connections being served.");
    describe_gauge!("ingest_sessions_waiting", "Connections that wait for their turn.");
    describe_counter!("log_groups_total", "Group commits: one write each, and one fsync.");
    describe_counter!("log_appends_total", "Appends in those groups.");
    describe_counter!("log_bytes_total", "Bytes of frames appended.");
    describe_histogram!("log_fsync_seconds", "Time of one fsync of the log.");
    describe_counter!("segments_sealed_total", "Segments sealed.");
    describe_counter!("segments_plain_bytes_total", "Bytes of frames in sealed segments.");
    describe_counter!("segments_object_bytes_total", "Bytes of sealed segments.");
    describe_histogram!("segment_seal_seconds", "Time to seal one segment.");
    describe_histogram!("artifact_put_seconds", "Time to keep one file in the object store.");
    describe_counter!("artifact_put_bytes_total", "Bytes of those files.");
    describe_gauge!("archive_failing", "1 while closed segments cannot be archived, 0 otherwise.");
    describe_gauge!("artifacts_wrong", "What the last comparison of objects and rows found, by kind.");
    describe_gauge!(
        "artifacts_checked_at_seconds",
        "When objects and rows were compared last, in Unix time."
    );
    describe_counter!("damage_found_total", "Damage found in the log's files since the start, by kind.");
    describe_gauge!("damage_open", "Damage in the log's files that `segments repair` has not seen to.");
    describe_gauge!("damage_lost_records", "Offsets of the log that cannot be read, repaired or not.");
    describe_counter!("derive_records_total", "Records derived, by outcome.");
    describe_gauge!("derive_lag_records", "Durable records that are not derived yet.");
    describe_gauge!("fallback_fraction", "Share of stored records that wait for their vectors.");
    describe_counter!("backfill_records_total", "Records that waited for vectors, by outcome.");
    describe_histogram!("embed_seconds", "Time to embed the chunks of one batch.");
    describe_counter!("embed_texts_total", "Texts embedded.");
    describe_counter!("embed_cache_hits_total", "Texts whose vector was there already, by tier.");
    describe_counter!("embed_cache_misses_total", "Texts whose vector had to be computed.");
    describe_counter!("reloads_total", "Requests to take the pipeline file anew, by outcome.");
    describe_gauge!("embed_canary_cosine", "Smallest cosine of a canary with its record, by space.");
    describe_gauge!("embed_halted", "1 while a space is halted because its canaries changed, by space.");
    describe_counter!("shadow_vectors_total", "Chunks of a space that is not live, by space and outcome.");
    describe_histogram!("embed_request_seconds", "Time of one request to an endpoint, by endpoint.");
    describe_counter!("embed_requests_total", "Requests to endpoints, by endpoint and outcome.");
    describe_counter!("embed_tokens_total", "Tokens that endpoints have counted, by endpoint.");
    describe_counter!(
        "embed_cost_micros_total",
        "What those tokens cost, in millionths of the currency of the prices, by endpoint."
    );
    describe_gauge!(
        "embed_circuit_state",
        "0: closed, in use; 1: half open; 2: open, left alone; by endpoint."
    );
    describe_gauge!(
        "embed_rate_remaining",
        "Requests and tokens that may be sent at once, by endpoint and kind."
    );
    describe_gauge!("embed_quota_used", "Share of the daily quota that is spent, by kind.");
    describe_gauge!("embed_quota_remaining", "What is left of the daily quota, by kind.");
    describe_counter!("embed_server_tokens_total", "Tokens that the model has read for requests.");
    describe_counter!("embed_server_refused_total", "Requests for vectors that were refused, by code.");
    describe_gauge!("embed_server_requests", "Requests for vectors that are being answered.");
    describe_gauge!("embed_server_queue_texts", "Texts of requests that are being answered.");
    describe_gauge!("embed_server_queue_bytes", "Bytes of requests that are being answered.");
    describe_gauge!("redis_up", "1 while Redis answers, 0 while it is away.");
    describe_counter!("redis_failures_total", "Commands and connections to Redis that failed.");
    describe_counter!("redis_triggers_total", "Messages that asked for the back-fill.");
    describe_counter!("embed_cache_damaged_total", "Values in Redis that were no vector of theirs.");
    describe_counter!("embed_cache_unkept_total", "Vectors that were not written to Redis.");
    describe_counter!("idempotency_total", "Requests with an Idempotency-Key, by what came of it.");
    describe_counter!("idempotency_evicted_total", "Answers forgotten before their time, for want of room.");
    describe_histogram!("store_commit_seconds", "Time of one commit of rows and checkpoint.");
    describe_histogram!("searchable_seconds", "Time from a record's append until it is searchable.");
    describe_histogram!("search_seconds", "Time to answer one search.");
    describe_gauge!("index_bytes", "Bytes of the database that holds rows and vectors.");
    describe_counter!("auth_total", "Credentials looked at, by what came of it.");
    describe_counter!("trail_dropped_total", "Refusals that the trail has no row of, for want of room.");
    describe_gauge!("jobs_running", "Jobs that this daemon works on.");
    describe_counter!(
        "jobs_ended_total",
        "Jobs that this daemon worked on, by kind and the state it left them in: queued, to go on later."
    );
    describe_counter!(
        "webhook_attempts_total",
        "Attempts to tell a webhook something, by webhook and the state they left the delivery in."
    );
    describe_counter!("http_requests_total", "HTTP requests, by route and status.");
    describe_histogram!("http_request_seconds", "Time to answer an HTTP request, by route.");
    Ok(handle)
}

/// Frames acknowledged.
pub fn ingest_processed(frames: u64) {
    counter!("ingest_processed_total").increment(frames);
}

/// Frames acknowledged that were in the log already.
pub fn ingest_duplicates(frames: u64) {
    counter!("ingest_duplicates_total").increment(frames);
}

/// A frame refused at the door.
pub fn ingest_rejected(code: &'static str) {
    counter!("ingest_rejected_total", "code" => code).increment(1);
}

/// Counts something as going on until dropped.
#[derive(Debug)]
pub struct Ongoing(&'static str);

impl Ongoing {
    fn begin(name: &'static str) -> Self {
        gauge!(name).increment(1.0);
        Self(name)
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1.0);
    }
}

/// A job is worked on.
pub fn job_begun() -> Ongoing {
    Ongoing::begin("jobs_running")
}

/// A claim of a job ended.
pub fn job_ended(kind: &str, state: &'static str) {
    counter!("jobs_ended_total", "kind" => kind.to_owned(), "state" => state).increment(1);
}

/// A webhook was told something, or not; `state` is where the delivery stands.
pub fn webhook_attempted(webhook: &str, state: &'static str) {
    counter!("webhook_attempts_total", "webhook" => webhook.to_owned(), "state" => state).increment(1);
}

/// A connection was refused before its first frame.
pub fn connection_refused(reason: &'static str) {
    counter!("ingest_connections_refused_total", "reason" => reason).increment(1);
}

/// A connection is served.
pub fn connection_open() -> Ongoing {
    Ongoing::begin("ingest_connections_open")
}

/// A connection waits for its turn.
pub fn session_waiting() -> Ongoing {
    Ongoing::begin("ingest_sessions_waiting")
}

/// One fsync of the log.
pub fn log_fsync(took: Duration) {
    histogram!("log_fsync_seconds").record(took);
}

/// One group commit of the log: appends in it, bytes.
pub fn log_group(appends: usize, bytes: usize) {
    counter!("log_groups_total").increment(1);
    counter!("log_appends_total").increment(appends as u64);
    counter!("log_bytes_total").increment(bytes as u64);
}

/// A segment was sealed.
pub fn segment_sealed(took: Duration, plain_bytes: u64, object_bytes: u64) {
    histogram!("segment_seal_seconds").record(took);
    counter!("segments_sealed_total").increment(1);
    counter!("segments_plain_bytes_total").increment(plain_bytes);
    counter!("segments_object_bytes_total").increment(object_bytes);
}

/// A file was kept in the object store.
pub fn artifact_put(took: Duration, bytes: u64) {
    histogram!("artifact_put_seconds").record(took);
    counter!("artifact_put_bytes_total").increment(bytes);
}

/// Whether closed segments can be archived at the moment.
pub fn archive_failing(failing: bool) {
    gauge!("archive_failing").set(f64::from(u8::from(failing)));
}

/// Objects and rows were compared.
#[expect(clippy::cast_precision_loss, reason = "for a gauge")]
pub fn artifacts_checked(found: [(&'static str, u64); 4], now_ms: i64) {
    for (kind, count) in found {
        gauge!("artifacts_wrong", "kind" => kind).set(count as f64);
    }
    gauge!("artifacts_checked_at_seconds").set(now_ms as f64 / 1000.0);
}

/// Damage of a kind was found in a file of the log.
pub fn damage_found(kind: &'static str) {
    counter!("damage_found_total", "kind" => kind).increment(1);
}

/// How much damage is open, and how many offsets cannot be read.
pub fn damage_state(open: usize, lost: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("damage_lost_records").set(lost as f64);
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("damage_open").set(open as f64);
}

/// Texts embedded in one call.
pub fn embedded(took: Duration, texts: usize) {
    histogram!("embed_seconds").record(took);
    counter!("embed_texts_total").increment(texts as u64);
}

/// Texts whose vector a tier of the cache had.
pub fn embed_cached(tier: &'static str, texts: usize) {
    counter!("embed_cache_hits_total", "tier" => tier).increment(texts as u64);
}

/// Texts whose vector no tier of the cache had.
pub fn embed_not_cached(texts: usize) {
    counter!("embed_cache_misses_total").increment(texts as u64);
}

/// Chunks that got a vector in a space that is not live, or never will.
pub fn shadowed(space: &str, vectors: usize, refused: usize) {
    for (outcome, chunks) in [("embedded", vectors), ("refused", refused)] {
        let space = space.to_owned();
        counter!("shadow_vectors_total", "space" => space, "outcome" => outcome).increment(chunks as u64);
    }
}

/// How the canaries of a space compare with their records.
pub fn canary(space: &str, cosine: f64, halted: bool) {
    gauge!("embed_canary_cosine", "space" => space.to_owned()).set(cosine);
    gauge!("embed_halted", "space" => space.to_owned()).set(f64::from(u8::from(halted)));
}

/// One request to an endpoint, and how it ended.
pub fn embed_request(endpoint: &str, outcome: &'static str, took: Duration) {
    let endpoint = endpoint.to_owned();
    counter!("embed_requests_total", "endpoint" => endpoint.clone(), "outcome" => outcome).increment(1);
    histogram!("embed_request_seconds", "endpoint" => endpoint).record(took);
}

/// Tokens that an endpoint has counted, and their price.
pub fn embed_spent(endpoint: &str, tokens: u64, micros: u64) {
    let endpoint = endpoint.to_owned();
    counter!("embed_tokens_total", "endpoint" => endpoint.clone()).increment(tokens);
    counter!("embed_cost_micros_total", "endpoint" => endpoint).increment(micros);
}

/// State of an endpoint's circuit, and what may be sent to it at once.
pub fn embed_endpoint(endpoint: &str, circuit: u8, requests: Option<f64>, tokens: Option<f64>) {
    let endpoint = endpoint.to_owned();
    gauge!("embed_circuit_state", "endpoint" => endpoint.clone()).set(f64::from(circuit));
    for (kind, remaining) in [("requests", requests), ("tokens", tokens)] {
        if let Some(remaining) = remaining {
            gauge!("embed_rate_remaining", "endpoint" => endpoint.clone(), "kind" => kind).set(remaining);
        }
    }
}

/// How much of a daily quota is spent, as a share, and how much is left.
pub fn embed_quota(kind: &'static str, used: f64, remaining: u64) {
    gauge!("embed_quota_used", "kind" => kind).set(used);
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("embed_quota_remaining", "kind" => kind).set(remaining as f64);
}

/// Tokens read for a request to the embedding service.
pub fn embed_server_tokens(tokens: usize) {
    counter!("embed_server_tokens_total").increment(tokens as u64);
}

/// A request to the embedding service was refused.
pub fn embed_server_refused(code: &'static str) {
    counter!("embed_server_refused_total", "code" => code).increment(1);
}

/// What the embedding service has under way: requests, their texts, their bytes.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn embed_server_queue(requests: usize, texts: usize, bytes: usize) {
    gauge!("embed_server_requests").set(requests as f64);
    gauge!("embed_server_queue_texts").set(texts as f64);
    gauge!("embed_server_queue_bytes").set(bytes as f64);
}

/// Whether Redis answers.
pub fn redis_up(up: bool) {
    gauge!("redis_up").set(f64::from(u8::from(up)));
}

/// A command or a connection to Redis failed.
pub fn redis_failed() {
    counter!("redis_failures_total").increment(1);
}

/// A message asked for the back-fill.
pub fn redis_triggered() {
    counter!("redis_triggers_total").increment(1);
}

/// Values in Redis were no vectors of theirs.
pub fn embed_cache_damaged(values: usize) {
    counter!("embed_cache_damaged_total").increment(values as u64);
}

/// Vectors were not written to Redis.
pub fn embed_cache_unkept(vectors: usize) {
    counter!("embed_cache_unkept_total").increment(vectors as u64);
}

/// A request with an `Idempotency-Key`: `done`, `replayed` or `refused`.
pub fn idempotent(outcome: &'static str) {
    counter!("idempotency_total", "outcome" => outcome).increment(1);
}

/// Answers were forgotten before their time.
pub fn idempotency_evicted(answers: usize) {
    counter!("idempotency_evicted_total").increment(answers as u64);
}

/// One commit of rows and checkpoint.
pub fn committed(took: Duration) {
    histogram!("store_commit_seconds").record(took);
}

/// Records derived, with their outcome.
pub fn derived(outcome: &'static str, records: u64) {
    counter!("derive_records_total", "outcome" => outcome).increment(records);
}

/// Time from the append of `records` records until they were searchable.
pub fn searchable(took: Duration, records: u64) {
    histogram!("searchable_seconds").record_many(took, usize::try_from(records).unwrap_or(usize::MAX));
}

/// Durable records not derived yet.
pub fn derive_lag(lag: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("derive_lag_records").set(lag as f64);
}

/// Share of the stored records that have no vector.
pub fn fallback_fraction(share: f64) {
    gauge!("fallback_fraction").set(share);
}

/// Records that waited for vectors, with their outcome.
pub fn backfilled(outcome: &'static str, records: u64) {
    counter!("backfill_records_total", "outcome" => outcome).increment(records);
}

/// One search answered.
pub fn searched(took: Duration) {
    histogram!("search_seconds").record(took);
}

/// Size of the database.
pub fn index_bytes(bytes: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("index_bytes").set(bytes as f64);
}

/// Credentials were looked at: `known`, or the code of the refusal.
pub fn authenticated(outcome: &'static str) {
    counter!("auth_total", "outcome" => outcome).increment(1);
}

/// The pipeline file was asked to be taken anew, with this outcome.
pub fn reloaded(outcome: &'static str) {
    counter!("reloads_total", "outcome" => outcome).increment(1);
}

/// Refusals left no row in the trail.
pub fn trail_dropped(refusals: u64) {
    counter!("trail_dropped_total").increment(refusals);
}

/// One HTTP request answered.
pub fn http_request(route: &str, status: u16, took: Duration) {
    let route = route.to_owned();
    counter!("http_requests_total", "route" => route.clone(), "status" => status.to_string()).increment(1);
    histogram!("http_request_seconds", "route" => route).record(took);
}
