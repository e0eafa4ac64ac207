//! What `config.json` says of an encoder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::EncoderError;

/// Architectures, as far as their hidden states go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    /// RoBERTa, XLM-RoBERTa, CamemBERT: BERT whose positions begin behind the padding token's id.
    Roberta,
    /// BERT without token types, under other names.
    DistilBert,
    /// DeBERTa-v2 and -v3: attention to contents and relative positions.
    DebertaV2,
}

/// The nonlinearity of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Gelu,
    /// By tanh.
    GeluApproximate,
    Relu,
}

/// An encoder's shape, and what its classifier's outputs are called.
#[derive(Debug, Clone)]
pub(super) struct EncoderConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate_size: usize,
    pub activation: Activation,
    /// Rows of the table of positions.
    pub position_embeddings: usize,
    pub token_types: usize,
    pub norm_epsilon: f64,
    pub padding: u32,
    pub relative: RelativeAttention,
    /// Of the classifier's first layer, in DeBERTa.
    pub pooler_activation: Activation,
    /// By their number.
    pub labels: Vec<String>,
    /// `single_label_classification`, `multi_label_classification` or `regression`, where it is said.
    pub problem_type: Option<String>,
}

/// DeBERTa's attention.
#[derive(Debug, Clone)]
pub(super) struct RelativeAttention {
    pub max_positions: isize,
    pub buckets: Option<isize>,
    pub kinds: Vec<String>,
    pub shares_keys: bool,
    pub norm: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    architectures: Vec<String>,
    id2label: Option<BTreeMap<usize, String>>,
    problem_type: Option<String>,
    // DeBERTa
    #[serde(default)]
    relative_attention: bool,
    max_relative_positions: Option<isize>,
    position_buckets: Option<isize>,
    pos_att_type: Option<Kinds>,
    position_biased_input: Option<bool>,
    #[serde(default)]
    share_att_key: bool,
    norm_rel_ebd: Option<String>,
    #[serde(default)]
    conv_kernel_size: usize,
    embedding_size: Option<usize>,
    pooler_hidden_act: Option<String>,
}

/// `"c2p|p2c"` or `["c2p", "p2c"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kinds {
    Joined(String),
    Listed(Vec<String>),
}

impl EncoderConfig {
    /// Reads `config.json` of a folder.
    pub fn open(folder: &Path) -> Result<Self, EncoderError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| EncoderError::file(&path, error))?;
        // The family first: of another one the rest would be a riddle.
        let family = match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(value) => family(value["model_type"].as_str().unwrap_or("not said"))?,
            Err(error) => return Err(EncoderError::file(&path, error)),
        };
        let raw = serde_json::from_str(&text).map_err(|error| EncoderError::file(&path, error))?;
        Self::new(family, raw)
    }

    fn new(family: Family, raw: Raw) -> Result<Self, EncoderError> {
        refuse(&raw, family)?;
        let heads = raw.num_attention_heads.max(1);
        if raw.hidden_size == 0 || !raw.hidden_size.is_multiple_of(heads) {
            return Err(EncoderError::Unsupported {
                setting: "hidden_size",
                value: raw.hidden_size.to_string(),
                supported: "it must be a multiple of num_attention_heads",
            });
        }
        let labels = raw.id2label.unwrap_or_else(|| unnamed_labels(&raw.architectures));
        if !labels.keys().copied().eq(0..labels.len()) {
            return Err(EncoderError::Labels(
                "the numbers in `id2label` are not those from 0 on".to_owned(),
            ));
        }
        Ok(Self {
            family,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads,
            intermediate_size: raw.intermediate_size,
            activation: activation("hidden_act", raw.hidden_act.as_deref())?,
            position_embeddings: raw.max_position_embeddings,
            token_types: match family {
                Family::Bert | Family::Roberta => raw.type_vocab_size.unwrap_or(2),
                Family::DistilBert => 1,
                Family::DebertaV2 => raw.type_vocab_size.unwrap_or(0),
            },
            norm_epsilon: raw.layer_norm_eps.unwrap_or(match family {
                Family::DebertaV2 => 1e-7,
                _ => 1e-12,
            }),
            padding: raw.pad_token_id.unwrap_or(match family {
                Family::Roberta => 1,
                _ => 0,
            }),
            relative: RelativeAttention {
                max_positions: raw.max_relative_positions.unwrap_or(-1),
                buckets: raw.position_buckets,
                kinds: match raw.pos_att_type {
                    Some(Kinds::Listed(kinds)) => kinds,
                    Some(Kinds::Joined(kinds)) => kinds.split('|').map(|kind| kind.trim().to_owned()).collect(),
                    None => Vec::new(),
                },
                shares_keys: raw.share_att_key,
                norm: raw.norm_rel_ebd,
            },
            pooler_activation: activation("pooler_hidden_act", raw.pooler_hidden_act.as_deref())?,
            labels: labels.into_values().collect(),
            problem_type: raw.problem_type,
        })
    }

    /// Tokens that a text can have, its first and last among them.
    pub fn positions(&self) -> usize {
        match self.family {
            Family::Roberta => self.position_embeddings.saturating_sub(self.padding as usize + 1),
            _ => self.position_embeddings,
        }
    }
}

