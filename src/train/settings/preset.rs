//! Settings that belong together, by name.

use clap::ValueEnum;
use serde::Serialize;

use super::super::objectives::{Phi, Sides};
use super::super::optimizer::Schedule;
use super::{ConditioningName, ObjectiveName, Quantize, Settings, SimilarityName};
use crate::model::lora::{ALL_LINEAR, HEAD};

/// Where settings come from that are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// rewrites of a toxic text under its prompt, negatives pushed up only
    #[default]
    Rewriter,
    /// as Klein & Nabi (ACL 2025) describe it: texts that stand alone, perplexity, symmetric
    Paper,
    /// as their published program does it, which differs; for comparison
    Released,
}

impl Preset {
    /// Every setting, for an objective.
    pub fn settings(self, objective: ObjectiveName) -> Settings {
        let mut settings = match self {
            Self::Rewriter => rewriter(),
            Self::Paper => paper(),
            Self::Released => released(),
        };
        settings.objective = objective;
        match objective {
            ObjectiveName::Cp | ObjectiveName::Sft => {}
            ObjectiveName::Dpo => {
                settings.beta = 0.1;
                settings.sft_weight = 0.0;
            }
            ObjectiveName::SimPo => {
                settings.beta = 2.0;
                settings.sft_weight = 0.0;
            }
            ObjectiveName::Ppo => {
                settings.beta = 0.05;
                settings.batch_size = Some(16);
                settings.conditioning = ConditioningName::Prompt;
            }
        }
        settings
    }
}

fn rewriter() -> Settings {
    Settings {
        objective: ObjectiveName::Cp,
        preset: Preset::Rewriter,
        epochs: 1.0,
        max_steps: None,
        batch_tokens: 2048,
        batch_size: None,
        gradient_accumulation: 1,
        learning_rate: 2e-4,
        warmup_steps: 30,
        schedule: Schedule::Cosine,
        seed: 1,
        lora_rank: 16,
        lora_alpha: 32.0,
        lora_dropout: 0.0,
        target_modules: vec![ALL_LINEAR.to_owned()],
        quantize: Quantize::None,
        max_tokens: 256,
        num_positives: 4,
        num_negatives: 6,
        random_negatives: 0,
        conditioning: ConditioningName::Prompt,
        phi: Phi::LogPerplexity,
        similarity: SimilarityName::Directed,
        margin: 1.0,
        tau: 0.3,
        alpha: 1.0,
        detach_prototype: false,
        sides: Sides::Both,
        cp_weight: 0.75,
        sft_weight: 1.0,
        beta: 0.1,
        gamma: 1.0,
        length_normalised: false,
        samples: 4,
        ppo_epochs: 2,
        clip: 0.2,
    }
}

/// Table 9 and Section 4 of the paper; where it gives several values, |P| = |N| = 5, alpha 1 and tau 0.1 of them. Tokens of a batch are
/// no limit there.
fn paper() -> Settings {
    Settings {
        preset: Preset::Paper,
        batch_tokens: 16_384,
        batch_size: Some(2),
        gradient_accumulation: 3,
        learning_rate: 2.2e-5,
        warmup_steps: 0,
        lora_rank: 64,
        lora_alpha: 16.0,
        target_modules: vec![ALL_LINEAR.to_owned(), HEAD.to_owned()],
        quantize: Quantize::Nf4,
        num_positives: 5,
        num_negatives: 5,
        conditioning: ConditioningName::Nothing,
        phi: Phi::Perplexity,
        similarity: SimilarityName::Paper,
        tau: 0.1,
        cp_weight: 1.0,
        sft_weight: 0.0,
        ..rewriter()
    }
}

/// The published program with the arguments of its example.
fn released() -> Settings {
    Settings {
        preset: Preset::Released,
        epochs: 5.0,
        gradient_accumulation: 6,
        target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
        random_negatives: 6,
        phi: Phi::LogPerplexity,
        similarity: SimilarityName::Released,
        tau: 1.0,
        alpha: 100.0,
        ..paper()
    }
}
