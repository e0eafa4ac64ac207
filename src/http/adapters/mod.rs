//! `GET /adapters`, `GET`/`DELETE /adapters/{name}/{version}`, its pin: what there is.
//!
//! `import`: where versions come from; `deploy`: which of them is served; `compare`: how they compare; `problems`: what can go wrong.

pub mod compare;
pub mod deploy;
pub mod import;
mod problems;

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    path::InPath,
    problem::{Problem, Reason},
    state::AppState,
};
use crate::{
    access::Actor,
    adapters::{About, AdapterRef, AdapterVersion, RegistryError, Replica, Residents, VersionRecord, write_archive},
};

use self::{deploy::Deployment, problems::AdapterProblems};

/// A version of an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub struct Adapter {
    /// `name@version`.
    #[schema(example = "default@1")]
    pub adapter: String,
    /// The name.
    #[schema(example = "default")]
    pub name: String,
    /// The version's number; a deleted one's is not given again.
    #[schema(example = 1)]
    pub version: u32,
    /// What it is in memory for in the process that answers.
    pub state: AdapterState,
    /// Its share, 0 to 1, of the requests that name no adapter.
    #[schema(example = 1.0)]
    pub weight: f64,
    /// Requests that hold it now.
    pub leases: usize,
    /// Memory it takes.
    pub resident_bytes: u64,
    /// SHA-256 over its configuration and weights.
    pub sha256: String,
    /// Size of its files.
    pub bytes: u64,
    /// LoRA rank.
    #[schema(example = 16)]
    pub rank: usize,
    /// Base model.
    #[schema(example = "smollm2-135m")]
    pub base: String,
    /// What tells the base model from others.
    pub base_fingerprint: String,
    /// `shipped` with the program, `import`ed, or made by a `job`.
    #[schema(example = "shipped")]
    pub source: &'static str,
    /// The job that made it.
    pub job: Option<String>,
    /// The dataset it was trained on.
    pub dataset: Option<String>,
    /// SHA-256 of the dataset.
    pub dataset_sha256: Option<String>,
    /// How it was trained.
    #[schema(value_type = Option<Object>)]
    pub hyperparameters: Option<serde_json::Value>,
    /// How it was measured.
    #[schema(value_type = Option<Object>)]
    pub metrics: Option<serde_json::Value>,
    /// Whether it is kept from being deleted.
    pub pinned: bool,
    /// When it was registered.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// Who registered it: a key's id, or a part of the program.
    pub created_by: String,
}

/// What a version is in memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdapterState {
    /// Requests get it that name no adapter.
    Active,
    /// A part of them gets it.
    Traffic,
    /// It gets copies of requests, whose answers nobody sees.
    Shadow,
    /// It is there because a request named it.
    Loaded,
    /// Running requests still hold it; it goes with the last of them.
    Retired,
    /// It is not in memory.
    Registered,
}

/// All versions, what is served, and by whom.
#[derive(Debug, Serialize, ToSchema)]
pub struct Adapters {
    /// Newest first.
    pub adapters: Vec<Adapter>,
    /// What is to be served; null before the first start.
    pub deployment: Option<Deployment>,
    /// The processes that serve.
    pub replicas: Vec<ReplicaState>,
    /// Memory that adapters take in the process that answers.
    pub memory: Memory,
}

/// A serving process.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplicaState {
    /// New at each start.
    pub id: String,
    /// The model it runs.
    #[schema(example = "smollm2-135m")]
    pub base: String,
    /// Revision of the deployment that it is to serve.
    pub desired: i64,
    /// Revision of the deployment that it serves.
    pub observed: i64,
    /// The version that its new requests get.
    #[schema(example = "default@1")]
    pub active: String,
    /// Why it can't follow further.
    pub error: Option<String>,
    /// When it was last heard of; at the latest every half minute.
    #[schema(format = DateTime)]
    pub seen_at: String,
}

/// Memory that adapters take.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Memory {
    /// Versions in memory or being loaded.
    pub versions: usize,
    /// Most versions.
    pub max_versions: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Most bytes.
    pub max_bytes: u64,
}

