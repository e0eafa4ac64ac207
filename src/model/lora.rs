//! Low-rank adapters (LoRA; Hu et al. 2021) in the file layout of Hugging Face's PEFT: `adapter_config.json` beside
//! `adapter_model.safetensors`.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::layers::Projection;
use super::ops::LoraPart;
use super::{DecoderConfig, ModelError};

/// The settings of an adapter, as PEFT names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of every update.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Last components of the adapted modules' names, sorted.
    pub target_modules: BTreeSet<String>,
    /// Name of the base model, for people.
    pub base_model_name_or_path: String,
}

/// Names of the modules an adapter can update.
pub const MODULES: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// An adapter for one decoder.
#[derive(Debug, Clone)]
pub struct LoraModel {
    config: LoraConfig,
    groups: HashMap<(usize, Projection), LoraGroup>,
}

/// The updates of one fused projection of one block.
#[derive(Debug, Clone)]
pub struct LoraGroup {
    /// Stacked `A [Σ rank, in]`.
    pub a: Tensor,
    /// Stacked `B [Σ rows, rank]`.
    pub b: Tensor,
    /// Where each module's update goes.
    pub parts: Arc<[LoraPart]>,
    modules: Vec<&'static str>,
}

/// A module within a fused projection.
pub(super) struct ProjectionPart {
    /// Name within a block.
    pub module: &'static str,
    /// Its rows of the fused matrix.
    pub rows: Range<usize>,
}

/// The modules that make up a fused projection, in row order.
pub(super) fn projection_parts(projection: Projection, config: &DecoderConfig) -> Vec<ProjectionPart> {
    let (q, kv) = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    );
    let modules: &[(&'static str, usize)] = match projection {
        Projection::Qkv => &[
            ("self_attn.q_proj", q),
            ("self_attn.k_proj", kv),
            ("self_attn.v_proj", kv),
        ],
        Projection::Output => &[("self_attn.o_proj", config.hidden_size)],
        Projection::GateUp => &[
            ("mlp.gate_proj", config.intermediate_size),
            ("mlp.up_proj", config.intermediate_size),
        ],
        Projection::Down => &[("mlp.down_proj", config.hidden_size)],
    };
    let mut next = 0;
    let mut place = |&(module, rows): &(&'static str, usize)| {
        next += rows;
        ProjectionPart {
            module,
            rows: next - rows..next,
        }
    };
    modules.iter().map(&mut place).collect()
}

/// Columns of a projection's matrix.
pub(super) fn in_size(projection: Projection, config: &DecoderConfig) -> usize {
    match projection {
        Projection::Qkv | Projection::GateUp => config.hidden_size,
        Projection::Output => config.num_heads * config.head_dim,
        Projection::Down => config.intermediate_size,
    }
}

