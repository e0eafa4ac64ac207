//! What a training job was asked to do: checked when it was accepted, kept as JSON in the queue, read by the worker.

use serde::{Deserialize, Serialize};

/// A training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRequest {
    /// Name of the adapter that a new version is made of.
    pub name: String,
    /// Base model, as answers call it.
    pub base: String,
    /// Id of the dataset.
    pub dataset: String,
    /// What is minimised.
    pub objective: ObjectiveName,
    /// What differs from the defaults of `detoxd train`.
    pub hyperparameters: Hyperparameters,
    /// How the result is measured.
    pub evaluate: Evaluation,
    /// When the result is activated.
    pub activate: ActivationPolicy,
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    /// Contrastive perplexity.
    #[default]
    Cp,
    /// Supervised fine-tuning on the positives.
    Sft,
    /// Direct preference optimisation.
    Dpo,
    /// Simple preference optimisation.
    #[serde(rename = "simpo")]
    SimPo,
    /// Proximal policy optimisation.
    Ppo,
}

impl ObjectiveName {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cp, Self::Sft, Self::Dpo, Self::SimPo, Self::Ppo];

    /// As requests and the command line have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cp => "cp",
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::SimPo => "simpo",
            Self::Ppo => "ppo",
        }
    }
}

/// When a finished training's version becomes the active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationPolicy {
    /// By hand only.
    #[default]
    Never,
    /// When it is no worse than the active one by a stated rule; see `evaluate::decide`.
    IfBetter,
    /// As soon as it is registered.
    Always,
}

/// How a finished training is measured: on examples of the dataset that it is not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Share of the dataset that is held back, 0 to 0.5; 0 holds nothing back and measures nothing.
    pub held_back: f64,
    /// Most examples that are held back.
    pub max_examples: u64,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            held_back: 0.1,
            max_examples: 64,
        }
    }
}

