//! Adapters by name and version, and which of them are in memory.
//!
//! `version`: how adapters are named; `resident`: the loaded ones, and leases that pin one for the length of a request;
//! `shipped`: the adapters within the binary.
//!
//! **Invariant:** a version never changes: another adapter is another number.

mod registry;
mod resident;
mod shipped;
mod version;

pub use registry::Registry;
pub use resident::{AdapterLease, Residents, UnknownAdapter};
pub use shipped::ShippedAdapter;
pub use version::{AdapterRef, AdapterVersion, ParseAdapterRefError};
