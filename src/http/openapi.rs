//! The OpenAPI document, made from the handlers: `/openapi.json`, `/docs`, `detoxd openapi`.

use axum::{Json, Router, routing::get};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, PathItem, Ref, Response, ResponseBuilder,
        path::Operation,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::SwaggerUi;

use super::Routes;
use crate::access::Scope;

const BEARER: &str = "bearer";
const HEADER: &str = "header";

/// What the document says about the service as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "detoxd",
        description = "Rewrites toxic text into text with the same meaning and none of the \
                       toxicity.\n\nErrors are `application/problem+json` (RFC 9457). A service that listens on \
                       a loopback address needs no keys unless it is told to.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "texts", description = "Make texts milder, or score them"),
        (name = "training", description = "Data, and jobs that train adapters"),
        (name = "access", description = "Keys, and who did what"),
        (name = "adapters", description = "Versions of adapters, and which of them are served"),
        (name = "operations", description = "Health and metrics"),
    ),
    modifiers(&Schemes)
)]
pub struct Document;

/// The two ways to present a key.
struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("dtx_…")
            .description(Some("A key of the service; `detoxd key create` makes one."))
            .build();
        let header =
            ApiKeyValue::with_description("x-api-key", "The same key, for clients that can't set `Authorization`.");
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
        components.add_security_scheme(HEADER, SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// Writes into the document what routes that ask for a scope have in common.
pub fn guarded(mut routes: Routes, scope: Scope) -> Routes {
    let requirement = |scheme: &str| SecurityRequirement::new(scheme, [scope.as_str()]);
    for operation in routes.get_openapi_mut().paths.paths.values_mut().flat_map(operations) {
        operation.security = Some(vec![requirement(BEARER), requirement(HEADER)]);
        let responses = &mut operation.responses.responses;
        for (status, description) in [
            ("401", "No key, or one that is not known or was revoked".to_owned()),
            ("403", format!("The key has not the scope `{scope}`")),
        ] {
            responses.insert(status.to_owned(), problem(description).into());
        }
    }
    routes
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let methods = [
        &mut path.get,
        &mut path.post,
        &mut path.put,
        &mut path.patch,
        &mut path.delete,
    ];
    methods.into_iter().flatten()
}

fn problem(description: String) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", content)
        .build()
}

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
