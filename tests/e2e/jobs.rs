//! Jobs through `detoxd worker`: real processes that are stopped, killed and paused.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use detoxd::access::Actor;
use detoxd::datasets::{Datasets, Uploaded};
use detoxd::db::Database;
use detoxd::jobs::request::{ActivationPolicy, Evaluation, Hyperparameters, ObjectiveName};
use detoxd::jobs::{Job, JobState, NewJob, Queue, Submitted, TrainRequest};
use detoxd::store::Store;

use super::{MODEL, detoxd};

/// A database, a store and a dataset, shared by workers each of which has a data folder of its own, as on machines of their own.
struct Bench {
    folder: tempfile::TempDir,
    db: Database,
    store: Store,
    queue: Queue,
    dataset: String,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("queue.db").display());
        let db = Database::open(Some(&url), folder.path()).await.unwrap();
        let store = Store::open(Some(&store_url(folder.path())), folder.path()).unwrap();
        let datasets = Datasets::new(db.clone(), store.clone()).with_folder(folder.path().join("uploads"));
        let mut upload = datasets.begin(None, None, 1 << 20).await.unwrap();
        for page in 10..90 {
            let line = format!(
                "{{\"toxic\": \"You idiot, read page {page}.\", \"neutral\": [\"Read page {page}.\", \"Please read page {page}.\"]}}\n"
            );
            upload.write(line.as_bytes()).await.unwrap();
        }
        let (Uploaded::New(dataset) | Uploaded::Same(dataset)) = upload.finish(&Actor::part("test")).await.unwrap();
        Self {
            queue: Queue::new(db.clone()),
            db,
            store,
            dataset: dataset.id,
            folder,
        }
    }

    /// A job of so many steps, some 20 ms each.
    async fn submit(&self, name: &str, steps: u64, change: impl FnOnce(&mut NewJob)) -> String {
        let mut new = NewJob {
            request: TrainRequest {
                name: name.to_owned(),
                base: "micro".to_owned(),
                dataset: self.dataset.clone(),
                objective: ObjectiveName::Cp,
                hyperparameters: Hyperparameters {
                    max_steps: Some(steps),
                    epochs: Some(1000.0),
                    batch_tokens: Some(256),
                    warmup_steps: Some(2),
                    lora_rank: Some(4),
                    lora_alpha: Some(8.0),
                    ..Hyperparameters::default()
                },
                evaluate: Evaluation {
                    held_back: 0.0,
                    max_examples: 64,
                },
                activate: ActivationPolicy::Never,
            },
            priority: 0,
            idempotency_key: None,
            max_attempts: 3,
            created_by: "test".to_owned(),
        };
        change(&mut new);
        match self.queue.submit(new, &Actor::part("test")).await.unwrap() {
            Submitted::New(job) => job.id,
            Submitted::Same(job) => panic!("{job:?}"),
        }
    }

    async fn job(&self, id: &str) -> Job {
        self.queue.get(id).await.unwrap().unwrap()
    }

    fn data_dir(&self, machine: &str) -> PathBuf {
        self.folder.path().join(machine)
    }

    fn worker(&self, machine: &str, more: &[&str]) -> Worker {
        let url = format!("sqlite://{}", self.folder.path().join("queue.db").display());
        let data_dir = self.data_dir(machine);
        let mut command = detoxd(&["worker", "--model", MODEL, "--lease", "3s"]);
        command
            .args([
                "--train-threads",
                "1",
                "--database-url",
                &url,
                "--store",
                &store_url(self.folder.path()),
            ])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(more);
        if !more.contains(&"--checkpoint-interval") {
            command.args(["--checkpoint-interval", "50ms"]);
        }
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                *written.lock().unwrap() += &(line + "\n");
            }
        });
        Worker {
            child,
            log,
            reader: Some(reader),
            data_dir,
        }
    }

    /// Waits for a worker that runs one job.
    fn once(&self, machine: &str) -> String {
        let mut worker = self.worker(machine, &["--once"]);
        let status = worker.child.wait().unwrap();
        // What it wrote last may not have been read yet.
        worker.reader.take().unwrap().join().unwrap();
        assert!(status.success(), "{status}: {}", worker.log());
        worker.log()
    }

    async fn until(&self, id: &str, what: &str, is: impl Fn(&Job) -> bool) -> Job {
        let started = Instant::now();
        loop {
            let job = self.job(id).await;
            if is(&job) {
                return job;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "not {what}: {job:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_ended(&self, id: &str) -> Job {
        self.until(id, "ended", |job| job.state.is_final()).await
    }

    /// What a version's files hash to.
    async fn sha256(&self, name: &str) -> Vec<String> {
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT sha256 FROM adapter_versions WHERE name = $1 ORDER BY number")
                .bind(name)
                .fetch_all(self.db.pool())
                .await
                .unwrap();
        rows.into_iter().map(|(sha256,)| sha256).collect()
    }

    async fn audited(&self, action: &str) -> i64 {
        let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM audit WHERE action = $1")
            .bind(action)
            .fetch_one(self.db.pool())
            .await
            .unwrap();
        count
    }
}

fn store_url(folder: &Path) -> String {
    format!("file://{}", folder.join("store").display())
}

/// A running worker that is killed at the end of its test.
struct Worker {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    data_dir: PathBuf,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Already ended is what it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Processes that work in this worker's folder, but for the worker.
    fn children(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter(|&pid| pid != self.child.id())
            .filter(|pid| {
                // One that has ended in the meantime is none.
                let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                arguments.contains(self.data_dir.to_str().unwrap())
            })
            .collect()
    }

    #[track_caller]
    fn until_no_children(&self) {
        let started = Instant::now();
        while !self.children().is_empty() {
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", self.children());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

const STEPS: u64 = 150;

#[tokio::test]
async fn a_job_is_trained_evaluated_and_registered() {
    let bench = Bench::new().await;
    let id = bench
        .submit("polite", 6, |new| new.request.evaluate.held_back = 0.1)
        .await;
    bench.once("a");
    let job = bench.job(&id).await;
    assert_eq!((job.state, &job.error), (JobState::Succeeded, &None));
    assert_eq!(job.adapter.unwrap().to_string(), "polite@1");
    let progress = job.progress.unwrap();
    assert_eq!((progress.step, progress.steps), (6, 6));
    let metrics = job.metrics.unwrap();
    assert_eq!(metrics["candidate"]["examples"], 8, "{metrics}");
    assert_eq!(metrics["decision"]["activate"], false, "{metrics}");
    assert_eq!(bench.audited("job.succeed").await, 1);
    let sha256 = &bench.sha256("polite").await[0];
    let config = bench
        .store
        .get(&format!("adapters/{sha256}/adapter_config.json"))
        .await
        .unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(
        config["base_model_name_or_path"], "micro",
        "by its name, not where it lay"
    );
    assert_eq!(
        entries(&bench.folder.path().join("store/jobs").join(&id)),
        [""; 0],
        "no checkpoint is left"
    );
    assert_eq!(entries(&bench.data_dir("a").join("jobs")), [""; 0], "no folder is left");
    assert!(bench.once("a").contains("no job is due"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_killed_worker_is_finished_by_another_as_if_nothing_had_been() {
    let bench = Bench::new().await;
    let unbroken = bench.submit("unbroken", STEPS, |_| ()).await;
    bench.once("a");
    assert_eq!(bench.job(&unbroken).await.state, JobState::Succeeded);

    let id = bench.submit("broken", STEPS, |_| ()).await;
    let mut first = bench.worker("a", &[]);
    bench
        .until(&id, "at a checkpoint", |job| job.checkpoint.is_some())
        .await;
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let killed = Instant::now();
    first.until_no_children();
    assert_eq!(bench.job(&id).await.state, JobState::Running, "it was killed half-way");

    let second = bench.worker("b", &[]);
    bench.until(&id, "taken up", |job| job.epoch == 2).await;
    assert!(killed.elapsed() < Duration::from_secs(8), "{:?}", killed.elapsed());
    let job = bench.until_ended(&id).await;
    assert_eq!((job.state, job.attempts), (JobState::Succeeded, 2), "{}", second.log());
    assert!(second.log().contains("going on from a checkpoint"), "{}", second.log());
    assert_eq!(bench.sha256("broken").await, bench.sha256("unbroken").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_hands_its_job_back() {
    let bench = Bench::new().await;
    bench.submit("unbroken", STEPS, |_| ()).await;
    bench.once("a");

    let id = bench.submit("broken", STEPS, |new| new.max_attempts = 1).await;
    let mut first = bench.worker("a", &["--checkpoint-interval", "1h"]);
    let job = bench.until(&id, "training", |job| job.progress.is_some()).await;
    let step = job.progress.unwrap().step;
    first.signal("-TERM");
    assert!(first.child.wait().unwrap().success(), "{}", first.log());
    let job = bench.job(&id).await;
    assert_eq!((job.state, job.attempts), (JobState::Queued, 0), "{}", first.log());
    let (_, checkpoint) = job.checkpoint.expect("a checkpoint");
    assert!(
        checkpoint as u64 >= step && (checkpoint as u64) < STEPS,
        "{checkpoint} after {step}"
    );

    let log = bench.once("b");
    assert!(log.contains(&format!("step={checkpoint}")), "{log}");
    assert_eq!(bench.job(&id).await.state, JobState::Succeeded);
    assert_eq!(bench.sha256("broken").await, bench.sha256("unbroken").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stops_and_goes_on_when_it_is_tried_again() {
    let bench = Bench::new().await;
    let actor = Actor::part("test");
    let id = bench.submit("a", 100_000, |_| ()).await;
    let worker = bench.worker("a", &[]);
    bench
        .until(&id, "at a checkpoint", |job| job.checkpoint.is_some())
        .await;
    assert!(bench.queue.cancel(&id, &actor).await.unwrap().cancel_requested);
    let asked = Instant::now();
    let job = bench.until_ended(&id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    worker.until_no_children();

    bench.queue.retry(&id, &actor).await.unwrap();
    bench.until(&id, "running again", |job| job.epoch == 2).await;
    let step = job.checkpoint.unwrap().1;
    bench
        .until(&id, "further than before", |job| {
            job.progress.is_some_and(|progress| progress.step as i64 > step + 1)
        })
        .await;
    assert!(worker.log().contains("going on from a checkpoint"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_paused_for_longer_than_its_lease_publishes_nothing() {
    let bench = Bench::new().await;
    let id = bench.submit("a", STEPS, |_| ()).await;
    let paused = bench.worker("a", &[]);
    bench.until(&id, "training", |job| job.progress.is_some()).await;
    paused.signal("-STOP");
    let other = bench.worker("b", &[]);
    let job = bench.until_ended(&id).await;
    assert_eq!((job.state, job.epoch), (JobState::Succeeded, 2), "{}", other.log());

    paused.signal("-CONT");
    paused.until_no_children();
    let started = Instant::now();
    while !paused.log().contains("job lost") {
        assert!(started.elapsed() < Duration::from_secs(5), "{}", paused.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(bench.job(&id).await, job);
    assert_eq!(
        (bench.sha256("a").await.len(), bench.audited("job.succeed").await),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_try_can_not_heal_fails_at_once() {
    let bench = Bench::new().await;
    type Change = fn(&mut NewJob);
    let cases: [(&str, Change); 4] = [
        ("invalid", |new| new.request.base = "no-such-model".to_owned()),
        ("invalid", |new| {
            new.request.hyperparameters.schedule = Some("no-such-schedule".to_owned())
        }),
        ("invalid", |new| new.request.hyperparameters.max_tokens = Some(1)),
        ("diverged", |new| new.request.hyperparameters.learning_rate = Some(1e30)),
    ];
    for (kind, change) in cases {
        let id = bench.submit("a", 20, change).await;
        let log = bench.once("a");
        let job = bench.job(&id).await;
        assert_eq!((job.state, job.attempts), (JobState::Failed, 1), "{log}");
        assert_eq!(job.error.unwrap().kind, kind, "{log}");
    }
    assert_eq!(bench.sha256("a").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_training_process_is_tried_again_later() {
    let bench = Bench::new().await;
    let id = bench.submit("a", 100_000, |_| ()).await;
    let worker = bench.worker("a", &[]);
    bench.until(&id, "training", |job| job.progress.is_some()).await;
    let children = worker.children();
    let [pid] = children.as_slice() else {
        panic!("{children:?}")
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The 19th field, counted after the name in parentheses.
    let niceness = stat.rsplit(')').next().unwrap().split_whitespace().nth(16);
    assert_eq!(niceness, Some("19"), "{stat}");
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let job = bench
        .until(&id, "queued again", |job| job.state == JobState::Queued)
        .await;
    assert_eq!(job.error.unwrap().kind, "killed");
    assert!(job.run_after > detoxd::db::now() + 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_training_at_a_time_on_a_machine() {
    let bench = Bench::new().await;
    let id = bench.submit("a", 100_000, |_| ()).await;
    let waiting = bench.submit("b", 6, |_| ()).await;
    let _worker = bench.worker("a", &[]);
    bench.until(&id, "training", |job| job.progress.is_some()).await;
    assert!(bench.once("a").contains("another process trains"));
    assert_eq!(bench.job(&waiting).await.state, JobState::Queued);
    bench.once("b");
    assert_eq!(bench.job(&waiting).await.state, JobState::Succeeded);
}