/// Settings of `detoxd train` by their names there; what is absent has the default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hyperparameters {
    /// Version to start from, `name@version`; its rank, scale and modules are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<String>,
    /// Where settings come from that are not given: `rewriter`, `paper`, `released`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Passes over the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Stops after so many steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Most tokens in a packed batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<u64>,
    /// Most anchors in a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u64>,
    /// Batches a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_accumulation: Option<u64>,
    /// Peak learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Steps to reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// What follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Seed of everything random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Rank of a new adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u64>,
    /// A new adapter's updates are scaled by alpha / rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Share of an update's inputs that are left out in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<f64>,
    /// How the frozen weights are held: `none`, `nf4`, `q4_k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
    /// Modules a new adapter updates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<String>>,
    /// Longest prompt with its rewrite, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Most positives a set (|P|).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_positives: Option<u64>,
    /// Most negatives a set (|N|).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_negatives: Option<u64>,
    /// Candidates of other anchors that are negatives beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_negatives: Option<u64>,
    /// What a candidate's likelihood is conditioned on: `prompt`, `nothing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditioning: Option<String>,
    /// What is compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phi: Option<String>,
    /// How distance from the prototype becomes similarity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<String>,
    /// Negatives so far above the prototype are left alone (directed).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Weight of the negatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The prototype is a constant for the gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detach_prototype: Option<bool>,
    /// Which parts of the contrastive loss are computed: `both`, `positives`, `negatives`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sides: Option<String>,
    /// Weight of the contrastive term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cp_weight: Option<f64>,
    /// Weight of the likelihood of the positives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft_weight: Option<f64>,
    /// Strength of the comparison (dpo, simpo), or price of a nat's divergence from the reference (ppo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Margin by which a positive is to be ahead (simpo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Compares likelihoods a token instead of those of whole texts (dpo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_normalised: Option<bool>,
    /// Texts that are written for each prompt (ppo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Updates with the same texts (ppo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppo_epochs: Option<u64>,
    /// How far a likelihood ratio may go (ppo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Hyperparameters {
    /// As arguments of `detoxd train`: `--learning-rate 0.0002 --target-modules q_proj,v_proj --detach-prototype`. The version to start
    /// from is not among them: the worker puts its folder there.
    pub fn arguments(&self) -> Vec<String> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else {
            return Vec::new();
        };
        let mut arguments = Vec::new();
        for (name, value) in fields {
            let flag = format!("--{}", name.replace('_', "-"));
            let value = match value {
                _ if name == "init_adapter" => continue,
                serde_json::Value::Bool(false) | serde_json::Value::Null => continue,
                serde_json::Value::Bool(true) => {
                    arguments.push(flag);
                    continue;
                }
                // Words of an enumeration, which the command line spells with hyphens.
                serde_json::Value::String(text) => text.replace('_', "-"),
                serde_json::Value::Array(items) => {
                    let items: Vec<&str> = items.iter().filter_map(serde_json::Value::as_str).collect();
                    items.join(",")
                }
                other => other.to_string(),
            };
            arguments.extend([flag, value]);
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings;
    use clap::ValueEnum;

    #[test]
    fn hyperparameters_become_arguments() {
        let given = r#"{"init_adapter": "a@1", "learning_rate": 0.0005, "max_steps": 40, "target_modules": ["q_proj", "v_proj"],
            "detach_prototype": true, "schedule": "linear"}"#;
        let hyperparameters: Hyperparameters = serde_json::from_str(given).unwrap();
        let mut arguments = hyperparameters.arguments().join(" ");
        for expected in [
            "--learning-rate 0.0005",
            "--max-steps 40",
            "--target-modules q_proj,v_proj",
            "--detach-prototype",
            "--schedule linear",
        ] {
            assert!(arguments.contains(expected), "{arguments}");
            arguments = arguments.replace(expected, "");
        }
        assert_eq!(arguments.trim(), "");
        assert!(Hyperparameters::default().arguments().is_empty());
    }

    #[test]
    fn every_hyperparameter_is_one_of_the_command() {
        let given = r#"{"preset": "paper", "epochs": 2.0, "max_steps": 40, "batch_tokens": 512, "batch_size": 4,
            "gradient_accumulation": 2, "learning_rate": 0.0005, "warmup_steps": 3, "schedule": "linear", "seed": 7,
            "lora_rank": 8, "lora_alpha": 16.0, "lora_dropout": 0.1, "quantize": "q4_k", "target_modules": ["q_proj"], "max_tokens": 128, "num_positives": 3,
            "num_negatives": 7, "random_negatives": 2, "conditioning": "prompt", "phi": "log_perplexity",
            "similarity": "symmetric", "margin": 2.0, "tau": 0.2, "alpha": 1.1, "detach_prototype": true,
            "sides": "both", "cp_weight": 0.5, "sft_weight": 0.25, "beta": 0.3, "gamma": 0.4,
            "length_normalised": true, "samples": 3, "ppo_epochs": 4, "clip": 0.1}"#;
        let hyperparameters: Hyperparameters = serde_json::from_str(given).unwrap();
        let parsed = settings::Hyperparameters::from_arguments(&hyperparameters.arguments()).unwrap();
        let resolved = settings::Settings::resolve(&parsed, settings::ObjectiveName::Cp).unwrap();
        let (resolved, given) = (
            serde_json::to_value(resolved).unwrap(),
            serde_json::to_value(hyperparameters).unwrap(),
        );
        for (name, value) in given.as_object().unwrap() {
            assert_eq!(&resolved[name], value, "{name}");
        }
        for objective in ObjectiveName::ALL {
            let name = settings::ObjectiveName::from_str(objective.as_str(), false).unwrap();
            assert_eq!(serde_json::to_value(name).unwrap(), objective.as_str());
            assert_eq!(serde_json::to_value(objective).unwrap(), objective.as_str());
        }
    }
}
