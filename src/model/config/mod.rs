//! The shape of a decoder: what differs between the families that it computes.
//!
//! `hugging_face`: read from a `config.json`; `gguf`: read from GGUF metadata; `rope`: rotary frequencies. Whatever would change the
//! result and is not computed here is refused by name rather than ignored.

mod gguf;
mod hugging_face;
mod rope;

pub use rope::RopeScaling;

use super::ModelError;

/// Hyperparameters of a decoder: pre-norm blocks of grouped-query attention with rotary positions, and a feed-forward part.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// What the tensors are called and how they are cut.
    pub naming: Naming,
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
    /// How the rotary frequencies depart from that base.
    pub rope_scaling: RopeScaling,
    /// Which kind of norm, everywhere.
    pub norm: NormKind,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// What stands between the two halves of the feed-forward part.
    pub activation: ActivationKind,
    /// What a block does in which order.
    pub blocks: BlockKind,
    /// Which projections have a bias.
    pub biases: Biases,
    /// By layer: how many tokens a token sees, itself included; all that precede it where there is none. Layers beyond the
    /// list see all; it is empty when all do.
    pub windows: Vec<Option<usize>>,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
}

/// How the families name and cut their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Llama, Mistral, Qwen2: `model.layers.0.self_attn.q_proj` and so on, every projection apart.
    Llama,
    /// Falcon: `transformer.h.0.self_attention.query_key_value` and so on; queries, keys and values are one matrix, cut by key-value
    /// head: its queries, its key, its value.
    Falcon,
}

/// The kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root mean square, with a weight.
    Rms,
    /// By mean and deviation, with a weight and a bias.
    Layer,
}

/// What stands between the two halves of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationKind {
    /// `silu(gate) * up`.
    SwiGlu,
    /// The error function's GELU; there is no gate.
    Gelu,
}

/// What a block does in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Attention, then the feed-forward part, each with its own norm and its own residual sum.
    Sequential,
    /// Both read the same input through one norm, and their results are summed.
    ParallelSharedNorm,
    /// Both read the same input, each through its own norm, and their results are summed.
    ParallelTwoNorms,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output of attention.
    pub output: bool,
    /// The feed-forward part.
    pub mlp: bool,
}

impl DecoderConfig {
    /// Rows of the fused query, key and value projection.
    pub fn qkv_size(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// How many tokens a token of `layer` sees, itself included; `usize::MAX` for all that precede it.
    pub fn window(&self, layer: usize) -> usize {
        self.windows.get(layer).copied().flatten().unwrap_or(usize::MAX)
    }

    fn checked(mut self) -> Result<Self, ModelError> {
        if self.windows.iter().all(Option::is_none) {
            self.windows.clear();
        }
        let positive = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            (
                "sliding_window",
                self.windows.iter().flatten().copied().min().unwrap_or(1),
            ),
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

fn unsupported<T>(what: impl std::fmt::Display) -> Result<T, ModelError> {
    Err(ModelError::Config(format!("{what} is not supported")))
}
