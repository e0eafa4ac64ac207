//! Judges text without a model: how toxic it is, how close two texts are in meaning.
pub mod calibration;
pub mod corpus;
pub mod evaluate;
pub mod features;
pub mod groups;
pub mod logistic;
pub mod normalize;
pub mod perplexity;
pub mod similarity;
pub mod toxicity;
pub mod train;
pub use perplexity::{ModelPerplexity, Perplexity, PerplexityScorer};
pub use similarity::SimilarityScorer;
pub use toxicity::{ScorerError, ToxicityScorer};
