//! The life of a listening service: serve until told to stop, then drain.

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{AppState, router};

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request that was running has been answered.
    Complete,
    /// Time was up with this many still running.
    Cut {
        /// Requests that were not answered.
        running: i64,
    },
}

/// Serves on `listener` until `stop` is cancelled. Then `/health/ready` says no, nothing new is
/// accepted, and running requests get `patience` to finish.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    stop: CancellationToken,
    patience: Duration,
) -> io::Result<Drained> {
    let drain = {
        let (state, stop) = (Arc::clone(&state), stop.clone());
        async move {
            stop.cancelled().await;
            state.drain();
        }
    };
    let serving = axum::serve(listener, router(Arc::clone(&state))).with_graceful_shutdown(drain);
    let time_is_up = async {
        stop.cancelled().await;
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        ended = serving.into_future() => ended.map(|()| Drained::Complete),
        () = time_is_up => Ok(Drained::Cut { running: state.metrics.running.get() }),
    }
}
