//! Judges text without a model: how toxic it is, how close two texts are in meaning.
pub mod calibration;
pub mod corpus;
pub mod evaluate;
pub mod features;
pub mod groups;
pub mod logistic;
pub mod normalize;
pub mod toxicity;
pub mod train;
pub use toxicity::{ScorerError, ToxicityScorer};
