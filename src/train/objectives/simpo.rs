//! Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734).

use super::pairs::{Length, logistic};
use super::{Loss, Objective, Scored};

/// `-ln σ(beta/|y⁺| ln π(y⁺|x) - beta/|y⁻| ln π(y⁻|x) - gamma)` (Eq. 6), without a reference: the mean over the pairs of a set,
/// then over the sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimPo {
    /// Scale of the mean log-likelihoods.
    pub beta: f64,
    /// Margin by which a positive is to be ahead, in units of the scaled ones.
    pub gamma: f64,
    /// Weight of the mean negative log-likelihood of the positives' tokens.
    pub sft_weight: f64,
}

impl Objective for SimPo {
    fn loss(&self, scored: &Scored<'_>) -> Loss {
        logistic(scored, Length::Mean, self.beta, self.gamma, self.sft_weight)
    }
}
