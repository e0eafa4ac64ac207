//! `/metrics` and `/health/live` of a process that serves nothing else.

use std::io;

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics;

/// Answers on `listener` until `stop` is cancelled.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, registry: Registry, stop: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router(registry))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// The two routes.
pub fn router(registry: Registry) -> Router {
    let metrics = move || {
        let registry = registry.clone();
        async move {
            match metrics::render(&registry) {
                Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
                Err(error) => {
                    tracing::error!(%error, "the metrics can't be written");
                    StatusCode::INTERNAL_SERVER_ERROR.into_response()
                }
            }
        }
    };
    Router::new().route("/metrics", get(metrics)).route(
        "/health/live",
        get(|| async { axum::Json(serde_json::json!({ "status": "live" })) }),
    )
}
