//! `GET /health/live` and `GET /health/ready`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{problem::Problem, state::AppState};

/// The process is up.
#[derive(Debug, Serialize, ToSchema)]
pub struct Live {
    /// Always `live`.
    #[schema(example = "live")]
    status: &'static str,
}

/// The service takes requests.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    /// Always `ready`.
    #[schema(example = "ready")]
    status: &'static str,
    /// The adapter that new requests get.
    #[schema(example = "default@1")]
    adapter: String,
}

/// Is the process up?
///
/// Restart it when this fails.
#[utoipa::path(
    get,
    path = "/health/live",
    tag = "operations",
    responses((status = 200, description = "Up", body = Live))
)]
pub async fn live() -> Json<Live> {
    Json(Live { status: "live" })
}

/// Does the service take requests?
///
/// Send it none while this fails: the model is being loaded or running requests are being finished.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "operations",
    responses(
        (status = 200, description = "Takes requests", body = Ready),
        (
            status = 503,
            description = "Loading or shutting down",
            body = Problem,
            content_type = "application/problem+json"
        )
    )
)]
pub async fn ready(State(state): State<Arc<AppState>>) -> Result<Json<Ready>, Problem> {
    let adapter = state.ready()?.residents.active();
    Ok(Json(Ready {
        status: "ready",
        adapter: adapter.version().to_string(),
    }))
}
