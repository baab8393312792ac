//! Health and metrics.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde_json::json;

use super::{Server, Shared};
use crate::metrics as names;

impl Server {
    /// What keeps the service from being ready, if something does.
    fn not_ready(&self) -> Option<String> {
        if self.closing.is_cancelled() {
            return Some("the service is shutting down".to_owned());
        }
        let Some(served) = self.served.get() else {
            return Some("the model is being loaded".to_owned());
        };
        served
            .model
            .lost()
            .map(|reason| format!("{reason}; it does not come back by itself: restart the service"))
    }
}

pub(super) async fn live() -> impl IntoResponse {
    Json(json!({"status": "live"}))
}

pub(super) async fn ready(State(server): Shared) -> impl IntoResponse {
    match server.not_ready() {
        None => (StatusCode::OK, Json(json!({"status": "ready", "reasons": []}))),
        Some(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not ready", "reasons": [reason]})))
        }
    }
}

pub(super) async fn metrics(State(server): Shared) -> String {
    let (texts, bytes) = server.room.used();
    names::embed_server_queue(server.under_way.len(), texts, bytes);
    server.metrics.run_upkeep();
    server.metrics.render()
}
