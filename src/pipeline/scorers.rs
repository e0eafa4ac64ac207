//! The two judgements that the pipeline needs, as traits: so that it can be tested with scorers
//! whose verdicts are plain to see, and so that another classifier can take their place.

use std::ops::Range;

use crate::scoring::{SimilarityScorer, ToxicityScorer};

/// How toxic a text is.
pub trait Toxicity: Send + Sync + 'static {
    /// Calibrated probability that `text` is toxic, 0..=1.
    fn score(&self, text: &str) -> f32;

    /// What each word (byte ranges of `text`) adds to the logit.
    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)>;
}

/// How much of the meaning a rewrite keeps.
pub trait Similarity: Send + Sync + 'static {
    /// Similarity in meaning, 0..=1.
    fn score(&self, source: &str, rewrite: &str) -> f32;
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

/// A toxicity that can be compared: a score that is not a number counts as toxic.
pub(super) fn toxicity_of(scorer: &dyn Toxicity, text: &str) -> f32 {
    let score = scorer.score(text);
    if score.is_nan() {
        1.0
    } else {
        score.clamp(0.0, 1.0)
    }
}

/// A similarity that can be compared: a score that is not a number counts as none.
pub(super) fn similarity_of(scorer: &dyn Similarity, source: &str, rewrite: &str) -> f32 {
    let score = scorer.score(source, rewrite);
    if score.is_nan() {
        0.0
    } else {
        score.clamp(0.0, 1.0)
    }
}
