//! Adapters by name and version, and which of them are in memory.
//!
//! - `version`: how adapters are named; `files`: the two files of one; `record`: rows as types.
//! - `registry`: the versions there are; `deployments`: which of them are to be served; `replicas`: what each process serves.
//! - `incoming`, `archive`: adapters from outside; `shipped`: those within the binary.
//! - `residents`: the loaded ones, and what new requests get; `memory`: the budget; `lease`: pins one for the length of a request;
//!   `load`: from the registry into memory, with `canary` as the last check; `deploy`: a change of what is served.
//!
//! What does not live here: how the model is run (a [`Canary`] does that), and who follows changes of other processes (`tasks`).
//!
//! **Invariant:** a version never changes: another adapter is another number.
//! **Invariant:** a version is in memory for as long as a lease on it is held, and counts for the budget until its weights are gone.

mod archive;
mod canary;
mod deploy;
mod deployments;
mod files;
mod incoming;
mod lease;
mod load;
mod memory;
mod metrics;
mod record;
mod registry;
mod replicas;
mod residents;
mod shipped;
mod version;

pub use archive::write_archive;
pub use canary::{Canary, CanaryError};
pub use deploy::DeployError;
pub use deployments::insert_deployment;
pub use files::{AdapterFiles, CONFIG, Claim, WEIGHTS};
pub use incoming::{ABOUT, About, ImportError, ImportLimits, Incoming};
pub use lease::AdapterLease;
pub use load::{Base, LoadError, Loader};
pub use memory::{Budget, NoRoom, Usage};
pub use metrics::AdapterMetrics;
pub use record::{Action, Change, Deployment, NewVersion, RegistryError, Share, Source, VersionRecord};
pub use registry::{Imported, Registry, insert_version};
pub use replicas::Replica;
pub use residents::{InMemory, LeaseError, Residents, UnknownAdapter, Use};
pub use shipped::ShippedAdapter;
pub use version::{AdapterRef, AdapterVersion, ParseAdapterRefError, ParseAdapterVersionError};
