//! Gradients and training steps: against PyTorch, against finite differences, packed against unpacked.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use detoxd::model::Decoder;
use detoxd::model::layers::Adaptation;
use detoxd::model::lora::LoraModel;
use detoxd::model::weights::Purpose;
use detoxd::train::batch::{Batch, TokenSet};
use detoxd::train::objectives::{ContrastivePerplexity, Objective, Phi, Sft, Similarity};
use detoxd::train::optimizer::{AdamW, AdamWConfig};

use super::support::{adapter, decoder, largest_difference, recorded};

const CP: ContrastivePerplexity = ContrastivePerplexity {
    phi: Phi::LogPerplexity,
    similarity: Similarity::Directed { margin: 2.0 },
    tau: 0.3,
    alpha: 1.0,
    detach_prototype: false,
    weight: 1.0,
    sft_weight: 0.5,
};

fn model() -> (Decoder, LoraModel) {
    let decoder = decoder("tied", Purpose::Train { dtype: DType::F32 });
    let adapter = adapter(&decoder).into_variables().unwrap();
    (decoder, adapter)
}

fn nll(decoder: &Decoder, adapter: &LoraModel, batch: &Batch) -> Tensor {
    let hidden = decoder
        .forward_packed(&batch.tokens, &batch.packing, Adaptation::Lora(adapter))
        .unwrap();
    decoder.cross_entropy(&hidden, &batch.targets).unwrap()
}

/// The objective's value, and its gradients through the whole model.
fn gradients(decoder: &Decoder, adapter: &LoraModel, batch: &Batch, objective: &dyn Objective) -> (f64, GradStore) {
    let nll = nll(decoder, adapter, batch);
    let loss = objective.loss(&nll.to_vec1::<f32>().unwrap(), &batch.sets);
    let weights: Vec<f32> = loss.gradient.iter().map(|&value| value as f32).collect();
    let weights = Tensor::from_vec(weights, nll.shape(), &Device::Cpu).unwrap();
    (
        loss.value,
        (nll * weights).unwrap().sum_all().unwrap().backward().unwrap(),
    )
}

fn sets() -> Vec<TokenSet> {
    let tokens = |seed: u32, count: u32| (0..count).map(|i| (seed * 31 + i * 17) % 290 + 3).collect::<Vec<u32>>();
    let set = |seed: u32| TokenSet {
        prompt: tokens(seed, 6),
        positives: vec![tokens(seed + 1, 4), tokens(seed + 2, 7)],
        negatives: vec![tokens(seed + 3, 5), tokens(seed + 4, 3)],
    };
    vec![set(1), set(9)]
}