fn last_component(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

impl LoraModel {
    /// A new adapter that changes nothing yet: `A` uniform in ±1/√in, `B` zero, as PEFT begins. Its tensors are variables.
    ///
    /// # Errors
    /// When the rank is zero or a target is unknown.
    pub fn initialise(
        config: LoraConfig,
        decoder: &DecoderConfig,
        device: &Device,
        rng: &mut StdRng,
    ) -> Result<Self, ModelError> {
        check_config(&config)?;
        Self::build(config, decoder, |_, name, shape| {
            let bound = (shape[1] as f32).sqrt().recip();
            let values = match name {
                "lora_A" => (0..shape[0] * shape[1])
                    .map(|_| rng.random_range(-bound..bound))
                    .collect(),
                _ => vec![0f32; shape[0] * shape[1]],
            };
            Ok(Tensor::from_vec(values, &shape[..], device)?)
        })?
        .into_variables()
    }

    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// When the adapter was made for another model, uses a PEFT feature that is not computed here, lacks a tensor or has one
    /// too many, or holds a value that is not finite.
    pub fn load(folder: &Path, decoder: &DecoderConfig, device: &Device) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(ModelError::io(&path))
        };
        Self::from_bytes(
            &read("adapter_config.json")?,
            &read("adapter_model.safetensors")?,
            decoder,
            device,
        )
    }

    /// Reads the two files of a PEFT folder from memory.
    ///
    /// # Errors
    /// As [`LoraModel::load`].
    pub fn from_bytes(
        config: &[u8],
        weights: &[u8],
        decoder: &DecoderConfig,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let config = read_config(config)?;
        let mut tensors = candle_core::safetensors::load_buffer(weights, device)
            .map_err(|error| ModelError::Adapter(format!("adapter_model.safetensors: {error}")))?;
        let adapter = Self::build(config, decoder, |module, name, shape| {
            let key = tensor_name(module, name);
            let tensor = tensors
                .remove(&key)
                .ok_or_else(|| ModelError::MissingTensor(key.clone()))?;
            if tensor.dims() != shape {
                return Err(ModelError::Shape {
                    name: key,
                    found: tensor.dims().to_vec(),
                    expected: shape.to_vec(),
                });
            }
            let tensor = tensor.to_dtype(DType::F32)?;
            let largest = tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            let total = tensor.sum_all()?.to_scalar::<f32>()?;
            if !largest.is_finite() || !total.is_finite() {
                return Err(ModelError::Adapter(format!("{key} holds a value that is not finite")));
            }
            Ok(tensor)
        })?;
        match tensors.keys().min() {
            Some(unused) => Err(ModelError::Adapter(format!(
                "the tensor {unused} fits no module of the model"
            ))),
            None => Ok(adapter),
        }
    }

    /// Writes a PEFT folder, which must exist.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<(), ModelError> {
        let config = folder.join("adapter_config.json");
        std::fs::write(&config, write_config(&self.config)).map_err(ModelError::io(&config))?;
        let tensors: HashMap<String, Tensor> = self
            .named_tensors()?
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?)))
            .collect::<Result<_, ModelError>>()?;
        Ok(candle_core::safetensors::save(
            &tensors,
            folder.join("adapter_model.safetensors"),
        )?)
    }

    /// The same adapter with variables in place of its tensors, so that it can be trained.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn into_variables(mut self) -> Result<Self, ModelError> {
        for group in self.groups.values_mut() {
            group.a = Var::from_tensor(&group.a)?.into_inner();
            group.b = Var::from_tensor(&group.b)?.into_inner();
        }
        Ok(self)
    }

    /// The same adapter without a gradient; its tensors are shared, so it follows what is trained.
    pub fn detached(&self) -> Self {
        let groups = self.groups.iter().map(|(key, group)| {
            let group = LoraGroup {
                a: group.a.detach(),
                b: group.b.detach(),
                ..group.clone()
            };
            (*key, group)
        });
        Self {
            config: self.config.clone(),
            groups: groups.collect(),
        }
    }

    /// The stacked tensors by name, in a fixed order: what the optimizer moves.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let mut keys: Vec<_> = self.groups.keys().copied().collect();
        keys.sort_by_key(|(layer, projection)| (*layer, Projection::ALL.iter().position(|p| p == projection)));
        keys.into_iter()
            .flat_map(|(layer, projection)| {
                let group = &self.groups[&(layer, projection)];
                let name = |matrix: &str| format!("layers.{layer}.{projection:?}.{matrix}");
                [(name("lora_A"), group.a.clone()), (name("lora_B"), group.b.clone())]
            })
            .collect()
    }

    /// The tensors of every module under PEFT's names.
    ///
    /// # Errors
    /// When a slice cannot be taken.
    pub fn named_tensors(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let mut named = Vec::new();
        for ((layer, _), group) in &self.groups {
            for (module, part) in group.modules.iter().zip(&*group.parts) {
                let module = format!("model.layers.{layer}.{module}");
                let a = group.a.narrow(0, part.rank.start, part.rank.len())?.contiguous()?;
                let b = group.b.narrow(0, part.b_rows.start, part.b_rows.len())?.contiguous()?;
                named.push((tensor_name(&module, "lora_A"), a.detach()));
                named.push((tensor_name(&module, "lora_B"), b.detach()));
            }
        }
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(named)
    }

    /// Factor on every update.
    pub fn scale(&self) -> f32 {
        (self.config.lora_alpha / self.config.r as f64) as f32
    }

    /// The adapter's settings.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> usize {
        self.groups
            .values()
            .map(|group| (group.a.elem_count() + group.b.elem_count()) * size_of::<f32>())
            .sum()
    }

    /// The update of one projection of one block, if there is one.
    pub(super) fn group(&self, layer: usize, projection: Projection) -> Option<&LoraGroup> {
        self.groups.get(&(layer, projection))
    }

    /// Assembles the stacked tensors from those of single modules: `tensor(module, "lora_A" | "lora_B", shape)`.
    fn build(
        config: LoraConfig,
        decoder: &DecoderConfig,
        mut tensor: impl FnMut(&str, &str, [usize; 2]) -> Result<Tensor, ModelError>,
    ) -> Result<Self, ModelError> {
        let rank = config.r;
        let mut groups = HashMap::new();
        for layer in 0..decoder.num_layers {
            for projection in Projection::ALL {
                let (mut a, mut b, mut parts, mut modules) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
                let mut b_rows = 0;
                for part in projection_parts(projection, decoder) {
                    if !config.target_modules.contains(last_component(part.module)) {
                        continue;
                    }
                    let module = format!("model.layers.{layer}.{}", part.module);
                    let rows = part.rows.len();
                    a.push(tensor(&module, "lora_A", [rank, in_size(projection, decoder)])?);
                    b.push(tensor(&module, "lora_B", [rows, rank])?);
                    let rank_start = parts.len() * rank;
                    parts.push(LoraPart {
                        rows: part.rows,
                        rank: rank_start..rank_start + rank,
                        b_rows: b_rows..b_rows + rows,
                    });
                    modules.push(part.module);
                    b_rows += rows;
                }
                if !parts.is_empty() {
                    let group = LoraGroup {
                        a: Tensor::cat(&a, 0)?,
                        b: Tensor::cat(&b, 0)?,
                        parts: parts.into(),
                        modules,
                    };
                    groups.insert((layer, projection), group);
                }
            }
        }
        Ok(Self { config, groups })
    }
}

