//! `GET /openapi.json`: the API described for programs.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

use super::{events, metrics, routes};

#[derive(OpenApi)]
#[openapi(
    info(title = "ckvmm", description = "One VM: its state, its power, its checkpoints. HTTP/1.1 on a unix socket."),
    paths(
        routes::vm,
        routes::power,
        routes::checkpoint,
        routes::operation,
        routes::cancel,
        events::events,
        metrics::page,
        self::page,
    )
)]
struct Api;

/// The OpenAPI document, as JSON.
#[must_use]
pub fn document() -> String {
    Api::openapi().to_pretty_json().expect("a document made of literals is JSON")
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, content_type = "application/json")))]
pub(super) async fn page() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document())
}
