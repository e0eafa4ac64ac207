//! Scorers and rewriters for tests: their verdicts can be read off the text.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use unicode_segmentation::UnicodeSegmentation;

use super::rewriter::{BoxFuture, Candidate, RewriteError, RewriteRequest, Rewriter, Rewrites};
use crate::scoring::{Similarity, Toxicity};

/// Each "idiot" adds 0.9 to the toxicity, each "stupid" 0.8, each "crap" 0.6, as odds of their own.
pub(super) struct WordToxicity;

fn weight(word: &str) -> f32 {
    match word.to_lowercase().as_str() {
        "idiot" | "idiots" => 0.9,
        "stupid" => 0.8,
        "crap" => 0.6,
        _ => 0.0,
    }
}

impl Toxicity for WordToxicity {
    fn score(&self, text: &str) -> f32 {
        let clean: f32 = text.unicode_words().map(|word| 1.0 - weight(word)).product();
        1.0 - clean
    }

    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        text.unicode_word_indices()
            .map(|(at, word)| (at..at + word.len(), weight(word)))
            .collect()
    }
}

/// The share of words in common.
pub(super) struct WordSimilarity;

impl Similarity for WordSimilarity {
    fn score(&self, source: &str, rewrite: &str) -> f32 {
        let words = |text: &str| -> HashSet<String> { text.unicode_words().map(str::to_lowercase).collect() };
        let (a, b) = (words(source), words(rewrite));
        let most = a.len().max(b.len()).max(1);
        a.intersection(&b).count() as f32 / most as f32
    }
}

/// A rewriter that answers by a function of the sentence, and keeps what it was asked.
pub(super) struct FakeRewriter<F> {
    answer: F,
    pub asked: Mutex<Vec<String>>,
    pub running: AtomicUsize,
    pub most_running: AtomicUsize,
}

impl<F> FakeRewriter<F>
where
    F: Fn(&str) -> Result<Vec<String>, RewriteError> + Send + Sync + 'static,
{
    pub fn new(answer: F) -> Self {
        Self {
            answer,
            asked: Mutex::default(),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
        }
    }
}

impl<F> Rewriter for FakeRewriter<F>
where
    F: Fn(&str) -> Result<Vec<String>, RewriteError> + Send + Sync + 'static,
{
    fn rewrite<'a>(&'a self, request: RewriteRequest<'a>) -> BoxFuture<'a, Result<Rewrites, RewriteError>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(request.sentence.to_owned());
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_running.fetch_max(running, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            let texts = (self.answer)(request.sentence)?;
            Ok(Rewrites {
                completion_tokens: texts.len(),
                candidates: texts
                    .into_iter()
                    .map(|text| Candidate {
                        text,
                        mean_nll: 1.0,
                        base_nll: None,
                    })
                    .collect(),
                prompt_tokens: 10,
                queue: Duration::from_millis(1),
                inference: Duration::from_millis(2),
            })
        })
    }

    fn model(&self) -> &str {
        "fake"
    }
}
