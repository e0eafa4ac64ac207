//! Bodies: JSON, with refusals that say what to change, and streams of any length.

use axum::{
    body::{Body, BodyDataStream, Bytes, to_bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use futures_core::Stream;
use serde::de::DeserializeOwned;
use std::{error::Error, future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use super::{
    problem::{FieldError, Problem, Reason},
    state::AppState,
};

/// A JSON body.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<AppState>> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                Reason::UnsupportedMediaType,
                "send the body with `Content-Type: application/json`",
            ));
        }
        let limits = &state.limits;
        let bytes = tokio::time::timeout(limits.timeout, read(request, limits.max_body_bytes))
            .await
            .map_err(|_| Problem::new(Reason::SlowBody, "the body did not arrive in time"))??;
        parse(&bytes).map(Self)
    }
}

/// A JSON body that may be left out: then it is the default.
pub struct OptionalJsonBody<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<AppState>> for OptionalJsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, Problem> {
        let is_absent = !request.headers().contains_key(header::CONTENT_TYPE)
            && axum::body::HttpBody::is_end_stream(request.body());
        if is_absent {
            return Ok(Self(T::default()));
        }
        let JsonBody(value) = JsonBody::from_request(request, state).await?;
        Ok(Self(value))
    }
}

/// Whether the body is declared as JSON in UTF-8.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some((name, charset)) if name.eq_ignore_ascii_case("charset") => {
            charset.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    })
}

/// What `Content-Length` says.
pub fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body that is read as it comes.
pub struct Incoming {
    stream: BodyDataStream,
    /// How long the next bytes may take.
    patience: Duration,
    /// Whether the client waits for a sign before it sends anything; the first look at the stream is that sign.
    waits: bool,
}

/// How long a client whose body is refused midway may go on sending: many read the answer only then.
const LINGER: Duration = Duration::from_secs(5);

impl Incoming {
    /// Of a request with these headers.
    pub fn new(headers: &HeaderMap, body: Body, patience: Duration) -> Self {
        Self {
            stream: body.into_data_stream(),
            patience,
            waits: headers.contains_key(header::EXPECT),
        }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// When they don't come in time, or the client has left.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        self.waits = false;
        let next = poll_fn(|context| Pin::new(&mut self.stream).poll_next(context));
        match tokio::time::timeout(self.patience, next).await {
            Err(_) => Err(Problem::new(Reason::SlowBody, "the body did not arrive in time")),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(_))) => Err(ended_early()),
        }
    }

    /// Reads on for a while without looking, beside the answer: a connection that is closed on a client which is still sending
    /// loses the answer on its way.
    pub fn linger(mut self) {
        if self.waits {
            return;
        }
        tokio::spawn(tokio::time::timeout(LINGER, async move {
            while let Ok(Some(_)) = self.next().await {}
        }));
    }
}

fn ended_early() -> Problem {
    Problem::new(Reason::Malformed, "the body ended early")
}

async fn read(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Reason::TooLarge, format!("the body is larger than {limit} bytes"));
    let declared = declared_length(request.headers());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    to_bytes(request.into_body(), limit).await.map_err(|error| {
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        if source.contains("length limit exceeded") {
            too_large()
        } else {
            ended_early()
        }
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let malformed = |detail: String| Problem::new(Reason::Malformed, detail);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| malformed(format!("the body is not UTF-8: byte {} is wrong", error.valid_up_to())))?;
    if text.trim().is_empty() {
        return Err(malformed("the body is empty; expected a JSON object".to_owned()));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            // The position is of no use beside the name of the field.
            let message = inner.to_string();
            let detail = message.rsplit_once(" at line ").map_or(&*message, |(detail, _)| detail);
            let field = if path == "." {
                named(detail).unwrap_or(path)
            } else {
                path
            };
            Problem::invalid(vec![FieldError::new(field, detail)])
        } else {
            malformed(format!("the body is not JSON: {inner}"))
        }
    })?;
    json.end()
        .map_err(|error| malformed(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// The field in messages such as ``missing field `text` ``, which is not part of the path.
fn named(detail: &str) -> Option<String> {
    let mut quoted = detail.split('`');
    let is_field = quoted.next()?.ends_with("field ");
    is_field.then(|| quoted.next().map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        is_json(&headers)
    }

    #[test]
    fn content_types() {
        assert!(json("application/json"));
        assert!(json("Application/JSON; charset=UTF-8"));
        assert!(json("application/vnd.acme+json; v=1"));
        assert!(!json("application/json; charset=latin1"));
        assert!(!json("text/plain"));
        assert!(!is_json(&HeaderMap::new()));
    }
}
