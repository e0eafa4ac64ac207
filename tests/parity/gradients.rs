//! Every trainable tensor gets a gradient, and the right one.

use std::ops::Range;

use candle_core::{Device, Tensor};
use detoxd::model::Decoder;
use detoxd::model::layers::Adaptation;
use detoxd::model::lora::LoraModel;
use detoxd::train::batch::{Batch, TokenSet};
use detoxd::train::objectives::{ContrastivePerplexity, Objective, Phi, Sft, Similarity};
use detoxd::train::optimizer::AdamW;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::tiny;

/// Entries of each module's tensor that are moved: those with the largest gradients, and as many others.
const ENTRIES: usize = 3;
/// Large enough that the rounding of an f32 loss weighs little; the fourth-order formula takes care of the curvature.
const STEP: f32 = 0.03;

/// With these sets no candidate comes near its prototype.
const SEED: u64 = 108;

fn gradients(decoder: &Decoder, adapter: &LoraModel, batch: &Batch, objective: &dyn Objective) -> Vec<Tensor> {
    let schedules = tiny::schedules();
    let optimizer = AdamW::new(adapter.parameters(), schedules.adamw).unwrap();
    let sets: [TokenSet; 0] = [];
    let trainer = tiny::trainer("unused".as_ref(), &sets, objective, &schedules);
    let (_, gradients) = trainer
        .gradients(batch, &tiny::trainable(decoder, adapter), &optimizer)
        .unwrap();
    gradients.tensors().to_vec()
}

fn loss(decoder: &Decoder, adapter: &LoraModel, batch: &Batch, objective: &dyn Objective) -> f64 {
    let hidden = decoder
        .forward_packed(&batch.tokens, &batch.packing, Adaptation::Lora(adapter))
        .unwrap();
    let nll = decoder
        .cross_entropy(&hidden, &batch.targets, Adaptation::Lora(adapter))
        .unwrap();
    objective.loss(&nll.to_vec1().unwrap(), &batch.sets).value
}

/// The derivative of the loss by one entry of a variable, from four values around it.
fn difference_quotient(variable: &Tensor, entry: usize, loss: impl Fn() -> f64) -> f64 {
    let values: Vec<f32> = variable.flatten_all().unwrap().to_vec1().unwrap();
    let at = |steps: f32| {
        let mut moved = values.clone();
        moved[entry] += steps * STEP;
        tiny::set(variable, moved);
        loss()
    };
    let quotient = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(STEP));
    tiny::set(variable, values.clone());
    quotient
}

/// The distances of candidates' log-perplexities from their prototype, smallest first.
fn distances(decoder: &Decoder, adapter: &LoraModel, batch: &Batch) -> Vec<f64> {
    let hidden = decoder
        .forward_packed(&batch.tokens, &batch.packing, Adaptation::Lora(adapter))
        .unwrap();
    let nll: Vec<f32> = decoder
        .cross_entropy(&hidden, &batch.targets, Adaptation::Lora(adapter))
        .unwrap()
        .to_vec1()
        .unwrap();
    let phi = |tokens: &Range<usize>| nll[tokens.clone()].iter().sum::<f32>() / tokens.len() as f32;
    let mut distances = Vec::new();
    for set in &batch.sets {
        let prototype = set.positives.iter().map(phi).sum::<f32>() / set.positives.len() as f32;
        let candidates = set.positives.iter().chain(&set.negatives);
        distances.extend(candidates.map(|tokens| f64::from((phi(tokens) - prototype).abs())));
    }
    distances.sort_by(f64::total_cmp);
    distances
}

