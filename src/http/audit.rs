//! `GET /audit`: who did what to which, and when.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    paging::{Parameters, time},
    problem::{KeptProblems, Problem},
    state::AppState,
};
use crate::access::Act;

/// Something that was done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "01932b7e-6d0b-7c54-a5b0-0e6c6d3f7a10",
    "at": "2026-11-24T10:00:00.000Z",
    "actor": "01932b7d-0000-7000-8000-000000000001",
    "action": "adapter.activate",
    "subject": "milder@3",
    "detail": null
}))]
pub struct ActAnswer {
    /// Of this act; sorts by time.
    id: String,
    /// When.
    #[schema(format = "date-time")]
    at: String,
    /// Who: the id of a key, or `anonymous`, `worker`, `cli`, `start`.
    actor: String,
    /// What was done: the kind of thing and a verb.
    action: String,
    /// To which: an id or `name@version`.
    subject: String,
    /// What else there is to say. Never a text of a user.
    detail: Option<String>,
}

/// Acts, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct ActList {
    /// The acts of this page.
    acts: Vec<ActAnswer>,
    /// `before` of the next page, when there is one.
    next: Option<String>,
}

impl From<Act> for ActAnswer {
    fn from(act: Act) -> Self {
        Self {
            id: act.id,
            at: time(act.at),
            actor: act.actor,
            action: act.action,
            subject: act.subject,
            detail: act.detail,
        }
    }
}

/// Read the audit
///
/// Everything that changed something: uploads, jobs, activations, keys.
#[utoipa::path(
    get,
    path = "/audit",
    tag = "access",
    params(
        ("before" = Option<String>, Query, description = "Older than this one: `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Most of a page; 50 without it"),
    ),
    responses((status = 200, description = "A page of it", body = ActList), KeptProblems)
)]
pub async fn list(State(state): State<Arc<AppState>>, parameters: Parameters) -> Result<Json<ActList>, Problem> {
    let page = parameters.only_page()?;
    let audit = &state.backend.audit;
    let mut found = audit.list(page.before.as_deref(), page.look_ahead()).await?;
    let next = page.cut(&mut found, |act| &act.id);
    Ok(Json(ActList {
        acts: found.into_iter().map(Into::into).collect(),
        next,
    }))
}