/// transformers leaves `id2label` out where it is the default: two labels without names.
fn unnamed_labels(architectures: &[String]) -> BTreeMap<usize, String> {
    let classifies = architectures
        .iter()
        .any(|class| class.ends_with("ForSequenceClassification"));
    let labels = if classifies { 0..2 } else { 0..0 };
    labels.map(|number| (number, format!("LABEL_{number}"))).collect()
}

fn family(model_type: &str) -> Result<Family, EncoderError> {
    match model_type {
        "bert" => Ok(Family::Bert),
        "roberta" | "xlm-roberta" | "camembert" => Ok(Family::Roberta),
        "distilbert" => Ok(Family::DistilBert),
        "deberta-v2" => Ok(Family::DebertaV2),
        other => Err(EncoderError::Unsupported {
            setting: "model_type",
            value: other.to_owned(),
            supported: "bert, roberta, xlm-roberta, camembert, distilbert and deberta-v2 (and -v3, which calls itself so) can judge",
        }),
    }
}

/// What the models of candle-transformers do not compute, and would get wrong or panic over.
fn refuse(raw: &Raw, family: Family) -> Result<(), EncoderError> {
    let unsupported = |setting, value: String, supported| {
        Err(EncoderError::Unsupported {
            setting,
            value,
            supported,
        })
    };
    if let Some(kind) = raw
        .position_embedding_type
        .as_deref()
        .filter(|kind| *kind != "absolute")
    {
        return unsupported("position_embedding_type", kind.to_owned(), "only absolute is computed");
    }
    if raw.is_decoder {
        return unsupported("is_decoder", "true".to_owned(), "an encoder is needed");
    }
    if family != Family::DebertaV2 {
        return Ok(());
    }
    if raw.conv_kernel_size > 0 {
        let size = raw.conv_kernel_size.to_string();
        return unsupported(
            "conv_kernel_size",
            size,
            "the convolution of the largest DeBERTa-v2 is not computed",
        );
    }
    if raw.position_biased_input.unwrap_or(true) {
        return unsupported(
            "position_biased_input",
            "true".to_owned(),
            "only relative positions are computed",
        );
    }
    if !raw.relative_attention {
        return unsupported(
            "relative_attention",
            "false".to_owned(),
            "only relative positions are computed",
        );
    }
    if let Some(size) = raw.embedding_size.filter(|size| *size != raw.hidden_size) {
        return unsupported("embedding_size", size.to_string(), "it must be hidden_size");
    }
    Ok(())
}

fn activation(setting: &'static str, name: Option<&str>) -> Result<Activation, EncoderError> {
    match name.unwrap_or("gelu") {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluApproximate),
        "relu" => Ok(Activation::Relu),
        other => Err(EncoderError::Unsupported {
            setting,
            value: other.to_owned(),
            supported: "gelu, gelu_new, gelu_pytorch_tanh and relu are computed",
        }),
    }
}
