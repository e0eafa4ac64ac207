//! Judges text: how toxic it is, how close two texts are in meaning.
//!
//! [`judge`] has the two judgements as traits. Built in are [`toxicity`] and [`similarity`], which need no model; [`encoder`] runs a
//! classifier or a sentence-embedding model that the user names in their place.
//!
//! Text in, numbers out: what to do about a score is the pipeline's business.

pub mod calibration;
pub mod contrasts;
pub mod corpus;
pub mod encoder;
pub mod evaluate;
mod explicit;
pub mod features;
pub mod groups;
pub mod judge;
pub mod logistic;
pub mod normalize;
pub mod overlap;
pub mod similarity;
pub mod stance;
pub mod toxicity;
pub mod train;
pub mod train_similarity;
pub use encoder::{Classifier, Embedder, EncoderError};
pub use judge::{Similarity, Toxicity};
pub use similarity::SimilarityScorer;
pub use toxicity::{ScorerError, ToxicityScorer};
