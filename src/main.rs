use clap::Parser;
#[derive(Parser)]
enum Cli {
    Train(detoxd::cli::train::TrainArgs),
}
fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match Cli::parse() {
        Cli::Train(args) => detoxd::cli::train::run(&args),
    }
}
