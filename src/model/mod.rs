//! The decoder: one set of weights that can be trained and served.
//!
//! - [`config`]: the shape of a model and what differs between families; `layout`: what their tensors are called;
//!   [`weights`]: where a model's tensors come from (GGUF, Hugging Face folders); [`catalogue`]: models known by name and how to
//!   fetch them; [`tokenizer`]: text to token ids and back; [`chat`]: the template of a conversation that comes with a model.
//! - [`kernels`]: loops over slices, chosen at run time for the processor; [`ops`]: those loops as candle operations
//!   with hand-written backward passes, each beside the plain composition that other devices use.
//! - [`layers`]: what a block is made of; [`decoder`]: the blocks; `pass`: a training step's way through them, there and
//!   back; [`kv_cache`]: what serving remembers of a sequence.
//! - [`fingerprint`]: what tells one base model from another; [`gpu`]: opening a GPU.
//! - [`lora`]: adapters in PEFT's file layout; [`merge`](mod@merge): one put into its base for good; [`whole`]: a decoder that is itself
//!   trained, from random weights to files; `random`: one to measure with.
//!
//! What does not live here: sampling and batching (`engine`), losses (`train`), and what a prompt says.
//! **Invariant:** after loading, nothing in this room reads a file.

mod build;
pub mod catalogue;
pub mod chat;
pub mod config;
pub mod decoder;
pub mod fingerprint;
pub mod gpu;
pub mod kernels;
pub mod kv_cache;
pub mod layers;
mod layout;
pub mod lora;
pub mod merge;
pub mod ops;
pub mod packing;
mod pass;
mod random;
pub mod tokenizer;
pub mod weights;
pub mod whole;

pub use config::DecoderConfig;
pub use decoder::{Decoder, Placement};
pub use pass::TrainingPass;

/// What can go wrong while a model or an adapter is read.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration is malformed or asks for something unsupported.
    #[error("unsupported model configuration: {0}")]
    Config(String),
    /// A tensor the configuration calls for is not in the file.
    #[error("the weights lack the tensor {0}")]
    MissingTensor(String),
    /// A tensor has another shape than the configuration says.
    #[error("the tensor {name} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name in the file.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the configuration calls for.
        expected: Vec<usize>,
    },
    /// A tensor's element type or quantisation is not supported.
    #[error("the tensor {name} has type {dtype}, which is not supported here")]
    DType {
        /// Name in the file.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// An adapter that does not fit, or uses a PEFT feature this program does not compute.
    #[error("unusable adapter: {0}")]
    Adapter(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path} is not a readable {what}: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source }
    }
}
