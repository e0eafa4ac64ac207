//! What `adapter_config.json` says, and which modules of a model it means.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::layers::Projection;
use crate::model::layout::HEAD;
use crate::model::{DecoderConfig, ModelError};

/// The name that stands for every linear layer of the blocks, whatever the family calls them; the output head is not among them.
pub const ALL_LINEAR: &str = "all-linear";

/// What adapters are asked to update, in any family: [`ALL_LINEAR`], the output head, and the names of single modules.
pub const MODULES: [&str; 13] = [
    ALL_LINEAR,
    HEAD,
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "query_key_value",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
];

/// The settings of an adapter, as PEFT names them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of every update.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Share of an update's inputs that are left out in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Scales by `lora_alpha / √r` instead (Kalajdzievski 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Names of the adapted modules, or what they end in after a dot, sorted; [`ALL_LINEAR`] may be among them.
    pub target_modules: BTreeSet<String>,
    /// Name of the base model, for people.
    pub base_model_name_or_path: String,
}

impl LoraConfig {
    /// Factor on every update.
    pub(super) fn scale(&self) -> f32 {
        let rank = self.r as f64;
        (self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Whether the module of this full name is adapted.
    pub(super) fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| is_named(module, target))
    }

    /// The same with [`ALL_LINEAR`] replaced by the names of `decoder`'s modules.
    ///
    /// # Errors
    /// When the rank is zero, the dropout not a probability, or a target fits no module; the message names the modules there are.
    pub(super) fn resolved(mut self, decoder: &DecoderConfig) -> Result<Self, ModelError> {
        let refused = |reason: String| Err(ModelError::Adapter(reason));
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        if self.target_modules.remove(ALL_LINEAR) {
            let in_blocks = Projection::IN_BLOCK
                .into_iter()
                .flat_map(|projection| decoder.parts(projection));
            self.target_modules.extend(in_blocks.map(|part| last(part.module)));
        }
        if self.r == 0 {
            return refused("r is zero".to_owned());
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refused(format!(
                "lora_dropout {} is not at least 0 and below 1",
                self.lora_dropout
            ));
        }
        let modules: Vec<String> = decoder
            .projections()
            .flat_map(|(layer, projection)| {
                let name = move |part: &str| decoder.module_name(layer, projection, part);
                decoder.parts(projection).into_iter().map(move |part| name(part.module))
            })
            .collect();
        let fits_none = |target: &&String| !modules.iter().any(|module| is_named(module, target));
        if let Some(unknown) = self.target_modules.iter().find(fits_none) {
            let known: BTreeSet<String> = modules.iter().map(|module| last(module)).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return refused(format!("target module {unknown:?} is not one of {known}"));
        }
        if self.target_modules.is_empty() {
            return refused("no target modules".to_owned());
        }
        Ok(self)
    }
}

/// PEFT's rule: the whole name, or its end after a dot.
fn is_named(module: &str, target: &str) -> bool {
    module
        .strip_suffix(target)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Reads `adapter_config.json`; whatever would change the result and is not computed here is refused by name.
///
/// # Errors
/// When it is malformed, or asks for what is not computed here.
pub fn read_config(bytes: &[u8]) -> Result<LoraConfig, ModelError> {
    let malformed = |reason: String| ModelError::Adapter(format!("adapter_config.json: {reason}"));
    let json: serde_json::Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let inert = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text == "none",
        _ => false,
    };
    const UNSUPPORTED: [&str; 18] = [
        "use_dora",
        "bias",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layer_replication",
        "fan_in_fan_out",
        "alora_invocation_tokens",
        "target_parameters",
        "trainable_token_indices",
        "exclude_modules",
        "use_qalora",
        "use_bdlora",
        "velora_config",
        "arrow_config",
        "monteclora_config",
    ];
    if let Some(feature) = UNSUPPORTED
        .into_iter()
        .find(|name| json.get(*name).is_some_and(|value| !inert(value)))
    {
        return Err(malformed(format!("{feature} is not supported")));
    }
    if json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(malformed("peft_type is not \"LORA\"".to_owned()));
    }
    let target_modules = match json.get("target_modules") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(all)) if all.eq_ignore_ascii_case(ALL_LINEAR) => [ALL_LINEAR.to_owned()].into(),
        _ => {
            return Err(malformed(
                "target_modules is neither a list of names nor \"all-linear\"".to_owned(),
            ));
        }
    };
    let number = |name: &str| json.get(name).and_then(Value::as_f64);
    Ok(LoraConfig {
        r: json
            .get("r")
            .and_then(Value::as_u64)
            .ok_or_else(|| malformed("r is missing".to_owned()))? as usize,
        lora_alpha: number("lora_alpha").ok_or_else(|| malformed("lora_alpha is missing".to_owned()))?,
        lora_dropout: number("lora_dropout").unwrap_or(0.0),
        use_rslora: json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        target_modules,
        base_model_name_or_path: json
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    })
}

