//! What the pipeline asks of a rewriting model, and nothing of how it is done.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::turn::Turn;
use crate::adapters::AdapterLease;
use crate::engine::Activity;

/// A boxed future, so that rewriters can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One sentence to rewrite.
#[derive(Clone)]
pub struct RewriteRequest<'a> {
    /// The text to rewrite; no surrounding white space.
    pub sentence: &'a str,
    /// The adapter version that the request pinned when it was admitted.
    pub adapter: &'a AdapterLease,
    /// LoRA scale, 0..=2; 1 is the adapter as trained.
    pub strength: f32,
    /// How far beyond the adapter the choice of tokens goes, away from the bare base model, 0..=2.
    pub guidance: f32,
    /// How many candidates to decode, at least 1.
    pub candidates: usize,
    /// Seed of the sampling; the same request with the same seed gives the same candidates.
    pub seed: u64,
    /// When the answer is no longer of use.
    pub deadline: Option<Instant>,
    /// The turn of the request that the sentence is of.
    pub turn: &'a Turn,
}

/// One way of saying it differently, as the model wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The decoded text, without special tokens.
    pub text: String,
    /// Mean negative log-likelihood of its tokens, in nats a token.
    pub mean_nll: f32,
    /// The same of the text by itself under the bare base model: how fluent it is. None where there is nothing to choose from.
    pub base_nll: Option<f32>,
}

/// What a rewriter answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewrites {
    /// In the order of decoding: the first is the one to take without verification.
    pub candidates: Vec<Candidate>,
    /// Tokens of the prompt, counted once however many candidates share it.
    pub prompt_tokens: usize,
    /// Tokens decoded, over all candidates.
    pub completion_tokens: usize,
    /// Time spent waiting for a place in the batch.
    pub queue: Duration,
    /// Time spent decoding.
    pub inference: Duration,
}

/// Why a rewriter gave no answer. Every one of them fails the whole text: half a rewrite is
/// never returned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RewriteError {
    /// The queue is full.
    #[error("the rewriter is overloaded, try again in {retry_after:?}")]
    Overloaded {
        /// When trying again makes sense.
        retry_after: Duration,
    },
    /// The request's deadline passed first.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// The request was withdrawn, or the process is shutting down.
    #[error("the rewriting was cancelled")]
    Cancelled,
    /// Anything else; the text is for the log.
    #[error("the rewriter failed: {0}")]
    Failed(String),
}

/// A model that rewrites one sentence at a time; batching is its own affair.
pub trait Rewriter: Send + Sync + 'static {
    /// Candidates for a sentence. Dropping the future withdraws the request.
    fn rewrite<'a>(&'a self, request: RewriteRequest<'a>) -> BoxFuture<'a, Result<Rewrites, RewriteError>>;

    /// The model's name, as the answer reports it.
    fn model(&self) -> &str;

    /// What its engine is doing; none for a rewriter that has no engine.
    fn activity(&self) -> Option<&Activity> {
        None
    }
}
