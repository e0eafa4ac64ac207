//! The HTTP service: one file a resource, with its types, its handler and its documentation.
//!
//! Checks, admission, deadlines and problem documents live here. What is done to a text does not:
//! that is `pipeline`, which knows no HTTP.

mod adapters;
mod audit;
mod auth;
mod body;
mod datasets;
mod detoxify;
mod fields;
mod health;
mod hyperparameters;
mod job_events;
mod jobs;
mod keys;
mod layers;
mod limits;
mod metrics;
pub mod openapi;
pub mod operations;
mod options;
mod paging;
mod path;
mod playground;
mod problem;
mod result;
mod score;
pub mod server;
mod state;
mod stream;
mod train;

use std::{any::Any, sync::Arc};

use axum::{
    Router, middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::problem::Reason;
pub use self::{
    problem::{FieldError, Problem},
    result::DetoxifyResult,
    state::{AppState, Backend, Service},
};
use crate::access::Scope;

/// The routes of the OpenAPI document; `guarded` makes some ask for a scope. A new resource is a new file and a line here.
fn routes(guarded: impl Fn(Routes, Scope) -> Routes) -> Routes {
    let open = OpenApiRouter::new()
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::metrics));
    let to_use = OpenApiRouter::new()
        .routes(routes!(detoxify::detoxify))
        .routes(routes!(score::score));
    let to_train = OpenApiRouter::new()
        .routes(routes!(datasets::upload, datasets::list))
        .routes(routes!(datasets::show, datasets::delete))
        .routes(routes!(train::train))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(job_events::events))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(adapters::list))
        .routes(routes!(adapters::get))
        .routes(routes!(adapters::archive))
        .routes(routes!(adapters::compare::compare))
        .routes(routes!(adapters::deploy::deployments));
    let to_administer = OpenApiRouter::new()
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(adapters::import::import))
        .routes(routes!(adapters::delete))
        .routes(routes!(adapters::pin, adapters::unpin))
        .routes(routes!(adapters::deploy::activate))
        .routes(routes!(adapters::deploy::rollback))
        .routes(routes!(adapters::deploy::traffic));
    let guarded = |group, scope| guarded(openapi::guarded(group, scope), scope);
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .merge(guarded(to_use, Scope::Use))
        .merge(guarded(to_train, Scope::Train))
        .merge(guarded(to_administer, Scope::Admin))
        .merge(open)
}

type Routes = OpenApiRouter<Arc<AppState>>;

/// The whole service.
pub fn router(state: Arc<AppState>) -> Router {
    let (router, document) = routes(|group, scope| auth::with_scope(group, scope, &state)).split_for_parts();
    router
        .merge(openapi::router(document))
        .route("/", get(playground::playground))
        .fallback(|| async { Problem::new(Reason::NotFound, "no such route; see /docs") })
        .method_not_allowed_fallback(|| async {
            Problem::new(Reason::MethodNotAllowed, "see the `Allow` header, or /docs")
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), layers::observe))
        .with_state(state)
}

/// The payload is not looked at: it may quote a text.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Problem::internal().into_response()
}
