//! The OpenAPI document, made from the handlers: `/openapi.json`, `/docs`, `detoxd openapi`.

use axum::{Json, Router, routing::get};
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

/// What the document says about the service as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "detoxd",
        description = "Rewrites toxic text into text with the same meaning and none of the \
                       toxicity.\n\nErrors are `application/problem+json` (RFC 9457).",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "texts", description = "Make texts milder, or score them"),
        (name = "adapters", description = "Versions of adapters, and which of them are served"),
        (name = "operations", description = "Health and metrics"),
    )
)]
pub struct Document;

/// The document as it is committed and served: indented, with a newline at the end.
///
/// # Errors
/// When it can't be written as JSON.
pub fn document() -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(&super::routes(|group, _| group).into_openapi())?;
    text.push('\n');
    Ok(text)
}

/// `/openapi.json` and `/docs`; everything they need is in the binary.
pub fn router<S: Clone + Send + Sync + 'static>(document: utoipa::openapi::OpenApi) -> Router<S> {
    let ui = SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"));
    Router::new()
        .route("/openapi.json", get(move || async { Json(document) }))
        .merge(ui)
}
