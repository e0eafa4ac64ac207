//! The settings as flags, environment variables and keys of the file. The name of a field is the
//! key in `detoxd.toml`.

use std::{net::SocketAddr, path::PathBuf};

/// Every setting of `detoxd serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct RawConfig {
    /// Where the service listens and what it admits.
    #[command(flatten)]
    pub server: ServerSettings,
    /// The model.
    #[command(flatten)]
    pub model: ModelSettings,
    /// The judges.
    #[command(flatten)]
    pub judges: JudgeSettings,
    /// The policy.
    #[command(flatten)]
    pub policy: PolicySettings,
    /// What is kept, and where.
    #[command(flatten)]
    pub storage: StorageSettings,
    /// Adapters in memory and from where they may be imported.
    #[command(flatten)]
    pub adapters: AdapterSettings,
    /// The jobs that this process runs.
    #[command(flatten)]
    pub jobs: JobSettings,
    /// Who may do what.
    #[command(flatten)]
    pub access: AccessSettings,
    /// The log and the configuration file.
    #[command(flatten)]
    pub log: LogSettings,
}

/// Where the service listens and what it admits.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Service")]
pub struct ServerSettings {
    /// Address and port to listen on.
    #[arg(
        long,
        env = "DETOXD_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,
    /// Longest text accepted, in characters (Unicode code points); a longer one is answered 413.
    #[arg(long, env = "DETOXD_MAX_TEXT_CHARS", value_name = "N", default_value_t = 100_000)]
    pub max_text_chars: usize,
    /// Largest request body accepted, in bytes; a larger one is answered 413.
    #[arg(long, env = "DETOXD_MAX_BODY_BYTES", value_name = "N", default_value_t = 2 * 1024 * 1024)]
    pub max_body_bytes: usize,
    /// Requests in the house at once, waiting or running; more are answered 503 with `Retry-After`.
    #[arg(long, env = "DETOXD_MAX_CONCURRENT_REQUESTS", value_name = "N", default_value_t = 64)]
    pub max_concurrent_requests: usize,
    /// Time that a text with something to rewrite may have to wait for the model, as far as can be foreseen; else it is answered 503
    /// with `Retry-After` at once. Texts with nothing to rewrite never wait.
    #[arg(
        long,
        env = "DETOXD_MAX_QUEUE_WAIT",
        value_name = "DURATION",
        default_value = "1500ms"
    )]
    pub max_queue_wait: String,
    /// Time a request may take, such as `30s` or `500ms`; later it is answered 504. A request's
    /// own `timeout_ms` can only shorten it.
    #[arg(long, env = "DETOXD_TIMEOUT", value_name = "DURATION", default_value = "30s")]
    pub timeout: String,
    /// Time that the model may have work and make no step before `/health/live` answers 503: more than its longest step takes.
    #[arg(long, env = "DETOXD_MAX_STALL", value_name = "DURATION", default_value = "60s")]
    pub max_stall: String,
    /// Memory for rewrites of sentences that were seen before, in bytes; 0 remembers none. They are held in memory only.
    #[arg(long, env = "DETOXD_REWRITE_CACHE_BYTES", value_name = "N", default_value_t = 32 * 1024 * 1024)]
    pub rewrite_cache_bytes: u64,
    /// Time that running requests get to finish after SIGTERM or ctrl-c.
    #[arg(
        long,
        env = "DETOXD_SHUTDOWN_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s"
    )]
    pub shutdown_timeout: String,
}

/// Draft tokens where nothing is said.
pub const DRAFT_TOKENS: usize = 16;

/// Tokens in the cache where nothing is said.
pub const KV_CACHE_TOKENS: usize = 4096;