#[test]
fn every_trainable_tensor_gets_a_gradient_that_finite_differences_confirm() {
    let (decoder, adapter) = model();
    let batch = Batch::pack(&sets());
    for objective in [&Sft as &dyn Objective, &CP] {
        let (_, store) = gradients(&decoder, &adapter, &batch, objective);
        for (name, parameter) in adapter.parameters() {
            let gradient = store
                .get(&parameter)
                .unwrap_or_else(|| panic!("no gradient reaches {name}"));
            let norm = gradient
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
                .sqrt();
            assert!(norm.is_finite() && norm > 0.0, "{name}: {norm}");
            let smallest = gradient
                .abs()
                .unwrap()
                .sum(1)
                .unwrap()
                .min(0)
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            assert!(smallest > 0.0, "a row of {name} gets no gradient");
            // Along its own gradient the loss must rise by the gradient's norm.
            let variable = Var::from_tensor(&parameter).unwrap();
            let before = parameter.copy().unwrap();
            let step = 2e-2f64;
            let value_at = |distance: f64| {
                let moved = (&before + (gradient * (distance / f64::from(norm))).unwrap()).unwrap();
                variable.set(&moved).unwrap();
                let nll = nll(&decoder, &adapter, &batch).to_vec1::<f32>().unwrap();
                objective.loss(&nll, &batch.sets).value
            };
            let slope = (value_at(step) - value_at(-step)) / (2.0 * step);
            variable.set(&before).unwrap();
            let error = (slope / f64::from(norm) - 1.0).abs();
            assert!(error < 0.02, "{name}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn a_packed_set_has_the_loss_and_gradient_of_its_sequences_one_by_one() {
    let (decoder, adapter) = model();
    let packed = Batch::pack(&sets());
    let alone: Vec<TokenSet> = sets()
        .into_iter()
        .flat_map(|set| {
            let one = |tokens: &Vec<u32>| TokenSet {
                prompt: set.prompt.clone(),
                positives: vec![tokens.clone()],
                negatives: vec![],
            };
            set.positives.iter().chain(&set.negatives).map(one).collect::<Vec<_>>()
        })
        .collect();
    let mut unpacked = Batch::pack(&alone);
    assert!(packed.tokens.len() < unpacked.tokens.len());
    // The targets come in the same order, so the sets of the packed batch describe those of the other one too.
    unpacked.sets = packed.sets.clone();
    let difference = largest_difference(&nll(&decoder, &adapter, &packed), &nll(&decoder, &adapter, &unpacked));
    assert!(difference < 1e-4, "likelihoods differ by {difference}");
    let (a, a_store) = gradients(&decoder, &adapter, &packed, &CP);
    let (b, b_store) = gradients(&decoder, &adapter, &unpacked, &CP);
    assert!((a - b).abs() < 1e-4, "{a} and {b}");
    for (name, parameter) in adapter.parameters() {
        let difference = largest_difference(a_store.get(&parameter).unwrap(), b_store.get(&parameter).unwrap());
        assert!(difference < 1e-4, "gradients of {name} differ by {difference}");
    }
}

/// The recorded tensors of the modules that are stacked in a parameter of ours.
fn stacked(kind: &str, parameter: &str) -> Tensor {
    let parts: Vec<&str> = parameter.split('.').collect();
    let (layer, projection, matrix) = (parts[1], parts[2], parts[3]);
    let modules: &[&str] = match projection {
        "Qkv" => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "Output" => &["self_attn.o_proj"],
        "GateUp" => &["mlp.gate_proj", "mlp.up_proj"],
        _ => &["mlp.down_proj"],
    };
    let read = |module: &&str| {
        recorded(
            "train_step.safetensors",
            &format!("{kind}.model.layers.{layer}.{module}.{matrix}.weight"),
        )
    };
    Tensor::cat(&modules.iter().map(read).collect::<Vec<_>>(), 0).unwrap()
}

#[test]
fn five_steps_are_those_of_pytorch() {
    let recording: serde_json::Value =
        serde_json::from_str(include_str!("../fixtures/llama-tiny/train_step.json")).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect()
    };
    let sets: Vec<TokenSet> = recording["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| TokenSet {
            prompt: ids(&s["prompt"]),
            positives: vec![ids(&s["target"])],
            negatives: vec![],
        })
        .collect();
    let batch = Batch::pack(&sets);
    let (decoder, adapter) = model();
    let mut optimizer = AdamW::new(adapter.parameters(), AdamWConfig::default()).unwrap();
    for (step, want) in recording["losses"].as_array().unwrap().iter().enumerate() {
        let (loss, store) = gradients(&decoder, &adapter, &batch, &Sft);
        assert!(
            (loss - want.as_f64().unwrap()).abs() < 1e-3,
            "step {step}: {loss}, expected {want}"
        );
        if step == 0 {
            for (name, parameter) in adapter.parameters() {
                let difference = largest_difference(store.get(&parameter).unwrap(), &stacked("gradient", &name));
                assert!(difference < 1e-4, "the gradient of {name} differs by {difference}");
            }
        }
        if step < 5 {
            optimizer.step(&optimizer.gradients(&store).unwrap(), 1e-3).unwrap();
        }
    }
    for (name, parameter) in adapter.parameters() {
        let difference = largest_difference(&parameter, &stacked("after", &name));
        assert!(difference < 2e-4, "{name} differs by {difference} after five steps");
    }
}

#[test]
fn an_adapter_reads_back_as_it_was_written_and_a_damaged_one_is_refused() {
    let (decoder, adapter) = model();
    let folder = tempfile::tempdir().unwrap();
    adapter.save(folder.path(), DType::F32).unwrap();
    let again = LoraModel::load(folder.path(), decoder.config(), &Device::Cpu).unwrap();
    for ((name, a), (other, b)) in adapter
        .named_tensors()
        .unwrap()
        .iter()
        .zip(again.named_tensors().unwrap())
    {
        assert_eq!(*name, other);
        assert_eq!(largest_difference(a, &b), 0.0, "{name}");
    }
    let weights = folder.path().join("adapter_model.safetensors");
    let refused = || {
        LoraModel::load(folder.path(), decoder.config(), &Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
    let tensor = tensors.remove(key).unwrap();
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    assert!(refused().contains(key), "{}", refused());
    tensors.insert(key.to_owned(), (tensor.clone() * f64::NAN).unwrap());
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    assert!(refused().contains("not finite"), "{}", refused());
    tensors.insert(key.to_owned(), tensor.clone());
    tensors.insert("base_model.model.lm_head.lora_A.weight".to_owned(), tensor);
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    assert!(refused().contains("lm_head"), "{}", refused());
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    assert!(refused().contains("adapter_model.safetensors"), "{}", refused());
}
