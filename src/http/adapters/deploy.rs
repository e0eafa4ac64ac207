//! `POST /adapters/{name}/{version}/activate`, `POST /adapters/rollback`, `PUT /adapters/traffic`, `GET /adapters/deployments`: which
//! versions are served.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Query, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{VersionPath, problems::AdapterProblems, time, version};
use crate::{
    access::Actor,
    adapters::{self, AdapterVersion, Change},
    http::{
        body::{JsonBody, OptionalJsonBody},
        path::InPath,
        problem::{FieldError, Problem, Reason},
        state::AppState,
    },
};

/// What the caller thinks is active.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The version that must be active, `name@version`; when another one is, nothing changes (409). Without it, whatever is active.
    #[schema(example = "default@1")]
    expected: Option<String>,
}

/// How requests that name no adapter are shared out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "weights": [{ "adapter": "default@2", "weight": 0.1 }], "shadow": null, "expected": "default@1" }))]
pub struct TrafficRequest {
    /// Versions that get a part; what they leave goes to the active one. They add up to 1 at most.
    weights: Vec<Weight>,
    /// A version that answers copies of requests, unseen; null for none.
    #[schema(example = "default@4")]
    shadow: Option<String>,
    /// The version that must be active, `name@version`; when another one is, nothing changes (409).
    #[schema(example = "default@1")]
    expected: Option<String>,
}

/// A version's part of the requests.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// The version, `name@version`.
    #[schema(example = "default@2")]
    adapter: String,
    /// Its part, above 0 and at most 1.
    #[schema(example = 0.1)]
    weight: f64,
}

/// What is to be served from one change to the next.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deployment {
    /// Counts the changes; the highest one holds.
    #[schema(example = 7)]
    revision: i64,
    /// The version that requests get which name none.
    #[schema(example = "default@2")]
    active: String,
    /// Versions that get a part of them.
    weights: Vec<Weight>,
    /// The version that answers copies of requests, unseen.
    shadow: Option<String>,
    /// `start`, `activate`, `rollback`, `traffic`, or `policy` (of a training job).
    #[schema(example = "activate")]
    action: &'static str,
    /// Why, in words.
    reason: Option<String>,
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// Who: a key's id, or a part of the program.
    actor: String,
}

/// Which part of the history.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Only changes below this revision.
    before: Option<i64>,
    /// At most so many, 1 to 1000; 50 without it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Changes, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deployments {
    /// Newest first.
    deployments: Vec<Deployment>,
}

/// Activate a version
///
/// It is loaded and tried on the model in the process that answers; only then all new requests get it, here at once and in other
/// processes within their `follow_interval`. Running requests finish on the version they began with. Shares and shadow end.
#[utoipa::path(
    post,
    path = "/adapters/{name}/{version}/activate",
    operation_id = "activate_adapter",
    tag = "adapters",
    params(("name" = String, Path, example = "default"), ("version" = u32, Path, example = 1)),
    request_body(content = Option<Expectation>, content_type = "application/json"),
    responses((status = 200, description = "It is active", body = Deployment), AdapterProblems)
)]
pub async fn activate(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(path): InPath<VersionPath>,
    OptionalJsonBody(body): OptionalJsonBody<Expectation>,
) -> Result<Json<Deployment>, Problem> {
    let change = Change::Activate(version(path)?);
    deploy(&state, change, body.expected, &actor).await
}

/// Go back
///
/// To the version that was active before the last change of it; deleted ones are passed over. Shares and shadow end.
#[utoipa::path(
    post,
    path = "/adapters/rollback",
    operation_id = "roll_back_adapter",
    tag = "adapters",
    request_body(content = Option<Expectation>, content_type = "application/json"),
    responses((status = 200, description = "The version before is active", body = Deployment), AdapterProblems)
)]
pub async fn rollback(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    OptionalJsonBody(body): OptionalJsonBody<Expectation>,
) -> Result<Json<Deployment>, Problem> {
    deploy(&state, Change::Rollback, body.expected, &actor).await
}

/// Share out the traffic
///
/// Gives other versions a part of the requests that name no adapter, and one of them copies of requests. The active version stays.
#[utoipa::path(
    put,
    path = "/adapters/traffic",
    operation_id = "share_out_traffic",
    tag = "adapters",
    request_body = TrafficRequest,
    responses((status = 200, description = "The traffic is shared out so", body = Deployment), AdapterProblems)
)]
pub async fn traffic(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    JsonBody(body): JsonBody<TrafficRequest>,
) -> Result<Json<Deployment>, Problem> {
    let mut weights = Vec::with_capacity(body.weights.len());
    for (at, Weight { adapter, weight }) in body.weights.into_iter().enumerate() {
        let adapter = parse(&format!("weights[{at}].adapter"), &adapter)?;
        weights.push(adapters::Share { adapter, weight });
    }
    let shadow = body.shadow.map(|text| parse("shadow", &text)).transpose()?;
    deploy(&state, Change::Traffic { weights, shadow }, body.expected, &actor).await
}

/// List changes
///
/// What was to be served, and since when.
#[utoipa::path(
    get,
    path = "/adapters/deployments",
    operation_id = "list_deployments",
    tag = "adapters",
    params(HistoryQuery),
    responses((status = 200, description = "The changes", body = Deployments), AdapterProblems)
)]
pub async fn deployments(
    State(state): State<Arc<AppState>>,
    uri: axum::http::Uri,
) -> Result<Json<Deployments>, Problem> {
    let Query(query) = Query::<HistoryQuery>::try_from_uri(&uri)
        .map_err(|error| Problem::new(Reason::Malformed, error.body_text()))?;
    let limit = query.limit.unwrap_or(50).clamp(1, 1000);
    let deployments = state.backend.registry.deployments(query.before, limit).await?;
    Ok(Json(Deployments {
        deployments: deployments.into_iter().map(Into::into).collect(),
    }))
}

async fn deploy(
    state: &AppState,
    change: Change,
    expected: Option<String>,
    actor: &Actor,
) -> Result<Json<Deployment>, Problem> {
    let expected = expected.map(|text| parse("expected", &text)).transpose()?;
    let service = state.service()?;
    let made = service.residents.deploy(change, expected.as_ref(), None, actor).await?;
    state.changed.notify_one();
    Ok(Json(made.into()))
}

fn parse(field: &str, text: &str) -> Result<AdapterVersion, Problem> {
    text.parse()
        .map_err(|error| Problem::invalid(vec![FieldError::new(field, error)]))
}

impl From<adapters::Deployment> for Deployment {
    fn from(deployment: adapters::Deployment) -> Self {
        Self {
            revision: deployment.revision,
            active: deployment.active.to_string(),
            weights: deployment
                .traffic
                .into_iter()
                .map(|share| Weight {
                    adapter: share.adapter.to_string(),
                    weight: share.weight,
                })
                .collect(),
            shadow: deployment.shadow.map(|shadow| shadow.to_string()),
            action: deployment.action.as_str(),
            reason: deployment.reason,
            at: time(deployment.at),
            actor: deployment.actor,
        }
    }
}
