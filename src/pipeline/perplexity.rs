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

/// How likely a text is, so that it can be added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Likelihood {
    /// Sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// Tokens that were predicted: all but the first of a text.
    pub tokens: usize,
}

impl Likelihood {
    /// Mean negative log-likelihood of a token, in nats: the logarithm of the perplexity. None where nothing was predicted.
    pub fn mean(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nll / self.tokens as f64)
    }
}

impl std::iter::Sum for Likelihood {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), |sum, item| Self {
            nll: sum.nll + item.nll,
            tokens: sum.tokens + item.tokens,
        })
    }
}

/// Something that knows how likely texts are.
pub trait PerplexityScorer: Send + Sync + 'static {
    /// Perplexities of a text under the base model and under an adapter.
    fn perplexity<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
    ) -> BoxFuture<'a, Result<Perplexity, RewriteError>>;

    /// How likely a text is under an adapter alone, in windows of at most so many tokens (and no more than the model's positions), each from its own
    /// beginning. The last token of a window is the first of the next, so that every token of the text but the first is predicted once.
    fn likelihoods<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
        window: usize,
    ) -> BoxFuture<'a, Result<Vec<Likelihood>, RewriteError>>;
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

    fn tokens(&self, text: &str) -> Result<Vec<u32>, RewriteError> {
        let encoded = self
            .tokenizer
            .encode(text)
            .map_err(|error| RewriteError::Failed(error.to_string()))?;
        let mut tokens = self.tokenizer.leading_tokens().to_vec();
        tokens.extend(encoded);
        Ok(tokens)
    }

    async fn windows(
        &self,
        tokens: &[u32],
        adapter: &AdapterLease,
        window: usize,
    ) -> Result<Vec<Likelihood>, RewriteError> {
        let adapter = adapter.adapter().map(|adapter| (adapter.clone(), 1.0));
        let window = window.min(self.engine.decoder().config().max_positions).max(2);
        let mut windows = Vec::new();
        let mut first = 0;
        while first + 1 < tokens.len() {
            let end = (first + window).min(tokens.len());
            let request = LikelihoodRequest {
                texts: vec![tokens[first..end].to_vec()],
                adapter: adapter.clone(),
                fairness: None,
            };
            for nll in self.engine.likelihoods(request).await? {
                windows.push(Likelihood {
                    nll: nll.iter().map(|&value| f64::from(value)).sum(),
                    tokens: nll.len(),
                });
            }
            first = end - 1;
        }
        Ok(windows)
    }

    async fn of(&self, tokens: &[u32], adapter: &AdapterLease) -> Result<f32, RewriteError> {
        let all: Likelihood = self.windows(tokens, adapter, WINDOW).await?.into_iter().sum();
        Ok(all.mean().map_or(f32::NAN, |mean| mean.exp() as f32))
    }
}

impl PerplexityScorer for ModelPerplexity {
    fn perplexity<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
    ) -> BoxFuture<'a, Result<Perplexity, RewriteError>> {
        Box::pin(async move {
            let tokens = self.tokens(text)?;
            let base = self.of(&tokens, &AdapterLease::none()).await?;
            let adapted = match adapter.adapter() {
                Some(_) => self.of(&tokens, adapter).await?,
                None => base,
            };
            Ok(Perplexity {
                base,
                adapter: adapted,
                tokens: tokens.len(),
            })
        })
    }
    fn likelihoods<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
        window: usize,
    ) -> BoxFuture<'a, Result<Vec<Likelihood>, RewriteError>> {
        Box::pin(async move { self.windows(&self.tokens(text)?, adapter, window).await })
    }
}
