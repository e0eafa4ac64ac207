//! The shape of a decoder from GGUF metadata.

use candle_core::quantized::gguf_file::{Content, Value};

use super::{ActivationKind, Biases, BlockKind, DecoderConfig, Naming, NormKind, RopeScaling, unsupported};
use crate::model::ModelError;

impl DecoderConfig {
    /// Reads the metadata of a GGUF file of the architectures `llama` (Mistral is one), `qwen2` and `falcon`.
    ///
    /// # Errors
    /// When a key is missing or the architecture is another one.
    pub fn from_gguf(content: &Content) -> Result<Self, ModelError> {
        let architecture = find(content, "general.architecture")?
            .to_string()
            .map_err(|error| ModelError::Config(error.to_string()))?;
        let is_falcon = match architecture.as_str() {
            "llama" | "qwen2" => false,
            "falcon" => true,
            other => {
                return unsupported(format!(
                    "GGUF architecture {other:?} (supported: \"llama\", \"qwen2\", \"falcon\")"
                ));
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let integer = |name: &str| integer(content, &key(name));
        let float = |name: &str| float(content, &key(name));
        let has = |name: &str| content.tensor_infos.contains_key(name);
        let hidden_size = integer("embedding_length")?;
        let num_heads = integer("attention.head_count")?;
        let num_layers = integer("block_count")?;
        let head_dim = integer("attention.key_length").unwrap_or(hidden_size / num_heads.max(1));
        let turned = integer("rope.dimension_count").unwrap_or(head_dim);
        if turned != head_dim {
            return unsupported(format!("rope.dimension_count {turned} of heads of width {head_dim}"));
        }
        let embedding = content
            .tensor_infos
            .get("token_embd.weight")
            .ok_or_else(|| ModelError::MissingTensor("token_embd.weight".to_owned()))?;
        let epsilon = if is_falcon {
            "attention.layer_norm_epsilon"
        } else {
            "attention.layer_norm_rms_epsilon"
        };
        let scaling = content.metadata.get(&key("rope.scaling.type")).map(Value::to_string);
        Self {
            naming: if is_falcon { Naming::Falcon } else { Naming::Llama },
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads: integer("attention.head_count_kv").unwrap_or(num_heads),
            head_dim,
            intermediate_size: integer("feed_forward_length")?,
            vocab_size: embedding.shape.dims()[0],
            max_positions: integer("context_length")?,
            rope_theta: float("rope.freq_base").unwrap_or(10_000.0),
            // Llama 3.1's is a tensor of its own, `rope_freqs.weight`.
            rope_scaling: match scaling.transpose() {
                Ok(None) => RopeScaling::None,
                Ok(Some(kind)) if kind == "none" => RopeScaling::None,
                Ok(Some(kind)) if kind == "linear" => RopeScaling::Linear {
                    factor: float("rope.scaling.factor")?,
                },
                Ok(Some(kind)) => return unsupported(format!("rope.scaling.type {kind:?}")),
                Err(error) => return Err(ModelError::Config(error.to_string())),
            },
            norm: if is_falcon { NormKind::Layer } else { NormKind::Rms },
            norm_eps: round_f32(float(epsilon)?),
            activation: if is_falcon {
                ActivationKind::Gelu
            } else {
                ActivationKind::SwiGlu
            },
            blocks: match is_falcon {
                false => BlockKind::Sequential,
                true if has("blk.0.attn_norm_2.weight") => BlockKind::ParallelTwoNorms,
                true => BlockKind::ParallelSharedNorm,
            },
            biases: Biases {
                qkv: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
                output: has("blk.0.attn_output.bias"),
                mlp: has("blk.0.ffn_down.bias"),
            },
            windows: match integer("attention.sliding_window") {
                Ok(window) if window > 0 => vec![Some(window); num_layers],
                _ => Vec::new(),
            },
            tie_word_embeddings: !has("output.weight"),
        }
        .checked()
    }
}

fn find<'a>(content: &'a Content, key: &str) -> Result<&'a Value, ModelError> {
    content
        .metadata
        .get(key)
        .ok_or_else(|| ModelError::Config(format!("the GGUF metadata lacks {key}")))
}

fn integer(content: &Content, key: &str) -> Result<usize, ModelError> {
    let value = find(content, key)?;
    value
        .to_u64()
        .ok()
        .or_else(|| value.to_u32().ok().map(u64::from))
        .and_then(|value| usize::try_from(value).ok())
        .ok_or_else(|| ModelError::Config(format!("{key} is not an integer")))
}

fn float(content: &Content, key: &str) -> Result<f64, ModelError> {
    find(content, key)?
        .to_f32()
        .map(f64::from)
        .map_err(|error| ModelError::Config(format!("{key}: {error}")))
}

/// GGUF stores epsilons in single precision; the shortest decimal that reads back as the same `f32` is what the
/// model's authors wrote.
fn round_f32(value: f64) -> f64 {
    format!("{}", value as f32).parse().unwrap_or(value)
}
