//! What the tensors of a family are called, and which of them make up a fused projection.

use std::ops::Range;

use super::DecoderConfig;
use super::config::{ActivationKind, BlockKind, Naming};
use super::layers::Projection;

/// A module within a fused projection.
pub(super) struct ProjectionPart {
    /// Name within a block; of the head, its whole name.
    pub module: &'static str,
    /// Its rows of the fused matrix.
    pub rows: Range<usize>,
}

/// Name of the output head's module.
pub const HEAD: &str = "lm_head";

impl Naming {
    /// Name of the token embedding's module.
    pub(super) fn embedding(self) -> &'static str {
        match self {
            Self::Llama => "model.embed_tokens",
            Self::Falcon => "transformer.word_embeddings",
        }
    }

    /// Name of the last norm.
    pub(super) fn last_norm(self) -> &'static str {
        match self {
            Self::Llama => "model.norm",
            Self::Falcon => "transformer.ln_f",
        }
    }

    /// Full name of a module of a block.
    pub(super) fn in_block(self, layer: usize, module: &str) -> String {
        match self {
            Self::Llama => format!("model.layers.{layer}.{module}"),
            Self::Falcon => format!("transformer.h.{layer}.{module}"),
        }
    }
}

impl DecoderConfig {
    /// Names within a block of the norms before attention and before the feed-forward part; none where both share one.
    pub(super) fn norm_names(&self) -> (&'static str, Option<&'static str>) {
        match self.blocks {
            BlockKind::Sequential => ("input_layernorm", Some("post_attention_layernorm")),
            BlockKind::ParallelSharedNorm => ("input_layernorm", None),
            BlockKind::ParallelTwoNorms => ("ln_attn", Some("ln_mlp")),
        }
    }

    /// Whether a projection has a bias.
    pub(super) fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Qkv => self.biases.qkv,
            Projection::Output => self.biases.output,
            Projection::GateUp | Projection::Down => self.biases.mlp,
            Projection::Head => false,
        }
    }

    /// Every projection that an adapter can update, in a fixed order; the head counts as a layer after the last.
    pub(super) fn projections(&self) -> impl Iterator<Item = (usize, Projection)> + use<> {
        let layers = self.num_layers;
        (0..layers)
            .flat_map(|layer| Projection::IN_BLOCK.map(|projection| (layer, projection)))
            .chain([(layers, Projection::Head)])
    }

    /// Full name of a part of a projection.
    pub(super) fn module_name(&self, layer: usize, projection: Projection, part: &str) -> String {
        match projection {
            Projection::Head => part.to_owned(),
            _ => self.naming.in_block(layer, part),
        }
    }

    /// The modules that make up a fused projection, in row order.
    pub(super) fn parts(&self, projection: Projection) -> Vec<ProjectionPart> {
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let modules: &[(&'static str, usize)] = match (self.naming, projection) {
            (_, Projection::Head) => &[(HEAD, self.vocab_size)],
            (Naming::Llama, Projection::Qkv) => &[
                ("self_attn.q_proj", q),
                ("self_attn.k_proj", kv),
                ("self_attn.v_proj", kv),
            ],
            (Naming::Llama, Projection::Output) => &[("self_attn.o_proj", hidden)],
            (Naming::Llama, Projection::GateUp) if self.activation == ActivationKind::Gelu => &[("mlp.up_proj", inner)],
            (Naming::Llama, Projection::GateUp) => &[("mlp.gate_proj", inner), ("mlp.up_proj", inner)],
            (Naming::Llama, Projection::Down) => &[("mlp.down_proj", hidden)],
            (Naming::Falcon, Projection::Qkv) => &[("self_attention.query_key_value", self.qkv_size())],
            (Naming::Falcon, Projection::Output) => &[("self_attention.dense", hidden)],
            (Naming::Falcon, Projection::GateUp) => &[("mlp.dense_h_to_4h", inner)],
            (Naming::Falcon, Projection::Down) => &[("mlp.dense_4h_to_h", hidden)],
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
    pub(super) fn in_size(&self, projection: Projection) -> usize {
        match projection {
            Projection::Qkv | Projection::GateUp | Projection::Head => self.hidden_size,
            Projection::Output => self.num_heads * self.head_dim,
            Projection::Down => self.intermediate_size,
        }
    }

    /// Where a matrix of queries, keys and values is cut by key-value head: which of its rows comes next when all queries come first,
    /// then all keys, then all values. `None` where it is so already.
    pub(super) fn grouped_rows(&self, module: &str) -> Option<Vec<usize>> {
        if !module.ends_with("query_key_value") || self.num_kv_heads == 1 {
            return None;
        }
        let (dim, queries) = (self.head_dim, self.num_heads / self.num_kv_heads);
        let head_of = |group: usize, place: usize| {
            let first = (group * (queries + 2) + place) * dim;
            first..first + dim
        };
        let groups = 0..self.num_kv_heads;
        let query_rows = groups
            .clone()
            .flat_map(|group| (0..queries).flat_map(move |place| head_of(group, place)));
        let key_rows = groups.clone().flat_map(|group| head_of(group, queries));
        let value_rows = groups.flat_map(|group| head_of(group, queries + 1));
        Some(query_rows.chain(key_rows).chain(value_rows).collect())
    }
}

/// The order that undoes `order`.
pub(super) fn inverse(order: &[u32]) -> Vec<u32> {
    let mut inverse = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        inverse[from as usize] = to as u32;
    }
    inverse
}
