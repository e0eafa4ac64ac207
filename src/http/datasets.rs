//! `/datasets`: training data.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    body::{Incoming, declared_length},
    paging::{Parameters, time},
    path::InPath,
    problem::{FieldError, KeptProblems, OneKeptProblems, Problem, Reason},
    state::AppState,
};
use crate::{
    access::Actor,
    datasets::{Dataset, DatasetError, Upload, Uploaded},
};

const MAX_NAME_CHARS: usize = 128;

/// A dataset.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "01932b7e-6d0b-7c54-a5b0-0e6c6d3f7a10",
    "name": "paradetox-train",
    "rows": 11927,
    "bytes": 2418331,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "created_at": "2026-11-24T10:00:00.000Z",
    "created_by": "anonymous"
}))]
pub struct DatasetAnswer {
    /// What `POST /train` calls it.
    id: String,
    /// What it was called when it was uploaded.
    name: Option<String>,
    /// Examples: lines that are not blank.
    rows: u64,
    /// Its size.
    bytes: u64,
    /// Of its bytes, in hexadecimal.
    sha256: String,
    /// When it was uploaded.
    #[schema(format = "date-time")]
    created_at: String,
    /// Who uploaded it: the id of a key, or `anonymous`.
    created_by: String,
}

/// Datasets, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct DatasetList {
    /// The datasets of this page.
    datasets: Vec<DatasetAnswer>,
    /// `before` of the next page, when there is one.
    next: Option<String>,
}

impl From<Dataset> for DatasetAnswer {
    fn from(dataset: Dataset) -> Self {
        Self {
            id: dataset.id,
            name: dataset.name,
            rows: dataset.examples,
            bytes: dataset.bytes,
            sha256: dataset.sha256,
            created_at: time(dataset.created_at),
            created_by: dataset.created_by,
        }
    }
}

/// Upload training data
///
/// JSON lines, one example each: `{"anchor", "positives", "negatives"}`, `{"toxic", "neutral"}` or
/// `{"input", "paraphrases", "paraphrases_toxic"}`. Lines are checked while they arrive; bad ones are named by their numbers
/// (`errors[].field` is `line 17`), the first twenty of them, and then nothing is kept. The same bytes are kept once: sent again, they answer
/// 200 with the dataset that is there.
#[utoipa::path(
    post,
    path = "/datasets",
    tag = "training",
    params(("name" = Option<String>, Query, max_length = 128, description = "What to call it")),
    request_body(
        content = String,
        content_type = "application/x-ndjson",
        example = "{\"toxic\": \"You idiot, read page 3.\", \"neutral\": [\"Please read page 3.\"]}\n"
    ),
    responses(
        (
            status = 201,
            description = "Kept",
            body = DatasetAnswer,
            headers(("Location" = String, description = "`/datasets/{id}`"))
        ),
        (status = 200, description = "The same bytes were there already", body = DatasetAnswer),
        (status = 400, description = "The body ended early", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large; `detail` has both figures", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not declared as `application/x-ndjson`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Others are being uploaded", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full", body = Problem, content_type = "application/problem+json"),
        KeptProblems,
    )
)]
pub async fn upload(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name = name(parameters)?;
    if !is_lines(&headers) {
        return Err(Problem::new(
            Reason::UnsupportedMediaType,
            "send JSON lines with `Content-Type: application/x-ndjson`, not compressed",
        ));
    }
    let backend = &state.backend;
    let mut incoming = Incoming::new(&headers, body, state.limits.timeout);
    let begun = backend
        .datasets
        .begin(name, declared_length(&headers), backend.max_dataset_bytes)
        .await;
    let received = match begun {
        Ok(upload) => receive(&mut incoming, upload).await,
        Err(error) => Err(error.into()),
    };
    let upload = match received {
        Ok(upload) => upload,
        Err(problem) => {
            incoming.linger();
            return Err(problem);
        }
    };
    Ok(match upload.finish(&actor).await? {
        Uploaded::New(dataset) => {
            let location = [(header::LOCATION, format!("/datasets/{}", dataset.id))];
            (StatusCode::CREATED, location, Json(DatasetAnswer::from(dataset))).into_response()
        }
        Uploaded::Same(dataset) => Json(DatasetAnswer::from(dataset)).into_response(),
    })
}

