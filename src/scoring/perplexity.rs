//! Stub of the perplexity scorer's signatures.
use crate::{
    adapters::AdapterLease,
    pipeline::{BoxFuture, RewriteError},
};
#[derive(Debug, Clone, Copy)]
pub struct Perplexity {
    pub base: f32,
    pub adapter: f32,
    pub tokens: usize,
}
pub trait PerplexityScorer: Send + Sync + 'static {
    fn perplexity<'a>(
        &'a self,
        text: &'a str,
        adapter: &'a AdapterLease,
    ) -> BoxFuture<'a, Result<Perplexity, RewriteError>>;
}
