//! Texts that the policy writes, and what they are worth: the data of `ppo`.

use std::sync::Arc;

use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::TrainError;
use super::batch::{Batch, TokenSet};
use super::objectives::{ClippedPolicy, Episode, advantages};
use super::trainable::{Reference, Trainable, nll};
use crate::model::Decoder;
use crate::model::kv_cache::{CachedSequence, KvCache};
use crate::model::layers::Adaptation;
use crate::model::tokenizer::TextTokenizer;
use crate::prompt::RewritePrompt;

/// What a rewrite of a source is worth; higher is better.
pub trait Reward: Send + Sync {
    /// A finite number.
    fn reward(&self, source: &str, rewrite: &str) -> f64;
}

/// How `ppo` is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicySettings {
    /// Texts that are written for each prompt.
    pub samples: usize,
    /// Updates with the same texts.
    pub epochs: usize,
    /// How far a likelihood ratio may go.
    pub clip: f64,
    /// Price of a nat's divergence from the reference.
    pub beta: f64,
    /// Seed of the sampling.
    pub seed: u64,
}

/// Everything that a policy's texts are made and judged with.
pub struct PolicyOptimisation<'a> {
    /// How it is done.
    pub settings: PolicySettings,
    /// What a text is worth.
    pub reward: &'a dyn Reward,
    /// To show it the texts.
    pub tokenizer: &'a TextTokenizer,
    /// The prompt of the sets that texts are written for.
    pub prompt: RewritePrompt,
}

/// Texts that the policy wrote, ready for updates.
pub struct Rollout {
    /// Each set holds its prompt, and what was written as its positives.
    pub batch: Batch,
    /// The clipped surrogate of these texts.
    pub objective: ClippedPolicy,
    /// Mean reward of a text.
    pub reward: f64,
    /// Mean divergence of a text from the reference, in nats.
    pub divergence: f64,
}