/// Which model, on what, with which adapter.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelSettings {
    /// Folder for models that are fetched [default: $XDG_CACHE_HOME/detoxd, else ~/.cache/detoxd].
    #[arg(long, env = "DETOXD_CACHE_DIR", value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,
    /// A name of the catalogue (`detoxd model list`), a folder in Hugging Face layout, a GGUF file, or a hub id: `owner/name`,
    /// `owner/name@revision`, `owner/name:file.gguf`.
    #[arg(long, env = "DETOXD_MODEL", value_name = "MODEL", default_value = "smollm2-135m")]
    pub model: String,
    /// Adapter that rewrites. `auto`: for `serve` what was activated last, at first and for other commands the one shipped for the
    /// model. Else `name@version`, a PEFT folder (a path with a `/` or a folder that exists), or `none` for the bare base model;
    /// `serve` then activates it when it starts.
    #[arg(long, env = "DETOXD_ADAPTER", value_name = "ADAPTER", default_value = "auto")]
    pub adapter: String,
    /// Where the model computes: `cpu` or `cuda:N`.
    #[arg(long, env = "DETOXD_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Number format of activations and of weights that are not quantised.
    #[arg(long, env = "DETOXD_DTYPE", value_name = "DTYPE", default_value = "auto",
          value_parser = ["auto", "f32", "bf16", "f16"])]
    pub dtype: String,
    /// Weights: `auto` keeps or makes them quantised where that is faster, `none` runs them dense.
    #[arg(long, env = "DETOXD_QUANTIZE", value_name = "HOW", default_value = "auto",
          value_parser = ["auto", "none"])]
    pub quantize: String,
    /// Threads of the model; without it, one for each physical core.
    #[arg(long, env = "DETOXD_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Most tokens of the source that are put to the test in one step as a guess of what the rewrite copies, 0 to 64; 0 turns that off.
    /// Texts are the same with any number; how many are worth their time is measured.
    #[arg(long, env = "DETOXD_DRAFT_TOKENS", value_name = "N", default_value_t = DRAFT_TOKENS)]
    pub draft_tokens: usize,
    /// Tokens whose keys and values may be held at once, of all sentences in the batch at their longest; more wait. On a GPU the memory for
    /// them is taken at the start.
    #[arg(long, env = "DETOXD_KV_CACHE_TOKENS", value_name = "N", default_value_t = KV_CACHE_TOKENS)]
    pub kv_cache_tokens: usize,
}

/// Who judges texts.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Judges")]
pub struct JudgeSettings {
    /// Who says how toxic a text is: the scorer in the binary, or a sequence classifier (BERT, RoBERTa, XLM-RoBERTa, DistilBERT, DeBERTa-v2/v3): a
    /// folder in Hugging Face layout or a hub id, `owner/name` or `owner/name@revision`.
    #[arg(long, env = "DETOXD_TOXICITY_MODEL", value_name = "MODEL", default_value = BUILT_IN)]
    pub toxicity_model: String,
    /// Labels of the classifier that mean toxic, with commas between; without it they are known by their names.
    #[arg(long, env = "DETOXD_TOXICITY_LABEL", value_name = "LABEL")]
    pub toxicity_label: Option<String>,
    /// Who says how much of the meaning a rewrite keeps: the scorer in the binary, or a sentence-embedding model (the same architectures,
    /// as sentence-transformers writes them): a folder or a hub id.
    #[arg(long, env = "DETOXD_SIMILARITY_MODEL", value_name = "MODEL", default_value = BUILT_IN)]
    pub similarity_model: String,
}

/// What the settings call the scorers in the binary.
pub const BUILT_IN: &str = "built-in";

/// How texts are treated when a request says nothing else.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Policy")]
pub struct PolicySettings {
    /// A sentence is acted on when its toxicity is above this, 0 to 1.
    #[arg(long, env = "DETOXD_THRESHOLD", value_name = "P", default_value_t = 0.5)]
    pub threshold: f32,
    /// What is done when a sentence is toxic; `block` withholds the whole text.
    #[arg(long, env = "DETOXD_ACTION", value_name = "ACTION", default_value = "rewrite",
          value_parser = ["rewrite", "annotate", "block"])]
    pub action: String,
    /// What is done when no rewrite of a sentence is good enough.
    #[arg(long, env = "DETOXD_FALLBACK", value_name = "ACTION", default_value = "mask",
          value_parser = ["mask", "block", "annotate"])]
    pub fallback: String,
    /// What is done with sentences in another language than English: toxic ones go to the fallback, all are kept, or all are withheld.
    #[arg(long, env = "DETOXD_OTHER_LANGUAGES", value_name = "ACTION", default_value = "fallback",
          value_parser = ["fallback", "keep", "block"])]
    pub other_languages: String,
    /// Rewrites drawn for each toxic sentence, of which the best verified one is taken, 1 to 16.
    #[arg(long, env = "DETOXD_CANDIDATES", value_name = "N", default_value_t = 8)]
    pub candidates: usize,
}

