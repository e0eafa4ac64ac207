//! From the registry into memory, one version at a time.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::canary::{Canary, CanaryError};
use super::files::{AdapterFiles, Claim};
use super::lease::Resident;
use super::memory::{Budget, Memory, NoRoom, Reservation};
use super::metrics::AdapterMetrics;
use super::record::RegistryError;
use super::registry::Registry;
use super::version::AdapterVersion;
use crate::model::lora::LoraModel;
use crate::model::{DecoderConfig, ModelError, Placement};

/// The model that adapters are for.
#[derive(Clone)]
pub struct Base {
    /// As answers call it.
    pub name: String,
    /// See [`crate::model::fingerprint`].
    pub fingerprint: String,
    /// Its shape.
    pub decoder: DecoderConfig,
    /// Where it computes, and how.
    pub placement: Placement,
    /// Tries an adapter on it.
    pub canary: Arc<dyn Canary>,
}

/// Why a version is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Another load is under way.
    #[error("another adapter is being loaded; try again in a moment")]
    Busy,
    /// The registry does not have it, or can't give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It was made for another model.
    #[error(
        "it was registered for the model {base} (fingerprint {fingerprint}), and this service runs {served} (fingerprint {served_fingerprint})"
    )]
    OtherBase {
        /// The model it was registered for.
        base: String,
        /// Its fingerprint, in short.
        fingerprint: String,
        /// The model that runs.
        served: String,
        /// Its fingerprint, in short.
        served_fingerprint: String,
    },
    /// It is not what the model needs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its rank is too large.
    #[error("its rank is {rank}, at most {max} is allowed (`max_adapter_rank`)")]
    Rank {
        /// The rank.
        rank: usize,
        /// What is allowed.
        max: usize,
    },
    /// There is no room for it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It did not pass.
    #[error(transparent)]
    Canary(#[from] CanaryError),
    /// The load was cut off.
    #[error("loading it was cut off: {0}")]
    CutOff(String),
}

impl LoadError {
    /// Whether there is no such version.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Registry(RegistryError::Unknown(_)))
    }

    /// Whether the adapter itself is no good, so that trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::OtherBase { .. } | Self::Model(_) | Self::Rank { .. } => true,
            Self::Registry(error) => matches!(error, RegistryError::Damaged { .. } | RegistryError::Unknown(_)),
            Self::NoRoom(error) => matches!(error, NoRoom::TooLarge { .. }),
            Self::Canary(error) => matches!(error, CanaryError::NotFinite | CanaryError::LikeBase),
            Self::Busy | Self::CutOff(_) => false,
        }
    }

    fn result(&self) -> &'static str {
        if self.is_refusal() { "refused" } else { "failed" }
    }
}

type Loaded = Result<Arc<Resident>, Arc<LoadError>>;

/// Loads versions, one at a time: two at once would be in each other's way, and in the way of running requests.
pub struct Loader {
    registry: Registry,
    base: Base,
    memory: Arc<Memory>,
    metrics: Arc<AdapterMetrics>,
    /// Held while a version is loaded. What is in it is the last failure.
    turn: Arc<Mutex<Option<Failure>>>,
}

struct Failure {
    version: AdapterVersion,
    at: Instant,
    error: Arc<LoadError>,
}

type Turn = OwnedMutexGuard<Option<Failure>>;

