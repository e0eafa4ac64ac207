//! Judges text without a model: how toxic it is, how close two texts are in meaning; and, with the model, how likely.
//!
//! Text in, numbers out: what to do about a score is the pipeline's business.
pub mod calibration;
pub mod corpus;
pub mod evaluate;
pub mod features;
pub mod groups;
pub mod logistic;
pub mod normalize;
pub mod overlap;
pub mod perplexity;
pub mod similarity;
pub mod toxicity;
pub mod train;
pub mod train_similarity;
pub use perplexity::{ModelPerplexity, Perplexity, PerplexityScorer};
pub use similarity::SimilarityScorer;
pub use toxicity::{ScorerError, ToxicityScorer};
