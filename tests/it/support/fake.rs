//! A rewriter that does what a sentence tells it to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use detoxd::{
    adapters::AdapterLease,
    engine::Activity,
    pipeline::{
        BoxFuture, Candidate, Likelihood, Perplexity, PerplexityScorer, RewriteError, RewriteRequest, Rewriter,
        Rewrites,
    },
};
use tokio::sync::Notify;

/// A toxic sentence that the fake makes milder.
pub const TOXIC: &str = "The report is late again, you stupid idiot.";
/// What it makes of it.
pub const MILDER: &str = "The report is late again.";
/// A toxic sentence on which it works until told to finish.
pub const SLOW: &str = "The slow report is late again, you stupid idiot.";
/// A toxic sentence on which it panics.
pub const PANIC: &str = "The panic report is late again, you stupid idiot.";
/// A toxic sentence for which it has no room.
pub const FULL: &str = "The full report is late again, you stupid idiot.";
/// A toxic sentence on which it fails.
pub const FAIL: &str = "The failed report is late again, you stupid idiot.";

/// Deletes the insult.
pub struct FakeRewriter {
    /// How often it was asked to rewrite `SLOW`.
    pub started: AtomicUsize,
    /// Lets the slow sentences finish.
    pub finish: Notify,
    /// How often the slow sentence was withdrawn.
    pub withdrawn: AtomicUsize,
    /// Of the engine it pretends to have.
    pub activity: Activity,
}

impl Default for FakeRewriter {
    fn default() -> Self {
        Self {
            started: AtomicUsize::default(),
            finish: Notify::default(),
            withdrawn: AtomicUsize::default(),
            activity: Activity::new().unwrap(),
        }
    }
}

struct Withdrawal<'a>(Option<&'a AtomicUsize>);

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Rewriter for FakeRewriter {
    fn rewrite<'a>(&'a self, request: RewriteRequest<'a>) -> BoxFuture<'a, Result<Rewrites, RewriteError>> {
        Box::pin(async move {
            let sentence = request.sentence;
            if sentence.contains("slow") {
                let mut withdrawal = Withdrawal(Some(&self.withdrawn));
                self.started.fetch_add(1, Ordering::SeqCst);
                self.finish.notified().await;
                withdrawal.0 = None;
            }
            assert!(!sentence.contains("panic"), "told to panic by: {sentence}");
            if sentence.contains("full") {
                return Err(RewriteError::Overloaded {
                    retry_after: Duration::from_millis(2500),
                });
            }
            if sentence.contains("failed") {
                return Err(RewriteError::Failed("no more memory".to_owned()));
            }
            let text = [", you stupid idiot", "stupid ", "idiot"]
                .iter()
                .fold(sentence.to_owned(), |text, insult| text.replace(insult, ""));
            let candidate = Candidate {
                text,
                mean_nll: 1.0,
                base_nll: None,
            };
            Ok(Rewrites {
                candidates: vec![candidate],
                prompt_tokens: 12,
                completion_tokens: 8,
                queue: Duration::from_millis(1),
                inference: Duration::from_millis(2),
            })
        })
    }

    fn model(&self) -> &str {
        "fake"
    }

    fn activity(&self) -> Option<&Activity> {
        Some(&self.activity)
    }
}

/// Perplexity 20 and 10 for everything longer than a word.
pub struct FakePerplexity;

impl PerplexityScorer for FakePerplexity {
    fn perplexity<'a>(&'a self, text: &'a str, _: &'a AdapterLease) -> BoxFuture<'a, Result<Perplexity, RewriteError>> {
        Box::pin(async move {
            let tokens = text.split_whitespace().count();
            let known = tokens > 1;
            Ok(Perplexity {
                base: if known { 20.0 } else { f32::NAN },
                adapter: if known { 10.0 } else { f32::NAN },
                tokens,
            })
        })
    }

    fn likelihoods<'a>(
        &'a self,
        text: &'a str,
        _: &'a AdapterLease,
        _: usize,
    ) -> BoxFuture<'a, Result<Vec<Likelihood>, RewriteError>> {
        let tokens = text.split_whitespace().count().saturating_sub(1);
        let nll = 10f64.ln() * tokens as f64;
        Box::pin(async move { Ok(vec![Likelihood { nll, tokens }]) })
    }
}

/// Both, shared with a test.
pub fn parts() -> (Arc<FakeRewriter>, Arc<FakePerplexity>) {
    (Arc::new(FakeRewriter::default()), Arc::new(FakePerplexity))
}