impl Loader {
    /// For a base model, from a registry, within a budget.
    pub fn new(registry: Registry, base: Base, budget: Budget, metrics: Arc<AdapterMetrics>) -> Self {
        Self {
            registry,
            base,
            memory: Memory::new(budget),
            metrics,
            turn: Arc::default(),
        }
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The model that adapters are loaded for.
    pub fn base(&self) -> &Base {
        &self.base
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What it counts in.
    pub fn metrics(&self) -> &AdapterMetrics {
        &self.metrics
    }

    /// A version in memory, after other loads if need be. Those who wait for the same version share one load, and its failure.
    pub(super) async fn wait_for(self: &Arc<Self>, version: &AdapterVersion, keep: bool) -> Loaded {
        if let Some(found) = self.memory.find(version, keep) {
            return Ok(found);
        }
        let asked = Instant::now();
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if let Some(failure) = &*turn
            && failure.version == *version
            && failure.at >= asked
        {
            return Err(Arc::clone(&failure.error));
        }
        self.in_turn(turn, version, keep).await
    }

    /// A version in memory, unless another is being loaded.
    pub(super) async fn at_once(self: &Arc<Self>, version: &AdapterVersion) -> Loaded {
        if let Some(found) = self.memory.find(version, false) {
            return Ok(found);
        }
        let turn = Arc::clone(&self.turn).try_lock_owned().map_err(|_| LoadError::Busy)?;
        self.in_turn(turn, version, false).await
    }

    /// The load goes on when the caller is gone: others may wait for it.
    async fn in_turn(self: &Arc<Self>, mut turn: Turn, version: &AdapterVersion, keep: bool) -> Loaded {
        // It may have come while its turn was waited for.
        if let Some(found) = self.memory.find(version, keep) {
            return Ok(found);
        }
        let (loader, version) = (Arc::clone(self), version.clone());
        let load = async move {
            let started = Instant::now();
            let loaded = loader.load(&version, keep).await.map_err(Arc::new);
            loader.metrics.loaded(
                loaded.as_ref().map_or_else(|error| error.result(), |_| "ok"),
                started.elapsed(),
            );
            let milliseconds = started.elapsed().as_millis() as u64;
            match &loaded {
                Ok(_) => tracing::info!(%version, milliseconds, "an adapter is loaded"),
                Err(error) => {
                    tracing::warn!(%version, %error, "an adapter is not loaded");
                    *turn = Some(Failure {
                        version,
                        at: Instant::now(),
                        error: Arc::clone(error),
                    });
                }
            }
            loaded
        };
        tokio::spawn(load)
            .await
            .unwrap_or_else(|error| Err(LoadError::CutOff(error.to_string()).into()))
    }

    async fn load(&self, version: &AdapterVersion, keep: bool) -> Result<Arc<Resident>, LoadError> {
        let record = self.registry.get(version).await.map_err(RegistryError::from)?;
        let record = record.ok_or_else(|| RegistryError::unknown(version))?;
        if record.base_fingerprint != self.base.fingerprint {
            return Err(self.other_base(&record.base, &record.base_fingerprint));
        }
        let reservation = self.memory.reserve(record.bytes)?;
        let files = self.registry.files(version).await?;
        let (weights, reservation) = self.read(files, reservation).await?;
        self.base.canary.run(&weights).await?;
        Ok(reservation.fill(version, weights, keep))
    }

    fn other_base(&self, base: &str, fingerprint: &str) -> LoadError {
        let short = |fingerprint: &str| fingerprint.chars().take(12).collect();
        LoadError::OtherBase {
            base: base.to_owned(),
            fingerprint: short(fingerprint),
            served: self.base.name.clone(),
            served_fingerprint: short(&self.base.fingerprint),
        }
    }

    /// From bytes to weights: checked against the header first, then loaded off the async threads.
    async fn read(
        &self,
        files: AdapterFiles,
        mut reservation: Reservation,
    ) -> Result<(Arc<LoraModel>, Reservation), LoadError> {
        let (decoder, placement) = (self.base.decoder.clone(), self.base.placement.clone());
        let max = self.memory.budget().max_rank;
        let read = move || {
            let Claim { bytes, rank } = files.claim()?;
            if rank > max {
                return Err(LoadError::Rank { rank, max });
            }
            reservation.resize(bytes)?;
            let weights = LoraModel::from_bytes(&files.config, &files.weights, &decoder, &Device::Cpu)?;
            let weights = weights.placed(&decoder, &placement)?;
            Ok((Arc::new(weights), reservation))
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| LoadError::CutOff(error.to_string()))?
    }

    /// Whether files are an adapter for this model, within the budget: they are loaded in their turn, and let go again. `fingerprint` is the base
    /// model's that came with them, if any.
    ///
    /// # Errors
    /// When they are not.
    pub async fn check(&self, files: &AdapterFiles, fingerprint: Option<&str>) -> Result<Claim, LoadError> {
        if let Some(fingerprint) = fingerprint
            && fingerprint != self.base.fingerprint
        {
            return Err(self.other_base("that it says", fingerprint));
        }
        let claim = files.claim()?;
        let _turn = self.turn.lock().await;
        let reservation = self.memory.reserve(claim.bytes)?;
        self.read(files.clone(), reservation).await?;
        Ok(claim)
    }
}
