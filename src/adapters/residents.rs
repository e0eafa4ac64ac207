//! The adapters in memory, and which of them new requests get.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::lease::{AdapterLease, Resident};
use super::load::{LoadError, Loader};
use super::memory::{Budget, Memory, Usage};
use super::record::Deployment;
use super::registry::Registry;
use super::version::{AdapterRef, AdapterVersion};
use crate::db::DbError;

/// The adapters in memory. The bare base model is always among them, as `none`.
///
/// **Invariant:** what new requests get changes in one step, and never backwards.
pub struct Residents {
    routes: ArcSwap<Routes>,
    none: Arc<Resident>,
    memory: Arc<Memory>,
    /// Where others come from; without it what is there is all there is.
    loader: Option<Arc<Loader>>,
    /// Counts the requests that named no adapter.
    requests: AtomicU64,
    /// The newest change that is known and not made here, and since when.
    behind: Mutex<Option<(i64, Instant)>>,
}

/// What new requests get.
pub(super) struct Routes {
    revision: i64,
    active: Arc<Resident>,
    shares: Vec<(Arc<Resident>, f64)>,
    shadow: Option<Arc<Resident>>,
}

/// What a version is in memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Requests get it that name none.
    Active,
    /// A part of them gets it.
    Traffic,
    /// It gets copies of requests.
    Shadow,
    /// Somebody asked for it by name.
    Loaded,
    /// Running requests hold it, new ones do not get it.
    Retired,
}

impl Use {
    /// Its word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Traffic => "traffic",
            Self::Shadow => "shadow",
            Self::Loaded => "loaded",
            Self::Retired => "retired",
        }
    }

    pub(super) fn is_retired(self) -> bool {
        self == Self::Retired
    }
}

/// A version in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InMemory {
    /// Which.
    pub version: AdapterVersion,
    /// What for.
    pub state: Use,
    /// Requests that hold it.
    pub leases: usize,
    /// Memory it takes.
    pub bytes: u64,
}

/// An adapter that is not there.
#[derive(Debug, thiserror::Error)]
#[error("there is no adapter `{wanted}`; loaded: {loaded}")]
pub struct UnknownAdapter {
    wanted: AdapterRef,
    loaded: String,
}

