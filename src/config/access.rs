//! Whether requests need a key.

use std::net::SocketAddr;

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

impl AuthMode {
    /// Whether a service that listens there asks for keys.
    pub fn asks(self, listen: SocketAddr) -> bool {
        match self {
            // Also the IPv4 loopback address written as an IPv6 one.
            Self::Auto => !listen.ip().to_canonical().is_loopback(),
            Self::Required => true,
            Self::Off => false,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_asked_for_where_others_can_come_from() {
        for (listen, auto) in [
            ("127.0.0.1:8080", false),
            ("[::1]:8080", false),
            ("[::ffff:127.0.0.1]:8080", false),
            ("0.0.0.0:8080", true),
            ("[::]:8080", true),
            ("192.168.0.7:8080", true),
        ] {
            let listen: SocketAddr = listen.parse().unwrap();
            assert_eq!(AuthMode::Auto.asks(listen), auto, "{listen}");
            assert!(AuthMode::Required.asks(listen));
            assert!(!AuthMode::Off.asks(listen));
        }
    }
}