fn check(name: &str, objective: &dyn Objective) {
    let decoder = tiny::tied();
    let adapter = tiny::adapter(&decoder).into_variables().unwrap();
    let batch = Batch::pack(&tiny::sets(3, SEED));
    // Nearer, a step might cross the prototype, where the paper's loss has a kink and no derivative.
    let nearest = distances(&decoder, &adapter, &batch)[0];
    assert!(nearest > 0.1, "a candidate lies at {nearest} from its prototype");
    let gradients = gradients(&decoder, &adapter, &batch, objective);
    let parameters = adapter.parameters();
    assert_eq!(gradients.len(), parameters.len());
    let (mut tensors, mut worst) = (0, 0f64);
    for ((parameter, variable), gradient) in parameters.iter().zip(&gradients) {
        let width = gradient.dims()[1];
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        for (module, rows) in tiny::modules(parameter) {
            tensors += 1;
            let mut entries: Vec<usize> = (rows.start * width..rows.end * width).collect();
            assert!(entries.iter().all(|&entry| gradient[entry].is_finite()), "{module}");
            entries.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
            assert!(
                gradient[entries[0]].abs() > 1e-4,
                "{name}: no gradient reaches {module}"
            );
            let others = entries
                .iter()
                .skip(ENTRIES)
                .step_by((entries.len() - ENTRIES) / ENTRIES);
            for &entry in entries.iter().take(ENTRIES).chain(others.take(ENTRIES)) {
                let got = f64::from(gradient[entry]);
                let want = difference_quotient(variable, entry, || loss(&decoder, &adapter, &batch, objective));
                let error = (got - want).abs();
                // Two in a hundred, beside the rounding of the loss.
                assert!(
                    error < 2e-2 * want.abs() + 2e-4,
                    "{name}: {module}, entry {entry}: {got}, by differences {want}"
                );
                if want.abs() > 1e-2 {
                    worst = worst.max(error / want.abs());
                }
            }
        }
    }
    assert_eq!(tensors, 2 * 7 * 2, "layers, modules, A and B");
    println!("{name}: {tensors} tensors, gradients above 0.01 differ by at most {worst:.5} of themselves");
}

#[test]
fn of_supervised_fine_tuning_agree_with_finite_differences() {
    check("SFT", &Sft);
}

#[test]
fn of_contrastive_perplexity_agree_with_finite_differences() {
    check("directed", &tiny::DIRECTED);
    let papers = ContrastivePerplexity {
        similarity: Similarity::Paper,
        sft_weight: 0.0,
        ..tiny::DIRECTED
    };
    check("paper", &papers);
}

#[test]
fn of_perplexity_itself_reach_every_tensor() {
    let decoder = tiny::tied();
    let adapter = tiny::adapter(&decoder).into_variables().unwrap();
    let batch = Batch::pack(&tiny::sets(3, SEED));
    let objective = ContrastivePerplexity {
        phi: Phi::Perplexity,
        tau: 500.0,
        ..tiny::DIRECTED
    };
    for gradient in gradients(&decoder, &adapter, &batch, &objective) {
        let values: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
        assert!(values.iter().any(|value| value.abs() > 1e-6));
    }
}

#[test]
fn of_a_new_adapter_reach_every_b() {
    let decoder = tiny::tied();
    let config = tiny::adapter(&decoder).config().clone();
    let mut rng = StdRng::seed_from_u64(1);
    let adapter = LoraModel::initialise(config, decoder.config(), &Device::Cpu, &mut rng).unwrap();
    let (ids, base) = tiny::recorded_logits("tied");
    let same = tiny::packed_logits(&decoder, &ids, Adaptation::Lora(&adapter));
    tiny::assert_close(&same, &base, 1e-3, "a new adapter changes nothing");
    let batch = Batch::pack(&tiny::sets(3, SEED));
    let gradients = gradients(&decoder, &adapter, &batch, &Sft);
    for ((parameter, _), gradient) in adapter.parameters().iter().zip(&gradients) {
        for (module, rows) in tiny::modules(parameter) {
            let gradient = gradient.narrow(0, rows.start, rows.len()).unwrap();
            let largest = tiny::largest_difference(&gradient, &gradient.zeros_like().unwrap());
            // While B is zero, A has no effect and gets no gradient.
            assert_eq!(largest > 1e-6, module.contains("lora_B"), "{module}: {largest}");
        }
    }
}
