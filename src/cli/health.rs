//! `detoxd health`: asks a running process how it is, for where there is no other client, such as in a container.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

/// Asks a running service or worker how it is. Ends with 0 when all is well, else with 1.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Its address
    #[arg(
        long,
        env = "DETOXD_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    server: String,
    /// Asks whether it takes requests, not only whether it is up
    #[arg(long)]
    ready: bool,
    /// Time for the answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    timeout: f64,
}

/// Runs the command.
///
/// # Errors
/// When there is no answer, or not a good one.
pub fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let path = if args.ready { "/health/ready" } else { "/health/live" };
    let url = format!("{}{path}", args.server.trim_end_matches('/'));
    let timeout = Duration::try_from_secs_f64(args.timeout).context("--timeout")?;
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .build();
    let mut answer = ureq::Agent::new_with_config(config)
        .get(&url)
        .call()
        .with_context(|| format!("no answer from {url}"))?;
    let body = answer.body_mut().read_to_string().unwrap_or_default();
    if !answer.status().is_success() {
        bail!("{url} answers {}: {}", answer.status().as_u16(), body.trim());
    }
    println!("{}", body.trim());
    Ok(())
}
