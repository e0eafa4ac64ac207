//! Weights in 4 bits: as bitsandbytes quantises them, and with the values and gradients of a dense model that holds what they decode to.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use detoxd::model::Decoder;
use detoxd::model::kernels::blocks::{BlockMatrix, Blocks, GgmlBlocks};
use detoxd::model::kernels::nf4::Nf4Builder;
use detoxd::model::layers::Adaptation;
use detoxd::model::lora::{ALL_LINEAR, LoraConfig, LoraModel};
use detoxd::model::weights::{FourBit, ModelFiles, Purpose};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::families::{folder, load, loss};
use crate::tiny;

const DENSE: Purpose = Purpose::Train { dtype: DType::F32 };

fn decoded(values: &[f32], format: FourBit, columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    let blocks = match format {
        FourBit::Nf4 => {
            let mut builder = Nf4Builder::default();
            builder.push(values);
            Blocks::Nf4(builder.finish())
        }
        FourBit::Q4K => {
            let mut blocks = GgmlBlocks::new(GgmlDType::Q4K, rows, columns).unwrap();
            blocks.encode(0, values);
            Blocks::Ggml(blocks)
        }
    };
    let matrix = BlockMatrix::stack(vec![(rows, blocks)], columns);
    let mut out = vec![0f32; values.len()];
    for (row, out) in out.chunks_mut(columns).enumerate() {
        matrix.decode_row(row, out);
    }
    out
}

#[test]
fn nf4_is_that_of_bitsandbytes() {
    let tensors = candle_core::safetensors::load(folder("nf4.safetensors"), &Device::Cpu).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let tensor = tensors[name].to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (weight, want) = (values("weight"), values("dequantised"));
    let got = decoded(&weight, FourBit::Nf4, 64);
    let difference = |(got, want): (&[f32], &[f32])| {
        let differences = got.iter().zip(want).map(|(a, b)| (a - b).abs());
        differences.fold(0f32, f32::max)
    };
    let blocks: Vec<f32> = got.chunks(64).zip(want.chunks(64)).map(difference).collect();
    let other = blocks.iter().filter(|block| **block > 1e-6).count();
    println!(
        "NF4: {other} of {} blocks with another divisor than bitsandbytes",
        blocks.len()
    );
    // A divisor half-way between two levels (here two, to one part in a million) falls to one side there and to the other here.
    assert!(other <= 2, "{other}");
    assert!(blocks.iter().all(|block| *block < 0.01));
}

/// A model with rows that Q4_K takes, in `folder`.
fn write_model(folder: &Path) {
    let config = r#"{"model_type":"llama","hidden_size":256,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"intermediate_size":512,"vocab_size":300,"max_position_embeddings":64,
        "rms_norm_eps":1e-5,"tie_word_embeddings":false}"#;
    std::fs::write(folder.join("config.json"), config).unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let count = shape.iter().product();
        let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..count).map(|_| centre + rng.random_range(-0.1f32..0.1)).collect();
        // Two bytes a weight, so that embedding and head are the same however they are held.
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        tensors.insert(name, tensor.to_dtype(DType::BF16).unwrap());
    };
    add("model.embed_tokens.weight".to_owned(), &[300, 256]);
    add("lm_head.weight".to_owned(), &[300, 256]);
    add("model.norm.weight".to_owned(), &[256]);
    for layer in 0..2 {
        for (module, shape) in [
            ("input_layernorm", &[256][..]),
            ("post_attention_layernorm", &[256]),
            ("self_attn.q_proj", &[256, 256]),
            ("self_attn.k_proj", &[128, 256]),
            ("self_attn.v_proj", &[128, 256]),
            ("self_attn.o_proj", &[256, 256]),
            ("mlp.gate_proj", &[512, 256]),
            ("mlp.up_proj", &[512, 256]),
            ("mlp.down_proj", &[256, 512]),
        ] {
            add(format!("model.layers.{layer}.{module}.weight"), shape);
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

/// The same model with every projection of its blocks as `format` decodes it.
fn write_decoded(from: &Path, to: &Path, format: FourBit) {
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        *tensor = tensor.to_dtype(DType::F32).unwrap();
        if name.contains("_proj") {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let values = decoded(&values, format, tensor.dims()[1]);
            *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        }
    }
    candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
}

/// An adapter on every linear and the head, whose `B` has values up to `size`.
fn adapter(decoder: &Decoder, size: f32) -> LoraModel {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 4.0,
        target_modules: [ALL_LINEAR, "lm_head"].map(str::to_owned).into(),
        ..LoraConfig::default()
    };
    let mut rng = StdRng::seed_from_u64(5);
    let adapter = LoraModel::initialise(config, decoder.config(), &Device::Cpu, &mut rng).unwrap();
    for (name, tensor) in adapter.parameters() {
        if name.ends_with("lora_B") {
            tiny::randomise(&tensor, size, &mut rng);
        }
    }
    adapter
}

