//! Errors as problem+json (RFC 9457).

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::types::Problem;
use crate::control::CommandError;

/// Media type of an error.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    detail: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let status = match error {
            CommandError::Conflict(_) => StatusCode::CONFLICT,
            CommandError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            CommandError::Gone => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".into(),
            title: self.status.canonical_reason().unwrap_or("Error").into(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let body = serde_json::to_vec(&problem).expect("a struct of strings and a number is JSON");
        let mut response = (self.status, Body::from(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
        response
    }
}
