//! The two judgements that the pipeline needs, as traits: so that it can be tested with scorers
//! whose verdicts are plain to see, and so that another classifier can take their place.

use std::ops::Range;

use super::protect::Span;
use crate::scoring::{SimilarityScorer, ToxicityScorer};

/// How toxic a text is.
pub trait Toxicity: Send + Sync {
    /// Calibrated probability that `text` is toxic, 0..=1.
    fn score(&self, text: &str) -> f32;

    /// What each word (byte ranges of `text`) adds to the logit.
    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)>;
}

/// How much of the meaning a rewrite keeps.
pub trait Similarity: Send + Sync {
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
    if score.is_nan() { 1.0 } else { score.clamp(0.0, 1.0) }
}

/// A similarity that can be compared: a score that is not a number counts as none.
pub(super) fn similarity_of(scorer: &dyn Similarity, source: &str, rewrite: &str) -> f32 {
    let score = scorer.score(source, rewrite);
    if score.is_nan() { 0.0 } else { score.clamp(0.0, 1.0) }
}

/// A toxicity that does not see the code, addresses and markup of a sentence: an odd word in one
/// of them must not make a sentence toxic that no rewrite could then save.
pub(super) struct OfProse<'a> {
    inner: &'a dyn Toxicity,
    unseen: Vec<&'a str>,
}

impl<'a> OfProse<'a> {
    /// For `sentence` with its protected `spans`, and for rewrites of it.
    pub fn new(inner: &'a dyn Toxicity, sentence: &'a str, spans: &[Span]) -> Self {
        let unseen = spans
            .iter()
            .filter(|span| !span.kind.is_language())
            .filter_map(|span| sentence.get(span.range.clone()))
            .collect();
        Self { inner, unseen }
    }
}

impl Toxicity for OfProse<'_> {
    fn score(&self, text: &str) -> f32 {
        if self.unseen.is_empty() {
            return self.inner.score(text);
        }
        let mut seen = text.to_owned();
        for unseen in &self.unseen {
            seen = seen.replace(unseen, "");
        }
        if seen.chars().any(char::is_alphanumeric) {
            self.inner.score(&seen)
        } else {
            0.0
        }
    }

    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        self.inner.attributions(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::options::Format;
    use crate::pipeline::protect::find;
    use crate::pipeline::testing::WordToxicity;

    #[test]
    fn prose_is_all_that_counts() {
        let sentence = "run `stupid x` at www.idiot.org now @idiot";
        let spans = find(sentence, Format::Markdown);
        let prose = OfProse::new(&WordToxicity, sentence, &spans);
        assert!((prose.score(sentence) - 0.9).abs() < 1e-6);
        assert_eq!(prose.score("run `stupid x` now"), 0.0);
        assert_eq!(prose.score("`stupid x`"), 0.0);
    }
}
