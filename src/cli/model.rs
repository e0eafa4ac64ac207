//! Stub.
/// Arguments of `detoxd model`.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {}

/// Runs `detoxd model`.
pub fn run(_: ModelArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
