//! Contrastive perplexity (Klein & Nabi, ACL 2025, arXiv 2401.08491), and its directed variant for rewriters.

use std::ops::Range;

use super::super::batch::CandidateSet;
use super::{Loss, Objective, Sft};

/// What is compared between candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phi {
    /// The perplexity of a candidate's own tokens (Eq. 1 of the paper).
    Perplexity,
    /// Its logarithm, the mean negative log-likelihood.
    LogPerplexity,
}

/// How the distance of a candidate from the prototype becomes a similarity.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// `exp(-|phi - c|) / tau` (Eq. 4 of the paper), in which tau cancels.
    Paper,
    /// `exp(-|phi - c| / tau)`.
    Symmetric,
    /// As `Symmetric` for positives; `exp(-(phi - c) / tau)` for negatives, so that a negative likelier than the prototype is
    /// pushed up however far below it lies. A negative more than `margin` above the prototype is left alone.
    Directed {
        /// In units of phi.
        margin: f64,
    },
}

/// Positives of an anchor are pulled to their prototype in perplexity space, negatives pushed away from it:
/// `-ln (Σ_P s / (Σ_P s + alpha Σ_N s))`, averaged over the anchors, plus a likelihood term on the positives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContrastivePerplexity {
    /// What is compared.
    pub phi: Phi,
    /// How distance becomes similarity.
    pub similarity: Similarity,
    /// Temperature.
    pub tau: f64,
    /// Weight of the negatives.
    pub alpha: f64,
    /// Whether the prototype is a constant for the gradient.
    pub detach_prototype: bool,
    /// Weight of the contrastive term.
    pub weight: f64,
    /// Weight of the mean negative log-likelihood of the positives' tokens.
    pub sft_weight: f64,
}

/// The loss of one anchor and its derivatives with respect to every phi.
#[derive(Debug, Clone, PartialEq)]
pub struct SetLoss {
    /// `-ln J`.
    pub value: f64,
    /// By positive.
    pub positives: Vec<f64>,
    /// By negative.
    pub negatives: Vec<f64>,
}

impl ContrastivePerplexity {
    /// The contrastive loss of one anchor from its candidates' phis.
    pub fn set_loss(&self, positives: &[f64], negatives: &[f64]) -> SetLoss {
        let count = positives.len() as f64;
        let prototype = positives.iter().sum::<f64>() / count;
        let near = |phi: f64| self.symmetric(phi - prototype);
        let far = |phi: f64| match self.similarity {
            Similarity::Directed { margin } if phi - prototype > margin => (0.0, 0.0),
            Similarity::Directed { .. } => {
                let similarity = (-(phi - prototype) / self.tau).exp();
                (similarity, -similarity / self.tau)
            }
            Similarity::Paper | Similarity::Symmetric => near(phi),
        };
        // Similarities with their derivatives by phi; the derivative by the prototype is the opposite.
        let near: Vec<(f64, f64)> = positives.iter().map(|&phi| near(phi)).collect();
        let far: Vec<(f64, f64)> = negatives.iter().map(|&phi| far(phi)).collect();
        let sum_near: f64 = near.iter().map(|(similarity, _)| similarity).sum();
        let sum_far: f64 = far.iter().map(|(similarity, _)| similarity).sum();
        let total = sum_near + self.alpha * sum_far;
        let by_near = total.recip() - sum_near.recip();
        let by_far = self.alpha / total;
        let mut positives: Vec<f64> = near.iter().map(|(_, slope)| by_near * slope).collect();
        let negatives: Vec<f64> = far.iter().map(|(_, slope)| by_far * slope).collect();
        if !self.detach_prototype {
            let by_prototype = -(positives.iter().sum::<f64>() + negatives.iter().sum::<f64>());
            positives
                .iter_mut()
                .for_each(|gradient| *gradient += by_prototype / count);
        }
        SetLoss {
            value: (total / sum_near).ln(),
            positives,
            negatives,
        }
    }

    fn symmetric(&self, distance: f64) -> (f64, f64) {
        // At zero the absolute value gets the derivative zero, as in PyTorch.
        let sign = if distance == 0.0 { 0.0 } else { distance.signum() };
        match self.similarity {
            Similarity::Paper => {
                let similarity = (-distance.abs()).exp() / self.tau;
                (similarity, -sign * similarity)
            }
            Similarity::Symmetric | Similarity::Directed { .. } => {
                let similarity = (-distance.abs() / self.tau).exp();
                (similarity, -sign * similarity / self.tau)
            }
        }
    }

    /// Phi of a candidate, and its derivative by the candidate's mean negative log-likelihood.
    fn phi(&self, nll: &[f32], candidate: &Range<usize>) -> (f64, f64) {
        let mean = nll[candidate.clone()]
            .iter()
            .map(|&value| f64::from(value))
            .sum::<f64>()
            / candidate.len() as f64;
        match self.phi {
            Phi::LogPerplexity => (mean, 1.0),
            Phi::Perplexity => (mean.exp(), mean.exp()),
        }
    }
}

impl Objective for ContrastivePerplexity {
    fn loss(&self, nll: &[f32], sets: &[CandidateSet]) -> Loss {
        let mut loss = Sft.loss(nll, sets);
        loss.value *= self.sft_weight;
        loss.gradient
            .iter_mut()
            .for_each(|gradient| *gradient *= self.sft_weight);
        let contrasted = || {
            sets.iter()
                .filter(|set| !set.positives.is_empty() && !set.negatives.is_empty())
        };
        let share = self.weight / contrasted().count().max(1) as f64;
        for set in contrasted() {
            let phis = |candidates: &[Range<usize>]| -> (Vec<f64>, Vec<f64>) {
                candidates.iter().map(|candidate| self.phi(nll, candidate)).unzip()
            };
            let (positives, positive_slopes) = phis(&set.positives);
            let (negatives, negative_slopes) = phis(&set.negatives);
            let set_loss = self.set_loss(&positives, &negatives);
            loss.value += share * set_loss.value;
            let candidates = set.positives.iter().chain(&set.negatives);
            let slopes = positive_slopes.iter().chain(&negative_slopes);
            let gradients = set_loss.positives.iter().chain(&set_loss.negatives);
            for ((candidate, slope), gradient) in candidates.zip(slopes).zip(gradients) {
                let a_token = share * gradient * slope / candidate.len() as f64;
                candidate.clone().for_each(|token| loss.gradient[token] += a_token);
            }
        }
        loss
    }
}
