//! Adapters by name and version, and which of them are in memory.
//!
//! - `version`: how adapters are named; `files`: the two files of one; `record`: rows as types.
//! - `registry`: the versions there are; `deployments`: which of them are to be served.
//! - `resident`: the loaded ones, and leases that pin one for the length of a request; `shipped`: the adapters within the binary.
//!
//! **Invariant:** a version never changes: another adapter is another number.

mod deployments;
mod files;
mod record;
mod registry;
mod resident;
mod shipped;
#[cfg(test)]
mod tests;
mod version;

pub use deployments::insert_deployment;
pub use files::{AdapterFiles, CONFIG, Claim, WEIGHTS};
pub use record::{Action, Change, Deployment, NewVersion, RegistryError, Share, Source, VersionRecord};
pub use registry::{Imported, Registry, insert_version};
pub use resident::{AdapterLease, Residents, UnknownAdapter};
pub use shipped::ShippedAdapter;
pub use version::{AdapterRef, AdapterVersion, ParseAdapterRefError, ParseAdapterVersionError};
