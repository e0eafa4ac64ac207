//! What stands in an address.

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::problem::{Problem, Reason};

/// The parts of an address that a route names, as [`Path`] has them; what is no text is answered with a problem.
pub struct InPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(value) = Path::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::new(Reason::Malformed, "the path of the address can't be read"))?;
        Ok(Self(value))
    }
}
