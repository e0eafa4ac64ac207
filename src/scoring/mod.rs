//! Judges text without a model: how toxic it is, how close two texts are in meaning.
//!
//! Text in, numbers out: what to do about a score is the pipeline's business.
pub mod calibration;
pub mod contrasts;
pub mod corpus;
pub mod evaluate;
pub mod features;
pub mod groups;
pub mod logistic;
pub mod normalize;
pub mod overlap;
pub mod similarity;
pub mod stance;
pub mod toxicity;
pub mod train;
pub mod train_similarity;
pub use similarity::SimilarityScorer;
pub use toxicity::{ScorerError, ToxicityScorer};
