//! Training objectives: from the negative log-likelihoods of a batch's tokens to a loss and its gradient.
//!
//! An objective sees one number a token and returns one number a token, so it is written and tested in double precision
//! without a model; the trainer carries the gradient on.
//!
//! - [`contrastive`](ContrastivePerplexity): contrastive perplexity and its variants; [`released`](Released): what its authors'
//!   published program computes instead;
//! - [`sft`](Sft): likelihood of the positives; [`dpo`](Dpo) and [`simpo`](SimPo): preferences, over `pairs`;
//! - [`ppo`](ClippedPolicy): the clipped surrogate of texts that the policy itself wrote.
//!
//! What does not live here: sampling texts, and what they are worth (`rollout`).

mod contrastive;
mod dpo;
mod pairs;
mod ppo;
mod released;
mod sft;
mod simpo;
#[cfg(test)]
mod tests;

pub use contrastive::{ContrastivePerplexity, Phi, SetLoss, Sides, Similarity};
pub use dpo::Dpo;
pub use ppo::{ClippedPolicy, Episode, advantages};
pub use released::Released;
pub use sft::Sft;
pub use simpo::SimPo;

use super::batch::CandidateSet;

/// What an objective sees of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// Nats a target, under what is trained.
    pub nll: &'a [f32],
    /// Nats a target under the reference; empty unless the objective [needs it](Objective::needs_reference).
    pub reference: &'a [f32],
    /// Which targets make up which candidate of which anchor.
    pub sets: &'a [CandidateSet],
}

/// A loss and its derivative with respect to the negative log-likelihood of every target token.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The loss of the batch.
    pub value: f64,
    /// One value a target.
    pub gradient: Vec<f64>,
}

impl Loss {
    /// No loss yet, of so many targets.
    fn zero(targets: usize) -> Self {
        Self {
            value: 0.0,
            gradient: vec![0.0; targets],
        }
    }

    fn scale(&mut self, factor: f64) {
        self.value *= factor;
        self.gradient.iter_mut().for_each(|gradient| *gradient *= factor);
    }
}

/// Something to be minimised.
pub trait Objective: Send + Sync {
    /// The loss of a batch.
    fn loss(&self, scored: &Scored<'_>) -> Loss;

    /// Whether it compares with the model that training began with.
    fn needs_reference(&self) -> bool {
        false
    }
}