fn tensor_name(module: &str, matrix: &str) -> String {
    format!("base_model.model.{module}.{matrix}.weight")
}

fn check_config(config: &LoraConfig) -> Result<(), ModelError> {
    if config.r == 0 {
        return Err(ModelError::Adapter("r is zero".to_owned()));
    }
    if let Some(unknown) = config
        .target_modules
        .iter()
        .find(|name| !MODULES.contains(&name.as_str()))
    {
        let known = MODULES.join(", ");
        return Err(ModelError::Adapter(format!(
            "target module {unknown:?} is not one of {known}"
        )));
    }
    if config.target_modules.is_empty() {
        return Err(ModelError::Adapter("no target modules".to_owned()));
    }
    Ok(())
}

/// Reads `adapter_config.json`; whatever would change the result and is not computed here is refused by name.
///
/// # Errors
/// When it is malformed, or asks for what is not computed here.
pub fn read_config(bytes: &[u8]) -> Result<LoraConfig, ModelError> {
    use serde_json::Value;
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
    const UNSUPPORTED: [&str; 19] = [
        "use_dora",
        "bias",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layer_replication",
        "fan_in_fan_out",
        "use_rslora",
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
        Some(Value::String(all)) if all == "all-linear" => MODULES.into_iter().map(str::to_owned).collect(),
        _ => {
            return Err(malformed(
                "target_modules is neither a list of names nor \"all-linear\"".to_owned(),
            ));
        }
    };
    let config = LoraConfig {
        r: json
            .get("r")
            .and_then(Value::as_u64)
            .ok_or_else(|| malformed("r is missing".to_owned()))? as usize,
        lora_alpha: json
            .get("lora_alpha")
            .and_then(Value::as_f64)
            .ok_or_else(|| malformed("lora_alpha is missing".to_owned()))?,
        target_modules,
        base_model_name_or_path: json
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    };
    check_config(&config)?;
    Ok(config)
}

fn write_config(config: &LoraConfig) -> String {
    let json = serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{json:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str =
        r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"bias":"none","use_dora":false}"#;

    #[test]
    fn features_that_are_not_computed_are_refused_by_name() {
        assert_eq!(read_config(PLAIN.as_bytes()).unwrap().r, 4);
        for (from, to, name) in [
            (r#""use_dora":false"#, r#""use_dora":true"#, "use_dora"),
            (r#""bias":"none""#, r#""bias":"all""#, "bias"),
            (r#""r":4"#, r#""r":4,"rank_pattern":{"q_proj":8}"#, "rank_pattern"),
            (r#""r":4"#, r#""r":4,"modules_to_save":["lm_head"]"#, "modules_to_save"),
            (r#"["q_proj"]"#, r#"["q_proj","lm_head"]"#, "lm_head"),
            (r#""LORA""#, r#""IA3""#, "peft_type"),
        ] {
            let error = read_config(PLAIN.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
