//! Who asks, and whether they may.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::HeaderMap,
    middleware::{self, Next},
    response::Response,
};
use utoipa_axum::router::OpenApiRouter;

use super::{problem::Problem, state::AppState};
use crate::access::{Actor, Scope};

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

async fn authorise(_state: &AppState, _headers: &HeaderMap, _scope: Scope) -> Result<Actor, Problem> {
    Ok(Actor::anonymous())
}
