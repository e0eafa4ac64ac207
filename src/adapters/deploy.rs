//! A change of what is served: loaded and tried here, then decided in the database, then made here.

use std::sync::Arc;

use super::deployments::insert_deployment;
use super::load::LoadError;
use super::record::{Action, Change, Deployment, RegistryError};
use super::residents::Residents;
use super::version::AdapterVersion;
use crate::access::Actor;
use crate::db::DbError;

/// Why a change was not made. Then nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The registry does not allow it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A version can't be used.
    #[error("the adapter {version} can't be used: {reason}")]
    Load {
        /// Which.
        version: AdapterVersion,
        /// Why.
        reason: Arc<LoadError>,
    },
    /// There is no registry behind this service.
    #[error("this process serves one adapter for good")]
    Fixed,
}

impl From<DbError> for DeployError {
    fn from(error: DbError) -> Self {
        Self::Registry(error.into())
    }
}

impl Residents {
    /// Makes a change of what is served, for all replicas: its versions are loaded and tried in this process first. Other replicas follow
    /// by themselves.
    ///
    /// # Errors
    /// When a version can't be loaded, does not pass, or another is being loaded; when another version than `expected` is active.
    pub async fn deploy(
        &self,
        change: Change,
        expected: Option<&AdapterVersion>,
        reason: Option<&str>,
        actor: &Actor,
    ) -> Result<Deployment, DeployError> {
        let loader = self.loader().ok_or(DeployError::Fixed)?;
        let registry = loader.registry();
        let active = registry.deployment().await?.map(|last| last.active);
        let active = active.unwrap_or_else(AdapterVersion::none);
        // Before anything is loaded in vain; what counts is the comparison when the change is made.
        if let Some(expected) = expected
            && *expected != active
        {
            return Err(RegistryError::Conflict {
                expected: expected.clone(),
                found: active,
            }
            .into());
        }
        let (change, action, expected) = match change {
            Change::Activate(version) => (Change::Activate(version), Action::Activate, expected.cloned()),
            // To go back from what is active now, and from nothing else.
            Change::Rollback => (
                Change::Activate(registry.before().await?),
                Action::Rollback,
                Some(active),
            ),
            Change::Traffic { weights, shadow } => {
                (Change::Traffic { weights, shadow }, Action::Traffic, expected.cloned())
            }
        };
        let mut held = Vec::new();
        for version in change.versions() {
            let loaded = if version.is_none() {
                continue;
            } else if action == Action::Rollback {
                // Whoever goes back is in a hurry: after the load that is under way, not after another try.
                loader.wait_for(version, false).await
            } else {
                loader.at_once(version).await
            };
            held.push(loaded.map_err(|reason| {
                loader.metrics().activated("failed");
                DeployError::Load {
                    version: version.clone(),
                    reason,
                }
            })?);
        }
        let made = self.make(change, expected.as_ref(), action, reason, actor).await?;
        drop(held);
        Ok(made)
    }

    /// Makes a version the active one as a service starts, if what is deployed is still what it was; waits for other loads.
    ///
    /// # Errors
    /// When it can't be loaded or does not pass; when somebody else changes what is served meanwhile.
    pub async fn start_with(&self, version: &AdapterVersion, actor: &Actor) -> Result<Deployment, DeployError> {
        let loader = self.loader().ok_or(DeployError::Fixed)?;
        let active = loader.registry().deployment().await?.map(|last| last.active);
        let held = if version.is_none() {
            None
        } else {
            let loaded = loader.wait_for(version, false).await;
            Some(loaded.map_err(|reason| DeployError::Load {
                version: version.clone(),
                reason,
            })?)
        };
        let change = Change::Activate(version.clone());
        let expected = active.unwrap_or_else(AdapterVersion::none);
        let made = self.make(change, Some(&expected), Action::Start, None, actor).await?;
        drop(held);
        Ok(made)
    }

    /// In the database, then here. What it needs is in memory.
    async fn make(
        &self,
        change: Change,
        expected: Option<&AdapterVersion>,
        action: Action,
        reason: Option<&str>,
        actor: &Actor,
    ) -> Result<Deployment, DeployError> {
        let registry = self.registry().ok_or(DeployError::Fixed)?;
        let mut transaction = registry.database().begin().await?;
        let made = insert_deployment(&mut transaction, change, expected, action, reason, actor).await?;
        transaction.commit().await.map_err(DbError::from)?;
        self.is_to_follow(made.revision);
        if let Err(error) = self.follow(&made).await {
            // What was changed is in memory; a version that was deployed before and is not followed here yet may not be.
            tracing::warn!(revision = made.revision, %error, "a change is made, and will be followed here later");
        }
        Ok(made)
    }
}

impl Change {
    /// The versions that it needs besides those that are deployed.
    fn versions(&self) -> Vec<&AdapterVersion> {
        match self {
            Self::Activate(version) => vec![version],
            Self::Rollback => Vec::new(),
            Self::Traffic { weights, shadow } => weights.iter().map(|share| &share.adapter).chain(shadow).collect(),
        }
    }
}
