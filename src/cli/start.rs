//! What a service serves when it starts: what was deployed last, or what `--adapter` says.

use std::path::PathBuf;

use super::compose::{ComposeError, name_of};
use crate::access::Actor;
use crate::adapters::{
    AdapterFiles, AdapterRef, AdapterVersion, DeployError, Incoming, Loader, NewVersion, RegistryError, Residents,
    ShippedAdapter, Source,
};
use crate::config::{AdapterSource, ModelConfig};

/// Times that a change is tried in vain because another process makes one.
const TRIES: usize = 5;

/// Deploys what `config` says, unless it is deployed, and loads what is deployed.
///
/// # Errors
/// When it can't be had; with the next step. Nothing else is taken in its place.
pub(super) async fn deploy(residents: &Residents, config: &ModelConfig) -> Result<(), ComposeError> {
    let Some(loader) = residents.loader() else {
        return Ok(());
    };
    let failed = |adapter: String, reason: String| ComposeError::Adapter { adapter, reason };
    let storage = |error: &dyn std::fmt::Display| failed(config.adapter.to_string(), error.to_string());
    let wanted = wanted(loader, config).await?;
    for _ in 0..TRIES {
        let last = loader.registry().deployment().await.map_err(|error| storage(&error))?;
        if let Some(last) = last
            && wanted.as_ref().is_none_or(|wanted| *wanted == last.active)
        {
            if wanted.is_none() {
                mention_unregistered(loader, config).await;
            }
            return match residents.follow(&last).await {
                Ok(_) => Ok(()),
                Err(error) => Err(failed(
                    last.active.to_string(),
                    format!(
                        "it is what was deployed last, and {error}; start with --adapter and another adapter, or with --adapter none \
                         for the bare base model"
                    ),
                )),
            };
        }
        let version = match &wanted {
            Some(version) => version.clone(),
            None => shipped(loader, config).await?,
        };
        match residents.start_with(&version, &Actor::part("start")).await {
            Ok(_) => return Ok(()),
            // Another process starts as well; what it did is looked at.
            Err(DeployError::Registry(RegistryError::Raced | RegistryError::Conflict { .. })) => {}
            Err(DeployError::Load { reason, .. }) => return Err(failed(version.to_string(), reason.to_string())),
            Err(error) => return Err(failed(version.to_string(), error.to_string())),
        }
    }
    Err(failed(
        config.adapter.to_string(),
        "other processes change what is served at the same time; start again when they are done".to_owned(),
    ))
}

/// The version that `config` names, registered; none if it leaves that to what was deployed.
async fn wanted(loader: &Loader, config: &ModelConfig) -> Result<Option<AdapterVersion>, ComposeError> {
    let failed = |reason: String| ComposeError::Adapter {
        adapter: config.adapter.to_string(),
        reason,
    };
    match &config.adapter {
        AdapterSource::Auto => Ok(None),
        AdapterSource::None => Ok(Some(AdapterVersion::none())),
        AdapterSource::Named(wanted) => named(loader, wanted).await.map(Some),
        AdapterSource::Folder(folder) => {
            let read = read(folder.clone()).await.map_err(failed)?;
            let version = register(loader, &name_of(folder), &read, Source::Import).await;
            version.map(Some).map_err(failed)
        }
    }
}

async fn read(folder: PathBuf) -> Result<AdapterFiles, String> {
    // The operator named it: it may lie anywhere, and be of any size that the budget allows.
    let reading = tokio::task::spawn_blocking(move || Incoming::from_folder(&folder, u64::MAX));
    let incoming = reading.await.map_err(|error| error.to_string())?;
    incoming
        .map(|incoming| incoming.files)
        .map_err(|error| error.to_string())
}

async fn named(loader: &Loader, wanted: &AdapterRef) -> Result<AdapterVersion, ComposeError> {
    let failed = |reason: String| ComposeError::Adapter {
        adapter: wanted.to_string(),
        reason,
    };
    let found = loader.registry().resolve(wanted).await;
    if let Some(version) = found.map_err(|error| failed(error.to_string()))? {
        return Ok(version);
    }
    let shipped = ShippedAdapter::find(wanted)
        .ok_or_else(|| failed("no such adapter is registered or shipped; name a PEFT folder, or `none`".to_owned()))?;
    register_shipped(loader, shipped).await.map_err(|error| {
        let base = shipped.base();
        failed(format!(
            "{error}; it was trained for {base}: use --model {base}, or --adapter none"
        ))
    })
}

/// The adapter shipped for the model, registered.
async fn shipped(loader: &Loader, config: &ModelConfig) -> Result<AdapterVersion, ComposeError> {
    let failed = |reason: String| ComposeError::Adapter {
        adapter: config.adapter.to_string(),
        reason,
    };
    let shipped = ShippedAdapter::for_base(&config.model).ok_or_else(|| {
        failed(format!(
            "nothing was activated yet, and no adapter is shipped for {}; name a PEFT folder, or `none`",
            config.model
        ))
    })?;
    register_shipped(loader, shipped).await.map_err(failed)
}

/// What was deployed stays after an upgrade; that the program came with a newer adapter should be known.
async fn mention_unregistered(loader: &Loader, config: &ModelConfig) {
    let Some(shipped) = ShippedAdapter::for_base(&config.model) else {
        return;
    };
    let version = shipped.version();
    if let Ok(None) = loader.registry().resolve(&AdapterRef::from(&version)).await {
        tracing::info!(
            "{version} came with this program and is not registered here; start with --adapter {version} to serve it"
        );
    }
}

async fn register_shipped(loader: &Loader, shipped: &'static ShippedAdapter) -> Result<AdapterVersion, String> {
    let mut version = shipped.version();
    for shipped in shipped.with_older() {
        version = register(loader, shipped.version().name(), &shipped.files(), Source::Shipped).await?;
    }
    Ok(version)
}

async fn register(loader: &Loader, name: &str, files: &AdapterFiles, source: Source) -> Result<AdapterVersion, String> {
    let claim = loader.check(files, None).await.map_err(|error| error.to_string())?;
    let new = NewVersion {
        name: name.to_owned(),
        sha256: files.sha256(),
        bytes: files.bytes(),
        rank: claim.rank,
        base: loader.base().name.clone(),
        base_fingerprint: loader.base().fingerprint.clone(),
        source,
        job: None,
        dataset: None,
        dataset_sha256: None,
        hyperparameters: None,
        metrics: None,
    };
    let imported = loader.registry().import(files, &new, &Actor::part("start")).await;
    imported
        .map(|imported| imported.version().clone())
        .map_err(|error| error.to_string())
}
