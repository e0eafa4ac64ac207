//! The adapters in memory, and leases on them.

use std::fmt;
use std::sync::Arc;

use super::version::{AdapterRef, AdapterVersion};
use crate::model::lora::LoraModel;

/// A version pinned by a request: it stays in memory for as long as the lease is held.
#[derive(Clone)]
pub struct AdapterLease(Arc<Resident>);

struct Resident {
    version: AdapterVersion,
    /// None for the bare base model.
    adapter: Option<Arc<LoraModel>>,
}

impl AdapterLease {
    /// A lease on the bare base model.
    pub fn none() -> Self {
        Self(Arc::new(Resident {
            version: AdapterVersion::none(),
            adapter: None,
        }))
    }

    /// A lease on an adapter that is loaded.
    pub fn new(version: AdapterVersion, adapter: Arc<LoraModel>) -> Self {
        Self(Arc::new(Resident {
            version,
            adapter: Some(adapter),
        }))
    }

    /// Which version it pins.
    pub fn version(&self) -> &AdapterVersion {
        &self.0.version
    }

    /// Its weights; none for the bare base model.
    pub fn adapter(&self) -> Option<&Arc<LoraModel>> {
        self.0.adapter.as_ref()
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdapterLease").field(&self.0.version).finish()
    }
}

/// An adapter that is not loaded.
#[derive(Debug, thiserror::Error)]
#[error("there is no adapter `{wanted}`; loaded: {loaded}")]
pub struct UnknownAdapter {
    wanted: AdapterRef,
    loaded: String,
}

/// The adapters in memory. The bare base model is always among them, as `none`.
#[derive(Debug)]
pub struct Residents {
    active: AdapterLease,
    others: Vec<AdapterLease>,
}

impl Residents {
    /// With the version that requests get which name none.
    pub fn new(active: AdapterLease) -> Self {
        let others = match active.adapter() {
            Some(_) => vec![AdapterLease::none()],
            None => Vec::new(),
        };
        Self { active, others }
    }

    /// Pins the wanted version, or the active one.
    ///
    /// # Errors
    /// When the wanted one is not in memory: it is never replaced by another.
    pub fn lease(&self, wanted: Option<&AdapterRef>) -> Result<AdapterLease, UnknownAdapter> {
        let Some(wanted) = wanted else {
            return Ok(self.active.clone());
        };
        let loaded = || std::iter::once(&self.active).chain(&self.others);
        loaded()
            .find(|lease| lease.version().answers_to(wanted))
            .cloned()
            .ok_or_else(|| UnknownAdapter {
                wanted: wanted.clone(),
                loaded: loaded()
                    .map(|lease| lease.version().to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_adapter_is_an_error_that_names_the_loaded_ones() {
        let residents = Residents::new(AdapterLease::none());
        assert_eq!(residents.lease(None).unwrap().version().to_string(), "none@0");
        let error = residents.lease(Some(&"other@2".parse().unwrap())).unwrap_err();
        assert_eq!(error.to_string(), "there is no adapter `other@2`; loaded: none@0");
    }
}