/// List adapters
///
/// All versions with what they are in memory for, what is to be served, and what each process serves.
#[utoipa::path(
    get,
    path = "/adapters",
    operation_id = "list_adapters",
    tag = "adapters",
    responses((status = 200, description = "What there is", body = Adapters), AdapterProblems)
)]
pub async fn list(State(state): State<Arc<AppState>>) -> Result<Json<Adapters>, Problem> {
    let registry = &state.backend.registry;
    let (records, deployment) = (registry.list().await?, registry.deployment().await?);
    let replicas = registry.replicas().await?;
    let residents = state.service().ok().map(|service| &*service.residents);
    let desired = deployment.as_ref().map_or(0, |deployment| deployment.revision);
    Ok(Json(Adapters {
        adapters: records
            .into_iter()
            .map(|record| Adapter::new(record, residents))
            .collect(),
        deployment: deployment.map(Into::into),
        replicas: replicas
            .into_iter()
            .map(|replica| ReplicaState::new(replica, desired))
            .collect(),
        memory: residents.map_or_else(Memory::default, Memory::of),
    }))
}

/// Look at a version
#[utoipa::path(
    get,
    path = "/adapters/{name}/{version}",
    operation_id = "show_adapter",
    tag = "adapters",
    params(("name" = String, Path, example = "default"), ("version" = u32, Path, example = 1)),
    responses((status = 200, description = "The version", body = Adapter), AdapterProblems)
)]
pub async fn get(
    State(state): State<Arc<AppState>>,
    InPath(path): InPath<VersionPath>,
) -> Result<Json<Adapter>, Problem> {
    let record = find(&state, &version(path)?).await?;
    let residents = state.service().ok().map(|service| &*service.residents);
    Ok(Json(Adapter::new(record, residents)))
}

