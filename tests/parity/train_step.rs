//! Five steps of AdamW on two sequences, beside the same in PyTorch.

use detoxd::train::batch::{Batch, TokenSet};
use detoxd::train::objectives::Sft;
use detoxd::train::optimizer::{AdamW, AdamWConfig};
use detoxd::train::trainer;
use serde::Deserialize;

use crate::tiny;

#[derive(Deserialize)]
struct Recorded {
    sequences: Vec<Sequence>,
    losses: Vec<f64>,
    gradient_norms_before_clipping: Vec<f64>,
}

#[derive(Deserialize)]
struct Sequence {
    prompt: Vec<u32>,
    target: Vec<u32>,
}

#[test]
fn losses_gradients_and_steps_are_those_of_pytorch() {
    let json = std::fs::read(tiny::folder("train_step.json")).unwrap();
    let recorded: Recorded = serde_json::from_slice(&json).unwrap();
    let tensors = tiny::recorded("train_step.safetensors");
    let sets: Vec<TokenSet> = recorded
        .sequences
        .into_iter()
        .map(|sequence| TokenSet {
            prompt: sequence.prompt,
            positives: vec![sequence.target],
            ..TokenSet::default()
        })
        .collect();
    let decoder = tiny::tied();
    let adapter = tiny::adapter(&decoder).into_variables().unwrap();
    let mut optimizer = AdamW::new(adapter.parameters(), AdamWConfig::default()).unwrap();
    let batch = Batch::pack(&sets);

    let mut compared = 0;
    let mut worst = [0f64; 4];
    let mut note = |kind: usize, difference: f64| worst[kind] = worst[kind].max(difference);
    for (step, want) in recorded.losses.iter().enumerate() {
        let (loss, gradients) =
            trainer::gradients(&batch, &Sft, &tiny::trainable(&decoder, &adapter), &optimizer, None).unwrap();
        note(0, (loss - want).abs());
        assert!((loss - want).abs() < 1e-4, "loss {step}: {loss}, recorded {want}");
        if step == 0 {
            for ((parameter, _), gradient) in adapter.parameters().iter().zip(gradients.tensors()) {
                for (module, rows) in tiny::modules(parameter) {
                    let want = &tensors[&format!("gradient.{module}")];
                    let got = gradient.narrow(0, rows.start, rows.len()).unwrap();
                    note(1, tiny::largest_difference(&got, want).into());
                    tiny::assert_close(&got, want, 1e-4, &format!("gradient of {module}"));
                    compared += 1;
                }
            }
        }
        if let Some(want) = recorded.gradient_norms_before_clipping.get(step) {
            let norm = optimizer.step(&gradients, 1e-3).unwrap();
            note(2, (norm - want).abs());
            assert!((norm - want).abs() < 1e-3, "norm {step}: {norm}, recorded {want}");
        }
    }
    assert_eq!((compared, recorded.losses.len()), (28, 6));
    for (name, got) in adapter.named_tensors().unwrap() {
        let module = name.strip_prefix("base_model.model.").unwrap();
        let want = &tensors[&format!("after.{module}")];
        note(3, tiny::largest_difference(&got, want).into());
        tiny::assert_close(&got, want, 1e-4, &format!("{module} after five steps"));
    }
    println!("largest differences: losses, gradients, norms, tensors after five steps: {worst:?}");
}
