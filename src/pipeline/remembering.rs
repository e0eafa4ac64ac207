//! A rewriter that remembers what another one answered.
//!
//! Candidates are what costs, so candidates are kept: the verdict on them is worked out anew each time, under the thresholds of the request.
//! A key has everything that decides them, the adapter version among it, so that a swap needs no clearing. Sentences and candidates are in
//! memory only, the least used go first.

use std::sync::Arc;

use moka::sync::Cache;
use prometheus::{IntCounter, IntGauge, Registry};

use super::rewriter::{BoxFuture, RewriteError, RewriteRequest, Rewriter, Rewrites};
use crate::adapters::AdapterVersion;
use crate::engine::Activity;

/// What decides the candidates of a model.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    sentence: Box<str>,
    adapter: AdapterVersion,
    /// Bits of the strength.
    strength: u32,
    /// Bits of the guidance.
    guidance: u32,
    candidates: usize,
    seed: u64,
}

/// Bytes of an entry beside its texts, about: key, candidates, and what the cache itself needs.
const OVERHEAD: usize = 400;

/// How often it knew the answer.
#[derive(Debug, Clone)]
pub struct RememberingMetrics {
    hits: IntCounter,
    misses: IntCounter,
    bytes: IntGauge,
}

impl RememberingMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is used twice.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            hits: IntCounter::new(
                "detoxd_rewrite_cache_hits_total",
                "Sentences whose rewrites were remembered.",
            )?,
            misses: IntCounter::new(
                "detoxd_rewrite_cache_misses_total",
                "Sentences that the model was asked for.",
            )?,
            bytes: IntGauge::new("detoxd_rewrite_cache_bytes", "Memory of remembered rewrites, about.")?,
        };
        registry.register(Box::new(metrics.hits.clone()))?;
        registry.register(Box::new(metrics.misses.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        Ok(metrics)
    }
}

/// See the module.
pub struct RememberingRewriter<R> {
    inner: R,
    known: Cache<Key, Arc<Rewrites>>,
    metrics: RememberingMetrics,
}

impl<R: Rewriter> RememberingRewriter<R> {
    /// Around `inner`, with so many bytes of memory.
    pub fn new(inner: R, bytes: u64, metrics: RememberingMetrics) -> Self {
        let weigh = |key: &Key, rewrites: &Arc<Rewrites>| {
            let texts: usize = rewrites.candidates.iter().map(|candidate| candidate.text.len()).sum();
            let bytes = OVERHEAD + key.sentence.len() + texts + rewrites.candidates.len() * 32;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            inner,
            known: Cache::builder().max_capacity(bytes).weigher(weigh).build(),
            metrics,
        }
    }

    async fn answer(&self, request: RewriteRequest<'_>) -> Result<Rewrites, RewriteError> {
        let key = Key {
            sentence: request.sentence.into(),
            adapter: request.adapter.version().clone(),
            strength: request.strength.to_bits(),
            guidance: request.guidance.to_bits(),
            candidates: request.candidates,
            seed: request.seed,
        };
        if let Some(known) = self.known.get(&key) {
            self.metrics.hits.inc();
            return Ok(Rewrites {
                // The model did nothing.
                prompt_tokens: 0,
                completion_tokens: 0,
                queue: std::time::Duration::ZERO,
                inference: std::time::Duration::ZERO,
                candidates: known.candidates.clone(),
            });
        }
        self.metrics.misses.inc();
        let rewrites = self.inner.rewrite(request).await?;
        self.known.insert(key, Arc::new(rewrites.clone()));
        let bytes = i64::try_from(self.known.weighted_size()).unwrap_or(i64::MAX);
        self.metrics.bytes.set(bytes);
        Ok(rewrites)
    }
}

impl<R: Rewriter> Rewriter for RememberingRewriter<R> {
    fn rewrite<'a>(&'a self, request: RewriteRequest<'a>) -> BoxFuture<'a, Result<Rewrites, RewriteError>> {
        Box::pin(self.answer(request))
    }

    fn model(&self) -> &str {
        self.inner.model()
    }

    fn activity(&self) -> Option<&Activity> {
        self.inner.activity()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeRewriter;
    use super::super::turn::Turn;
    use super::*;
    use crate::adapters::AdapterLease;

    type Answer = fn(&str) -> Result<Vec<String>, RewriteError>;

    fn remembering(bytes: u64) -> RememberingRewriter<FakeRewriter<Answer>> {
        let answer: Answer = |sentence| match sentence {
            "bad" => Err(RewriteError::DeadlinePassed),
            _ => Ok(vec![sentence.to_uppercase()]),
        };
        let metrics = RememberingMetrics::new(&Registry::new()).unwrap();
        RememberingRewriter::new(FakeRewriter::new(answer), bytes, metrics)
    }

    fn request<'a>(sentence: &'a str, adapter: &'a AdapterLease, turn: &'a Turn) -> RewriteRequest<'a> {
        RewriteRequest {
            sentence,
            adapter,
            strength: 1.0,
            guidance: 0.0,
            candidates: 4,
            seed: 1,
            deadline: None,
            turn,
        }
    }

    #[tokio::test]
    async fn the_same_question_is_asked_once_and_another_one_again() {
        let rewriter = remembering(1 << 20);
        let (adapter, turn) = (AdapterLease::for_tests("a@1"), Turn::new(None));
        let other = AdapterLease::for_tests("a@2");
        let first = rewriter.rewrite(request("a text", &adapter, &turn)).await.unwrap();
        let second = rewriter.rewrite(request("a text", &adapter, &turn)).await.unwrap();
        assert_eq!(first.candidates, second.candidates);
        assert_eq!((first.prompt_tokens, second.prompt_tokens), (10, 0));
        assert_eq!(rewriter.inner.asked.lock().unwrap().len(), 1);
        let differing = [
            request("a text", &other, &turn),
            request("another", &adapter, &turn),
            RewriteRequest {
                strength: 0.5,
                ..request("a text", &adapter, &turn)
            },
            RewriteRequest {
                guidance: 0.5,
                ..request("a text", &adapter, &turn)
            },
            RewriteRequest {
                candidates: 3,
                ..request("a text", &adapter, &turn)
            },
            RewriteRequest {
                seed: 2,
                ..request("a text", &adapter, &turn)
            },
        ];
        for (number, request) in differing.into_iter().enumerate() {
            rewriter.rewrite(request).await.unwrap();
            assert_eq!(rewriter.inner.asked.lock().unwrap().len(), number + 2);
        }
        assert_eq!((rewriter.metrics.hits.get(), rewriter.metrics.misses.get()), (1, 7));
    }

    #[tokio::test]
    async fn errors_are_not_remembered_and_memory_is_bounded() {
        let rewriter = remembering(10_000);
        let (adapter, turn) = (AdapterLease::for_tests("a@1"), Turn::new(None));
        for _ in 0..2 {
            assert!(rewriter.rewrite(request("bad", &adapter, &turn)).await.is_err());
        }
        assert_eq!(rewriter.inner.asked.lock().unwrap().len(), 2);
        for number in 0..500 {
            rewriter
                .rewrite(request(&format!("text {number}"), &adapter, &turn))
                .await
                .unwrap();
        }
        rewriter.known.run_pending_tasks();
        assert!(rewriter.known.weighted_size() <= 10_000);
        assert!(rewriter.known.entry_count() > 5);
    }
}