/// Why a request does not get its adapter. It never gets another instead.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is none of that name.
    #[error(transparent)]
    Unknown(#[from] UnknownAdapter),
    /// Whether there is one can't be said.
    #[error(transparent)]
    Db(#[from] DbError),
    /// There is one, and it can't be loaded.
    #[error("the adapter {version} can't be loaded: {reason}")]
    Load {
        /// Which.
        version: AdapterVersion,
        /// Why.
        reason: Arc<LoadError>,
    },
}

impl Residents {
    /// With one version besides the bare base model, for good.
    pub fn new(active: AdapterLease) -> Self {
        Self::build(Arc::clone(active.resident()), Memory::new(Default::default()), None)
    }

    /// With the bare base model alone at first; others come from a registry.
    pub fn serving(loader: Loader) -> Self {
        let memory = Arc::clone(loader.memory());
        Self::build(Resident::none(), memory, Some(Arc::new(loader)))
    }

    fn build(active: Arc<Resident>, memory: Arc<Memory>, loader: Option<Arc<Loader>>) -> Self {
        let none = match active.weights {
            Some(_) => Resident::none(),
            None => Arc::clone(&active),
        };
        Self {
            routes: ArcSwap::from_pointee(Routes {
                revision: 0,
                active,
                shares: Vec::new(),
                shadow: None,
            }),
            none,
            memory,
            loader,
            requests: AtomicU64::new(0),
            behind: Mutex::new(None),
        }
    }

    /// Pins the wanted version, or for a request that names none the one whose turn it is. A registered version that is not in memory
    /// is loaded first; the caller decides how long it waits.
    ///
    /// # Errors
    /// When there is no such version, or it can't be loaded: it is never replaced by another.
    pub async fn lease(&self, wanted: Option<&AdapterRef>) -> Result<AdapterLease, LeaseError> {
        let Some(wanted) = wanted else {
            return Ok(self.next());
        };
        if let Some(resident) = self.deployed(wanted) {
            return Ok(resident.lease());
        }
        let kept = wanted.version().and_then(|version| self.memory.find(&version, true));
        if let Some(resident) = kept {
            return Ok(resident.lease());
        }
        let loader = self.loader.as_ref().ok_or_else(|| self.unknown(wanted))?;
        let version = loader
            .registry()
            .resolve(wanted)
            .await?
            .ok_or_else(|| self.unknown(wanted))?;
        match loader.wait_for(&version, true).await {
            Ok(resident) => Ok(resident.lease()),
            Err(reason) if reason.is_unknown() => Err(self.unknown(wanted).into()),
            Err(reason) => Err(LeaseError::Load { version, reason }),
        }
    }

    /// Pins the active version.
    pub fn active(&self) -> AdapterLease {
        self.routes.load().active.lease()
    }

    /// Pins the version that gets copies of requests, if one does.
    pub fn shadow(&self) -> Option<AdapterLease> {
        self.routes.load().shadow.as_ref().map(Resident::lease)
    }

    /// The change up to which this process has followed.
    pub fn revision(&self) -> i64 {
        self.routes.load().revision
    }

    /// Pins the version whose turn it is. Turns are dealt out evenly rather than drawn: multiples of the golden ratio fill the interval
    /// from 0 to 1 with ever smaller gaps, so that a tenth is a tenth of the first ten requests, too.
    fn next(&self) -> AdapterLease {
        const GOLDEN: f64 = 0.618_033_988_749_894_8;
        let routes = self.routes.load();
        if routes.shares.is_empty() {
            return routes.active.lease();
        }
        let count = self.requests.fetch_add(1, Ordering::Relaxed) % (1 << 32);
        let mut place = (count as f64 * GOLDEN).fract();
        for (resident, weight) in &routes.shares {
            if place < *weight {
                return resident.lease();
            }
            place -= weight;
        }
        routes.active.lease()
    }

    fn deployed(&self, wanted: &AdapterRef) -> Option<Arc<Resident>> {
        if self.none.version.answers_to(wanted) {
            return Some(Arc::clone(&self.none));
        }
        let routes = self.routes.load();
        if routes.active.version.answers_to(wanted) {
            return Some(Arc::clone(&routes.active));
        }
        // A name alone means the active version or the newest: no other one only because it happens to be deployed.
        let version = wanted.version()?;
        routes
            .others()
            .find(|resident| resident.version == version)
            .map(Arc::clone)
    }

    fn unknown(&self, wanted: &AdapterRef) -> UnknownAdapter {
        let mut loaded: Vec<_> = self.list().iter().map(|one| one.version.to_string()).collect();
        let none = self.none.version.to_string();
        if !loaded.contains(&none) {
            loaded.push(none);
        }
        UnknownAdapter {
            wanted: wanted.clone(),
            loaded: loaded.join(", "),
        }
    }

    /// Gives new requests what a deployment says: loads what is missing, one after another and waiting for other loads, then changes
    /// over in one step. Whether it changed anything: a deployment that is no newer than what is served does not.
    ///
    /// # Errors
    /// When a version of it can't be loaded; then everything stays as it is.
    pub async fn follow(&self, deployment: &Deployment) -> Result<bool, LeaseError> {
        if deployment.revision <= self.revision() {
            return Ok(false);
        }
        let mut residents = Vec::new();
        for version in deployment.versions() {
            residents.push(self.resident(version).await?);
        }
        Ok(self.switch(deployment, &residents))
    }

    async fn resident(&self, version: &AdapterVersion) -> Result<Arc<Resident>, LeaseError> {
        let wanted = AdapterRef::from(version);
        if let Some(resident) = self.deployed(&wanted) {
            return Ok(resident);
        }
        let loader = self.loader.as_ref().ok_or_else(|| self.unknown(&wanted))?;
        loader
            .wait_for(version, false)
            .await
            .map_err(|reason| LeaseError::Load {
                version: version.clone(),
                reason,
            })
    }

    /// Changes over to a deployment, unless a newer one is there or one of its versions is not among `residents`.
    fn switch(&self, deployment: &Deployment, residents: &[Arc<Resident>]) -> bool {
        let Some(new) = Routes::of(deployment, residents).map(Arc::new) else {
            return false;
        };
        let old = self.routes.rcu(|old| {
            if old.revision < new.revision {
                Arc::clone(&new)
            } else {
                Arc::clone(old)
            }
        });
        let is_newer = old.revision < new.revision;
        if is_newer {
            for left in old.all().filter(|old| !new.all().any(|new| new.version == old.version)) {
                self.memory.release(&left.version);
            }
            if let Some(loader) = &self.loader {
                loader.metrics().activated("ok");
            }
            tracing::info!(
                revision = new.revision,
                active = %new.active.version,
                before = %old.active.version,
                "requests get another adapter"
            );
        }
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        *behind = behind.filter(|(revision, _)| *revision > self.revision());
        is_newer
    }

    /// Notes that a change is to be followed, from which moment on this process lags behind.
    pub fn is_to_follow(&self, revision: i64) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        if revision > self.revision() {
            behind.get_or_insert((revision, Instant::now())).0 = revision;
        } else {
            *behind = None;
        }
    }

    /// For how long this process has known of a change that it has not made.
    pub fn lag(&self) -> Duration {
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Lets go of a version that nothing deploys, because it was deleted; running requests still finish on it.
    pub fn forget(&self, version: &AdapterVersion) {
        self.memory.release(version);
    }

    /// Versions in memory only because somebody asked for them by name.
    pub fn kept(&self) -> Vec<AdapterVersion> {
        self.memory.kept()
    }

    /// What loads others, where there is a registry.
    pub fn loader(&self) -> Option<&Arc<Loader>> {
        self.loader.as_ref()
    }

    /// The registry that others come from.
    pub fn registry(&self) -> Option<&Registry> {
        self.loader.as_ref().map(|loader| loader.registry())
    }

    /// What adapters may take.
    pub fn budget(&self) -> Budget {
        self.memory.budget()
    }

    /// Memory that adapters take.
    pub fn usage(&self) -> Usage {
        self.memory.usage()
    }

    /// The share of requests that a version gets of those that name none.
    pub fn weight(&self, version: &AdapterVersion) -> f64 {
        let routes = self.routes.load();
        let given: f64 = routes.shares.iter().map(|(_, weight)| weight).sum();
        if routes.active.version == *version {
            return (1.0 - given).max(0.0);
        }
        let share = routes.shares.iter().find(|(resident, _)| resident.version == *version);
        share.map_or(0.0, |(_, weight)| *weight)
    }

    /// Everything in memory, the active version first; the bare base model when it is deployed.
    pub fn list(&self) -> Vec<InMemory> {
        let routes = self.routes.load();
        let seen = self.memory.seen();
        let bytes_of = |version: &AdapterVersion| {
            let found = seen.iter().find(|seen| seen.version == *version);
            found.map_or(0, |seen| seen.bytes)
        };
        let mut list: Vec<InMemory> = Vec::new();
        for resident in routes.all() {
            if list.iter().any(|one| one.version == resident.version) {
                continue;
            }
            let is_shared = routes.shares.iter().any(|(share, _)| share.version == resident.version);
            list.push(InMemory {
                version: resident.version.clone(),
                state: if Arc::ptr_eq(resident, &routes.active) {
                    Use::Active
                } else if is_shared {
                    Use::Traffic
                } else {
                    Use::Shadow
                },
                leases: resident.leases(),
                bytes: bytes_of(&resident.version),
            });
        }
        for seen in &seen {
            if !list.iter().any(|one| one.version == seen.version) {
                list.push(InMemory {
                    version: seen.version.clone(),
                    state: if seen.is_kept { Use::Loaded } else { Use::Retired },
                    leases: seen.leases,
                    bytes: seen.bytes,
                });
            }
        }
        list
    }
}

impl Routes {
    fn of(deployment: &Deployment, residents: &[Arc<Resident>]) -> Option<Self> {
        let find = |version: &AdapterVersion| residents.iter().find(|one| one.version == *version).map(Arc::clone);
        let mut shares = Vec::with_capacity(deployment.traffic.len());
        for share in &deployment.traffic {
            shares.push((find(&share.adapter)?, share.weight));
        }
        let shadow = match &deployment.shadow {
            Some(version) => Some(find(version)?),
            None => None,
        };
        Some(Self {
            revision: deployment.revision,
            active: find(&deployment.active)?,
            shares,
            shadow,
        })
    }

    fn others(&self) -> impl Iterator<Item = &Arc<Resident>> {
        self.shares.iter().map(|(resident, _)| resident).chain(&self.shadow)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Resident>> {
        std::iter::once(&self.active).chain(self.others())
    }
}

impl fmt::Debug for Residents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Residents")
            .field("revision", &self.revision())
            .field("active", &self.routes.load().active.version)
            .finish_non_exhaustive()
    }
}
