//! Supervised fine-tuning: the mean negative log-likelihood of the positives' tokens.

use super::{Loss, Objective, Scored};

/// `1/M Σ_P Σ_t -ln p(x_t | x_<t)`, over all M tokens of all positives of the batch; negatives are ignored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sft;

impl Objective for Sft {
    fn loss(&self, scored: &Scored<'_>) -> Loss {
        let mut loss = Loss::zero(scored.nll.len());
        let tokens = || scored.sets.iter().flat_map(|set| &set.positives).cloned().flatten();
        let weight = (tokens().count().max(1) as f64).recip();
        for token in tokens() {
            loss.value += f64::from(scored.nll[token]) * weight;
            loss.gradient[token] = weight;
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "a candidate is a range of tokens; one candidate is one range"
    )]

    use super::super::super::batch::CandidateSet;
    use super::*;

    #[test]
    fn only_tokens_of_positives_count() {
        let sets = [
            CandidateSet {
                positives: vec![0..2],
                negatives: vec![2..3],
                ..CandidateSet::default()
            },
            CandidateSet {
                positives: vec![3..4],
                ..CandidateSet::default()
            },
        ];
        let loss = Sft.loss(&Scored {
            nll: &[1.0, 2.0, 9.0, 3.0],
            reference: &[],
            sets: &sets,
        });
        assert!((loss.value - 2.0).abs() < 1e-12);
        assert_eq!(loss.gradient, [1.0 / 3.0, 1.0 / 3.0, 0.0, 1.0 / 3.0]);
    }
}
