//! Where the parts are put together: settings in, a loaded service out. The one place that knows
//! them all; `serve` and `rewrite` get the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use super::judges;
use crate::{
    adapters::{AdapterLease, AdapterVersion, Base, Budget, Loader, Registry, Residents, ShippedAdapter},
    config::{AdapterSource, Dtype, JudgesConfig, ModelConfig, Quantize},
    engine::{Engine, EngineConfig},
    generate::LocalLlm,
    http::Service,
    metrics::Metrics,
    model::{
        Decoder,
        chat::ChatTemplate,
        fingerprint::fingerprint,
        gpu,
        kernels::bf16::PackedBf16,
        lora::LoraModel,
        tokenizer::TextTokenizer,
        weights::{ModelFiles, Purpose},
    },
    pipeline::{
        Detoxifier, EngineCanary, Judges, LanguageModelRewriter, ModelPerplexity, PerplexityScorer,
        RememberingRewriter, Rewriter,
    },
    prompt::RewritePrompt,
    scoring::ScorerError,
};

/// Why a service can't be put together. Every message says the next step.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The scorer in the binary can't be read.
    #[error("the toxicity scorer in this binary can't be read: {0}")]
    Scorer(#[from] ScorerError),
    /// A judge can't be loaded.
    #[error("cannot load the {judge} model `{model}`: {reason}")]
    Judge {
        /// Of what: `toxicity` or `similarity`.
        judge: &'static str,
        /// As it was asked for.
        model: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The system gives no threads.
    #[error("no threads for the judges: {0}")]
    Threads(String),
    /// The model can't be loaded.
    #[error("cannot load the model `{model}`: {reason}")]
    Model {
        /// As it was asked for.
        model: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The adapter can't be loaded.
    #[error("cannot load the adapter `{adapter}`: {reason}")]
    Adapter {
        /// As it was asked for.
        adapter: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// A model that runs, and what it takes to talk to it.
pub struct Parts {
    /// Runs the model.
    pub engine: Engine,
    /// Its tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// The prompt of a rewriter.
    pub prompt: RewritePrompt,
    /// The adapter that rewrites.
    pub adapter: AdapterLease,
    /// What answers call the model.
    pub name: String,
}

/// A model that runs, without an adapter.
struct Model {
    engine: Engine,
    tokenizer: Arc<TextTokenizer>,
    prompt: RewritePrompt,
    name: String,
    path: PathBuf,
}

/// Loads the model and the adapter that `config` names and starts the engine. Takes a second, on a first start as long as the
/// download: call it off the async threads.
///
/// # Errors
/// When something that was asked for can't be had. Nothing else is taken in its place.
pub fn load(config: &ModelConfig) -> Result<Parts, ComposeError> {
    let Model {
        engine,
        tokenizer,
        prompt,
        name,
        ..
    } = load_model(config)?;
    let adapter = adapter(config, engine.decoder())?;
    Ok(Parts {
        engine,
        tokenizer,
        prompt,
        adapter,
        name,
    })
}

/// A model that follows instructions: that of `config`, seen through its own chat template or the one in `template`. An adapter is used if one is
/// named; `auto` is none here, since the shipped ones rewrite.
///
/// # Errors
/// As [`load`], and when there is no chat template.
pub fn chat(config: &ModelConfig, template: Option<&Path>) -> Result<LocalLlm, ComposeError> {
    let failed = |reason: String| ComposeError::Model {
        model: config.model.clone(),
        reason,
    };
    let model = load_model(config)?;
    let template = match template {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| failed(format!("{}: {error}", file.display())))
            .and_then(|source| {
                let own = ModelFiles::open(&model.path).and_then(|files| files.chat_template());
                // The control tokens are the model's own, whatever its own template is like.
                let special = own.ok().flatten().map(|own| own.special().clone()).unwrap_or_default();
                ChatTemplate::new(&source, special).map_err(|error| failed(error.to_string()))
            })?,
        None => ModelFiles::open(&model.path)
            .and_then(|files| files.chat_template())
            .map_err(|error| failed(error.to_string()))?
            .ok_or_else(|| {
                failed(
                    "it has no chat template, so it was not made to follow instructions; take one that was, give a template by \
                     --chat-template, or a server by --llm-url"
                        .to_owned(),
                )
            })?,
    };
    let adapter = match &config.adapter {
        AdapterSource::Auto => AdapterLease::none(),
        _ => adapter(config, model.engine.decoder())?,
    };
    LocalLlm::new(model.engine, model.tokenizer, template, adapter.adapter().cloned())
        .map_err(|error| failed(error.to_string()))
}

fn load_model(config: &ModelConfig) -> Result<Model, ComposeError> {
    let failed = |reason: String| ComposeError::Model {
        model: config.model.clone(),
        reason,
    };
    let device = device(config.device).map_err(failed)?;
    let path =
        super::model_path(&config.model, config.cache_dir.as_deref()).map_err(|error| failed(format!("{error:#}")))?;
    let open = || -> anyhow::Result<_> {
        let files = ModelFiles::open(&path)?;
        let tokenizer = Arc::new(files.tokenizer()?);
        let prompt = RewritePrompt::new(&tokenizer)?;
        let purpose = purpose(config, &device)?;
        Ok((tokenizer, prompt, files.load(purpose, &device)?))
    };
    let (tokenizer, prompt, decoder) = open().map_err(|error| failed(format!("{error:#}")))?;
    let mut limits = EngineConfig {
        max_draft_tokens: config.draft_tokens,
        max_cached_tokens: config.kv_cache_tokens,
        ..EngineConfig::default()
    };
    if let Some(threads) = config.threads {
        limits.threads = threads;
    }
    let engine = Engine::start(Arc::new(decoder), limits).map_err(|error| failed(error.to_string()))?;
    Ok(Model {
        engine,
        tokenizer,
        prompt,
        name: super::model_name(&config.model),
        path,
    })
}

/// A whole service on the model and the adapter that `config` names, for good: no database is asked.
///
/// # Errors
/// As [`load`].
pub fn build(config: &ModelConfig, judges: &JudgesConfig) -> Result<Service, ComposeError> {
    // First, because they are what is more often wrong.
    let judges = judges::load(judges, config.threads)?;
    let Parts {
        engine,
        tokenizer,
        prompt,
        adapter,
        name,
    } = load(config)?;
    let perplexity = Arc::new(ModelPerplexity::new(engine.clone(), tokenizer.clone()));
    let rewriter = Arc::new(LanguageModelRewriter::new(engine, tokenizer, prompt, name));
    Ok(assemble(
        rewriter,
        Arc::new(Residents::new(adapter)),
        perplexity,
        judges,
    ))
}

/// A whole service on the model that `config` names, with the adapters of a registry: what was deployed last, or what `config` says.
///
/// # Errors
/// When something that was asked for or deployed can't be had. Nothing else is taken in its place.
pub async fn serve(
    config: ModelConfig,
    judges: JudgesConfig,
    registry: Registry,
    budget: Budget,
    rewrite_cache_bytes: u64,
    metrics: Arc<Metrics>,
) -> Result<Service, ComposeError> {
    let failed = |reason: String| ComposeError::Model {
        model: config.model.clone(),
        reason,
    };
    let loading = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || {
            let judges = judges::load(&judges, config.threads)?;
            let model = load_model(&config)?;
            let fingerprint = fingerprint(&model.path).map_err(|error| ComposeError::Model {
                model: config.model.clone(),
                reason: error.to_string(),
            })?;
            Ok((model, fingerprint, judges))
        })
    };
    let (model, fingerprint, judges) = loading
        .await
        .map_err(|error| failed(error.to_string()))
        .and_then(|loaded| loaded)?;
    let Model {
        engine,
        tokenizer,
        prompt,
        name,
        ..
    } = model;
    let canary = EngineCanary::new(engine.clone(), &tokenizer, &prompt).map_err(|error| failed(error.to_string()))?;
    let decoder = engine.decoder();
    let base = Base {
        name: name.clone(),
        fingerprint,
        decoder: decoder.config().clone(),
        placement: decoder.placement().clone(),
        canary: Arc::new(canary),
    };
    let residents = Residents::serving(Loader::new(registry, base, budget, Arc::clone(&metrics.adapters)));
    super::start::deploy(&residents, &config).await?;
    let perplexity = Arc::new(ModelPerplexity::new(engine.clone(), tokenizer.clone()));
    let rewriter = LanguageModelRewriter::new(engine, tokenizer, prompt, name);
    let rewriter: Arc<dyn Rewriter> = match rewrite_cache_bytes {
        0 => Arc::new(rewriter),
        bytes => Arc::new(RememberingRewriter::new(rewriter, bytes, metrics.remembering.clone())),
    };
    Ok(assemble(rewriter, Arc::new(residents), perplexity, judges))
}

/// Quantised where that is faster, unless a number format is asked for by name; on a GPU dense, in bf16 unless another one is asked for.
fn purpose(config: &ModelConfig, device: &candle_core::Device) -> anyhow::Result<Purpose> {
    if !device.is_cpu() {
        let dtype = match config.dtype {
            Dtype::Auto | Dtype::Bf16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
        };
        return Ok(Purpose::ServeOnDevice { dtype });
    }
    match (config.dtype, config.quantize) {
        (Dtype::Auto, Quantize::Auto) => Ok(Purpose::ServeQuantized),
        (Dtype::Auto | Dtype::F32, _) => Ok(Purpose::ServeDense),
        // The same weights as in training: bf16 products, sums in single precision.
        (Dtype::Bf16, _) if PackedBf16::is_supported() => Ok(Purpose::Train { dtype: DType::BF16 }),
        (Dtype::Bf16, _) => anyhow::bail!("bf16 products need a processor with AVX512-BF16; use --dtype f32 or auto"),
        (Dtype::F16, _) => anyhow::bail!("f16 is computed with on GPUs only; use --dtype f32 or auto"),
    }
}

fn device(wanted: crate::config::Device) -> Result<candle_core::Device, String> {
    match wanted {
        crate::config::Device::Cpu => Ok(candle_core::Device::Cpu),
        crate::config::Device::Cuda(number) => gpu::open(number)
            .map_err(|error| format!("the device cuda:{number} can't be used: {error}; or use --device cpu")),
    }
}

/// The adapter that `config` names, for a model that is loaded.
///
/// # Errors
/// When it can't be had or does not fit the model.
pub fn adapter(config: &ModelConfig, decoder: &Decoder) -> Result<AdapterLease, ComposeError> {
    let failed = |adapter: String, reason: String| ComposeError::Adapter { adapter, reason };
    let (shape, placement) = (decoder.config(), decoder.placement());
    match &config.adapter {
        AdapterSource::None => Ok(AdapterLease::none()),
        AdapterSource::Auto => {
            let shipped = ShippedAdapter::for_base(&config.model).ok_or_else(|| {
                failed(
                    "auto".to_owned(),
                    format!(
                        "no adapter is shipped for {}; name a PEFT folder, or `none`",
                        config.model
                    ),
                )
            })?;
            let version = shipped.version().to_string();
            shipped
                .load(shape, placement)
                .map_err(|error| failed(version, error.to_string()))
        }
        AdapterSource::Folder(folder) => {
            let adapter = LoraModel::load(folder, shape, &candle_core::Device::Cpu)
                .and_then(|adapter| adapter.placed(shape, placement))
                .map_err(|error| failed(folder.display().to_string(), error.to_string()))?;
            Ok(AdapterLease::new(
                AdapterVersion::new(name_of(folder), 1),
                adapter.into(),
            ))
        }
        AdapterSource::Named(wanted) => {
            let shipped = ShippedAdapter::find(wanted).ok_or_else(|| {
                failed(
                    wanted.to_string(),
                    "no such adapter is shipped; name a PEFT folder, or `none`".to_owned(),
                )
            })?;
            shipped.load(shape, placement).map_err(|error| {
                let base = shipped.base();
                failed(
                    wanted.to_string(),
                    format!("{error}; it was trained for {base}: use --model {base}, or --adapter none"),
                )
            })
        }
    }
}

/// What an adapter is called that was named by its folder.
pub(super) fn name_of(folder: &Path) -> String {
    let name = folder.file_name().map_or("local".into(), |name| name.to_string_lossy());
    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .collect();
    match name.as_str() {
        "" | "none" => "local".to_owned(),
        _ => name,
    }
}

/// A service around a rewriter. Tests give it one of their own.
pub fn assemble(
    rewriter: Arc<dyn Rewriter>,
    residents: Arc<Residents>,
    perplexity: Arc<dyn PerplexityScorer>,
    judges: Judges,
) -> Service {
    Service {
        detoxifier: Arc::new(Detoxifier::new(rewriter, judges)),
        residents,
        perplexity,
    }
}
