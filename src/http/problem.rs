//! Errors as `application/problem+json` (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

use crate::{
    adapters::UnknownAdapter,
    db::DbError,
    pipeline::{DetoxifyError, RewriteError},
    store::StoreError,
};

/// Why a request was not served.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "urn:detoxd:problem:invalid-request",
    "title": "A field has a value that is not allowed",
    "status": 422,
    "detail": "threshold: must be a number from 0 to 1",
    "errors": [{ "field": "threshold", "detail": "must be a number from 0 to 1" }]
}))]
pub struct Problem {
    /// The kind of problem, `urn:detoxd:problem:` and a word that stays the same over versions.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words, the same for every occurrence.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// The fields that are wrong, when it is about fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    #[serde(skip)]
    reason: Reason,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

/// A field that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Path of the field, such as `threshold` or `texts[3]`.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// `field` is wrong because of `detail`.
    pub fn new(field: impl Into<String>, detail: impl ToString) -> Self {
        Self {
            field: field.into(),
            detail: detail.to_string(),
        }
    }
}

/// The kinds of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The body is not UTF-8 or not JSON.
    Malformed,
    /// No key, or one that is not known.
    Unauthorized,
    /// A key that is not good for this.
    Forbidden,
    /// No such route, or no such thing.
    NotFound,
    /// The route has no such method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    SlowBody,
    /// Something else is there already, or has changed meanwhile.
    Conflict,
    /// The body or a text is too large.
    TooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// A field is wrong.
    InvalidRequest,
    /// A fault of the service.
    Internal,
    /// One at a time: another is being done.
    Busy,
    /// The database or the store is not there.
    StorageUnavailable,
    /// A disk is used up.
    StorageFull,
    /// Too many requests at once.
    Overloaded,
    /// Work, and no progress.
    Stalled,
    /// Not loaded yet.
    Starting,
    /// Told to stop.
    Draining,
    /// Not done in time.
    DeadlinePassed,
}

impl Reason {
    /// Last part of the problem's `type`, and label of the metric.
    pub fn code(self) -> &'static str {
        self.parts().0
    }

    fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::Malformed => ("malformed", StatusCode::BAD_REQUEST, "The request can't be read"),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "A key is needed"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "The key is not good for this"),
            Self::Conflict => ("conflict", StatusCode::CONFLICT, "What is there does not allow this"),
            Self::Busy => ("busy", StatusCode::TOO_MANY_REQUESTS, "Another one is being done"),
            Self::StorageUnavailable => (
                "storage-unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "The database or the store can't be reached",
            ),
            Self::StorageFull => (
                "storage-full",
                StatusCode::INSUFFICIENT_STORAGE,
                "There is no room left to keep it",
            ),
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "There is nothing here"),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "The route does not have this method",
            ),
            Self::SlowBody => (
                "slow-body",
                StatusCode::REQUEST_TIMEOUT,
                "The body did not arrive in time",
            ),
            Self::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request is too large"),
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "The body is of another type than is read here",
            ),
            Self::InvalidRequest => (
                "invalid-request",
                StatusCode::UNPROCESSABLE_ENTITY,
                "A field has a value that is not allowed",
            ),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The service failed"),
            Self::Overloaded => (
                "overloaded",
                StatusCode::SERVICE_UNAVAILABLE,
                "Too many requests at once",
            ),
            Self::Stalled => (
                "stalled",
                StatusCode::SERVICE_UNAVAILABLE,
                "The model makes no progress",
            ),
            Self::Starting => ("starting", StatusCode::SERVICE_UNAVAILABLE, "The model is being loaded"),
            Self::Draining => (
                "draining",
                StatusCode::SERVICE_UNAVAILABLE,
                "The service is shutting down",
            ),
            Self::DeadlinePassed => (
                "deadline-passed",
                StatusCode::GATEWAY_TIMEOUT,
                "The request was not done in time",
            ),
        }
    }
}

impl Problem {
    /// A problem of this kind.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let (code, status, title) = reason.parts();
        let retry_after = match reason {
            Reason::Overloaded | Reason::Starting | Reason::Draining | Reason::Busy => Some(Duration::from_secs(1)),
            // A database that restarts needs a moment.
            Reason::StorageUnavailable => Some(Duration::from_secs(5)),
            _ => None,
        };
        Self {
            kind: format!("urn:detoxd:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            reason,
            retry_after,
        }
    }

