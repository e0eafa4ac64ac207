//! `POST /adapters`: a version from a folder, a repository of a hub, or an archive.

use std::{
    io::BufReader,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{FromRequest, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_core::Stream;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use utoipa::{IntoParams, ToSchema};

use super::{
    Adapter, find,
    problems::{AdapterProblems, not_imported, refused},
};
use crate::{
    access::Actor,
    adapters::{AdapterRef, ImportError, Imported, Incoming, NewVersion, Source},
    http::{
        body::JsonBody,
        limits::until,
        problem::{FieldError, Problem, Reason},
        state::AppState,
    },
    model::catalogue::Network,
};

/// Longest name of an adapter.
const MAX_NAME: usize = 100;

/// Where an adapter is. Exactly one of `path` and `hub` is given.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "polite", "path": "polite-3" }))]
pub struct ImportRequest {
    /// Name that the version gets: letters, digits, `-`, `_` and `.`.
    #[schema(example = "polite", max_length = 100)]
    name: String,
    /// A folder in PEFT's layout on the machine of the service, below its `import_dir`.
    path: Option<String>,
    /// A repository of a model hub, `owner/name` or `owner/name@revision`.
    hub: Option<String>,
}

/// Name for an archive.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// Name that the version gets, with a body of `application/gzip`.
    #[param(example = "polite")]
    name: Option<String>,
}

/// Import an adapter
///
/// From a folder in PEFT's layout or a repository of a hub, named in JSON; or from a `tar.gz` in the body, with its name in the query.
/// It is loaded once to see that it fits the model; what can't be computed exactly is refused by name. Importing the same files under
/// the same name again gives the version that is there.
#[utoipa::path(
    post,
    path = "/adapters",
    operation_id = "import_adapter",
    tag = "adapters",
    params(ImportQuery),
    request_body(content(
        (ImportRequest = "application/json"),
        (Vec<u8> = "application/gzip"),
    )),
    responses(
        (
            status = 201,
            description = "A new version",
            body = Adapter,
            headers(("Location" = String, description = "Its path"))
        ),
        (status = 200, description = "The name has a version with these files already", body = Adapter),
        AdapterProblems
    )
)]
pub async fn import(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Response, Problem> {
    let service = state.service()?;
    let loader = service
        .residents
        .loader()
        .ok_or_else(|| Problem::new(Reason::Conflict, "this process serves one adapter for good"))?;
    let (name, field, source) = if is_gzip(request.headers()) {
        let Query(query) = Query::<ImportQuery>::try_from_uri(request.uri())
            .map_err(|error| Problem::new(Reason::Malformed, error.body_text()))?;
        let name = query.name.ok_or_else(|| {
            Problem::invalid(vec![FieldError::new(
                "name",
                "is missing; give it in the query, ?name=…",
            )])
        })?;
        let name = checked(name)?;
        let limit = state.backend.imports.max_bytes;
        let file = spooled(request.into_body(), limit, state.limits.timeout).await?;
        (name, "body", From::Archive(file))
    } else {
        let JsonBody(request) = JsonBody::<ImportRequest>::from_request(request, &state).await?;
        let name = checked(request.name)?;
        match (request.path, request.hub) {
            (Some(path), None) => (name, "path", From::Path(path.into())),
            (None, Some(hub)) => (name, "hub", From::Hub(hub)),
            _ => {
                let detail = "give exactly one of `path` and `hub`";
                return Err(Problem::invalid(vec![FieldError::new("path", detail)]));
            }
        }
    };
    let deadline = Instant::now() + source.patience(state.limits.timeout);
    // One at a time: each is in memory as a whole.
    let turn = until(deadline, async { Ok(Arc::clone(&state.importing).lock_owned().await) }).await?;
    let limits = state.backend.imports.clone();
    let reading = tokio::task::spawn_blocking(move || source.read(&limits));
    let incoming = until(deadline, async { reading.await.map_err(|_| Problem::internal()) })
        .await?
        .map_err(|error| not_imported(field, &error))?;
    let fingerprint = incoming.about.as_ref().map(|about| about.base_fingerprint.as_str());
    let claim = until(deadline, async { Ok(loader.check(&incoming.files, fingerprint).await) })
        .await?
        .map_err(|error| refused(field, &error))?;
    let new = NewVersion {
        name,
        sha256: incoming.files.sha256(),
        bytes: incoming.files.bytes(),
        rank: claim.rank,
        base: loader.base().name.clone(),
        base_fingerprint: loader.base().fingerprint.clone(),
        source: Source::Import,
        job: None,
        dataset: None,
        dataset_sha256: None,
        hyperparameters: None,
        metrics: None,
    };
    let imported = state.backend.registry.import(&incoming.files, &new, &actor).await?;
    drop(turn);
    let version = imported.version();
    let adapter = Adapter::new(find(&state, version).await?, Some(&service.residents));
    let location = format!("/adapters/{}/{}", version.name(), version.number());
    Ok(match imported {
        Imported::New(_) => (StatusCode::CREATED, [(header::LOCATION, location)], Json(adapter)).into_response(),
        Imported::Same(_) => Json(adapter).into_response(),
    })
}

/// Where an adapter comes from.
enum From {
    Path(PathBuf),
    Hub(String),
    Archive(std::fs::File),
}

impl From {
    fn read(self, limits: &crate::adapters::ImportLimits) -> Result<Incoming, ImportError> {
        match self {
            Self::Path(path) => Incoming::from_import_dir(&path, limits),
            Self::Hub(repository) => Incoming::from_hub(&repository, &Network::from_env(), limits),
            Self::Archive(file) => Incoming::from_archive(BufReader::new(file), limits),
        }
    }

    /// A hub is far away.
    fn patience(&self, timeout: Duration) -> Duration {
        match self {
            Self::Hub(_) => timeout.max(Duration::from_secs(600)),
            Self::Path(_) | Self::Archive(_) => timeout.max(Duration::from_secs(60)),
        }
    }
}

fn checked(name: String) -> Result<String, Problem> {
    let wrong = |detail: &str| Problem::invalid(vec![FieldError::new("name", detail)]);
    match name.parse::<AdapterRef>() {
        Ok(wanted) if wanted.version().is_none() => {}
        _ => return Err(wrong("must be of letters, digits, `-`, `_` and `.`")),
    }
    if name.len() > MAX_NAME {
        return Err(wrong("must have at most 100 characters"));
    }
    if name == "none" {
        return Err(wrong("`none` is the bare base model"));
    }
    Ok(name)
}

fn is_gzip(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| matches!(value.trim(), "application/gzip" | "application/x-gzip"))
}

/// A body in a temporary file, which is gone when it is closed. A client that sends nothing for `patience` is given up.
async fn spooled(body: Body, max_bytes: u64, patience: Duration) -> Result<std::fs::File, Problem> {
    // What is packed is hardly larger than what is in it.
    let limit = max_bytes.saturating_add(1 << 20);
    let failed = |error: std::io::Error| {
        tracing::error!(%error, "an upload can't be kept");
        Problem::internal()
    };
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(failed)?);
    let mut stream = body.into_data_stream();
    let mut bytes = 0u64;
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut stream).poll_next(context));
        let chunk = tokio::time::timeout(patience, next)
            .await
            .map_err(|_| Problem::new(Reason::SlowBody, "the body did not arrive in time"))?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|_| Problem::new(Reason::Malformed, "the body ended early"))?;
        bytes += chunk.len() as u64;
        if bytes > limit {
            let detail = format!("the body is larger than {limit} bytes");
            return Err(Problem::new(Reason::TooLarge, detail));
        }
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let mut file = file.into_std().await;
    std::io::Seek::rewind(&mut file).map_err(failed)?;
    Ok(file)
}
