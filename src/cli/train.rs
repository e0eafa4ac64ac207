//! Stub.
/// Arguments of `detoxd train`.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {}

/// Runs `detoxd train`.
pub fn run(_: TrainArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
