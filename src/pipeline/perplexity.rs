//! How likely a model finds a text.

use std::sync::Arc;

use super::rewriter::{BoxFuture, RewriteError};
use crate::adapters::AdapterLease;
use crate::engine::{Engine, LikelihoodRequest};
use crate::model::tokenizer::TextTokenizer;

/// Perplexities of a text: exp of the mean negative log-likelihood of its tokens after the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Under the bare base model; not a number below two tokens.
    pub base: f32,
    /// Under the adapter.
    pub adapter: f32,
    /// Tokens of the text.
    pub tokens: usize,
}

/// Something that knows how likely texts are.
pub trait PerplexityScorer: Send + Sync + 'static {
    /// Perplexities of a text under the base model and under an adapter.
    fn perplexity<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
    ) -> BoxFuture<'a, Result<Perplexity, RewriteError>>;
}

/// Perplexities by the serving model.
pub struct ModelPerplexity {
    engine: Engine,
    tokenizer: Arc<TextTokenizer>,
}

/// Tokens that go through the model at once; a longer text is scored window by window, each from its own beginning.
const WINDOW: usize = 1024;

impl ModelPerplexity {
    /// A scorer on an engine.
    pub fn new(engine: Engine, tokenizer: Arc<TextTokenizer>) -> Self {
        Self { engine, tokenizer }
    }

    async fn of(&self, tokens: &[u32], adapter: Option<&AdapterLease>) -> Result<f32, RewriteError> {
        let adapter = adapter
            .and_then(AdapterLease::adapter)
            .map(|adapter| (adapter.clone(), 1.0));
        let (mut total, mut count) = (0f64, 0usize);
        let window = WINDOW.min(self.engine.decoder().config().max_positions);
        let mut first = 0;
        while first + 1 < tokens.len() {
            let end = (first + window).min(tokens.len());
            let request = LikelihoodRequest {
                tokens: tokens[first..end].to_vec(),
                adapter: adapter.clone(),
            };
            let nll = self.engine.likelihood(request).await?;
            total += nll.iter().map(|&value| f64::from(value)).sum::<f64>();
            count += nll.len();
            // The last token of a window is the first of the next, so that every token but the first is predicted.
            first = end - 1;
        }
        Ok((total / count as f64).exp() as f32)
    }
}

impl PerplexityScorer for ModelPerplexity {
    fn perplexity<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
    ) -> BoxFuture<'a, Result<Perplexity, RewriteError>> {
        Box::pin(async move {
            let encoded = self
                .tokenizer
                .encode(text)
                .map_err(|error| RewriteError::Failed(error.to_string()))?;
            let mut tokens = self.tokenizer.leading_tokens().to_vec();
            tokens.extend(encoded);
            let base = self.of(&tokens, None).await?;
            let adapted = match adapter.adapter() {
                Some(_) => self.of(&tokens, Some(adapter)).await?,
                None => base,
            };
            Ok(Perplexity {
                base,
                adapter: adapted,
                tokens: tokens.len(),
            })
        })
    }
}
