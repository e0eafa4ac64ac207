//! Whether requests need a key.

use super::AccessSettings;

/// Whether requests need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// Unless the service listens on a loopback address.
    Auto,
    /// Always.
    Required,
    /// Never.
    Off,
}

impl From<AccessSettings> for AuthMode {
    fn from(raw: AccessSettings) -> Self {
        // clap has checked it against the list in `AccessSettings`.
        match raw.auth.as_str() {
            "required" => Self::Required,
            "off" => Self::Off,
            _ => Self::Auto,
        }
    }
}
