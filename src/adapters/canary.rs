//! What an adapter has to show before a request gets it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::model::lora::LoraModel;

/// Runs the serving model with an adapter that nobody uses yet.
pub trait Canary: Send + Sync + 'static {
    /// Whether the adapter may be used.
    fn run<'a>(
        &'a self,
        adapter: &'a Arc<LoraModel>,
    ) -> Pin<Box<dyn Future<Output = Result<(), CanaryError>> + Send + 'a>>;
}

/// Why it may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanaryError {
    /// What the model computes with it is no number.
    #[error("with it the model computes values that are not finite")]
    NotFinite,
    /// It has no effect.
    #[error("with it the model computes exactly what it computes without: the adapter has no effect")]
    LikeBase,
    /// It could not be tried.
    #[error("it could not be tried: {0}")]
    NotTried(String),
}
