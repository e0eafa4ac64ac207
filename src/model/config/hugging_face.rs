//! The shape of a decoder from a Hugging Face `config.json`.

use serde::Deserialize;
use serde_json::Value;

use super::{ActivationKind, Biases, BlockKind, DecoderConfig, Naming, NormKind, RopeScaling, unsupported};
use crate::model::ModelError;

/// The fields that decide how the model computes. Older Falcon folders have `n_layer` and `n_head`.
#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    hidden_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "n_head_kv", alias = "num_kv_heads")]
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(alias = "ffn_hidden_size")]
    intermediate_size: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_max_positions")]
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    rms_norm_eps: Option<f64>,
    layer_norm_epsilon: Option<f64>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    // Falcon
    #[serde(default)]
    alibi: bool,
    #[serde(default)]
    bias: bool,
    multi_query: Option<bool>,
    parallel_attn: Option<bool>,
    #[serde(default)]
    new_decoder_architecture: bool,
    num_ln_in_parallel_attn: Option<usize>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// What older files call it; some have both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// What `LlamaConfig` and `FalconConfig` assume.
fn default_max_positions() -> usize {
    2048
}

impl DecoderConfig {
    /// Reads a Hugging Face `config.json` of the families `llama`, `mistral`, `qwen2` and `falcon`.
    ///
    /// # Errors
    /// When the JSON is malformed, or names a family or an option that this decoder does not compute.
    pub fn from_hugging_face(json: &str) -> Result<Self, ModelError> {
        let raw: RawConfig = serde_json::from_str(json).map_err(|error| ModelError::Config(error.to_string()))?;
        if raw.quantization_config.as_ref().is_some_and(|config| !config.is_null()) {
            return unsupported("quantization_config (weights that were saved quantised; give the original folder)");
        }
        match raw.model_type.as_str() {
            "llama" => {
                let biases = Biases {
                    qkv: raw.attention_bias,
                    output: raw.attention_bias,
                    mlp: raw.mlp_bias,
                };
                raw.gated(biases, |_| None)
            }
            "mistral" => {
                let window = raw.sliding_window;
                raw.gated(Biases::default(), |_| window)
            }
            "qwen2" => {
                let window = raw.sliding_window.filter(|_| raw.use_sliding_window == Some(true));
                let first = raw.max_window_layers.unwrap_or(28);
                let biases = Biases {
                    qkv: true,
                    ..Biases::default()
                };
                raw.gated(biases, |layer| window.filter(|_| layer >= first))
            }
            "falcon" => raw.falcon(),
            other => unsupported(format!(
                "model_type {other:?} (supported: \"llama\", \"mistral\", \"qwen2\", \"falcon\")"
            )),
        }
    }
}

impl RawConfig {
    /// Llama and its kin: RMS norms, a gate, blocks one part after the other.
    fn gated(self, biases: Biases, window: impl Fn(usize) -> Option<usize>) -> Result<DecoderConfig, ModelError> {
        if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return unsupported(format!("hidden_act {activation:?}"));
        }
        let missing = |field: &str| ModelError::Config(format!("missing field `{field}`"));
        let windows: Vec<_> = match &self.layer_types {
            None => (0..self.num_hidden_layers).map(window).collect(),
            // Newer folders say it layer by layer.
            Some(types) => types
                .iter()
                .map(|kind| match (kind.as_str(), self.sliding_window) {
                    ("full_attention", _) => Ok(None),
                    ("sliding_attention", Some(window)) => Ok(Some(window)),
                    _ => unsupported(format!("layer type {kind:?}")),
                })
                .collect::<Result<_, _>>()?,
        };
        self.with_rope(DecoderConfig {
            naming: Naming::Llama,
            hidden_size: self.hidden_size,
            num_layers: self.num_hidden_layers,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self
                .head_dim
                .unwrap_or(self.hidden_size / self.num_attention_heads.max(1)),
            intermediate_size: self.intermediate_size.ok_or_else(|| missing("intermediate_size"))?,
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            norm: NormKind::Rms,
            norm_eps: self.rms_norm_eps.ok_or_else(|| missing("rms_norm_eps"))?,
            activation: ActivationKind::SwiGlu,
            blocks: BlockKind::Sequential,
            biases,
            windows,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
        })
    }

    fn falcon(self) -> Result<DecoderConfig, ModelError> {
        if self.alibi {
            return unsupported("alibi (positions as biases of attention)");
        }
        if !self.new_decoder_architecture && self.parallel_attn == Some(false) {
            return unsupported("parallel_attn false");
        }
        if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != "gelu") {
            return unsupported(format!("activation {activation:?}"));
        }
        let heads = self.num_attention_heads;
        let num_kv_heads = match (self.new_decoder_architecture, self.multi_query.unwrap_or(true)) {
            (false, true) => 1,
            (false, false) => heads,
            (true, _) => self.num_key_value_heads.unwrap_or(heads),
        };
        let blocks = match self.num_ln_in_parallel_attn {
            _ if !self.new_decoder_architecture => BlockKind::ParallelSharedNorm,
            Some(1) => BlockKind::ParallelSharedNorm,
            None | Some(2) => BlockKind::ParallelTwoNorms,
            Some(other) => return unsupported(format!("num_ln_in_parallel_attn {other}")),
        };
        self.with_rope(DecoderConfig {
            naming: Naming::Falcon,
            hidden_size: self.hidden_size,
            num_layers: self.num_hidden_layers,
            num_heads: heads,
            num_kv_heads,
            head_dim: self.hidden_size / heads.max(1),
            intermediate_size: self.intermediate_size.unwrap_or(4 * self.hidden_size),
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            norm: NormKind::Layer,
            norm_eps: self.layer_norm_epsilon.unwrap_or(1e-5),
            activation: ActivationKind::Gelu,
            blocks,
            biases: Biases {
                qkv: self.bias,
                output: self.bias,
                mlp: self.bias,
            },
            windows: Vec::new(),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(true),
        })
    }

    /// Rotary settings stand at the top, in `rope_scaling`, or in `rope_parameters` (transformers 5).
    fn with_rope(&self, mut config: DecoderConfig) -> Result<DecoderConfig, ModelError> {
        let parts = [self.rope_scaling.as_ref(), self.rope_parameters.as_ref()];
        let partial = parts.iter().flatten().find_map(|part| part.partial_rotary_factor);
        if let Some(factor) = self.partial_rotary_factor.or(partial).filter(|factor| *factor != 1.0) {
            return unsupported(format!("partial_rotary_factor {factor}"));
        }
        let theta = parts.iter().flatten().find_map(|part| part.rope_theta);
        config.rope_theta = self.rope_theta.or(theta).unwrap_or(config.rope_theta);
        for part in parts.into_iter().flatten() {
            let scaling = part.scaling()?;
            if scaling != RopeScaling::None {
                config.rope_scaling = scaling;
            }
        }
        config.checked()
    }
}

