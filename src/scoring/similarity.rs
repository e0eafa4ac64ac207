//! How close two texts are in meaning, without a model: overlap of words and characters.
//!
//! A small regression over overlap features, fitted to cosines of sentence embeddings. Words count by their rarity,
//! and by how little they add to toxicity: what a rewrite should drop may go without loss.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::overlap::{FEATURES, Side, character_overlap, features};
use super::toxicity::{ScorerError, ToxicityScorer};

/// File of word rarities inside the scorer's folder.
pub const RARITY_FILE: &str = "rarity.bin";
/// File of the regression's weights inside the scorer's folder.
pub const SIMILARITY_FILE: &str = "similarity.json";

static EMBEDDED_RARITY: &[u8] = include_bytes!("../../assets/toxicity-scorer/rarity.bin");
static EMBEDDED_SIMILARITY: &str = include_str!("../../assets/toxicity-scorer/similarity.json");

/// Number of weights: a constant, every feature, and every product of two.
pub const TERMS: usize = 1 + FEATURES + FEATURES * (FEATURES + 1) / 2;

/// What `similarity.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Regression {
    /// One weight a term.
    pub weights: Vec<f32>,
}

impl Regression {
    /// The regression's value, 0..=1.
    pub fn predict(&self, features: &[f32; FEATURES]) -> f32 {
        let sum: f32 = terms(features)
            .zip(&self.weights)
            .map(|(term, weight)| term * weight)
            .sum();
        sum.clamp(0.0, 1.0)
    }
}

/// The constant, the features and their products.
pub fn terms(features: &[f32; FEATURES]) -> impl Iterator<Item = f32> {
    let products = (0..FEATURES).flat_map(move |a| (a..FEATURES).map(move |b| features[a] * features[b]));
    std::iter::once(1.0).chain(*features).chain(products)
}

/// How rare words are: a byte a bucket, from common (0) to never seen (255).
pub struct Rarity(std::borrow::Cow<'static, [u8]>);

impl Rarity {
    /// log2 of the number of buckets.
    pub const BITS: u32 = 16;

    /// Wraps a table of `1 << BITS` bytes.
    pub fn new(table: std::borrow::Cow<'static, [u8]>) -> Result<Self, ScorerError> {
        if table.len() == 1 << Self::BITS {
            return Ok(Rarity(table));
        }
        Err(ScorerError::Mismatch {
            expected: format!("{} rarities", 1 << Self::BITS),
            found: format!("{}", table.len()),
        })
    }

    /// The bucket of a hashed word.
    pub fn bucket(hash: u64) -> usize {
        (hash >> (64 - Self::BITS)) as usize
    }

    /// Above 0, at most 1.
    pub fn of(&self, hash: u64) -> f32 {
        f32::from(self.0[Self::bucket(hash)].max(8)) / 255.0
    }
}

/// Similarity in meaning of a source and a rewrite.
pub struct SimilarityScorer {
    toxicity: Arc<ToxicityScorer>,
    rarity: Rarity,
    regression: Regression,
}

impl SimilarityScorer {
    /// The scorer inside the binary. `toxicity` says which words of a text weigh little.
    pub fn new(toxicity: Arc<ToxicityScorer>) -> Self {
        // The embedded files are checked by a test; a build with broken ones falls back to plain overlap.
        let rarity =
            Rarity::new(EMBEDDED_RARITY.into()).unwrap_or_else(|_| Rarity(vec![255; 1 << Rarity::BITS].into()));
        let regression = serde_json::from_str(EMBEDDED_SIMILARITY).unwrap_or_else(|_| plain_overlap());
        SimilarityScorer {
            toxicity,
            rarity,
            regression,
        }
    }

    /// A scorer of parts, for training.
    pub fn from_parts(toxicity: Arc<ToxicityScorer>, rarity: Rarity, regression: Regression) -> Self {
        SimilarityScorer {
            toxicity,
            rarity,
            regression,
        }
    }

    /// 0..=1, the same in both directions; 1 for texts of the same words, 0 if only one of them has words.
    pub fn score(&self, source: &str, rewrite: &str) -> f32 {
        let (a, b) = (self.side(source), self.side(rewrite));
        if a.same_words(&b) {
            return 1.0;
        }
        if a.is_empty() || b.is_empty() {
            return 0.0;
        }
        self.regression.predict(&features(&a, &b))
    }

    /// How many characters in a row two texts share, whatever they mean: F1 of character 1- to 6-grams, mean over the orders,
    /// as in chrF; 0..=1.
    pub fn overlap(&self, a: &str, b: &str) -> f32 {
        character_overlap(&self.side(a), &self.side(b))
    }

    /// The features of a pair, for training.
    pub fn features(&self, source: &str, rewrite: &str) -> [f32; FEATURES] {
        features(&self.side(source), &self.side(rewrite))
    }

    fn side(&self, text: &str) -> Side {
        Side::new(text, &self.rarity, &self.toxicity.attributions(text))
    }
}

fn plain_overlap() -> Regression {
    let mut weights = vec![0.0; TERMS];
    weights[2] = 1.0;
    Regression { weights }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scorer() -> SimilarityScorer {
        SimilarityScorer::new(Arc::new(ToxicityScorer::embedded().expect("the embedded scorer loads")))
    }

    #[test]
    fn the_embedded_files_load() {
        assert!(Rarity::new(EMBEDDED_RARITY.into()).is_ok());
        let regression: Regression = serde_json::from_str(EMBEDDED_SIMILARITY).expect("the embedded weights load");
        assert_eq!(regression.weights.len(), TERMS);
    }

    #[test]
    fn closer_rewrites_score_higher() {
        let scorer = scorer();
        let source = "this stupid phone breaks every two weeks, you idiot";
        let close = scorer.score(source, "this phone breaks every two weeks");
        let vague = scorer.score(source, "this phone is bad");
        let other = scorer.score(source, "the weather is nice today");
        assert!(close > vague && vague > other, "{close} {vague} {other}");
        assert!(close > 0.6 && other < 0.25, "{close} {other}");
        assert_eq!(scorer.score(source, &source.to_uppercase()), 1.0);
        assert_eq!(scorer.score(source, ""), 0.0);
    }

    #[test]
    fn overlap_counts_characters() {
        let scorer = scorer();
        let source = "this phone breaks every two weeks";
        let near = scorer.overlap(source, "this phone broke every two weeks");
        assert!(near > 0.7 && near < 1.0, "{near}");
        assert_eq!(scorer.overlap(source, source), 1.0);
        assert_eq!(scorer.overlap(source, ""), 0.0);
    }

    proptest! {
        #[test]
        fn any_pair_has_a_symmetric_score(a in "\\PC{0,40}", b in "[a-z0-9?' ]{0,40}") {
            let scorer = scorer();
            let score = scorer.score(&a, &b);
            prop_assert!((0.0..=1.0).contains(&score));
            prop_assert!((score - scorer.score(&b, &a)).abs() < 1e-4);
        }
    }
}
