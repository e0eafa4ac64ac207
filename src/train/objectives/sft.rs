//! Supervised fine-tuning: the mean negative log-likelihood of the positives' tokens.

use super::super::batch::CandidateSet;
use super::{Loss, Objective};

/// Mean over all tokens of all positives; negatives are ignored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sft;

impl Objective for Sft {
    fn loss(&self, nll: &[f32], sets: &[CandidateSet]) -> Loss {
        let mut gradient = vec![0.0; nll.len()];
        let tokens = || sets.iter().flat_map(|set| &set.positives).cloned().flatten();
        let weight = (tokens().count().max(1) as f64).recip();
        let mut value = 0.0;
        for token in tokens() {
            value += f64::from(nll[token]) * weight;
            gradient[token] = weight;
        }
        Loss { value, gradient }
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "a candidate is a range of tokens; one candidate is one range"
    )]

    use super::*;

    #[test]
    fn only_tokens_of_positives_count() {
        let sets = [
            CandidateSet {
                positives: vec![0..2],
                negatives: vec![2..3],
            },
            CandidateSet {
                positives: vec![3..4],
                negatives: vec![],
            },
        ];
        let loss = Sft.loss(&[1.0, 2.0, 9.0, 3.0], &sets);
        assert!((loss.value - 2.0).abs() < 1e-12);
        assert_eq!(loss.gradient, [1.0 / 3.0, 1.0 / 3.0, 0.0, 1.0 / 3.0]);
    }
}
