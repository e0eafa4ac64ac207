//! Stub.
/// Arguments of `detoxd scorer`.
#[derive(Debug, clap::Args)]
pub struct ScorerArgs {}

/// Runs `detoxd scorer`.
pub fn run(_: ScorerArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
