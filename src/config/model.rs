//! Settings of the model, checked as far as that goes without opening it.

use std::path::{Path, PathBuf};

use super::{ConfigError, ModelSettings};
use crate::adapters::AdapterRef;

/// Which model, on what, with which adapter.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Folder for models that are fetched; `None` is the user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Catalogue name, folder or GGUF file.
    pub model: String,
    /// The adapter that rewrites.
    pub adapter: AdapterSource,
    /// Where it computes.
    pub device: Device,
    /// Number format of what is not quantised.
    pub dtype: Dtype,
    /// Whether weights are quantised.
    pub quantize: Quantize,
    /// Threads; `None` is one for each physical core.
    pub threads: Option<usize>,
    /// Most draft tokens of a sequence and step; 0 for none.
    pub draft_tokens: usize,
    /// Tokens whose keys and values may be held at once.
    pub kv_cache_tokens: usize,
}

/// Longer drafts than this would hardly ever be right to their end.
const MAX_DRAFT_TOKENS: usize = 64;

/// Where the adapter comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterSource {
    /// What was activated last, else the one shipped for the model.
    Auto,
    /// The bare base model.
    None,
    /// A registered or shipped adapter.
    Named(AdapterRef),
    /// A folder in PEFT's layout.
    Folder(PathBuf),
}

/// Where the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

/// Number format of activations and of weights that are not quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// The best for the device.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
}

/// Whether weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// Where that is faster.
    Auto,
    /// Never.
    None,
}

impl std::fmt::Display for AdapterSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Named(wanted) => wanted.fmt(f),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}

impl TryFrom<ModelSettings> for ModelConfig {
    type Error = ConfigError;

    fn try_from(raw: ModelSettings) -> Result<Self, ConfigError> {
        if raw.model.is_empty() {
            return Err(ConfigError::invalid("model", "", "must not be empty"));
        }
        if raw.threads == Some(0) {
            return Err(ConfigError::invalid("threads", 0, "must be at least 1"));
        }
        if raw.draft_tokens > MAX_DRAFT_TOKENS {
            return Err(ConfigError::invalid(
                "draft_tokens",
                raw.draft_tokens,
                "must be at most 64",
            ));
        }
        if raw.kv_cache_tokens == 0 {
            return Err(ConfigError::invalid("kv_cache_tokens", 0, "must be at least 1"));
        }
        Ok(Self {
            cache_dir: raw.cache_dir,
            adapter: adapter(&raw.adapter)?,
            device: device(&raw.device)?,
            dtype: match raw.dtype.as_str() {
                "f32" => Dtype::F32,
                "bf16" => Dtype::Bf16,
                "f16" => Dtype::F16,
                _ => Dtype::Auto,
            },
            quantize: match raw.quantize.as_str() {
                "none" => Quantize::None,
                _ => Quantize::Auto,
            },
            model: raw.model,
            threads: raw.threads,
            draft_tokens: raw.draft_tokens,
            kv_cache_tokens: raw.kv_cache_tokens,
        })
    }
}

fn adapter(text: &str) -> Result<AdapterSource, ConfigError> {
    match text {
        "auto" => return Ok(AdapterSource::Auto),
        "none" => return Ok(AdapterSource::None),
        _ => {}
    }
    if text.contains(std::path::MAIN_SEPARATOR) || Path::new(text).is_dir() {
        return Ok(AdapterSource::Folder(text.into()));
    }
    text.parse()
        .map(AdapterSource::Named)
        .map_err(|reason| ConfigError::invalid("adapter", text, reason))
}

fn device(text: &str) -> Result<Device, ConfigError> {
    match text.split_once(':') {
        None if text == "cpu" => Some(Device::Cpu),
        None if text == "cuda" => Some(Device::Cuda(0)),
        Some(("cuda", number)) => number.parse().ok().map(Device::Cuda),
        _ => None,
    }
    .ok_or_else(|| ConfigError::invalid("device", text, "expected `cpu` or `cuda:N`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!(device("cpu").ok(), Some(Device::Cpu));
        assert_eq!(device("cuda").ok(), Some(Device::Cuda(0)));
        assert_eq!(device("cuda:1").ok(), Some(Device::Cuda(1)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:0"] {
            assert!(device(text).is_err(), "{text}");
        }
    }

    #[test]
    fn adapters() {
        assert_eq!(adapter("auto").ok(), Some(AdapterSource::Auto));
        assert_eq!(adapter("none").ok(), Some(AdapterSource::None));
        assert_eq!(adapter("./out/a").ok(), Some(AdapterSource::Folder("./out/a".into())));
        assert!(matches!(adapter("default@1"), Ok(AdapterSource::Named(_))));
        assert!(adapter("default@x").is_err());
    }
}
