//! Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

use super::pairs::{Length, logistic};
use super::{Loss, Objective, Scored};

/// `-ln σ(beta [ln π(y⁺|x)/π_ref(y⁺|x) - ln π(y⁻|x)/π_ref(y⁻|x)])` (Eq. 7), the reference being the model that training began
/// with: the mean over the pairs of a set, then over the sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
    /// How far the policy may stray: the smaller, the farther.
    pub beta: f64,
    /// Compares mean log-likelihoods a token instead of those of whole texts (Lambert et al. 2024, arXiv 2411.15124, Eq. 6).
    pub length_normalised: bool,
    /// Weight of the mean negative log-likelihood of the positives' tokens (Pang et al. 2024, arXiv 2404.19733).
    pub sft_weight: f64,
}

impl Objective for Dpo {
    fn loss(&self, scored: &Scored<'_>) -> Loss {
        let length = if self.length_normalised {
            Length::Mean
        } else {
            Length::Sum
        };
        logistic(scored, length, self.beta, 0.0, self.sft_weight)
    }

    fn needs_reference(&self) -> bool {
        true
    }
}
