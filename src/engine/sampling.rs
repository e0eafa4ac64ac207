//! Choosing tokens from logits.

use multiversion::multiversion;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::model::kernels::vector::{exp, max};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Tokens are drawn from the smallest set that holds this much of the probability (nucleus sampling).
    pub top_p: f32,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

/// Draws the tokens of one sequence.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_p: f32,
    rng: StdRng,
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub token: u32,
    /// Its negative log-likelihood at temperature 1, in nats.
    pub nll: f32,
}

impl Sampler {
    /// The sampler of one candidate of a request: the first is greedy.
    pub(super) fn new(sampling: Sampling, candidate: usize) -> Self {
        let temperature = if candidate == 0 { 0.0 } else { sampling.temperature };
        let seed = sampling
            .seed
            .wrapping_add((candidate as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self {
            temperature,
            top_p: sampling.top_p,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Chooses from logits `[vocabulary]`.
    pub(super) fn choose(&mut self, logits: &[f32]) -> Choice {
        let (largest, log_total) = log_sum_exp(logits);
        let token = if self.temperature <= 0.0 {
            argmax(logits, largest)
        } else {
            self.draw(logits, largest)
        };
        Choice {
            token: token as u32,
            nll: log_total - logits[token],
        }
    }

    fn draw(&mut self, logits: &[f32], largest: f32) -> usize {
        // Tokens less likely than the likeliest by e^-14 together weigh less than one draw in twenty.
        const CUT: f32 = 14.0;
        let floor = largest - CUT * self.temperature;
        let weight = |logit: f32| ((logit - largest) / self.temperature).exp();
        let mut kept: Vec<(usize, f32)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit > floor)
            .map(|(token, &logit)| (token, weight(logit)))
            .collect();
        kept.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
        let total: f32 = kept.iter().map(|(_, weight)| weight).sum();
        let mut nucleus = 0;
        let mut mass = 0.0;
        while nucleus < kept.len() && mass < self.top_p * total {
            mass += kept[nucleus].1;
            nucleus += 1;
        }
        let mut point = self.rng.random::<f32>() * mass;
        for (token, weight) in &kept[..nucleus] {
            point -= weight;
            if point <= 0.0 {
                return *token;
            }
        }
        kept.first().map_or(0, |(token, _)| *token)
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn log_sum_exp(logits: &[f32]) -> (f32, f32) {
    let largest = max(logits);
    let mut lanes = [0f32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] += exp(chunk[lane] - largest);
        }
    }
    let mut total: f32 = lanes.iter().sum();
    for logit in rest {
        total += exp(*logit - largest);
    }
    (largest, largest + total.ln())
}

fn argmax(logits: &[f32], largest: f32) -> usize {
    logits.iter().position(|&logit| logit == largest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 3.0, 1.0, -50.0, 2.9];

    fn sampling(top_p: f32) -> Sampling {
        Sampling {
            temperature: 1.0,
            top_p,
            seed: 5,
        }
    }

    #[test]
    fn the_first_candidate_is_greedy_and_its_likelihood_is_right() {
        let choice = Sampler::new(sampling(1.0), 0).choose(&LOGITS);
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert_eq!(choice.token, 1);
        assert!((choice.nll - (total.ln() - 3.0)).abs() < 1e-5);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let draws = |top_p: f32| {
            let mut sampler = Sampler::new(sampling(top_p), 1);
            (0..4000).map(|_| sampler.choose(&LOGITS).token).collect::<Vec<_>>()
        };
        assert_eq!(draws(1.0), draws(1.0));
        let share =
            |draws: &[u32], token: u32| draws.iter().filter(|&&t| t == token).count() as f32 / draws.len() as f32;
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert!((share(&draws(1.0), 2) - 1f32.exp() / total).abs() < 0.02);
        // The two likeliest tokens hold 91% of the probability.
        assert_eq!(share(&draws(0.9), 2), 0.0);
        assert!(share(&draws(0.9), 4) > 0.4);
    }
}
