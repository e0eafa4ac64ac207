//! What can go wrong with adapters, as problems.

use crate::adapters::{CanaryError, DeployError, ImportError, LeaseError, LoadError, NoRoom, RegistryError};
use crate::http::problem::{FieldError, Problem, Reason};

/// The problems of routes about adapters, for the OpenAPI document.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "read by the derive only")]
pub enum AdapterProblems {
    /// A key is needed.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(Problem),
    /// The key is not good for this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// There is no such version.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// Another version is active than expected, or this one is in use; `detail` says which.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Problem),
    /// A field is wrong, or the adapter is no good; `detail` says why.
    #[response(status = 422, content_type = "application/problem+json")]
    InvalidRequest(Problem),
    /// Another adapter is being loaded; see `Retry-After`.
    #[response(
        status = 429,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait"))
    )]
    Busy(Problem),
    /// The database or the store can't be reached, the model is not loaded yet, or there is no room; see `Retry-After`.
    #[response(
        status = 503,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait"))
    )]
    Unavailable(Problem),
}

fn about_adapter(detail: impl ToString) -> Problem {
    Problem::invalid(vec![FieldError::new("adapter", detail)])
}

/// A version that can't be loaded; `context` is the whole sentence about it.
fn not_loaded(error: &LoadError, context: String) -> Problem {
    match error {
        LoadError::Busy => Problem::new(Reason::Busy, context),
        error if error.is_refusal() => about_adapter(context),
        LoadError::NoRoom(NoRoom::InUse { .. }) | LoadError::Canary(CanaryError::NotTried(_)) => {
            Problem::new(Reason::Overloaded, context)
        }
        LoadError::Registry(RegistryError::Db(_) | RegistryError::Store(_)) => {
            tracing::error!(%error, "an adapter can't be fetched");
            Problem::new(
                Reason::StorageUnavailable,
                "the database or the store can't be reached; nothing was changed",
            )
        }
        error => {
            tracing::error!(%error, "an adapter can't be loaded");
            Problem::internal()
        }
    }
}

impl From<LeaseError> for Problem {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Unknown(error) => error.into(),
            LeaseError::Db(error) => error.into(),
            LeaseError::Load { ref reason, .. } => not_loaded(reason, error.to_string()),
        }
    }
}

impl From<DeployError> for Problem {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Registry(error) => error.into(),
            DeployError::Load { ref reason, .. } => match &**reason {
                LoadError::Registry(RegistryError::Unknown(_)) => Self::new(Reason::NotFound, reason.to_string()),
                reason => not_loaded(reason, error.to_string()),
            },
            DeployError::Fixed => Self::new(Reason::Conflict, error.to_string()),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Db(error) => error.into(),
            RegistryError::Store(error) => error.into(),
            RegistryError::Unknown(_) => Self::new(Reason::NotFound, error.to_string()),
            RegistryError::Shares(detail) => Self::invalid(vec![FieldError::new("weights", detail)]),
            RegistryError::Conflict { .. }
            | RegistryError::Raced
            | RegistryError::InUse { .. }
            | RegistryError::NothingBefore
            | RegistryError::Damaged { .. } => Self::new(Reason::Conflict, error.to_string()),
        }
    }
}

/// What is wrong with an adapter that was to be imported, by the field that it came by.
pub(super) fn not_imported(field: &str, error: &ImportError) -> Problem {
    let reason = match error {
        ImportError::TooLarge { .. } => Reason::TooLarge,
        _ => Reason::InvalidRequest,
    };
    Problem::about(reason, vec![FieldError::new(field, error)])
}

/// Why an adapter that was read is not registered.
pub(super) fn refused(field: &str, error: &LoadError) -> Problem {
    let mut problem = not_loaded(error, error.to_string());
    for error in &mut problem.errors {
        error.field = field.to_owned();
    }
    if !problem.errors.is_empty() {
        return Problem::invalid(problem.errors);
    }
    problem
}
