//! Training objectives: from the negative log-likelihoods of a batch's tokens to a loss and its gradient.
//!
//! An objective sees one number a token and returns one number a token, so it is written and tested in double precision
//! without a model; the trainer carries the gradient on.

mod contrastive;
mod sft;

pub use contrastive::{ContrastivePerplexity, Phi, SetLoss, Similarity};
pub use sft::Sft;

use super::batch::CandidateSet;

/// A loss and its derivative with respect to the negative log-likelihood of every target token.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The loss of the batch.
    pub value: f64,
    /// One value a target.
    pub gradient: Vec<f64>,
}

/// Something to be minimised.
pub trait Objective: Send + Sync {
    /// The loss of a batch. `nll` holds nats a target; `sets` says which targets make up which candidate of which anchor.
    fn loss(&self, nll: &[f32], sets: &[CandidateSet]) -> Loss;
}
