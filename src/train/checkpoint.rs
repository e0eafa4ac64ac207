//! Checkpoints: everything a run needs to go on as if it had never stopped.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::optimizer::AdamW;
use super::trainable::Trainable;
use crate::model::ModelError;

/// Where a run stands. Batches follow from the seed and the step, so no further state of the data is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps made.
    pub step: usize,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds spent, over all interruptions.
    pub seconds: f64,
    /// The run's settings, to refuse a checkpoint of another run.
    pub settings: serde_json::Value,
}

impl Progress {
    /// The beginning of a run.
    pub fn new(settings: serde_json::Value) -> Self {
        Self {
            step: 0,
            tokens: 0,
            seconds: 0.0,
            settings,
        }
    }
}

const KEEP: usize = 2;

/// Writes `checkpoints/step-N` under the run's folder: completely or not at all; returns that folder. Older ones than the last two
/// go.
///
/// # Errors
/// When a file cannot be written.
pub fn save(
    run: &Path,
    progress: &Progress,
    trainable: &Trainable<'_>,
    optimizer: &AdamW,
) -> Result<PathBuf, TrainError> {
    let parent = run.join("checkpoints");
    fs::create_dir_all(&parent).map_err(TrainError::io(&parent))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(&parent)
        .map_err(TrainError::io(&parent))?;
    trainable.save(unfinished.path(), DType::F32)?;
    let (moments, steps) = optimizer.state()?;
    let mut moments: HashMap<String, Tensor> = moments.into_iter().collect();
    moments.insert("steps".to_owned(), Tensor::new(&[steps as u32], &Device::Cpu)?);
    candle_core::safetensors::save(&moments, unfinished.path().join("optimizer.safetensors"))?;
    let state = unfinished.path().join("progress.json");
    fs::write(&state, format!("{:#}\n", serde_json::json!(progress))).map_err(TrainError::io(&state))?;
    for entry in fs::read_dir(unfinished.path())
        .map_err(TrainError::io(unfinished.path()))?
        .flatten()
    {
        let sync = fs::File::open(entry.path()).and_then(|file| file.sync_all());
        sync.map_err(TrainError::io(&entry.path()))?;
    }
    let finished = parent.join(format!("step-{:08}", progress.step));
    if finished.exists() {
        fs::remove_dir_all(&finished).map_err(TrainError::io(&finished))?;
    }
    fs::rename(unfinished.keep(), &finished).map_err(TrainError::io(&finished))?;
    fs::File::open(&parent)
        .and_then(|folder| folder.sync_all())
        .map_err(TrainError::io(&parent))?;
    let all = list(run)?;
    for old in &all[..all.len().saturating_sub(KEEP)] {
        fs::remove_dir_all(old).map_err(TrainError::io(old))?;
    }
    Ok(finished)
}

/// The checkpoints of a run, the newest last.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(run: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let parent = run.join("checkpoints");
    let entries = match fs::read_dir(&parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io(&parent)(error)),
    };
    let is_step = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("step-"))
    };
    let mut steps: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_step).collect();
    steps.sort();
    Ok(steps)
}

/// Where a checkpoint's run stands. What was trained lies beside it; [`restore_optimizer`] does the rest.
///
/// # Errors
/// [`TrainError::Checkpoint`] when it belongs to a run with other settings; others when it can't be read.
pub fn progress(checkpoint: &Path, settings: &serde_json::Value) -> Result<Progress, TrainError> {
    let path = checkpoint.join("progress.json");
    let json = fs::read(&path).map_err(TrainError::io(&path))?;
    let progress: Progress = serde_json::from_slice(&json).map_err(|error| TrainError::io(&path)(error.into()))?;
    if progress.settings != *settings {
        let changed = changed_keys(&progress.settings, settings).join(", ");
        return Err(TrainError::Checkpoint {
            path: checkpoint.display().to_string(),
            reason: format!("it belongs to a run with other settings ({changed})"),
        });
    }
    Ok(progress)
}

fn changed_keys(a: &serde_json::Value, b: &serde_json::Value) -> Vec<String> {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return vec!["all".to_owned()];
    };
    a.keys()
        .chain(b.keys().filter(|key| !a.contains_key(*key)))
        .filter(|key| a.get(*key) != b.get(*key))
        .cloned()
        .collect()
}

/// Takes up the optimizer's state from a checkpoint.
///
/// # Errors
/// When it does not fit the parameters.
pub fn restore_optimizer(checkpoint: &Path, optimizer: &mut AdamW) -> Result<(), TrainError> {
    let tensors = candle_core::safetensors::load(checkpoint.join("optimizer.safetensors"), &Device::Cpu)?;
    let steps = tensors
        .get("steps")
        .ok_or_else(|| ModelError::MissingTensor("steps".to_owned()))?
        .to_vec1::<u32>()?;
    let steps = steps.first().copied().unwrap_or(0) as usize;
    Ok(optimizer.restore(|name| tensors.get(name).cloned(), steps)?)
}
