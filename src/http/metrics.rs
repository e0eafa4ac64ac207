//! `GET /metrics`.

use std::sync::Arc;

use axum::{extract::State, http::header, response::IntoResponse};

use super::{problem::Problem, state::AppState};

/// Metrics
///
/// In Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"))
)]
pub async fn metrics(State(state): State<Arc<AppState>>) -> Result<impl IntoResponse, Problem> {
    if let Ok(service) = state.service() {
        state.metrics.adapters.observe(&service.residents);
    }
    let text = state.metrics.render().map_err(|error| {
        tracing::error!(%error, "the metrics can't be written");
        Problem::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
}
