//! PEFT's files: written as it writes them, and refused with a reason where they cannot be right.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;

use candle_core::{DType, Device, Tensor};
use detoxd::model::DecoderConfig;
use detoxd::model::lora::LoraModel;
use serde_json::Value;

use crate::tiny;

const A_TENSOR: &str = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";

/// The recorded adapter's two files.
fn files() -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str| fs::read(tiny::folder("adapter").join(name)).unwrap();
    (read("adapter_config.json"), read("adapter_model.safetensors"))
}

fn bits(tensors: impl IntoIterator<Item = (String, Tensor)>) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let bits = |tensor: &Tensor| {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    tensors
        .into_iter()
        .map(|(name, tensor)| (name, (tensor.dims().to_vec(), bits(&tensor))))
        .collect()
}

#[test]
fn saving_and_loading_changes_nothing() {
    let decoder = tiny::tied();
    let adapter = tiny::adapter(&decoder);
    let folder = tempfile::tempdir().unwrap();
    adapter.save(folder.path(), DType::F32).unwrap();

    let names: BTreeSet<String> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names,
        ["adapter_config.json", "adapter_model.safetensors"]
            .map(str::to_owned)
            .into()
    );
    let written =
        candle_core::safetensors::load(folder.path().join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    let by_peft = tiny::recorded("adapter/adapter_model.safetensors");
    assert_eq!(bits(written), bits(by_peft));

    let again = LoraModel::load(folder.path(), decoder.config(), &Device::Cpu).unwrap();
    assert_eq!(again.config(), adapter.config());
    assert_eq!(
        bits(again.named_tensors().unwrap()),
        bits(adapter.named_tensors().unwrap())
    );
}

#[test]
fn the_written_settings_are_among_those_that_peft_writes() {
    let decoder = tiny::tied();
    let folder = tempfile::tempdir().unwrap();
    tiny::adapter(&decoder).save(folder.path(), DType::F32).unwrap();
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Map<String, Value>>(bytes).unwrap();
    let written = parse(&fs::read(folder.path().join("adapter_config.json")).unwrap());
    let by_peft = parse(&files().0);
    let sorted = |value: &Value| match value.as_array() {
        Some(list) => list.iter().map(Value::to_string).collect::<BTreeSet<_>>(),
        // 8 and 8.0 are one number.
        None => [value.as_f64().map_or(value.to_string(), |number| number.to_string())].into(),
    };
    for (key, value) in &written {
        assert_eq!(sorted(value), sorted(&by_peft[key]), "{key}");
    }
}

#[test]
fn half_precision_rounds_and_keeps_the_rest() {
    let decoder = tiny::tied();
    let adapter = tiny::adapter(&decoder);
    for dtype in [DType::F16, DType::BF16] {
        let folder = tempfile::tempdir().unwrap();
        adapter.save(folder.path(), dtype).unwrap();
        let again = LoraModel::load(folder.path(), decoder.config(), &Device::Cpu).unwrap();
        let rounded = adapter
            .named_tensors()
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()));
        assert_eq!(bits(again.named_tensors().unwrap()), bits(rounded));
    }
}

/// Why the recorded adapter cannot be used after a change to its tensors, for a decoder of a changed shape.
fn refusal(change: impl FnOnce(&mut HashMap<String, Tensor>), reshape: impl FnOnce(&mut DecoderConfig)) -> String {
    let (config, weights) = files();
    let mut tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu).unwrap();
    change(&mut tensors);
    let weights = safetensors::serialize(&tensors, None).unwrap();
    let mut shape = tiny::tied().config().clone();
    reshape(&mut shape);
    LoraModel::from_bytes(&config, &weights, &shape, &Device::Cpu)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_tensor_that_cannot_be_right_is_named() {
    let with = |tensor: Tensor| refusal(|tensors| drop(tensors.insert(A_TENSOR.to_owned(), tensor)), |_| ());
    let spoiled = |value: f32| {
        let mut values = vec![0.1f32; 96 * 4];
        values[77] = value;
        with(Tensor::from_vec(values, (96, 4), &Device::Cpu).unwrap())
    };
    let cases = [
        ("missing", refusal(|tensors| drop(tensors.remove(A_TENSOR)), |_| ())),
        ("not a number", spoiled(f32::NAN)),
        ("infinite", spoiled(f32::NEG_INFINITY)),
        (
            "of another rank",
            with(Tensor::zeros((96, 8), DType::F32, &Device::Cpu).unwrap()),
        ),
        ("flat", with(Tensor::zeros(96 * 4, DType::F32, &Device::Cpu).unwrap())),
    ];
    for (case, error) in cases {
        assert!(error.contains(A_TENSOR), "{case}: {error}");
    }
    let extra = refusal(
        |tensors| {
            let name = A_TENSOR.replace("layers.1", "layers.7");
            tensors.insert(name, tensors[A_TENSOR].clone());
        },
        |_| (),
    );
    assert!(extra.contains("layers.7.mlp.up_proj.lora_B"), "{extra}");
}

#[test]
fn an_adapter_of_another_base_is_refused_by_what_does_not_fit() {
    let wider = refusal(|_| (), |shape| shape.hidden_size = 128);
    assert!(wider.contains("[4, 64]") && wider.contains("[4, 128]"), "{wider}");
    let wider = refusal(|_| (), |shape| shape.intermediate_size = 128);
    assert!(wider.contains("[96, 4]") && wider.contains("[128, 4]"), "{wider}");
    let deeper = refusal(|_| (), |shape| shape.num_layers = 3);
    assert!(deeper.contains("lack") && deeper.contains("layers.2."), "{deeper}");
    let shallower = refusal(|_| (), |shape| shape.num_layers = 1);
    assert!(
        shallower.contains("layers.1.") && shallower.contains("fits no module"),
        "{shallower}"
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let decoder = tiny::tied();
    let (config, weights) = files();
    let refused = |config: &[u8], weights: &[u8]| {
        LoraModel::from_bytes(config, weights, decoder.config(), &Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    let mut endless = weights.clone();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [
        &weights[..weights.len() / 2],
        &weights[..weights.len() - 1],
        &weights[..20],
        &weights[..4],
        &[],
        &endless,
    ] {
        let error = refused(&config, bytes);
        assert!(
            error.contains("adapter_model.safetensors"),
            "{} bytes: {error}",
            bytes.len()
        );
    }
    let text = String::from_utf8(config.clone()).unwrap();
    for (changed, what) in [
        (text[..text.len() / 2].to_owned(), "adapter_config.json"),
        ("[]".to_owned(), "adapter_config.json"),
        (text.replace("\"r\": 4", "\"r\": 0"), "r is zero"),
        (text.replace("\"r\": 4", "\"r\": -1"), "r is missing"),
        (text.replace("\"r\": 4", "\"r\": 8"), "lora_A"),
    ] {
        let error = refused(changed.as_bytes(), &weights);
        assert!(error.contains(what), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), &config).unwrap();
    let error = LoraModel::load(folder.path(), decoder.config(), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("adapter_model.safetensors"), "{error}");
}
