//! candle-transformers' encoders behind one forward pass.

use candle_core::Tensor;
use candle_nn::Activation as NnActivation;
use candle_transformers::models::{bert, debertav2, xlm_roberta};

use super::config::{Activation, EncoderConfig, Family};
use super::weights::{Weights, misfit};
use super::{Batch, EncoderError};

/// An encoder.
pub(super) enum Network {
    /// Of BERT's layout; DistilBERT's weights are put in it.
    Bert(bert::BertModel),
    Roberta(xlm_roberta::XLMRobertaModel),
    DebertaV2(Box<debertav2::DebertaV2Model>),
}

impl Network {
    /// Builds what the configuration says from the weights.
    pub fn load(config: &EncoderConfig, weights: &Weights) -> Result<Self, EncoderError> {
        match config.family {
            Family::Bert => {
                let prefix = weights.prefix("bert");
                let weights = weights.builder(move |name| format!("{prefix}{name}"));
                bert::BertModel::load(weights, &bert_config(config)).map(Self::Bert)
            }
            // candle's own DistilBERT approximates the GELU by tanh.
            Family::DistilBert => {
                let prefix = weights.prefix("distilbert");
                let token_types = format!("{prefix}embeddings.token_type_embeddings.weight");
                let weights = weights
                    .with_zeros(token_types, (config.token_types, config.hidden_size))?
                    .builder(move |name| format!("{prefix}{}", distilbert_name(name)));
                bert::BertModel::load(weights, &bert_config(config)).map(Self::Bert)
            }
            Family::Roberta => {
                let prefix = weights.prefix("roberta");
                let weights = weights.builder(move |name| format!("{prefix}{name}"));
                xlm_roberta::XLMRobertaModel::new(&roberta_config(config), weights).map(Self::Roberta)
            }
            Family::DebertaV2 => {
                let prefix = weights.prefix("deberta");
                let weights = weights.builder(move |name| format!("{prefix}{name}"));
                debertav2::DebertaV2Model::load(weights, &deberta_config(config))
                    .map(|model| Self::DebertaV2(Box::new(model)))
            }
        }
        .map_err(misfit)
    }

    /// Hidden states of the last layer, [texts, tokens, hidden].
    pub fn forward(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let Batch { ids, mask } = batch;
        match self {
            Self::Bert(model) => model.forward(ids, &ids.zeros_like()?, Some(mask)),
            Self::Roberta(model) => model.forward(ids, mask, &ids.zeros_like()?, None, None, None),
            Self::DebertaV2(model) => model.forward(ids, None, Some(mask.clone())),
        }
    }
}

/// What DistilBERT calls a tensor of BERT.
fn distilbert_name(name: &str) -> String {
    [
        ("encoder.layer.", "transformer.layer."),
        ("attention.self.query.", "attention.q_lin."),
        ("attention.self.key.", "attention.k_lin."),
        ("attention.self.value.", "attention.v_lin."),
        ("attention.output.dense.", "attention.out_lin."),
        ("attention.output.LayerNorm.", "sa_layer_norm."),
        ("intermediate.dense.", "ffn.lin1."),
        ("output.dense.", "ffn.lin2."),
        ("output.LayerNorm.", "output_layer_norm."),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn bert_config(config: &EncoderConfig) -> bert::Config {
    bert::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        intermediate_size: config.intermediate_size,
        hidden_act: match config.activation {
            Activation::Gelu => bert::HiddenAct::Gelu,
            Activation::GeluApproximate => bert::HiddenAct::GeluApproximate,
            Activation::Relu => bert::HiddenAct::Relu,
        },
        max_position_embeddings: config.position_embeddings,
        type_vocab_size: config.token_types,
        layer_norm_eps: config.norm_epsilon,
        pad_token_id: config.padding as usize,
        // The prefix is in the names already.
        model_type: None,
        ..bert::Config::default()
    }
}

fn roberta_config(config: &EncoderConfig) -> xlm_roberta::Config {
    xlm_roberta::Config {
        hidden_size: config.hidden_size,
        layer_norm_eps: config.norm_epsilon,
        attention_probs_dropout_prob: 0.0,
        hidden_dropout_prob: 0.0,
        num_attention_heads: config.heads,
        position_embedding_type: "absolute".to_owned(),
        intermediate_size: config.intermediate_size,
        hidden_act: match config.activation {
            Activation::Gelu => NnActivation::Gelu,
            Activation::GeluApproximate => NnActivation::NewGelu,
            Activation::Relu => NnActivation::Relu,
        },
        num_hidden_layers: config.layers,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.position_embeddings,
        type_vocab_size: config.token_types,
        pad_token_id: config.padding,
    }
}

fn deberta_config(config: &EncoderConfig) -> debertav2::Config {
    let relative = &config.relative;
    debertav2::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        intermediate_size: config.intermediate_size,
        hidden_act: match config.activation {
            Activation::Gelu => debertav2::HiddenAct::Gelu,
            Activation::GeluApproximate => debertav2::HiddenAct::GeluApproximate,
            Activation::Relu => debertav2::HiddenAct::Relu,
        },
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        max_position_embeddings: config.position_embeddings,
        type_vocab_size: config.token_types,
        initializer_range: 0.0,
        layer_norm_eps: config.norm_epsilon,
        relative_attention: true,
        max_relative_positions: relative.max_positions,
        pad_token_id: Some(config.padding as usize),
        position_biased_input: false,
        pos_att_type: relative.kinds.clone(),
        position_buckets: relative.buckets,
        share_att_key: Some(relative.shares_keys),
        attention_head_size: None,
        embedding_size: None,
        norm_rel_ebd: relative.norm.clone(),
        conv_kernel_size: None,
        conv_groups: None,
        conv_act: None,
        id2label: None,
        label2id: None,
        pooler_dropout: None,
        pooler_hidden_act: None,
        pooler_hidden_size: None,
        cls_dropout: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_of_bert_has_its_name_in_distilbert() {
        for (bert, distilbert) in [
            ("embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias"),
            (
                "encoder.layer.3.attention.self.value.bias",
                "transformer.layer.3.attention.v_lin.bias",
            ),
            (
                "encoder.layer.0.attention.output.dense.weight",
                "transformer.layer.0.attention.out_lin.weight",
            ),
            (
                "encoder.layer.0.attention.output.LayerNorm.bias",
                "transformer.layer.0.sa_layer_norm.bias",
            ),
            ("encoder.layer.0.output.dense.bias", "transformer.layer.0.ffn.lin2.bias"),
            (
                "encoder.layer.0.output.LayerNorm.weight",
                "transformer.layer.0.output_layer_norm.weight",
            ),
        ] {
            assert_eq!(distilbert_name(bert), distilbert);
        }
    }
}
