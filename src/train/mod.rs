//! Training: examples in, an adapter in PEFT's layout or a model in Hugging Face's out.
//!
//! - [`settings`]: what a person gives, presets, and what both come to.
//! - [`dataset`]: the three shapes of JSON lines; [`mod@tokenise`]: examples as token sets; [`batch`]: those packed, in a reproducible
//!   order.
//! - [`objectives`]: from the log-likelihoods of a batch's sequences to a loss and its gradient, in double precision and
//!   without a tensor; [`optimizer`]: AdamW and the learning-rate schedule.
//! - [`trainable`]: an adapter over a frozen decoder, or a whole decoder: all the loop needs to know of either.
//! - [`rollout`]: texts that the policy writes, for the objective that learns from a reward.
//! - [`trainer`]: the loop; [`curves`]: its log as a drawing; [`checkpoint`]: what it takes to go on after an interruption as if there had been none.
//!
//! What does not live here: forward and backward passes of the model (`model`), jobs and their queue.

pub mod batch;
pub mod checkpoint;
pub mod curves;
pub mod dataset;
pub mod objectives;
pub mod optimizer;
pub mod rollout;
pub mod settings;
pub mod tokenise;
pub mod trainable;
pub mod trainer;

use crate::model::ModelError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A line of a dataset is malformed.
    #[error("{path}, line {line}: {reason}")]
    Dataset {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// Nothing to train on.
    #[error("no example of the dataset can be used: {0}")]
    Empty(String),
    /// A setting outside its range, or one that contradicts another.
    #[error("{0}")]
    Setting(String),
    /// The loss or the gradient stopped being a number.
    #[error("the {what} of step {step} is not finite; lower the learning rate")]
    Diverged {
        /// "loss" or "gradient".
        what: &'static str,
        /// The step, counted from 1.
        step: usize,
    },
    /// A checkpoint that does not belong to this run.
    #[error("cannot resume from {path}: {reason}")]
    Checkpoint {
        /// The checkpoint.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl TrainError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source }
    }
}
