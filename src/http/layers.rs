//! What happens to every request: an id, a line in the log, a count. Neither log nor metrics ever
//! hold a text, a query or a body.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;
use uuid::Uuid;

use super::{problem::Reason, state::AppState};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Status in log and metrics of a request whose client left before the answer.
const CLIENT_LEFT: u16 = 499;

/// Gives the request an id (its own, if it has a sane one), logs and counts it.
pub async fn observe(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let mut record = Record {
        method: request.method().clone(),
        route,
        started: Instant::now(),
        status: CLIENT_LEFT,
        state,
    };
    async move {
        let mut response = next.run(request).await;
        if let Some(reason) = response.extensions().get::<Reason>() {
            record.state.metrics.rejected(reason.code());
        }
        record.status = response.status().as_u16();
        drop(record);
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
    .instrument(span)
    .await
}

fn request_id(request: &Request) -> HeaderValue {
    request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| {
            let id = id.as_bytes();
            (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
        })
        .cloned()
        .or_else(|| HeaderValue::from_str(&Uuid::now_v7().to_string()).ok())
        .unwrap_or(HeaderValue::from_static("unknown"))
}

/// A request that is being served; written to log and metrics when dropped, however that comes.
struct Record {
    method: Method,
    route: String,
    started: Instant,
    /// Until there is an answer: the client has left.
    status: u16,
    state: Arc<AppState>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.state.metrics.answered(&self.route, self.status, elapsed);
        tracing::info!(
            method = %self.method,
            route = self.route,
            status = self.status,
            milliseconds = elapsed.as_micros() as f64 / 1000.0,
            "answered"
        );
    }
}
