//! One version in memory, and leases that pin it for the length of a request.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::version::AdapterVersion;
use crate::model::lora::LoraModel;

/// A version that is loaded.
pub(super) struct Resident {
    pub version: AdapterVersion,
    /// None for the bare base model.
    pub weights: Option<Arc<LoraModel>>,
    /// Leases that are out.
    leases: AtomicUsize,
}

impl Resident {
    pub fn new(version: AdapterVersion, weights: Option<Arc<LoraModel>>) -> Arc<Self> {
        Arc::new(Self {
            version,
            weights,
            leases: AtomicUsize::new(0),
        })
    }

    pub fn none() -> Arc<Self> {
        Self::new(AdapterVersion::none(), None)
    }

    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    pub fn lease(self: &Arc<Self>) -> AdapterLease {
        self.leases.fetch_add(1, Ordering::Relaxed);
        AdapterLease(Arc::new(Held(Arc::clone(self))))
    }
}

/// Counts a lease for as long as one of its clones is held.
struct Held(Arc<Resident>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A version pinned by a request: it stays in memory for as long as the lease or a clone of it is held.
#[derive(Clone)]
pub struct AdapterLease(Arc<Held>);

impl AdapterLease {
    /// A lease on the bare base model.
    pub fn none() -> Self {
        Resident::none().lease()
    }

    /// A lease on an adapter that is loaded.
    pub fn new(version: AdapterVersion, adapter: Arc<LoraModel>) -> Self {
        Resident::new(version, Some(adapter)).lease()
    }

    /// A lease on a version of that name without weights.
    #[cfg(test)]
    pub(crate) fn for_tests(version: &str) -> Self {
        let version = version.parse().expect("a name and a version");
        Resident::new(version, None).lease()
    }

    /// Which version it pins.
    pub fn version(&self) -> &AdapterVersion {
        &self.resident().version
    }

    /// Its weights; none for the bare base model.
    pub fn adapter(&self) -> Option<&Arc<LoraModel>> {
        self.resident().weights.as_ref()
    }

    pub(super) fn resident(&self) -> &Arc<Resident> {
        &self.0.0
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdapterLease").field(self.version()).finish()
    }
}
