//! `POST /score`.

use std::{sync::Arc, time::Instant};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    body::JsonBody,
    limits::{check_length, until},
    problem::{FieldError, Problem, TextProblems},
    state::AppState,
};
use crate::adapters::AdapterRef;

/// A text to score.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "text": "You are an idiot." }))]
pub struct ScoreRequest {
    /// The text. Not empty, at most `max_text_chars` of the service long.
    #[schema(min_length = 1)]
    text: String,
    /// Adapter to ask: `name@version`, or `name` for its active version, else its newest. Without it, what is deployed.
    #[schema(example = "default@1")]
    adapter: Option<String>,
}

/// How toxic a text is, and how likely the model finds it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScoreResponse {
    /// Probability that the text is toxic, by the built-in scorer or the service's `toxicity_model`.
    #[schema(minimum = 0, maximum = 1)]
    toxicity: f32,
    /// Perplexity of the text.
    perplexity: Perplexity,
    /// Tokens of the text.
    tokens: usize,
    /// The adapter that was asked, `name@version`.
    #[schema(example = "default@1")]
    adapter: String,
}

/// Perplexity of a text: exp of the mean negative log-likelihood of its tokens from the second on.
/// Null for a text of fewer than two tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Perplexity {
    /// Under the bare base model.
    base: Option<f32>,
    /// Under the adapter.
    adapter: Option<f32>,
}

/// Score a text
///
/// Toxicity of a text and its perplexity under the base model and under an adapter.
/// Nothing is rewritten.
#[utoipa::path(
    post,
    path = "/score",
    tag = "texts",
    request_body = ScoreRequest,
    responses((status = 200, description = "The scores", body = ScoreResponse), TextProblems)
)]
pub async fn score(
    State(state): State<Arc<AppState>>,
    JsonBody(request): JsonBody<ScoreRequest>,
) -> Result<Json<ScoreResponse>, Problem> {
    let deadline = Instant::now() + state.limits.timeout;
    check_length("text", &request.text, state.limits.max_text_chars)?;
    if request.text.is_empty() {
        return Err(Problem::invalid(vec![FieldError::new("text", "must not be empty")]));
    }
    let wanted = request.adapter.as_deref().map(str::parse::<AdapterRef>).transpose();
    let wanted = wanted.map_err(|error| Problem::invalid(vec![FieldError::new("adapter", error)]))?;
    let _permit = state.admission.admit()?;
    let service = state.service()?;
    let (adapter, perplexity, toxicity) = until(deadline, async {
        let adapter = service.residents.lease(wanted.as_ref()).await?;
        let perplexity = service.perplexity.perplexity(&request.text, &adapter).await?;
        let toxicity = service.detoxifier.judges().toxicity_of(&request.text).await?;
        Ok((adapter, perplexity, toxicity))
    })
    .await?;
    Ok(Json(ScoreResponse {
        toxicity,
        perplexity: Perplexity {
            base: Some(perplexity.base).filter(|value| value.is_finite()),
            adapter: Some(perplexity.adapter).filter(|value| value.is_finite()),
        },
        tokens: perplexity.tokens,
        adapter: adapter.version().to_string(),
    }))
}
