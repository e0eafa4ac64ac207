//! Whether a service may start where it is to listen.

use std::net::SocketAddr;

use super::{Keys, Scope};
use crate::config::AuthMode;
use crate::db::DbError;

/// Why a service may not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Others could come, and nobody could let them in.
    #[error(
        "{listen} can be reached from other machines, so requests need a key, and there is none that could make others; \
         make one with `detoxd key create --scope admin --name NAME` (and this service's --data-dir or --database-url), \
         listen on 127.0.0.1, or ask for no keys with --auth off"
    )]
    NoKey {
        /// Where it was to listen.
        listen: SocketAddr,
    },
}

/// Whether requests need a key. Asked at the start: a service that others can reach does not start open by accident, nor closed to
/// everybody.
///
/// # Errors
/// When it would be closed to everybody, or the database fails.
pub async fn key_needed(mode: AuthMode, listen: SocketAddr, keys: &Keys) -> Result<bool, StartError> {
    let needed = mode.asks(listen);
    let reachable = !listen.ip().to_canonical().is_loopback();
    if needed && reachable && !keys.any(Scope::Admin).await? {
        return Err(StartError::NoKey { listen });
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Actor;
    use crate::db::Database;

    #[tokio::test]
    async fn a_service_that_others_can_reach_needs_a_key_to_start() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::new(Database::open(None, folder.path()).await.unwrap());
        let (here, anywhere) = ("127.0.0.1:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap());
        assert!(!key_needed(AuthMode::Auto, here, &keys).await.unwrap());
        assert!(key_needed(AuthMode::Required, here, &keys).await.unwrap());
        assert!(!key_needed(AuthMode::Off, anywhere, &keys).await.unwrap());
        let cli = Actor::part("cli");
        keys.create("app", Scope::Train, &cli).await.unwrap();
        for mode in [AuthMode::Auto, AuthMode::Required] {
            let error = key_needed(mode, anywhere, &keys).await.unwrap_err().to_string();
            assert!(
                error.contains("detoxd key create --scope admin") && error.contains("--auth off"),
                "{error}"
            );
        }
        keys.create("ops", Scope::Admin, &cli).await.unwrap();
        assert!(key_needed(AuthMode::Auto, anywhere, &keys).await.unwrap());
    }
}