    /// The word for its kind, as in its `type` and in the metrics.
    pub fn code(&self) -> &'static str {
        self.reason.code()
    }

    /// 422 for these fields.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self::about(Reason::InvalidRequest, errors)
    }

    /// A problem of this kind with these fields.
    pub fn about(reason: Reason, errors: Vec<FieldError>) -> Self {
        let detail: Vec<_> = errors
            .iter()
            .map(|error| format!("{}: {}", error.field, error.detail))
            .collect();
        Self {
            errors,
            ..Self::new(reason, detail.join("; "))
        }
    }

    /// 503 for a request beyond what is admitted.
    pub fn overloaded(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                Reason::Overloaded,
                "the service has as many requests as it takes; try again later",
            )
        }
    }

    /// 504.
    pub fn deadline_passed() -> Self {
        Self::new(
            Reason::DeadlinePassed,
            "the time for this request is over; nothing was changed",
        )
    }

    /// 507.
    pub fn storage_full() -> Self {
        Self::new(
            Reason::StorageFull,
            "the disk of the service is full; nothing was changed",
        )
    }

    /// 500. What happened is for the log, not for the answer.
    pub fn internal() -> Self {
        Self::new(
            Reason::Internal,
            "the service failed on this request; its log has the reason",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (reason, retry_after) = (self.reason, self.retry_after);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        if reason == Reason::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(wait) = retry_after {
            // Whole seconds, rounded up: earlier would be too early.
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.min(3600) as u64));
        }
        // Read by the layer that counts.
        response.extensions_mut().insert(reason);
        response
    }
}

impl From<RewriteError> for Problem {
    fn from(error: RewriteError) -> Self {
        match error {
            RewriteError::Overloaded { retry_after } => Self::overloaded(retry_after),
            RewriteError::DeadlinePassed => Self::deadline_passed(),
            RewriteError::Cancelled => Self::new(Reason::Draining, "the request was cancelled by the service"),
            RewriteError::Failed(reason) => {
                tracing::error!(reason, "the model failed");
                Self::internal()
            }
        }
    }
}

impl From<DetoxifyError> for Problem {
    fn from(error: DetoxifyError) -> Self {
        match error {
            DetoxifyError::Rewrite(error) => error.into(),
        }
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        tracing::error!(%error, "the database failed");
        if error.is_unreachable() {
            Self::new(
                Reason::StorageUnavailable,
                "the database can't be reached; nothing was changed",
            )
        } else if error.is_full() {
            Self::storage_full()
        } else {
            Self::internal()
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        if matches!(error, StoreError::Full { .. }) {
            return Self::storage_full();
        }
        Self::new(
            Reason::StorageUnavailable,
            "the store did not do its part; nothing was changed, and the log has the reason",
        )
    }
}

impl From<UnknownAdapter> for Problem {
    fn from(error: UnknownAdapter) -> Self {
        Self::invalid(vec![FieldError::new("adapter", error)])
    }
}

/// The problems of a route that reads or changes what is kept, for the OpenAPI document.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "read by the derive only")]
pub enum KeptProblems {
    /// A parameter or field is missing, unknown, or has a value that is not allowed; `errors` names it.
    #[response(status = 422, content_type = "application/problem+json")]
    InvalidRequest(Problem),
    /// The service failed.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
    /// The database or the store can't be reached; see `Retry-After`.
    #[response(
        status = 503,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait"))
    )]
    StorageUnavailable(Problem),
}

/// The problems of a route about one thing that is kept, for the OpenAPI document.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "read by the derive only")]
pub enum OneKeptProblems {
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// The service failed.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
    /// The database or the store can't be reached; see `Retry-After`.
    #[response(
        status = 503,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait"))
    )]
    StorageUnavailable(Problem),
}

/// The problems of a route that takes a text, for the OpenAPI document.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "read by the derive only")]
pub enum TextProblems {
    /// The body is not UTF-8 or not JSON.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(Problem),
    /// The body did not arrive in time.
    #[response(status = 408, content_type = "application/problem+json")]
    SlowBody(Problem),
    /// The body or a text is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The body is not declared as `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(Problem),
    /// A field is missing, unknown, or has a value that is not allowed; `errors` names it.
    #[response(status = 422, content_type = "application/problem+json")]
    InvalidRequest(Problem),
    /// The service failed.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
    /// Too many requests at once, or the service is starting or stopping; see `Retry-After`.
    #[response(
        status = 503,
        content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds to wait"))
    )]
    Unavailable(Problem),
    /// The deadline passed; nothing was changed.
    #[response(status = 504, content_type = "application/problem+json")]
    DeadlinePassed(Problem),
}
