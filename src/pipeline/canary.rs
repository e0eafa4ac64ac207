//! The check that an adapter passes before a request gets it: the serving model runs with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::adapters::{Canary, CanaryError};
use crate::engine::{Engine, EngineError, Generation, LikelihoodRequest, Sampling};
use crate::model::lora::LoraModel;
use crate::model::tokenizer::TextTokenizer;
use crate::prompt::RewritePrompt;

/// What is rewritten. It is short: the canary shares the engine with running requests.
const SENTENCE: &str = "The report is late again, you idiot.";
/// Tokens that are generated.
const TOKENS: usize = 8;
/// Below this, in nats a token, two likelihoods are the same: rounding differs by less.
const SAME: f32 = 1e-6;

/// Rewrites a fixed sentence and asks for its likelihood, with the adapter and without.
pub struct EngineCanary {
    engine: Engine,
    /// The prompt of the sentence.
    prompt: Vec<u32>,
    end: u32,
    /// Likelihoods of the prompt's tokens without an adapter.
    base: OnceCell<Vec<f32>>,
}

impl EngineCanary {
    /// A canary on an engine.
    ///
    /// # Errors
    /// When the sentence can't be encoded.
    pub fn new(engine: Engine, tokenizer: &TextTokenizer, prompt: &RewritePrompt) -> Result<Self, CanaryError> {
        let source = tokenizer
            .encode(SENTENCE)
            .map_err(|error| CanaryError::NotTried(error.to_string()))?;
        Ok(Self {
            engine,
            prompt: prompt.tokens(&source),
            end: prompt.end(),
            base: OnceCell::new(),
        })
    }

    async fn likelihood(&self, adapter: Option<&Arc<LoraModel>>) -> Result<Vec<f32>, CanaryError> {
        let request = LikelihoodRequest {
            texts: vec![self.prompt.clone()],
            adapter: adapter.map(|adapter| (Arc::clone(adapter), 1.0)),
            fairness: None,
        };
        let likelihoods = self.engine.likelihoods(request).await.map_err(not_tried)?;
        Ok(likelihoods.concat())
    }

    async fn try_out(&self, adapter: &Arc<LoraModel>) -> Result<(), CanaryError> {
        let base = self.base.get_or_try_init(|| self.likelihood(None)).await?;
        // A likelihood is finite only if every logit of its position is.
        let adapted = self.likelihood(Some(adapter)).await?;
        if adapted.iter().any(|nll| !nll.is_finite()) {
            return Err(CanaryError::NotFinite);
        }
        if base
            .iter()
            .zip(&adapted)
            .all(|(base, adapted)| (base - adapted).abs() < SAME)
        {
            return Err(CanaryError::LikeBase);
        }
        let generation = Generation {
            prompt: self.prompt.clone(),
            end: self.end,
            max_new_tokens: TOKENS,
            candidates: 1,
            sampling: Sampling {
                temperature: 0.0,
                top_p: 1.0,
                seed: 0,
            },
            adapter: Some((Arc::clone(adapter), 1.0)),
            guidance: 0.0,
            deadline: None,
            draft: Vec::new(),
            fairness: 0,
        };
        let generated = self.engine.generate(generation).await.map_err(not_tried)?;
        if generated.completions.iter().any(|one| !one.mean_nll.is_finite()) {
            return Err(CanaryError::NotFinite);
        }
        Ok(())
    }
}

impl Canary for EngineCanary {
    fn run<'a>(
        &'a self,
        adapter: &'a Arc<LoraModel>,
    ) -> Pin<Box<dyn Future<Output = Result<(), CanaryError>> + Send + 'a>> {
        Box::pin(self.try_out(adapter))
    }
}

fn not_tried(error: EngineError) -> CanaryError {
    CanaryError::NotTried(error.to_string())
}
