//! Low-rank adapters (LoRA; Hu et al. 2021) in the file layout of Hugging Face's PEFT: `adapter_config.json` beside
//! `adapter_model.safetensors`.
//!
//! `settings`: what `adapter_config.json` says, and which modules it means; `placed`: an adapter as a decoder on a device computes with it.

mod placed;
mod settings;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use rand::rngs::StdRng;

use super::layers::Projection;
use super::layout;
pub use super::layout::HEAD;
use super::ops::{self, LoraPart};
use super::{DecoderConfig, ModelError};
use placed::PlacedUpdate;
pub use settings::{ALL_LINEAR, LoraConfig, MODULES, read_config};

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
    /// `A` and `B` as serving reads them, made when first asked for; none where they may change.
    packed: Option<Arc<OnceLock<ops::PackedUpdate>>>,
    /// What a decoder on a device computes with.
    placed: Option<PlacedUpdate>,
    /// Full names of the modules.
    modules: Vec<String>,
    /// Where the rows of `B` stand in another order in the file: which of them comes next there.
    saved_rows: Option<Arc<[u32]>>,
}

impl LoraGroup {
    /// `A` and `B` as serving reads them; none where they may change, or lie on another device.
    pub(super) fn packed(&self) -> Option<&ops::PackedUpdate> {
        let packed = self.packed.as_ref()?;
        match packed.get() {
            Some(packed) => Some(packed),
            None => {
                let made = ops::PackedUpdate::new(&self.a, &self.b, &self.parts).ok()?;
                Some(packed.get_or_init(|| made))
            }
        }
    }
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
        let config = config.resolved(decoder)?;
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
        let config = read_config(config)?.resolved(decoder)?;
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
        // PEFT puts a copy of the frozen head beside its update.
        let head = format!("base_model.model.{HEAD}.base_layer.weight");
        if let Some(copy) = tensors.get(&head)
            && adapter.group(decoder.num_layers, Projection::Head).is_some()
            && copy.dims() == [decoder.vocab_size, decoder.hidden_size]
        {
            tensors.remove(&head);
        }
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
        std::fs::write(&config, settings::write(&self.config)).map_err(ModelError::io(&config))?;
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
            group.packed = None;
            group.placed = None;
        }
        Ok(self)
    }

    /// The same adapter without a gradient; its tensors are shared, so it follows what is trained.
    pub fn detached(&self) -> Self {
        let groups = self.groups.iter().map(|(key, group)| {
            let group = LoraGroup {
                a: group.a.detach(),
                b: group.b.detach(),
                packed: None,
                placed: None,
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
        keys.sort_by_key(|(layer, projection)| (*layer, *projection as usize));
        keys.into_iter()
            .flat_map(|(layer, projection)| {
                let group = &self.groups[&(layer, projection)];
                let name = |matrix: &str| match projection {
                    Projection::Head => format!("{HEAD}.{matrix}"),
                    _ => format!("layers.{layer}.{projection:?}.{matrix}"),
                };
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
        for group in self.groups.values() {
            for (module, part) in group.modules.iter().zip(&*group.parts) {
                let a = group.a.narrow(0, part.rank.start, part.rank.len())?.contiguous()?;
                let mut b = group.b.narrow(0, part.b_rows.start, part.b_rows.len())?.contiguous()?;
                if let Some(rows) = &group.saved_rows {
                    b = b.index_select(&Tensor::from_slice(rows, rows.len(), b.device())?, 0)?;
                }
                named.push((tensor_name(module, "lora_A"), a.detach()));
                named.push((tensor_name(module, "lora_B"), b.detach()));
            }
        }
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(named)
    }

    /// Factor on every update.
    pub fn scale(&self) -> f32 {
        self.config.scale()
    }

    /// The adapter's settings.
    pub fn config(&self) -> &LoraConfig {
        &self.config
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
        for (layer, projection) in decoder.projections() {
            let (mut a, mut b, mut parts, mut modules) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut b_rows = 0;
            let mut saved_rows = None;
            for part in decoder.parts(projection) {
                let module = decoder.module_name(layer, projection, part.module);
                if !config.targets(&module) {
                    continue;
                }
                let rows = part.rows.len();
                a.push(tensor(&module, "lora_A", [rank, decoder.in_size(projection)])?);
                let mut update = tensor(&module, "lora_B", [rows, rank])?;
                if let Some(order) = decoder.grouped_rows(&module) {
                    let order: Vec<u32> = order.into_iter().map(|row| row as u32).collect();
                    update = update.index_select(&Tensor::from_slice(&order, rows, update.device())?, 0)?;
                    saved_rows = Some(layout::inverse(&order).into());
                }
                b.push(update);
                let rank_start = parts.len() * rank;
                parts.push(LoraPart {
                    rows: part.rows,
                    rank: rank_start..rank_start + rank,
                    b_rows: b_rows..b_rows + rows,
                });
                modules.push(module);
                b_rows += rows;
            }
            if !parts.is_empty() {
                let group = LoraGroup {
                    a: Tensor::cat(&a, 0)?,
                    b: Tensor::cat(&b, 0)?,
                    parts: parts.into(),
                    packed: Some(Arc::default()),
                    placed: None,
                    modules,
                    saved_rows,
                };
                groups.insert((layer, projection), group);
            }
        }
        Ok(Self { config, groups })
    }
}

fn tensor_name(module: &str, matrix: &str) -> String {
    format!("base_model.model.{module}.{matrix}.weight")
}
