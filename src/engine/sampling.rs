//! Choosing tokens from logits.

use std::borrow::Cow;

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
pub struct Sampler {
    temperature: f32,
    rng: StdRng,
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its negative log-likelihood at temperature 1, in nats.
    pub nll: f32,
}

impl Sampler {
    /// The sampler of one candidate of a request: the first is greedy.
    pub fn new(sampling: Sampling, candidate: usize) -> Self {
        let temperature = if candidate == 0 { 0.0 } else { sampling.temperature };
        let seed = sampling
            .seed
            .wrapping_add((candidate as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self {
            temperature,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Chooses a token. Each call draws one random number, so that what is chosen depends on the seed and the place in the text
    /// alone, and not on which logits were computed together.
    pub fn choose(&mut self, row: &Row<'_>) -> Choice {
        let token = if self.temperature <= 0.0 {
            argmax(&row.scores, row.largest)
        } else {
            row.draw(self.rng.random::<f32>())
        };
        Choice {
            token: token as u32,
            nll: row.log_total - row.logits[token],
        }
    }
}

/// Logits `[vocabulary]` that any number of samplers of a request choose from. Likelihoods are always those of the logits.
pub struct Row<'a> {
    logits: &'a [f32],
    /// Logarithm of the sum of their exponentials.
    log_total: f32,
    /// What tokens are chosen by: the logits themselves unless they are guided.
    scores: Cow<'a, [f32]>,
    /// The largest score.
    largest: f32,
    /// The tokens to draw from with their weights, the likeliest first; empty where nothing is drawn.
    nucleus: Vec<(usize, f32)>,
    /// Sum of their weights.
    mass: f32,
}

impl<'a> Row<'a> {
    /// What greedy samplers need, and with `sampling` what those need that draw.
    pub fn new(logits: &'a [f32], sampling: Option<Sampling>) -> Self {
        let (largest, log_total) = log_sum_exp(logits);
        Self {
            logits,
            log_total,
            scores: Cow::Borrowed(logits),
            largest,
            nucleus: Vec::new(),
            mass: 0.0,
        }
        .sampled(sampling)
    }

    /// The same by `log p + guidance * (log p - log p_base)`, where `base` are the logits of another model. What is implausible under `p` stays so
    /// however unlikely the other finds it (Li et al. 2023, contrastive decoding): it could be anything.
    pub fn guided(logits: &'a [f32], base: &[f32], guidance: f32, sampling: Option<Sampling>) -> Self {
        /// Share of the likeliest token's probability below which a token is implausible.
        const PLAUSIBLE: f32 = 0.1;
        let (largest, log_total) = log_sum_exp(logits);
        let (_, base_log_total) = log_sum_exp(base);
        let floor = largest + PLAUSIBLE.ln();
        let score = |(own, base): (&f32, &f32)| {
            let (own_log, base_log) = (own - log_total, base - base_log_total);
            let score = own_log + guidance * (own_log - base_log);
            if *own < floor { f32::NEG_INFINITY } else { score }
        };
        let scores: Vec<f32> = logits.iter().zip(base).map(score).collect();
        Self {
            logits,
            log_total,
            largest: max(&scores),
            scores: Cow::Owned(scores),
            nucleus: Vec::new(),
            mass: 0.0,
        }
        .sampled(sampling)
    }

    fn sampled(mut self, sampling: Option<Sampling>) -> Self {
        if let Some(Sampling { temperature, top_p, .. }) = sampling
            && temperature > 0.0
        {
            self.cut(temperature, top_p);
        }
        self
    }

    fn cut(&mut self, temperature: f32, top_p: f32) {
        // Tokens less likely than the likeliest by e^-14 together weigh less than one draw in twenty.
        const CUT: f32 = 14.0;
        let floor = self.largest - CUT * temperature;
        let weight = |logit: f32| ((logit - self.largest) / temperature).exp();
        let mut kept: Vec<(usize, f32)> = self
            .scores
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit > floor)
            .map(|(token, &logit)| (token, weight(logit)))
            .collect();
        kept.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
        let total: f32 = kept.iter().map(|(_, weight)| weight).sum();
        let mut size = 0;
        let mut mass = 0.0;
        while size < kept.len() && mass < top_p * total {
            mass += kept[size].1;
            size += 1;
        }
        kept.truncate(size);
        (self.nucleus, self.mass) = (kept, mass);
    }

    fn draw(&self, random: f32) -> usize {
        let mut point = random * self.mass;
        for (token, weight) in &self.nucleus {
            point -= weight;
            if point <= 0.0 {
                return *token;
            }
        }
        match self.nucleus.first() {
            Some((token, _)) => *token,
            None => argmax(&self.scores, self.largest),
        }
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
        let choice = Sampler::new(sampling(1.0), 0).choose(&Row::new(&LOGITS, None));
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert_eq!(choice.token, 1);
        assert!((choice.nll - (total.ln() - 3.0)).abs() < 1e-5);
    }

    #[test]
    fn guidance_moves_away_from_the_base_among_plausible_tokens() {
        // The base likes token 1 as well, tokens 2 and 3 not at all.
        let base = [0.0, 3.0, -9.0, -90.0, 1.0];
        let choose = |guidance| Sampler::new(sampling(1.0), 0).choose(&Row::guided(&LOGITS, &base, guidance, None));
        assert_eq!(choose(0.01).token, 1);
        assert_eq!(choose(0.5).token, 2);
        // However much it is, token 3 is out of the question.
        assert_eq!(choose(50.0).token, 2);
        let plain = Row::new(&LOGITS, None);
        assert!((choose(0.5).nll - (plain.log_total - LOGITS[2])).abs() < 1e-6);
        let row = Row::guided(&LOGITS, &base, 50.0, Some(sampling(1.0)));
        let mut sampler = Sampler::new(sampling(1.0), 1);
        assert!((0..100).all(|_| sampler.choose(&row).token == 2));
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let draws = |top_p: f32| {
            let mut sampler = Sampler::new(sampling(top_p), 1);
            let row = Row::new(&LOGITS, Some(sampling(top_p)));
            (0..4000).map(|_| sampler.choose(&row).token).collect::<Vec<_>>()
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
