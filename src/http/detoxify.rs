//! `POST /detoxify`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::task::JoinSet;
use utoipa::ToSchema;

use super::{
    body::JsonBody,
    limits::until,
    options::{DetoxifyRequest, Input},
    problem::{FieldError, Problem, TextProblems},
    result::DetoxifyResult,
    state::{AppState, Service},
    stream,
};
use crate::{
    adapters::AdapterLease,
    metrics::Metrics,
    pipeline::{Detoxified, Detoxifier, Options, SegmentObserver, Shadow},
};

const ADAPTER: HeaderName = HeaderName::from_static("x-detoxd-adapter");
const CHANGED: HeaderName = HeaderName::from_static("x-detoxd-changed");

/// One result for `text`, or all for `texts`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum DetoxifyResponse {
    /// For `text`.
    One(DetoxifyResult),
    /// For `texts`.
    Many {
        /// One result a text, in the order of the request.
        results: Vec<DetoxifyResult>,
    },
}

/// Make texts milder
///
/// Every sentence whose toxicity is above the threshold is rewritten, keeping its meaning; all
/// others come back byte for byte. A failure never returns a half-rewritten text.
///
/// With `Accept: text/event-stream` the answer to `text` is a stream: an event `segment` for each
/// sentence as soon as it and those before it are done, then `result` with the whole result, or
/// `problem` when it fails midway.
#[utoipa::path(
    post,
    path = "/detoxify",
    tag = "texts",
    request_body = DetoxifyRequest,
    responses(
        (
            status = 200,
            description = "The milder text or texts",
            content(
                (DetoxifyResponse = "application/json"),
                (String = "text/event-stream"),
            ),
            headers(
                ("x-request-id" = String, description = "The request's, or a new one"),
                ("x-detoxd-adapter" = String, description = "`name@version` that was used"),
                ("x-detoxd-changed" = bool, description = "Whether any text changed; not on a stream"),
            )
        ),
        TextProblems,
    )
)]
pub async fn detoxify(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<DetoxifyRequest>,
) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let checked = request.check(&state.limits, arrived)?;
    let permit = state.admission.admit()?;
    let service = state.service()?;
    let job = checked.lease(&state.policy, &service.residents).await?;
    let adapter = job.options.adapter.version().to_string();

    if stream::is_wanted(&headers) {
        let Input::One(text) = job.input else {
            let detail = "a stream carries one text; send `text`, or accept JSON";
            return Err(Problem::invalid(vec![FieldError::new("texts", detail)]));
        };
        let beside = Beside::new(&state, service, job.shadow);
        let events = stream::segments(beside, text, job.options, job.deadline, arrived, permit);
        return Ok(with_header(events.into_response(), ADAPTER, &adapter));
    }

    let work = rewrite(
        Beside::new(&state, service, job.shadow),
        job.input,
        job.options,
        arrived,
    );
    let answer = until(job.deadline, work).await?;
    drop(permit);
    let changed = match &answer {
        DetoxifyResponse::One(result) => result.changed,
        DetoxifyResponse::Many { results } => results.iter().any(|result| result.changed),
    };
    let response = with_header(Json(answer).into_response(), ADAPTER, &adapter);
    Ok(with_header(response, CHANGED, if changed { "true" } else { "false" }))
}

/// What a text goes through, and what is done beside: counting, and a copy for the shadow.
#[derive(Clone)]
pub(super) struct Beside {
    detoxifier: Arc<Detoxifier>,
    metrics: Arc<Metrics>,
    shadow: Option<(Arc<Shadow>, AdapterLease)>,
    patience: Duration,
}

impl Beside {
    pub(super) fn new(state: &AppState, service: &Service, candidate: Option<AdapterLease>) -> Self {
        Self {
            detoxifier: Arc::clone(&service.detoxifier),
            metrics: Arc::clone(&state.metrics),
            shadow: candidate.map(|candidate| (Arc::clone(&state.shadow), candidate)),
            patience: state.limits.timeout,
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// One text.
    pub(super) async fn detoxify(
        &self,
        text: &str,
        options: &Options,
        observer: SegmentObserver<'_>,
    ) -> Result<Detoxified, Problem> {
        let copy = self
            .shadow
            .as_ref()
            .and_then(|(shadow, candidate)| shadow.copy(text, options, candidate));
        let done = self.detoxifier.detoxify_observed(text, options, observer).await?;
        self.metrics.detoxified(&done);
        if let Some(copy) = copy {
            copy.compare(&done, Arc::clone(&self.detoxifier), self.patience);
        }
        Ok(done)
    }
}

async fn rewrite(
    beside: Beside,
    input: Input,
    options: Options,
    arrived: Instant,
) -> Result<DetoxifyResponse, Problem> {
    match input {
        Input::One(text) => {
            let done = beside.detoxify(&text, &options, &|_| {}).await?;
            Ok(DetoxifyResponse::One(DetoxifyResult::new(done, arrived.elapsed())))
        }
        Input::Many(texts) => {
            let results = rewrite_all(beside, texts, options, arrived).await?;
            Ok(DetoxifyResponse::Many { results })
        }
    }
}

/// All texts at once, so that the engine can batch their sentences. The first failure, or being
/// dropped, ends the others.
async fn rewrite_all(
    beside: Beside,
    texts: Vec<String>,
    options: Options,
    arrived: Instant,
) -> Result<Vec<DetoxifyResult>, Problem> {
    let shared = Arc::new((beside, options));
    let mut tasks = JoinSet::new();
    for (index, text) in texts.into_iter().enumerate() {
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let (beside, options) = &*shared;
            (index, beside.detoxify(&text, options, &|_| {}).await)
        });
    }
    let mut results = Vec::with_capacity(tasks.len());
    while let Some(joined) = tasks.join_next().await {
        let (index, done) = joined.map_err(|error| match error.try_into_panic() {
            // Caught and answered by the layer that does so for every route.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Problem::internal(),
        })?;
        results.push((index, DetoxifyResult::new(done?, arrived.elapsed())));
    }
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn with_header(mut response: Response, name: HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether the client prefers nothing over this media type: it names it in `Accept`.
pub(super) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let essence = range.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case(media_type)
        })
}
