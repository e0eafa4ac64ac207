//! Words that settings are chosen from.

use clap::ValueEnum;
use serde::Serialize;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    /// Contrastive perplexity
    Cp,
    /// Supervised fine-tuning on the positives
    Sft,
    /// Direct preference optimisation, every positive over every negative
    Dpo,
    /// Simple preference optimisation, which needs no reference
    #[value(name = "simpo")]
    #[serde(rename = "simpo")]
    SimPo,
    /// Proximal policy optimisation: similarity times (1 - toxicity) of texts that the model writes is the reward
    Ppo,
}

/// How distance from the prototype becomes similarity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SimilarityName {
    /// exp(-|phi - c|) / tau
    Paper,
    /// exp(-|phi - c| / tau)
    Symmetric,
    /// exp(-(phi - c) / tau) for negatives
    Directed,
    /// what the authors' published program computes, for comparison
    Released,
}

/// What a candidate's likelihood is conditioned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditioningName {
    /// the rewrite prompt of the anchor
    Prompt,
    /// nothing: texts stand alone, as in the paper
    Nothing,
}

/// How the frozen weights of the blocks' linear layers are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// as --dtype says
    None,
    /// NF4 with double quantisation, as QLoRA has it
    Nf4,
    /// GGUF's Q4_K; rows must be multiples of 256
    #[value(name = "q4_k", alias = "q4-k")]
    #[serde(rename = "q4_k")]
    Q4K,
}
