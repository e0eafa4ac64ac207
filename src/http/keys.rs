//! `/keys`: who may do what.

use std::sync::Arc;

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    body::JsonBody,
    fields::Fields,
    paging::{Parameters, time},
    path::InPath,
    problem::{KeptProblems, OneKeptProblems, Problem, Reason},
    state::AppState,
};
use crate::access::{Actor, KeyError, KeyRecord, Scope};

const MAX_NAME_CHARS: usize = 128;

/// What a key is good for. Each holds those before it: `use` for texts, `train` for datasets, jobs and looking at adapters,
/// `admin` for changing what is served, for keys and for the audit.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ScopeName {
    Use,
    Train,
    Admin,
}

/// A key to be made.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "name": "chat frontend", "scope": "use" }))]
#[allow(dead_code, reason = "what `new_key` reads, for the OpenAPI document")]
pub struct NewKey {
    /// What it is for.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// What it is good for.
    scope: ScopeName,
}

/// A key. The key itself is not kept.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyAnswer {
    /// What the audit calls whoever uses it.
    id: String,
    /// What it is for.
    name: String,
    /// What it is good for.
    scope: ScopeName,
    /// When it was made.
    #[schema(format = "date-time")]
    created_at: String,
    /// Who made it: the id of a key, `anonymous` or `cli`.
    created_by: String,
    /// When it was revoked, if it was.
    #[schema(format = "date-time")]
    revoked_at: Option<String>,
}

/// A new key, with the key itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreatedKey {
    /// The key. It can't be shown again.
    #[schema(example = "dtx_0123456789ABCDEFGHIJKLMNOPQRSTUV")]
    key: String,
    /// What is kept of it.
    #[serde(flatten)]
    record: KeyAnswer,
}

/// Keys, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyList {
    /// The keys of this page, revoked ones among them.
    keys: Vec<KeyAnswer>,
    /// `before` of the next page, when there is one.
    next: Option<String>,
}

impl From<Scope> for ScopeName {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Use => Self::Use,
            Scope::Train => Self::Train,
            Scope::Admin => Self::Admin,
        }
    }
}

impl From<KeyRecord> for KeyAnswer {
    fn from(key: KeyRecord) -> Self {
        Self {
            id: key.id,
            name: key.name,
            scope: key.scope.into(),
            created_at: time(key.created_at),
            created_by: key.created_by,
            revoked_at: key.revoked_at.map(time),
        }
    }
}

/// Make a key
///
/// The answer is the only place where the key itself ever stands.
#[utoipa::path(
    post,
    path = "/keys",
    tag = "access",
    request_body = NewKey,
    responses(
        (status = 201, description = "Made", body = CreatedKey),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not declared as JSON", body = Problem, content_type = "application/problem+json"),
        KeptProblems,
    )
)]
pub async fn create(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    JsonBody(body): JsonBody<Value>,
) -> Result<(StatusCode, Json<CreatedKey>), Problem> {
    let (name, scope) = new_key(Fields::of(body)?)?;
    let (record, secret) = state.backend.keys.create(&name, scope, &actor).await?;
    let created = CreatedKey {
        key: secret.expose().to_owned(),
        record: record.into(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

fn new_key(mut fields: Fields) -> Result<(String, Scope), Problem> {
    let name = fields.text("name");
    if let Some(name) = &name {
        let chars = name.chars().count();
        if !(1..=MAX_NAME_CHARS).contains(&chars) || name.chars().any(char::is_control) {
            let detail = format!("must have 1 to {MAX_NAME_CHARS} characters, none of them control characters");
            fields.error("name", detail);
        }
    }
    let name = fields.required("name", name);
    let word = fields.word("scope", &Scope::ALL.map(Scope::as_str));
    let scope = fields.required("scope", word.and_then(|word| word.parse().ok()));
    fields.finish(name.zip(scope))
}

/// List keys
#[utoipa::path(
    get,
    path = "/keys",
    tag = "access",
    params(
        ("before" = Option<String>, Query, description = "Older than this one: `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Most of a page; 50 without it"),
    ),
    responses((status = 200, description = "A page of them", body = KeyList), KeptProblems)
)]
pub async fn list(State(state): State<Arc<AppState>>, parameters: Parameters) -> Result<Json<KeyList>, Problem> {
    let page = parameters.only_page()?;
    let keys = &state.backend.keys;
    let mut found = keys.list(page.before.as_deref(), page.look_ahead()).await?;
    let next = page.cut(&mut found, |key| &key.id);
    Ok(Json(KeyList {
        keys: found.into_iter().map(Into::into).collect(),
        next,
    }))
}

/// Revoke a key
///
/// It stops working here at once, on other replicas within two seconds. That it was revoked already is fine.
#[utoipa::path(
    delete,
    path = "/keys/{id}",
    tag = "access",
    params(("id" = String, Path, description = "Of the key")),
    responses((status = 200, description = "Revoked", body = KeyAnswer), OneKeptProblems)
)]
pub async fn revoke(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    InPath(id): InPath<String>,
) -> Result<Json<KeyAnswer>, Problem> {
    Ok(Json(state.backend.keys.revoke(&id, &actor).await?.into()))
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Db(error) => error.into(),
            KeyError::NotFound { .. } => Self::new(Reason::NotFound, "there is no key of this id"),
            KeyError::Generator(_) => {
                tracing::error!(%error, "no key can be made");
                Self::internal()
            }
        }
    }
}