impl RopeParameters {
    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let wanted = |value: Option<f64>, name: &str| {
            value
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| ModelError::Config(format!("rope_scaling lacks a positive {name}")))
        };
        match self.rope_type.as_deref().or(self.older_type.as_deref()) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear {
                factor: wanted(self.factor, "factor")?,
            }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: wanted(self.factor, "factor")?,
                low_frequency_factor: wanted(self.low_freq_factor, "low_freq_factor")?,
                high_frequency_factor: wanted(self.high_freq_factor, "high_freq_factor")?,
                original_positions: wanted(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            }),
            Some(other) => unsupported(format!("rope_scaling of type {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"intermediate_size":96,"vocab_size":300,"rms_norm_eps":1e-5,"rope_theta":100000.0}"#;

    fn with(extra: &str) -> Result<DecoderConfig, ModelError> {
        DecoderConfig::from_hugging_face(&LLAMA.replacen('{', &format!("{{{extra}"), 1))
    }

    #[test]
    fn a_llama_config_is_read_and_an_unknown_family_is_named() {
        let config = DecoderConfig::from_hugging_face(LLAMA).unwrap();
        assert_eq!((config.head_dim, config.num_kv_heads, config.qkv_size()), (16, 2, 128));
        assert_eq!(config.window(0), usize::MAX);
        let error = DecoderConfig::from_hugging_face(&LLAMA.replace("\"llama\"", "\"gemma\"")).unwrap_err();
        assert!(error.to_string().contains("gemma"), "{error}");
    }

    #[test]
    fn options_that_change_the_result_are_refused_by_name() {
        for (extra, name) in [
            (r#""rope_scaling":{"type":"yarn","factor":4.0},"#, "yarn"),
            (r#""rope_scaling":{"type":"linear"},"#, "factor"),
            (r#""rope_parameters":{"rope_type":"dynamic"},"#, "dynamic"),
            (r#""partial_rotary_factor":0.5,"#, "partial_rotary_factor"),
            (r#""hidden_act":"gelu","#, "gelu"),
            (r#""layer_types":["chunked_attention"],"#, "chunked_attention"),
            (r#""quantization_config":{"bits":4},"#, "quantization_config"),
        ] {
            let error = with(extra).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let falcon = LLAMA.replace("\"llama\"", "\"falcon\",\"alibi\":true");
        let error = DecoderConfig::from_hugging_face(&falcon).unwrap_err().to_string();
        assert!(error.contains("alibi"), "{error}");
    }

    #[test]
    fn windows_are_those_of_the_family() {
        let family = |name: &str, extra: &str| {
            let json = LLAMA.replace("\"llama\"", &format!("\"{name}\",{extra}\"sliding_window\":8"));
            DecoderConfig::from_hugging_face(&json).unwrap().windows
        };
        assert_eq!(family("mistral", ""), [Some(8), Some(8)]);
        assert_eq!(family("qwen2", ""), []);
        assert_eq!(
            family("qwen2", r#""use_sliding_window":true,"max_window_layers":1,"#),
            [None, Some(8)]
        );
        let types = r#""layer_types":["sliding_attention","full_attention"],"#;
        assert_eq!(family("qwen2", types), [Some(8), None]);
    }

    #[test]
    fn rotary_settings_are_found_where_each_version_puts_them() {
        let older = with(r#""rope_scaling":{"type":"linear","factor":2.0},"#).unwrap();
        assert_eq!(older.rope_scaling, RopeScaling::Linear { factor: 2.0 });
        assert_eq!(older.rope_theta, 100_000.0);
        let newer = LLAMA.replace(
            "\"rope_theta\":100000.0",
            r#""rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":100000.0}"#,
        );
        assert_eq!(DecoderConfig::from_hugging_face(&newer).unwrap(), older);
    }
}