impl PolicyOptimisation<'_> {
    /// Writes texts for the prompts of `sets` and judges them. One that doesn't end in time is worth nothing. `number` tells
    /// rollouts of one run apart: it and the seed give the same texts for the same policy.
    ///
    /// # Errors
    /// When the model can't be run.
    pub fn roll_out(
        &self,
        sets: &[TokenSet],
        number: u64,
        policy: &Trainable<'_>,
        reference: &Reference<'_>,
    ) -> Result<Rollout, TrainError> {
        let decoder = policy.decoder();
        let frozen = policy.frozen();
        let adaptation = frozen.as_ref().map_or(Adaptation::Base, Adaptation::Lora);
        let mut prompts: Vec<TokenSet> = Vec::with_capacity(sets.len());
        for (set, written) in sets.iter().zip(self.write(decoder, adaptation, sets, number)?) {
            prompts.push(TokenSet {
                prompt: set.prompt.clone(),
                positives: written,
                ..TokenSet::default()
            });
        }
        let batch = Batch::pack(&prompts);
        // The model's own way of training gives the likelihoods of the texts: a ratio is one exactly until the policy moves.
        let old = nll(decoder, adaptation, &batch)?;
        let beside = reference.nll(&batch)?;
        let mut groups = Vec::with_capacity(prompts.len());
        for (set, spans) in prompts.iter().zip(&batch.sets) {
            let source = self.text(self.prompt.source(&set.prompt))?;
            let mut group = Vec::with_capacity(set.positives.len());
            for (tokens, span) in set.positives.iter().zip(&spans.positives) {
                let reward = match tokens.split_last() {
                    Some((&last, rewrite)) if last == self.prompt.end() => {
                        self.reward.reward(&source, &self.text(rewrite)?)
                    }
                    _ => 0.0,
                };
                let log_ratios = span
                    .clone()
                    .map(|token| f64::from(beside[token]) - f64::from(old[token]))
                    .collect();
                group.push(Episode { reward, log_ratios });
            }
            groups.push(group);
        }
        let episodes = || groups.iter().flatten();
        let count = episodes().count().max(1) as f64;
        let reward = episodes().map(|episode| episode.reward).sum::<f64>() / count;
        let divergence = episodes().flat_map(|episode| &episode.log_ratios).sum::<f64>() / count;
        let objective = ClippedPolicy {
            advantages: advantages(&groups, self.settings.beta),
            old,
            clip: self.settings.clip,
        };
        Ok(Rollout {
            batch,
            objective,
            reward,
            divergence,
        })
    }

    fn text(&self, tokens: &[u32]) -> Result<String, TrainError> {
        let text = self.tokenizer.decode(tokens);
        Ok(text
            .map_err(|error| TrainError::Setting(error.to_string()))?
            .trim()
            .to_owned())
    }

    /// Draws texts at temperature one, those of all prompts in one batch; by set, each with its end token if it came in time.
    fn write(
        &self,
        decoder: &Decoder,
        adaptation: Adaptation<'_>,
        sets: &[TokenSet],
        number: u64,
    ) -> Result<Vec<Vec<Vec<u32>>>, TrainError> {
        let config = decoder.config();
        // Room for half as much again as the source, within what the model can hold.
        let longest = |set: &TokenSet| {
            let prompt = set.prompt.len();
            (prompt * 3 / 2 + 8).min(config.max_positions.saturating_sub(prompt))
        };
        let most = |set: &TokenSet| set.prompt.len() + self.settings.samples * longest(set);
        let caches = decoder.cache_space(sets.iter().map(most).sum());
        let mut prefixes: Vec<KvCache> = sets.iter().map(|set| caches.cache(set.prompt.len())).collect();
        let tokens: Vec<u32> = sets.iter().flat_map(|set| &set.prompt).copied().collect();
        let (mut last_rows, mut rows) = (Vec::with_capacity(sets.len()), 0);
        let mut read: Vec<CachedSequence<'_>> = Vec::with_capacity(sets.len());
        for (cache, set) in prefixes.iter_mut().zip(sets) {
            let len = set.prompt.len();
            rows += len;
            last_rows.push(rows as u32 - 1);
            read.push(CachedSequence { cache, len });
        }
        let hidden = decoder.forward_cached(&tokens, &mut read, adaptation)?;
        let last_rows = Tensor::from_vec(last_rows, sets.len(), hidden.device())?;
        let first = decoder
            .logits(&hidden.index_select(&last_rows, 0)?, adaptation)?
            .to_vec2::<f32>()?;

        let mut texts = Vec::with_capacity(sets.len() * self.settings.samples);
        for (index, (prefix, set)) in prefixes.into_iter().zip(sets).enumerate() {
            let prefix = Arc::new(prefix);
            let longest = longest(set);
            for sample in 0..self.settings.samples {
                let stream = number.wrapping_mul(1 << 20) + (index * self.settings.samples + sample) as u64;
                let seed = self.settings.seed ^ (stream + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let mut text = Writing {
                    cache: KvCache::continuing(prefix.clone(), longest),
                    tokens: Vec::with_capacity(longest),
                    longest,
                    rng: StdRng::seed_from_u64(seed),
                };
                text.draw(&first[index]);
                texts.push(text);
            }
        }
        loop {
            let mut going: Vec<&mut Writing> = texts
                .iter_mut()
                .filter(|text| text.goes_on(self.prompt.end()))
                .collect();
            if going.is_empty() {
                break;
            }
            let tokens: Vec<u32> = going.iter().filter_map(|text| text.tokens.last().copied()).collect();
            let mut sequences: Vec<CachedSequence<'_>> = going
                .iter_mut()
                .map(|text| CachedSequence {
                    cache: &mut text.cache,
                    len: 1,
                })
                .collect();
            let hidden = decoder.forward_cached(&tokens, &mut sequences, adaptation)?;
            drop(sequences);
            let logits = decoder.logits(&hidden, adaptation)?.to_vec2::<f32>()?;
            for (text, logits) in going.into_iter().zip(&logits) {
                text.draw(logits);
            }
        }
        let mut tokens = texts.into_iter().map(|text| text.tokens);
        let each = |_: &TokenSet| tokens.by_ref().take(self.settings.samples).collect();
        Ok(sets.iter().map(each).collect())
    }
}

/// A text being written.
struct Writing {
    cache: KvCache,
    tokens: Vec<u32>,
    longest: usize,
    rng: StdRng,
}

impl Writing {
    fn goes_on(&self, end: u32) -> bool {
        self.tokens.len() < self.longest && self.tokens.last() != Some(&end)
    }

    /// Draws the next token from the whole distribution: a token that could not be drawn would have no likelihood ratio.
    fn draw(&mut self, logits: &[f32]) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| f64::from(logit - largest).exp();
        let total: f64 = logits.iter().map(weight).sum();
        let mut point = self.rng.random::<f64>() * total;
        let drawn = logits.iter().position(|logit| {
            point -= weight(logit);
            point < 0.0
        });
        self.tokens.push(drawn.unwrap_or(logits.len() - 1) as u32);
    }
}