/// Delete a version
///
/// Refused while it is deployed or pinned. Its number is not given again; running requests finish on it.
#[utoipa::path(
    delete,
    path = "/adapters/{name}/{version}",
    operation_id = "delete_adapter",
    tag = "adapters",
    params(("name" = String, Path, example = "default"), ("version" = u32, Path, example = 1)),
    responses((status = 204, description = "It is gone"), AdapterProblems)
)]
pub async fn delete(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(path): InPath<VersionPath>,
) -> Result<StatusCode, Problem> {
    let version = version(path)?;
    state.backend.registry.delete(&version, &actor).await?;
    if let Ok(service) = state.service() {
        service.residents.forget(&version);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Pin a version
///
/// A pinned version can't be deleted.
#[utoipa::path(
    put,
    path = "/adapters/{name}/{version}/pin",
    operation_id = "pin_adapter",
    tag = "adapters",
    params(("name" = String, Path, example = "default"), ("version" = u32, Path, example = 1)),
    responses((status = 204, description = "It is pinned"), AdapterProblems)
)]
pub async fn pin(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(path): InPath<VersionPath>,
) -> Result<StatusCode, Problem> {
    state.backend.registry.pin(&version(path)?, true, &actor).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Unpin a version
#[utoipa::path(
    delete,
    path = "/adapters/{name}/{version}/pin",
    operation_id = "unpin_adapter",
    tag = "adapters",
    params(("name" = String, Path, example = "default"), ("version" = u32, Path, example = 1)),
    responses((status = 204, description = "It is pinned no longer"), AdapterProblems)
)]
pub async fn unpin(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(path): InPath<VersionPath>,
) -> Result<StatusCode, Problem> {
    state.backend.registry.pin(&version(path)?, false, &actor).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Export a version
///
/// A `tar.gz` with the two files of PEFT's layout, and `detoxd.json`, which says where it comes from. `POST /adapters` takes it.
#[utoipa::path(
    get,
    path = "/adapters/{name}/{version}/archive",
    operation_id = "export_adapter",
    tag = "adapters",
    params(("name" = String, Path, example = "default"), ("version" = u32, Path, example = 1)),
    responses(
        (status = 200, description = "The archive", body = Vec<u8>, content_type = "application/gzip"),
        AdapterProblems
    )
)]
pub async fn archive(
    State(state): State<Arc<AppState>>,
    InPath(path): InPath<VersionPath>,
) -> Result<Response, Problem> {
    let version = version(path)?;
    let record = find(&state, &version).await?;
    let files = state.backend.registry.files(&version).await?;
    let folder = format!("{}-{}", version.name(), version.number());
    let disposition = format!("attachment; filename=\"{folder}.tar.gz\"");
    let about = About {
        adapter: version.to_string(),
        sha256: record.sha256,
        base: record.base,
        base_fingerprint: record.base_fingerprint,
    };
    let written = tokio::task::spawn_blocking(move || write_archive(&folder, &files, &about)).await;
    let bytes = written
        .map_err(std::io::Error::other)
        .and_then(|written| written)
        .map_err(|error| {
            tracing::error!(%version, %error, "an archive can't be written");
            Problem::internal()
        })?;
    let mut response = ([(header::CONTENT_TYPE, "application/gzip")], bytes).into_response();
    if let Ok(value) = HeaderValue::from_str(&disposition) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Name and number as they stand in a path.
type VersionPath = (String, String);

/// A version of a path; what can't be one is not there.
fn version((name, number): VersionPath) -> Result<AdapterVersion, Problem> {
    let text = format!("{name}@{number}");
    let wanted: Option<AdapterRef> = text.parse().ok();
    wanted
        .and_then(|wanted| wanted.version())
        .ok_or_else(|| Problem::new(Reason::NotFound, "there is no such version of an adapter"))
}

async fn find(state: &AppState, version: &AdapterVersion) -> Result<VersionRecord, Problem> {
    let record = state.backend.registry.get(version).await?;
    record.ok_or_else(|| RegistryError::unknown(version).into())
}

/// A moment in UTC, as RFC 3339 has it.
fn time(milliseconds: i64) -> String {
    DateTime::from_timestamp_millis(milliseconds)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Adapter {
    fn new(record: VersionRecord, residents: Option<&Residents>) -> Self {
        let version = &record.version;
        let in_memory =
            residents.and_then(|residents| residents.list().into_iter().find(|one| one.version == *version));
        Self {
            adapter: version.to_string(),
            name: version.name().to_owned(),
            version: version.number(),
            state: in_memory
                .as_ref()
                .map_or(AdapterState::Registered, |one| one.state.into()),
            weight: residents.map_or(0.0, |residents| residents.weight(version)),
            leases: in_memory.as_ref().map_or(0, |one| one.leases),
            resident_bytes: in_memory.as_ref().map_or(0, |one| one.bytes),
            sha256: record.sha256,
            bytes: record.bytes,
            rank: record.rank,
            base: record.base,
            base_fingerprint: record.base_fingerprint,
            source: record.source.as_str(),
            job: record.job,
            dataset: record.dataset,
            dataset_sha256: record.dataset_sha256,
            hyperparameters: record.hyperparameters,
            metrics: record.metrics,
            pinned: record.pinned,
            created_at: time(record.created_at),
            created_by: record.created_by,
        }
    }
}

impl From<crate::adapters::Use> for AdapterState {
    fn from(state: crate::adapters::Use) -> Self {
        use crate::adapters::Use;
        match state {
            Use::Active => Self::Active,
            Use::Traffic => Self::Traffic,
            Use::Shadow => Self::Shadow,
            Use::Loaded => Self::Loaded,
            Use::Retired => Self::Retired,
        }
    }
}

impl ReplicaState {
    fn new(replica: Replica, desired: i64) -> Self {
        Self {
            id: replica.id,
            base: replica.base,
            desired,
            observed: replica.revision,
            active: replica.active.to_string(),
            error: replica.error,
            seen_at: time(replica.seen_at),
        }
    }
}

impl Memory {
    fn of(residents: &Residents) -> Self {
        let (usage, budget) = (residents.usage(), residents.budget());
        Self {
            versions: usage.count,
            max_versions: budget.max_resident,
            bytes: usage.bytes,
            max_bytes: budget.max_bytes,
        }
    }
}