/// The text of `adapter_config.json`.
pub(super) fn write(config: &LoraConfig) -> String {
    let json = serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_dora": false,
        "use_rslora": config.use_rslora,
    });
    format!("{json:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str =
        r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"bias":"none","use_dora":false}"#;

    fn shape(name: &str) -> DecoderConfig {
        let json = format!(
            r#"{{"model_type":"{name}","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
                "intermediate_size":96,"vocab_size":300,"rms_norm_eps":1e-5}}"#
        );
        DecoderConfig::from_hugging_face(&json).unwrap()
    }

    #[test]
    fn features_that_are_not_computed_are_refused_by_name() {
        assert_eq!(read_config(PLAIN.as_bytes()).unwrap().r, 4);
        for (from, to, name) in [
            (r#""use_dora":false"#, r#""use_dora":true"#, "use_dora"),
            (r#""bias":"none""#, r#""bias":"all""#, "bias"),
            (r#""r":4"#, r#""r":4,"rank_pattern":{"q_proj":8}"#, "rank_pattern"),
            (r#""r":4"#, r#""r":4,"modules_to_save":["lm_head"]"#, "modules_to_save"),
            (r#"["q_proj"]"#, r#""q_.*""#, "target_modules"),
            (r#""LORA""#, r#""IA3""#, "peft_type"),
        ] {
            let error = read_config(PLAIN.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn targets_are_found_as_peft_finds_them() {
        let targeting = |names: &[&str]| LoraConfig {
            r: 4,
            target_modules: names.iter().map(|name| (*name).to_owned()).collect(),
            ..LoraConfig::default()
        };
        let config = targeting(&["layers.1.self_attn.q_proj", "lm_head"])
            .resolved(&shape("llama"))
            .unwrap();
        assert!(config.targets("model.layers.1.self_attn.q_proj") && config.targets("lm_head"));
        assert!(!config.targets("model.layers.0.self_attn.q_proj"));
        let error = targeting(&["proj"]).resolved(&shape("llama")).unwrap_err().to_string();
        assert!(error.contains("\"proj\"") && error.contains("q_proj, "), "{error}");
        let error = targeting(&["q_proj"])
            .resolved(&shape("falcon"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("query_key_value"), "{error}");
        let all = targeting(&[ALL_LINEAR, "lm_head"]).resolved(&shape("falcon")).unwrap();
        let names: Vec<&str> = all.target_modules.iter().map(String::as_str).collect();
        assert_eq!(
            names,
            ["dense", "dense_4h_to_h", "dense_h_to_4h", "lm_head", "query_key_value"]
        );
    }

    #[test]
    fn the_scale_is_that_of_the_paper_chosen() {
        let plain = read_config(PLAIN.as_bytes()).unwrap();
        assert_eq!(plain.scale(), 2.0);
        let rslora = PLAIN.replace("\"r\":4", "\"use_rslora\":true,\"r\":4");
        assert_eq!(read_config(rslora.as_bytes()).unwrap().scale(), 4.0);
    }
}
