//! What the objectives over preferences share: every positive of an anchor is preferred to every negative of it.

use std::ops::Range;

use super::{CandidateSet, Loss, Objective, Scored, Sft};

/// How the likelihoods of a text's tokens become its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// Their sum: the likelihood of the text.
    Sum,
    /// Their mean.
    Mean,
}

impl Length {
    fn factor(self, tokens: usize) -> f64 {
        match self {
            Self::Sum => 1.0,
            Self::Mean => (tokens as f64).recip(),
        }
    }
}

/// `-ln σ(beta (score(positive) - score(negative)) - gamma)`, where a score is the log-likelihood of a text less that under the
/// reference (when there is one): the mean over the pairs of a set, then over the sets that have a pair, plus the weighted
/// likelihood of the positives.
pub(super) fn logistic(scored: &Scored<'_>, length: Length, beta: f64, gamma: f64, sft_weight: f64) -> Loss {
    let mut loss = Sft.loss(scored);
    loss.scale(sft_weight);
    let compared = || {
        let with_pair = |set: &&CandidateSet| !set.positives.is_empty() && set.hard_and_random().next().is_some();
        scored.sets.iter().filter(with_pair)
    };
    let share = (compared().count().max(1) as f64).recip();
    let score = |candidate: &Range<usize>| -> f64 {
        let tokens = candidate.clone().map(|token| {
            let reference = scored.reference.get(token).copied().unwrap_or(0.0);
            f64::from(reference) - f64::from(scored.nll[token])
        });
        tokens.sum::<f64>() * length.factor(candidate.len())
    };
    for set in compared() {
        let better: Vec<f64> = set.positives.iter().map(score).collect();
        let worse: Vec<f64> = set.hard_and_random().map(score).collect();
        let each = share / (better.len() * worse.len()) as f64;
        let (mut by_better, mut by_worse) = (vec![0.0; better.len()], vec![0.0; worse.len()]);
        for (better, by_better) in better.iter().zip(&mut by_better) {
            for (worse, by_worse) in worse.iter().zip(&mut by_worse) {
                let margin = beta * (better - worse) - gamma;
                loss.value += each * minus_log_sigmoid(margin);
                let slope = -each * beta * sigmoid(-margin);
                *by_better += slope;
                *by_worse -= slope;
            }
        }
        let candidates = set.positives.iter().chain(set.hard_and_random());
        for (candidate, by_score) in candidates.zip(by_better.iter().chain(&by_worse)) {
            // A score falls by the factor for each nat that a token costs.
            let by_nll = -by_score * length.factor(candidate.len());
            candidate.clone().for_each(|token| loss.gradient[token] += by_nll);
        }
    }
    loss
}

/// `-ln σ(x)`, without overflow on either side.
fn minus_log_sigmoid(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        (1.0 + (-x).exp()).recip()
    } else {
        x.exp() / (1.0 + x.exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_of_any_size_give_finite_numbers() {
        assert!((minus_log_sigmoid(0.0) - 2f64.ln()).abs() < 1e-15);
        assert!((minus_log_sigmoid(-1000.0) - 1000.0).abs() < 1e-9);
        assert!(minus_log_sigmoid(1000.0).abs() < 1e-15);
        assert!((sigmoid(-1000.0), sigmoid(1000.0)) == (0.0, 1.0));
    }
}