async fn receive(incoming: &mut Incoming, mut upload: Upload) -> Result<Upload, Problem> {
    while let Some(bytes) = incoming.next().await? {
        upload.write(&bytes).await?;
    }
    Ok(upload)
}

fn name(mut parameters: Parameters) -> Result<Option<String>, Problem> {
    let name = parameters.text("name");
    if let Some(name) = &name {
        let chars = name.chars().count();
        if !(1..=MAX_NAME_CHARS).contains(&chars) || name.chars().any(char::is_control) {
            let detail = format!("must have 1 to {MAX_NAME_CHARS} characters, none of them control characters");
            parameters.error("name", detail);
        }
    }
    parameters.finish()?;
    Ok(name)
}

fn is_lines(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let essence = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next());
    let lines = ["application/x-ndjson", "application/jsonl", "application/x-jsonlines"];
    let plain = text(header::CONTENT_ENCODING).is_none_or(|encoding| encoding.eq_ignore_ascii_case("identity"));
    plain && essence.is_some_and(|essence| lines.iter().any(|kind| essence.trim().eq_ignore_ascii_case(kind)))
}

/// List training data
#[utoipa::path(
    get,
    path = "/datasets",
    tag = "training",
    params(
        ("before" = Option<String>, Query, description = "Older than this one: `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Most of a page; 50 without it"),
    ),
    responses((status = 200, description = "A page of them", body = DatasetList), KeptProblems)
)]
pub async fn list(State(state): State<Arc<AppState>>, parameters: Parameters) -> Result<Json<DatasetList>, Problem> {
    let page = parameters.only_page()?;
    let datasets = &state.backend.datasets;
    let mut found = datasets.list(page.before.as_deref(), page.look_ahead()).await?;
    let next = page.cut(&mut found, |dataset| &dataset.id);
    Ok(Json(DatasetList {
        datasets: found.into_iter().map(Into::into).collect(),
        next,
    }))
}

/// Look at training data
#[utoipa::path(
    get,
    path = "/datasets/{id}",
    tag = "training",
    params(("id" = String, Path, description = "Of the dataset")),
    responses((status = 200, description = "The dataset", body = DatasetAnswer), OneKeptProblems)
)]
pub async fn show(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath<String>,
) -> Result<Json<DatasetAnswer>, Problem> {
    let found = state.backend.datasets.get(&id).await?;
    let dataset = found.ok_or_else(|| Problem::from(DatasetError::NotFound { id }))?;
    Ok(Json(dataset.into()))
}

/// Delete training data
///
/// Not while a job that is queued or running needs it. Finished jobs keep its id.
#[utoipa::path(
    delete,
    path = "/datasets/{id}",
    tag = "training",
    params(("id" = String, Path, description = "Of the dataset")),
    responses(
        (status = 204, description = "Gone"),
        (
            status = 409,
            description = "A job that is not finished needs it",
            body = Problem,
            content_type = "application/problem+json"
        ),
        OneKeptProblems,
    )
)]
pub async fn delete(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(id): InPath<String>,
) -> Result<StatusCode, Problem> {
    state.backend.datasets.delete(&id, &actor).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<DatasetError> for Problem {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::Db(error) => error.into(),
            DatasetError::Store(error) => error.into(),
            DatasetError::DiskFull => Self::storage_full(),
            DatasetError::NotFound { .. } => Self::new(Reason::NotFound, "there is no dataset of this id"),
            DatasetError::InUse { .. } => Self::new(Reason::Conflict, error.to_string()),
            DatasetError::TooLarge { .. } => Self::new(Reason::TooLarge, error.to_string()),
            DatasetError::Busy => Self::new(Reason::Busy, error.to_string()),
            DatasetError::Empty => Self::invalid(vec![FieldError::new("line 1", "there is not one example")]),
            DatasetError::BadLines { lines } => Self::invalid(
                lines
                    .into_iter()
                    .map(|bad| FieldError::new(format!("line {}", bad.number), bad.reason))
                    .collect(),
            ),
            DatasetError::Damaged { .. } | DatasetError::File(_) => {
                tracing::error!(%error, "a dataset can't be kept or had");
                Self::internal()
            }
        }
    }
}
