//! What the published program of contrastive perplexity's authors computes, which differs from the paper; for comparison only.

use std::ops::Range;

use super::{Loss, Objective, Scored};

/// One prototype `c`, the mean over all positives of the batch whichever their anchor; scores `z = exp(-|phi - c|) / tau`, to which
/// `alpha` is added for a hard negative and nothing for a random one; then cross-entropy of the softmax over a set's scores
/// with every positive as a label of weight one: `Σ_P -ln softmax(z)`, averaged over the anchors, divided by
/// `|P| + 1 + |random|`.
///
/// `phi` is the mean negative log-likelihood over the padded width: the longest candidate of the batch, rounded up. The
/// program also adds whatever the model gives at padding, which depends on the attention kernel; here padding adds nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Released {
    /// Temperature.
    pub tau: f64,
    /// Added to the scores of hard negatives.
    pub alpha: f64,
}

/// Widths are padded to a multiple of it.
const PADDED_TO: usize = 8;

impl Objective for Released {
    fn loss(&self, scored: &Scored<'_>) -> Loss {
        let mut loss = Loss::zero(scored.nll.len());
        let used = || scored.sets.iter().filter(|set| !set.positives.is_empty());
        let all = || used().flat_map(|set| set.positives.iter().chain(set.hard_and_random()));
        // A sequence has one token more than targets, and so the program's rows of losses one less than the width.
        let longest = all().map(Range::len).max().unwrap_or(0) + 1;
        let width = (longest.next_multiple_of(PADDED_TO) - 1) as f64;
        let phi = |candidate: &Range<usize>| -> f64 {
            candidate.clone().map(|token| f64::from(scored.nll[token])).sum::<f64>() / width
        };
        let positives: Vec<f64> = used().flat_map(|set| &set.positives).map(phi).collect();
        let prototype = positives.iter().sum::<f64>() / positives.len().max(1) as f64;
        let anchors = used().count().max(1) as f64;
        let mut by_prototype = 0.0;
        for set in used() {
            let share = (anchors * (set.positives.len() + 1 + set.random.len()) as f64).recip();
            let hard = set.positives.len()..set.positives.len() + set.negatives.len();
            let distances: Vec<f64> = set
                .positives
                .iter()
                .chain(set.hard_and_random())
                .map(|candidate| phi(candidate) - prototype)
                .collect();
            let similarities: Vec<f64> = distances.iter().map(|d| (-d.abs()).exp() / self.tau).collect();
            let logit = |index: usize| similarities[index] + if hard.contains(&index) { self.alpha } else { 0.0 };
            let largest = (0..distances.len()).map(logit).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = (0..distances.len()).map(|index| (logit(index) - largest).exp()).sum();
            let labels = set.positives.len() as f64;
            for (index, candidate) in set.positives.iter().chain(set.hard_and_random()).enumerate() {
                let label = f64::from(u8::from(index < set.positives.len()));
                loss.value -= share * label * (logit(index) - largest - total.ln());
                let by_logit = share * (labels * (logit(index) - largest).exp() / total - label);
                // At zero the absolute value gets the derivative zero, as in PyTorch.
                let sign = if distances[index] == 0.0 {
                    0.0
                } else {
                    distances[index].signum()
                };
                let by_distance = -by_logit * similarities[index] * sign;
                by_prototype -= by_distance;
                candidate
                    .clone()
                    .for_each(|token| loss.gradient[token] += by_distance / width);
            }
        }
        let share = by_prototype / (positives.len().max(1) as f64 * width);
        for candidate in used().flat_map(|set| &set.positives) {
            candidate.clone().for_each(|token| loss.gradient[token] += share);
        }
        loss
    }
}
