//! The story of a process: read what is wanted, start logging, listen, load, say so, run until
//! told to stop, drain, say how it ended.

use std::{io, process::ExitCode, sync::Arc, time::Instant};

use anyhow::Context;
use detoxd::{
    cli::{self, Command, UsageError, compose, rewrite::RewriteArgs},
    config::{Config, ConfigError, JudgesConfig, LogConfig, ModelConfig, Policy, RawConfig},
    http::{AppState, openapi, server},
    jobs::JobMetrics,
    metrics::Metrics,
    shutdown,
    tasks::{self, follow::Follower},
    telemetry,
};
use tokio::net::TcpListener;

/// Training frees and takes tens of megabytes for every operation of a step; the system's allocator gives each back to
/// the kernel and pays for fresh pages every time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Wrong usage or configuration, as in `sysexits.h`.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    keep_candle_off_its_pool();
    let command = match cli::parse(std::env::args_os().collect()) {
        Ok(command) => command,
        Err(UsageError::Arguments(message)) => {
            // A closed pipe on the other side of `--help` is no failure.
            let _ = message.print();
            return if message.use_stderr() {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
        Err(UsageError::Config(error)) => return failed(&error.into()),
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// candle runs large elementwise operations on a pool of its own whose threads spin while they wait. Ours do not, and the two
/// together on the same processors are slower than either; so candle's gets one thread, unless the user says otherwise.
#[expect(
    clippy::disallowed_methods,
    reason = "the first thing the process does: there is no other thread yet"
)]
fn keep_candle_off_its_pool() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: nothing else runs yet, so nothing reads the environment at the same time.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if let Some(&cli::child::Ended(code)) = error.downcast_ref() {
        return ExitCode::from(code);
    }
    eprintln!("error: {error:#}");
    let usage = error.chain().any(|cause| cause.is::<ConfigError>());
    if usage {
        ExitCode::from(EX_USAGE)
    } else {
        ExitCode::FAILURE
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(settings) => in_runtime(serve(*settings)),
        Command::Worker(args) => in_runtime(worker(*args)),
        Command::Jobs(args) => cli::jobs::run(args),
        Command::Adapter(args) => cli::adapter::run(args),
        Command::Dataset(args) => cli::dataset::run(args),
        Command::Key(args) => in_runtime(cli::key::run(*args)),
        Command::Rewrite(args) => in_runtime(rewrite(*args)),
        Command::Train(args) => {
            telemetry::init(&LogConfig::try_from(args.log.clone())?);
            cli::train::run(*args)
        }
        Command::Evaluate(args) => in_runtime(evaluate(*args)),
        Command::Health(args) => cli::health::run(&args),
        Command::Bench(args) => cli::bench::run(&args),
        Command::Generate(args) => in_runtime(generate(*args)),
        Command::Scorer(args) => cli::scorer::run(args),
        Command::Model(args) => cli::model::run(args),
        Command::Openapi => {
            print!("{}", openapi::document()?);
            Ok(())
        }
    }
}

fn in_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(work);
    // What was given its time to finish and did not is not waited for again.
    runtime.shutdown_background();
    ended
}

async fn serve(settings: RawConfig) -> anyhow::Result<()> {
    let config = Config::try_from(settings)?;
    telemetry::init(&config.log);
    telemetry::log_panics_without_message();
    let stop = shutdown::on_signal().context("cannot listen for signals")?;

    let started = Instant::now();
    let metrics = Arc::new(Metrics::new(config.server.limits.max_concurrent_requests)?);
    let backend = cli::backend::open(&config).await?;
    let job_metrics = JobMetrics::new(metrics.registry())?;
    tokio::spawn(tasks::observe::run(
        backend.jobs.clone(),
        job_metrics.clone(),
        stop.clone(),
    ));
    let worker = cli::backend::worker(&config, &backend, job_metrics)?;
    let registry = backend.registry.clone();
    let state = AppState::new(config.server.limits, config.policy, Arc::clone(&metrics), backend);
    let listener = TcpListener::bind(config.server.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; choose another with --listen",
            config.server.listen
        )
    })?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening, loading the model");
    let serving = tokio::spawn(server::serve(
        listener,
        Arc::clone(&state),
        stop.clone(),
        config.server.shutdown_timeout,
    ));

    // Jobs need no loaded model here: they run in processes of their own.
    let working = worker.map(|worker| {
        let stop = stop.clone();
        tokio::spawn(async move { worker.run(stop).await })
    });

    let name = config.model.model.clone();
    let budget = config.adapters.budget();
    let loading = tokio::spawn(compose::serve(
        config.model,
        config.judges,
        registry,
        budget,
        config.server.rewrite_cache_bytes,
        Arc::clone(&metrics),
    ));
    let mut following = None;
    tokio::select! {
        loaded = loading => {
            let service = loaded??;
            let follower = Follower::new(Arc::clone(&service.residents), config.adapters.follow_interval);
            state.loaded(service);
            let run = |follower: Follower| tokio::spawn(follower.run(Arc::clone(&state.changed), stop.clone()));
            following = follower.map(run);
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(model = name, seconds, "ready: http://{address}/");
        }
        () = stop.cancelled() => tracing::info!("told to stop before the model was loaded"),
    }

    let drained = serving.await??;
    if let Some(following) = following {
        following.await?;
    }
    if let Some(working) = working
        && tokio::time::timeout(config.server.shutdown_timeout, working)
            .await
            .is_err()
    {
        tracing::warn!("time was up before the job was handed back; another worker takes it when its lease is over");
    }
    match drained {
        server::Drained::Complete => tracing::info!("ended; every request was answered"),
        server::Drained::Cut { running } => {
            tracing::warn!(running, "ended; time was up with requests still running");
        }
    }
    Ok(())
}

async fn worker(args: cli::worker::WorkerArgs) -> anyhow::Result<()> {
    telemetry::init(&LogConfig::try_from(args.log.clone())?);
    telemetry::log_panics_without_message();
    let stop = shutdown::on_signal().context("cannot listen for signals")?;
    cli::worker::run(args, stop).await
}

async fn evaluate(args: cli::evaluate::EvaluateArgs) -> anyhow::Result<()> {
    telemetry::init(&LogConfig::try_from(args.log.clone())?);
    cli::evaluate::run(args).await
}

async fn generate(args: cli::generate::GenerateArgs) -> anyhow::Result<()> {
    if let Some(log) = args.log() {
        telemetry::init(&LogConfig::try_from(log.clone())?);
    }
    cli::generate::run(args).await
}

async fn rewrite(args: RewriteArgs) -> anyhow::Result<()> {
    telemetry::init(&LogConfig::try_from(args.log)?);
    let model = ModelConfig::try_from(args.model)?;
    let policy = Policy::try_from(args.policy)?;
    let judges = JudgesConfig::try_from(args.judges)?;
    let service = tokio::task::spawn_blocking(move || compose::build(&model, &judges)).await??;
    let options = args.how.options(&policy, &service)?;
    let input = io::BufReader::new(io::stdin());
    let output = io::stdout().lock();
    Ok(cli::rewrite::run(&service, options, &args.how, input, output).await?)
}
