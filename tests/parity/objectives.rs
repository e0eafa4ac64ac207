//! One step of each objective on the small model, beside the same by PyTorch and PEFT, where each candidate is a sequence of its
//! own with its own copy of the prompt (`tests/fixtures/record_objectives.py`).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use detoxd::model::Decoder;
use detoxd::train::batch::{Batch, TokenSet};
use detoxd::train::objectives::{
    ClippedPolicy, ContrastivePerplexity, Dpo, Episode, Objective, Phi, SimPo, Similarity, advantages,
};
use detoxd::train::optimizer::{AdamW, AdamWConfig};
use detoxd::train::trainable::Start;
use detoxd::train::trainer;
use serde_json::Value;

use crate::tiny;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Recorded {
    steps: Value,
    gradients: HashMap<String, Tensor>,
    decoder: Decoder,
}

impl Recorded {
    fn read() -> Self {
        let json = std::fs::read(fixture("objective_steps.json")).unwrap();
        Self {
            steps: serde_json::from_slice(&json).unwrap(),
            gradients: candle_core::safetensors::load(fixture("objective_steps.safetensors"), &Device::Cpu).unwrap(),
            decoder: tiny::tied(),
        }
    }

    fn setting(&self, step: &str, name: &str) -> f64 {
        self.steps[step]["settings"][name].as_f64().unwrap()
    }

    fn batch(&self, step: &str) -> Batch {
        let set = |value: &Value| {
            let tokens = |value: &Value| serde_json::from_value(value.clone()).unwrap();
            let candidates = |name: &str| value[name].as_array().unwrap().iter().map(tokens).collect();
            TokenSet {
                prompt: tokens(&value["prompt"]),
                positives: candidates("positives"),
                negatives: candidates("negatives"),
                random: candidates("random"),
            }
        };
        let sets: Vec<TokenSet> = self.steps[step]["sets"].as_array().unwrap().iter().map(set).collect();
        Batch::pack(&sets)
    }

    /// Loss and gradients of every LoRA tensor, each within 1e-4 of its largest entry.
    fn check(&self, step: &str, objective: &dyn Objective) {
        let adapter = tiny::adapter(&self.decoder).into_variables().unwrap();
        let optimizer = AdamW::new(adapter.parameters(), AdamWConfig::default()).unwrap();
        // The reference is the model without the adapter.
        let start = Start::NewAdapter {
            base: &self.decoder,
            config: adapter.config().clone(),
        };
        let reference = start.reference();
        let (loss, gradients) = trainer::gradients(
            &self.batch(step),
            objective,
            &tiny::trainable(&self.decoder, &adapter),
            &optimizer,
            reference.as_ref(),
        )
        .unwrap();
        let want = self.steps[step]["loss"].as_f64().unwrap();
        let of_loss = (loss - want).abs() / want.abs();
        assert!(of_loss < 1e-4, "{step}: {loss}, recorded {want}");
        let (mut compared, mut worst) = (0, 0f32);
        for ((parameter, _), gradient) in adapter.parameters().iter().zip(gradients.tensors()) {
            for (module, rows) in tiny::modules(parameter) {
                let want = &self.gradients[&format!("{step}.{module}")];
                let got = gradient.narrow(0, rows.start, rows.len()).unwrap();
                let largest = tiny::largest_difference(want, &want.zeros_like().unwrap());
                assert!(largest > 1e-5, "{step}: no gradient reached {module}");
                let difference = tiny::largest_difference(&got, want) / largest;
                assert!(
                    difference < 1e-4,
                    "{step}: {module} differs by {difference} of its largest entry"
                );
                worst = worst.max(difference);
                compared += 1;
            }
        }
        assert_eq!(compared, 28);
        println!("{step}: loss {loss:.6} differs by {of_loss:.1e} of itself, gradients by at most {worst:.1e}");
    }
}

#[test]
fn contrastive_steps_are_those_of_pytorch() {
    let recorded = Recorded::read();
    for (step, phi) in [("cp_paper", Phi::Perplexity), ("cp_rewriter", Phi::LogPerplexity)] {
        let number = |name: &str| recorded.setting(step, name);
        let objective = ContrastivePerplexity {
            phi,
            similarity: match phi {
                Phi::Perplexity => Similarity::Paper,
                Phi::LogPerplexity => Similarity::Directed {
                    margin: number("margin"),
                },
            },
            tau: number("tau"),
            alpha: number("alpha"),
            weight: number("weight"),
            sft_weight: number("sft_weight"),
            ..tiny::DIRECTED
        };
        recorded.check(step, &objective);
    }
}

#[test]
fn a_step_of_direct_preference_optimisation_is_that_of_pytorch() {
    let recorded = Recorded::read();
    let objective = Dpo {
        beta: recorded.setting("dpo", "beta"),
        length_normalised: false,
        sft_weight: 0.0,
    };
    recorded.check("dpo", &objective);
}

#[test]
fn a_step_of_simple_preference_optimisation_is_that_of_pytorch() {
    let recorded = Recorded::read();
    let objective = SimPo {
        beta: recorded.setting("simpo", "beta"),
        gamma: recorded.setting("simpo", "gamma"),
        sft_weight: 0.0,
    };
    recorded.check("simpo", &objective);
}

#[test]
fn a_step_of_proximal_policy_optimisation_is_that_of_pytorch() {
    let recorded = Recorded::read();
    let step = &recorded.steps["ppo"];
    let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(step[name].clone()).unwrap() };
    let (old, reference) = (numbers("old"), numbers("reference"));
    let rewards: Vec<Vec<f64>> = serde_json::from_value(step["rewards"].clone()).unwrap();
    let groups: Vec<Vec<Episode>> = recorded
        .batch("ppo")
        .sets
        .iter()
        .zip(&rewards)
        .map(|(set, rewards)| {
            let episode = |(span, &reward): (&std::ops::Range<usize>, &f64)| Episode {
                reward,
                log_ratios: span.clone().map(|token| reference[token] - old[token]).collect(),
            };
            set.positives.iter().zip(rewards).map(episode).collect()
        })
        .collect();
    let got = advantages(&groups, recorded.setting("ppo", "beta"));
    for (got, want) in got.iter().zip(numbers("advantages")) {
        assert!((got - want).abs() < 1e-6, "advantage {got}, recorded {want}");
    }
    let objective = ClippedPolicy {
        old: old.iter().map(|&value| value as f32).collect(),
        advantages: got,
        clip: recorded.setting("ppo", "clip"),
    };
    recorded.check("ppo", &objective);
}
