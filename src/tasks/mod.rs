//! What runs beside the requests: each a loop that looks at what is and what ought to be, takes no input, and can be run again at any time.
//!
//! - [`follow`]: this process serves what the last deployment says.
//! - [`observe`]: shows in `/metrics` what the database says of jobs.

pub mod follow;
pub mod observe;
