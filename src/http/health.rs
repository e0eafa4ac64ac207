//! `GET /health/live` and `GET /health/ready`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    problem::{Problem, Reason},
    state::AppState,
};
use crate::engine::Activity;

/// The process gets on with its work.
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

/// Does the process get on with its work?
///
/// Restart it when this fails: there is work for the model, and it has made no step for too long (`--max-stall`, a minute by default). Loading the model is no failure.
#[utoipa::path(
    get,
    path = "/health/live",
    tag = "operations",
    responses(
        (status = 200, description = "Up", body = Live),
        (
            status = 503,
            description = "Stuck",
            body = Problem,
            content_type = "application/problem+json"
        )
    )
)]
pub async fn live(State(state): State<Arc<AppState>>) -> Result<Json<Live>, Problem> {
    let engine = state.service().ok().and_then(|service| service.detoxifier.activity());
    match engine.and_then(Activity::stalled_for) {
        Some(stall) if stall >= state.limits.max_stall => Err(Problem::new(
            Reason::Stalled,
            format!("there is work for the model and no step since {} s", stall.as_secs()),
        )),
        _ => Ok(Json(Live { status: "live" })),
    }
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
