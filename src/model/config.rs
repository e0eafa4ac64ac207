//! The shape of a decoder, read from a Hugging Face `config.json` or from GGUF metadata.

use candle_core::quantized::gguf_file::{Content, Value};
use serde::Deserialize;

use super::ModelError;

/// Hyperparameters of a decoder in the Llama layout: pre-norm blocks of grouped-query attention with rotary
/// positions and a SwiGLU feed-forward part.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub max_positions: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
}

/// The fields of `config.json` that decide how the model computes. Anything that would change the result and is
/// not supported is refused by name rather than ignored.
#[derive(Deserialize)]
struct HuggingFaceConfig {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_max_positions")]
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<RopeParameters>,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn default_max_positions() -> usize {
    2048
}

impl DecoderConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When the JSON is malformed, or names a family or an option this decoder does not compute.
    pub fn from_hugging_face(json: &str) -> Result<Self, ModelError> {
        let raw: HuggingFaceConfig =
            serde_json::from_str(json).map_err(|error| ModelError::Config(error.to_string()))?;
        let unsupported = |what: String| Err(ModelError::Config(format!("{what} is not supported")));
        if raw.model_type != "llama" {
            return unsupported(format!("model_type {:?} (supported: \"llama\")", raw.model_type));
        }
        if raw.attention_bias || raw.mlp_bias {
            return unsupported("a bias in attention or feed-forward layers".to_owned());
        }
        if raw.rope_scaling.is_some_and(|scaling| !scaling.is_null()) {
            return unsupported("rope_scaling".to_owned());
        }
        let parameters = raw.rope_parameters.as_ref();
        if let Some(kind) = parameters.and_then(|p| p.rope_type.as_deref())
            && kind != "default"
        {
            return unsupported(format!("rope_type {kind:?}"));
        }
        if let Some(activation) = raw.hidden_act.as_deref()
            && activation != "silu"
        {
            return unsupported(format!("hidden_act {activation:?}"));
        }
        let rope_theta = raw
            .rope_theta
            .or(parameters.and_then(|p| p.rope_theta))
            .unwrap_or(10_000.0);
        Self {
            hidden_size: raw.hidden_size,
            num_layers: raw.num_hidden_layers,
            num_heads: raw.num_attention_heads,
            num_kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
            intermediate_size: raw.intermediate_size,
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            rope_theta,
            rms_norm_eps: raw.rms_norm_eps,
            tie_word_embeddings: raw.tie_word_embeddings,
        }
        .checked()
    }

    /// Reads the metadata of a GGUF file of architecture `llama`.
    ///
    /// # Errors
    /// When a key is missing or the architecture is another one.
    pub fn from_gguf(content: &Content) -> Result<Self, ModelError> {
        let find = |key: &str| {
            content
                .metadata
                .get(key)
                .ok_or_else(|| ModelError::Config(format!("the GGUF metadata lacks {key}")))
        };
        let integer = |key: &str| -> Result<usize, ModelError> {
            integer_value(find(key)?).ok_or_else(|| ModelError::Config(format!("{key} is not an integer")))
        };
        let architecture = find("general.architecture")?
            .to_string()
            .map_err(|error| ModelError::Config(error.to_string()))?;
        if architecture != "llama" {
            return Err(ModelError::Config(format!(
                "GGUF architecture {architecture:?} is not supported (supported: \"llama\")"
            )));
        }
        let float = |key: &str| -> Result<f64, ModelError> {
            find(key)?
                .to_f32()
                .map(f64::from)
                .map_err(|error| ModelError::Config(format!("{key}: {error}")))
        };
        let hidden_size = integer("llama.embedding_length")?;
        let num_heads = integer("llama.attention.head_count")?;
        let embedding = content
            .tensor_infos
            .get("token_embd.weight")
            .ok_or_else(|| ModelError::MissingTensor("token_embd.weight".to_owned()))?;
        Self {
            hidden_size,
            num_layers: integer("llama.block_count")?,
            num_heads,
            num_kv_heads: integer("llama.attention.head_count_kv").unwrap_or(num_heads),
            head_dim: integer("llama.rope.dimension_count").unwrap_or(hidden_size / num_heads.max(1)),
            intermediate_size: integer("llama.feed_forward_length")?,
            vocab_size: embedding.shape.dims()[0],
            max_positions: integer("llama.context_length")?,
            rope_theta: float("llama.rope.freq_base").unwrap_or(10_000.0),
            rms_norm_eps: round_f32(float("llama.attention.layer_norm_rms_epsilon")?),
            tie_word_embeddings: !content.tensor_infos.contains_key("output.weight"),
        }
        .checked()
    }

    /// Rows of the fused query, key and value projection.
    pub fn qkv_size(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    fn checked(self) -> Result<Self, ModelError> {
        let positive = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ModelError::Config(format!("{name} is zero")));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) || self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(ModelError::Config(format!(
                "{} heads of width {} over {} key-value heads cannot be computed",
                self.num_heads, self.head_dim, self.num_kv_heads
            )));
        }
        Ok(self)
    }
}

fn integer_value(value: &Value) -> Option<usize> {
    value
        .to_u64()
        .ok()
        .or_else(|| value.to_u32().ok().map(u64::from))
        .and_then(|value| usize::try_from(value).ok())
}

/// GGUF stores epsilons in single precision; the shortest decimal that reads back as the same `f32` is what the
/// model's authors wrote.
fn round_f32(value: f64) -> f64 {
    format!("{}", value as f32).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"intermediate_size":96,"vocab_size":300,"rms_norm_eps":1e-5,"rope_theta":100000.0}"#;

    #[test]
    fn a_llama_config_is_read_and_an_unknown_family_is_named() {
        let config = DecoderConfig::from_hugging_face(LLAMA).unwrap();
        assert_eq!((config.head_dim, config.num_kv_heads, config.qkv_size()), (16, 2, 128));
        let error = DecoderConfig::from_hugging_face(&LLAMA.replace("\"llama\"", "\"gemma\"")).unwrap_err();
        assert!(error.to_string().contains("gemma"), "{error}");
    }

    #[test]
    fn options_that_change_the_result_are_refused_by_name() {
        for (extra, name) in [
            (r#""rope_scaling":{"type":"linear"},"#, "rope_scaling"),
            (r#""hidden_act":"gelu","#, "gelu"),
            (r#""attention_bias":true,"#, "bias"),
        ] {
            let json = LLAMA.replacen('{', &format!("{{{extra}"), 1);
            let error = DecoderConfig::from_hugging_face(&json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
