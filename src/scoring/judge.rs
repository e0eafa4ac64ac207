//! The two judgements, as traits: the built-in scorers, an encoder of the user's choice, or one whose verdicts are plain to see, in tests.

use std::ops::Range;

use super::{SimilarityScorer, ToxicityScorer};

/// How toxic texts are.
pub trait Toxicity: Send + Sync {
    /// Probability that `text` is toxic, 0..=1; not a number where it can't be told.
    fn score(&self, text: &str) -> f32;

    /// The same of several texts, in their order.
    fn scores(&self, texts: &[&str]) -> Vec<f32> {
        texts.iter().map(|text| self.score(text)).collect()
    }

    /// What each word (byte ranges of `text`) adds to the log odds.
    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)>;

    /// Whether a verdict takes milliseconds, not microseconds: then it must not be waited for on a thread that serves others.
    fn is_slow(&self) -> bool {
        false
    }
}

/// How much of the meaning rewrites keep.
pub trait Similarity: Send + Sync {
    /// Similarity in meaning, 0..=1; not a number where it can't be told.
    fn score(&self, source: &str, rewrite: &str) -> f32;

    /// The same of several rewrites of a source, in their order.
    fn scores(&self, source: &str, rewrites: &[&str]) -> Vec<f32> {
        rewrites.iter().map(|rewrite| self.score(source, rewrite)).collect()
    }

    /// As [`Toxicity::is_slow`].
    fn is_slow(&self) -> bool {
        false
    }
}

impl Toxicity for ToxicityScorer {
    fn score(&self, text: &str) -> f32 {
        ToxicityScorer::score(self, text)
    }

    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        ToxicityScorer::attributions(self, text)
    }
}

impl Similarity for SimilarityScorer {
    fn score(&self, source: &str, rewrite: &str) -> f32 {
        SimilarityScorer::score(self, source, rewrite)
    }
}
