//! The judges that the settings name, loaded.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::ThreadPool;

use super::compose::ComposeError;
use crate::config::JudgesConfig;
use crate::engine::EngineConfig;
use crate::model::catalogue::FilesOf;
use crate::pipeline::Judges;
use crate::scoring::{Classifier, Embedder};

/// Loads the judges, from a hub if need be; `threads` of their own, as many as the model has by default. Takes as long as the files are large: call it
/// off the async threads.
///
/// # Errors
/// When one that was asked for can't be had. The built-in one is never taken in its place.
pub fn load(config: &JudgesConfig, threads: Option<usize>) -> Result<Judges, ComposeError> {
    let mut judges = Judges::built_in()?;
    if config.toxicity.is_none() && config.similarity.is_none() {
        return Ok(judges);
    }
    let pool = pool(threads)?;
    if let Some(model) = &config.toxicity {
        let label = config.toxicity_label.as_deref();
        let opened = path(model)
            .and_then(|folder| Classifier::open(&folder, label, Arc::clone(&pool)).map_err(|error| error.to_string()));
        judges.toxicity = Arc::new(opened.map_err(|reason| failed("toxicity", model, reason))?);
        tracing::info!(model, "toxicity is judged by a model of its own");
    }
    if let Some(model) = &config.similarity {
        let opened = path(model).and_then(|folder| Embedder::open(&folder, pool).map_err(|error| error.to_string()));
        judges.similarity = Arc::new(opened.map_err(|reason| failed("similarity", model, reason))?);
        tracing::info!(model, "similarity is judged by a model of its own");
    }
    Ok(judges)
}

fn failed(judge: &'static str, model: &str, reason: String) -> ComposeError {
    ComposeError::Judge {
        judge,
        model: model.to_owned(),
        reason,
    }
}

/// Threads of their own: the engine's have a step to make every few milliseconds.
fn pool(threads: Option<usize>) -> Result<Arc<ThreadPool>, ComposeError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(EngineConfig::default().threads))
        .thread_name(|index| format!("judge-{index}"))
        .build();
    pool.map(Arc::new)
        .map_err(|error| ComposeError::Threads(error.to_string()))
}

/// A folder as it is, else that of a hub id.
fn path(model: &str) -> Result<PathBuf, String> {
    super::folder_or_hub(model, FilesOf::Encoder).map_err(|error| format!("{error:#}"))
}