/// What is kept, and where.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageSettings {
    /// Folder for what the service keeps.
    #[arg(
        long,
        env = "DETOXD_DATA_DIR",
        value_name = "FOLDER",
        default_value = "./detoxd-data"
    )]
    pub data_dir: PathBuf,
    /// Database with jobs, adapters and keys, `postgres://user:password@host/name` or `sqlite:///file`
    /// [default: detoxd.db in the data folder].
    #[arg(long, env = "DETOXD_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Store of datasets, checkpoints and adapters, `s3://bucket/prefix` (with the usual AWS_… variables) or `file:///folder`
    /// [default: the folder store in the data folder].
    #[arg(long, env = "DETOXD_STORE", value_name = "URL")]
    pub store: Option<String>,
    /// Largest dataset accepted, in bytes; a larger one is answered 413.
    #[arg(long, env = "DETOXD_MAX_DATASET_BYTES", value_name = "N", default_value_t = 256 * 1024 * 1024)]
    pub max_dataset_bytes: u64,
}

/// Adapters in memory and from where they may be imported.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Adapters")]
pub struct AdapterSettings {
    /// Adapter versions in memory at once, those that running requests still hold and the one being loaded among them, at least 2.
    #[arg(long, env = "DETOXD_MAX_ADAPTERS", value_name = "N", default_value_t = 16)]
    pub max_adapters: usize,
    /// Memory that adapters may take, in bytes.
    #[arg(long, env = "DETOXD_MAX_ADAPTER_BYTES", value_name = "N", default_value_t = 2 * 1024 * 1024 * 1024)]
    pub max_adapter_bytes: u64,
    /// Largest rank of an adapter.
    #[arg(long, env = "DETOXD_MAX_ADAPTER_RANK", value_name = "N", default_value_t = 256)]
    pub max_adapter_rank: usize,
    /// Folder below which adapters may be imported by their path on this machine [default: the folder import in the data folder].
    #[arg(long, env = "DETOXD_IMPORT_DIR", value_name = "FOLDER")]
    pub import_dir: Option<PathBuf>,
    /// Time between two looks at what is to be served; other replicas' activations are followed within it.
    #[arg(long, env = "DETOXD_FOLLOW_INTERVAL", value_name = "DURATION", default_value = "1s")]
    pub follow_interval: String,
}

/// The jobs that a process runs.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobSettings {
    /// Whether `serve` runs training jobs itself, one at a time; `false` leaves them to `detoxd worker`.
    #[arg(long, env = "DETOXD_RUN_JOBS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub run_jobs: bool,
    /// Threads of a training process; without it, one for each physical core.
    #[arg(long, env = "DETOXD_TRAIN_THREADS", value_name = "N")]
    pub train_threads: Option<usize>,
    /// Niceness of a training process, 0 to 19: at 19 it takes what serving leaves.
    #[arg(long, env = "DETOXD_TRAIN_NICENESS", value_name = "N", default_value_t = 19)]
    pub train_niceness: u8,
    /// Time between two checkpoints of a training job.
    #[arg(
        long,
        env = "DETOXD_CHECKPOINT_INTERVAL",
        value_name = "DURATION",
        default_value = "60s"
    )]
    pub checkpoint_interval: String,
    /// Time after which a job whose worker is not heard of goes to another, at least 3 s.
    #[arg(long, env = "DETOXD_LEASE", value_name = "DURATION", default_value = "10s")]
    pub lease: String,
    /// Times a job is tried before it has failed for good.
    #[arg(long, env = "DETOXD_MAX_ATTEMPTS", value_name = "N", default_value_t = 3)]
    pub max_attempts: u32,
}

/// Who may do what.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Access")]
pub struct AccessSettings {
    /// Whether requests need a key: `auto` asks for one unless the service listens on a loopback address.
    #[arg(long, env = "DETOXD_AUTH", value_name = "WHEN", default_value = "auto", value_parser = ["auto", "required", "off"])]
    pub auth: String,
}

/// The log and the configuration file.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Configuration and log")]
pub struct LogSettings {
    /// Configuration file; without it, `detoxd.toml` of the current folder if there is one.
    #[arg(long, env = "DETOXD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of the log on stderr.
    #[arg(long, env = "DETOXD_LOG_FORMAT", value_name = "FORMAT", default_value = "text",
          value_parser = ["text", "json"])]
    pub log_format: String,
    /// What is logged: a level, or directives such as `info,detoxd::engine=debug`.
    #[arg(long, env = "DETOXD_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}