/// Logits, then the gradient of every tensor of the adapter.
fn logits_and_gradients(decoder: &Decoder, size: f32) -> Vec<Tensor> {
    let adapter = adapter(decoder, size);
    let vocabulary = decoder.config().vocab_size as u32;
    let mut ids = tiny::sequences(&[20, 13], 6);
    ids.iter_mut().flatten().for_each(|id| *id %= vocabulary);
    let logits = tiny::packed_logits(decoder, &ids, Adaptation::Lora(&adapter));
    let store = loss(decoder, &ids, Adaptation::Lora(&adapter)).backward().unwrap();
    let gradients = adapter
        .parameters()
        .into_iter()
        .map(|(_, tensor)| store.get(&tensor).unwrap().clone());
    [logits].into_iter().chain(gradients).collect()
}

fn assert_same(got: &[Tensor], want: &[Tensor], what: &str) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let size = tiny::largest_difference(want, &want.zeros_like().unwrap());
        let relative = tiny::largest_difference(got, want) / size;
        assert!(
            size > 0.0 && relative < 1e-4,
            "{what}, tensor {index}: {relative} of {size}"
        );
    }
}

#[test]
fn four_bit_weights_give_the_values_and_gradients_of_a_dense_model() {
    let original = tempfile::tempdir().unwrap();
    write_model(original.path());
    for format in [FourBit::Nf4, FourBit::Q4K] {
        let reference = tempfile::tempdir().unwrap();
        write_decoded(original.path(), reference.path(), format);
        let four_bit = logits_and_gradients(&load(original.path(), Purpose::TrainFourBit(format)), 0.3);
        let want = logits_and_gradients(&load(reference.path(), DENSE), 0.3);
        assert_same(&four_bit, &want, &format!("{format:?}"));
        let dense = logits_and_gradients(&load(original.path(), DENSE), 0.3);
        let differs = tiny::largest_difference(&four_bit[0], &dense[0]);
        assert!(differs > 1e-3, "{format:?}: nothing was quantised");
    }
}

#[test]
fn a_gguf_file_is_trained_over_as_it_is() {
    for name in ["mistral", "qwen2", "falcon40"] {
        let file = folder(&format!("{name}.gguf"));
        let four_bit = logits_and_gradients(&load(&file, Purpose::TrainFourBit(FourBit::Nf4)), 0.3);
        assert_same(&four_bit, &logits_and_gradients(&load(&file, DENSE), 0.3), name);
    }
}

#[test]
fn a_matrix_that_a_format_cannot_hold_is_named() {
    let files = ModelFiles::open(&folder("llama3")).unwrap();
    let error = files
        .load(Purpose::TrainFourBit(FourBit::Q4K), &Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(error.contains("q_proj.weight") && error.contains("256"), "{error}");
}

/// On the folder that `DETOXD_TEST_LARGE` names: by how much logits and gradients depart from those of dense weights in f32.
#[test]
fn errors_on_a_large_model() {
    let Some(path) = std::env::var_os("DETOXD_TEST_LARGE") else {
        return;
    };
    let path = Path::new(&path);
    let want = logits_and_gradients(&load(path, DENSE), 0.01);
    for purpose in [
        Purpose::Train { dtype: DType::BF16 },
        Purpose::TrainFourBit(FourBit::Q4K),
        Purpose::TrainFourBit(FourBit::Nf4),
    ] {
        let decoder = match ModelFiles::open(path).unwrap().load(purpose, &Device::Cpu) {
            Ok(decoder) => decoder,
            Err(error) => {
                println!("{purpose:?}: {error}");
                continue;
            }
        };
        let got = logits_and_gradients(&decoder, 0.01);
        let mut errors: Vec<f32> = got
            .iter()
            .zip(&want)
            .map(|(got, want)| tiny::relative(got, want))
            .collect();
        let logits = errors.remove(0);
        errors.sort_by(f32::total_cmp);
        println!(
            "{purpose:?}: logits {logits:.4}, gradients {:.4} in the middle, {:.4} at most",
            errors[errors.len() / 2],
            errors[errors.len() - 1]
        );
        assert!(logits.is_finite() && errors.iter().all(|error| error.is_finite()));
    }
}
