//! What each route does. Handlers are short: decide, ask the main loop if it must be, answer.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

use super::problem::ApiError;
use super::types::{CheckpointRequest, PowerRequest, PowerState, Problem, VmInfo};
use super::{BODY_MAX, events, metrics, openapi};
use crate::control::{Command, CommandError, Control};
use crate::operations::{Asker, Operation, OperationId, OperationState};

type Body = Result<Bytes, BytesRejection>;
type Id = Result<Path<String>, PathRejection>;
type Answer<T> = Result<T, ApiError>;

/// The routes of the API of one VM.
pub(super) fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/vm", get(vm))
        .route("/v1/vm/power", put(power))
        .route("/v1/checkpoints", post(checkpoint))
        .route("/v1/operations/{id}", get(operation).delete(cancel))
        .route("/v1/events", get(events::events))
        .route("/metrics", get(metrics::page))
        .route("/openapi.json", get(openapi::page))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(control)
}

/// How the VM is.
#[utoipa::path(get, path = "/v1/vm", responses((status = 200, body = VmInfo)))]
pub(super) async fn vm(State(control): State<Control>) -> Json<VmInfo> {
    Json(VmInfo::of(control.shared()))
}

/// Run, pause or end the VM. `off` returns when the button is pressed, not when the VM has ended.
#[utoipa::path(put, path = "/v1/vm/power", request_body = PowerRequest, responses(
    (status = 200, body = VmInfo),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn power(State(control): State<Control>, body: Body) -> Answer<Json<VmInfo>> {
    let request: PowerRequest = parse(&body?)?;
    let command = match request {
        PowerRequest { state: PowerState::Running, force: false } => Command::Resume,
        PowerRequest { state: PowerState::Paused, force: false } => Command::Pause,
        PowerRequest { state: PowerState::Off, force } => Command::PowerOff { force },
        PowerRequest { force: true, .. } => {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "force: only with \"state\": \"off\"; leave it out"));
        }
    };
    if request.force {
        // else it would wait for the checkpoint that is being made
        control.shared().operations().cancel_running();
    }
    control.ask(command)?.await.unwrap_or(Err(CommandError::Gone))?;
    Ok(Json(VmInfo::of(control.shared())))
}

/// Make a checkpoint. It is durable when the operation is done.
#[utoipa::path(post, path = "/v1/checkpoints", request_body = Option<CheckpointRequest>, responses(
    (status = 202, body = Operation, headers(("Location" = String, description = "/v1/operations/ID"))),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn checkpoint(State(control): State<Control>, body: Body) -> Answer<Response> {
    let body = body?;
    let request: CheckpointRequest = if body.is_empty() { CheckpointRequest::default() } else { parse(&body)? };
    let CheckpointRequest { dir, mode, full, stop } = request;
    if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_absolute()) {
        let line = format!("dir: {:?} is relative, and to what is not known; give an absolute path", dir.display());
        return Err(ApiError::new(StatusCode::BAD_REQUEST, line));
    }
    let id = control.checkpoint(Asker::Api, dir, mode, full, stop)?;
    let operation = control.shared().operations().get(id).ok_or(CommandError::Gone)?;
    let location = format!("/v1/operations/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response())
}

/// How far an operation is.
#[utoipa::path(get, path = "/v1/operations/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Operation),
    (status = 404, body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn operation(State(control): State<Control>, id: Id) -> Answer<Json<Operation>> {
    let operations = control.shared().operations();
    let operation = operation_id(&id).and_then(|id| operations.get(id)).ok_or_else(no_operation)?;
    if operation.state != OperationState::Running {
        operations.told(operation.id);
    }
    Ok(Json(operation))
}

/// Ask a running operation to end early. It has ended when its state says `failed`.
#[utoipa::path(delete, path = "/v1/operations/{id}", params(("id" = String, Path)), responses(
    (status = 202, body = Operation),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn cancel(State(control): State<Control>, id: Id) -> Answer<Response> {
    let operations = control.shared().operations();
    let cancelled = operation_id(&id).and_then(|id| operations.cancel(id)).ok_or_else(no_operation)?;
    Ok((StatusCode::ACCEPTED, Json(cancelled?)).into_response())
}

/// An id that is none is not known either.
fn operation_id(id: &Id) -> Option<OperationId> {
    id.as_ref().ok()?.parse().ok()
}

fn no_operation() -> ApiError {
    let line = "operation: no such one is known; the Location of a checkpoint's answer names it";
    ApiError::new(StatusCode::NOT_FOUND, line)
}

async fn no_route(uri: Uri) -> ApiError {
    let line = format!("{}: no such path; GET /openapi.json lists them", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, line)
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    let line = format!("{method} {}: not for this path; GET /openapi.json lists what is", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, line)
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        let line = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => format!("body: longer than {BODY_MAX} bytes; send less"),
            _ => format!("body: {}; send it again", rejection.body_text()),
        };
        Self::new(rejection.status(), line)
    }
}

/// Parses a JSON body, whatever its Content-Type.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Answer<T> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let field = e.path().to_string();
        let field = if matches!(&*field, "." | "?") { "body" } else { &field };
        format!("{field}: {}; GET /openapi.json says what it takes", e.inner())
    });
    let whole = parsed.and_then(|value| match json.end() {
        Ok(()) => Ok(value),
        Err(e) => Err(format!("body: {e}; send one JSON object")),
    });
    whole.map_err(|line| ApiError::new(StatusCode::BAD_REQUEST, line))
}
