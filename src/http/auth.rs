//! Who asks, and whether they may.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::{self, Next},
    response::Response,
};
use utoipa_axum::router::OpenApiRouter;

use super::{
    problem::{Problem, Reason},
    state::AppState,
};
use crate::access::{Actor, Scope};

const NEXT_STEP: &str = "send `Authorization: Bearer KEY` or `x-api-key: KEY`; `detoxd key create` makes a key";

/// Routes that ask for a scope. Their handlers find the [`Actor`] among the request's extensions.
pub fn with_scope(
    routes: OpenApiRouter<Arc<AppState>>,
    scope: Scope,
    state: &Arc<AppState>,
) -> OpenApiRouter<Arc<AppState>> {
    let check = move |State(state): State<Arc<AppState>>, mut request: Request, next: Next| async move {
        let actor = authorise(&state, request.headers(), scope).await?;
        request.extensions_mut().insert(actor);
        Ok::<Response, Problem>(next.run(request).await)
    };
    routes.layer(middleware::from_fn_with_state(Arc::clone(state), check))
}

/// Whoever presents a key acts with it, also where none is needed: a key that does not work is a mistake that should be seen before
/// the service is opened to others.
async fn authorise(state: &AppState, headers: &HeaderMap, scope: Scope) -> Result<Actor, Problem> {
    let Some(key) = presented(headers) else {
        return if state.backend.key_needed {
            let detail = format!("this route needs a key of scope `{scope}`: {NEXT_STEP}");
            Err(Problem::new(Reason::Unauthorized, detail))
        } else {
            Ok(Actor::anonymous())
        };
    };
    let Some(actor) = state.backend.keys.holder(key).await? else {
        let detail = format!("the key is not known or was revoked: {NEXT_STEP}");
        return Err(Problem::new(Reason::Unauthorized, detail));
    };
    if actor.scope < scope {
        let detail = format!(
            "this route needs a key of scope `{scope}`; this one has scope `{}`",
            actor.scope
        );
        return Err(Problem::new(Reason::Forbidden, detail));
    }
    Ok(actor)
}

/// The key that a request presents. Other schemes of `Authorization` are for whoever stands in front of the service.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        // What is no text is no key either, but it was presented as one.
        let (scheme, key) = value.to_str().unwrap_or("bearer ").split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.or_else(|| Some(headers.get("x-api-key")?.to_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &'static str, value: &'static [u8]) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, axum::http::HeaderValue::from_bytes(value).unwrap());
        presented(&headers).map(str::to_owned)
    }

    #[test]
    fn a_key_is_found_in_both_headers() {
        assert_eq!(key("authorization", b"Bearer a").as_deref(), Some("a"));
        assert_eq!(key("authorization", b"bearer  a").as_deref(), Some("a"));
        assert_eq!(key("authorization", b"Basic a"), None);
        assert_eq!(key("authorization", b"a"), None);
        assert_eq!(key("authorization", b"Bearer \xff").as_deref(), Some(""));
        assert_eq!(key("x-api-key", b"a").as_deref(), Some("a"));
        assert_eq!(key("x-api-key", b"\xff").as_deref(), Some(""));
        assert_eq!(presented(&HeaderMap::new()), None);
    }
}
