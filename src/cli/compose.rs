//! Where the parts are put together: settings in, a loaded service out. The one place that knows
//! them all; `serve` and `rewrite` get the same.

use std::sync::Arc;

use crate::{
    adapters::Residents,
    config::ModelConfig,
    http::Service,
    pipeline::{Detoxifier, Rewriter},
    scoring::{ScorerError, SimilarityScorer, ToxicityScorer, perplexity::PerplexityScorer},
};

/// Why a service can't be put together. Every message says the next step.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The scorer in the binary can't be read.
    #[error("the toxicity scorer in this binary can't be read: {0}")]
    Scorer(#[from] ScorerError),
    /// The model can't be loaded.
    #[error("cannot load the model `{model}`: {reason}")]
    Model {
        /// As it was asked for.
        model: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// Loads the model and the adapter that `config` names. Takes seconds, on a first start minutes:
/// call it off the async threads.
///
/// # Errors
/// When something that was asked for can't be had. Nothing else is taken in its place.
pub fn build(config: &ModelConfig) -> Result<Service, ComposeError> {
    // model -> engine -> rewriter, perplexity, residents; then:
    // Ok(assemble(rewriter, residents, perplexity)?)
    Err(ComposeError::Model {
        model: config.model.clone(),
        reason: "no model can be loaded yet".to_owned(),
    })
}

/// A service around a rewriter, with the scorers of the binary. Tests give it one of their own.
///
/// # Errors
/// When the scorer in the binary can't be read.
pub fn assemble(
    rewriter: Arc<dyn Rewriter>,
    residents: Arc<Residents>,
    perplexity: Arc<dyn PerplexityScorer>,
) -> Result<Service, ScorerError> {
    let toxicity = Arc::new(ToxicityScorer::embedded()?);
    let similarity = Arc::new(SimilarityScorer::new(Arc::clone(&toxicity)));
    let detoxifier = Arc::new(Detoxifier::new(rewriter, toxicity.clone(), similarity));
    Ok(Service {
        detoxifier,
        residents,
        toxicity,
        perplexity,
    })
}
