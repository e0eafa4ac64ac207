//! What a worker makes of a finished training, with a program in the place of training and evaluation whose results are known and
//! which waits where a test has something to do in the meantime.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use detoxd::access::Actor;
use detoxd::adapters::{AdapterVersion, Change, Imported, NewVersion, Registry, Source, VersionRecord};
use detoxd::config::{JobsConfig, JudgesConfig, LogConfig};
use detoxd::datasets::{Datasets, Uploaded};
use detoxd::db::Database;
use detoxd::evaluate::{Estimate, Figures, How, Metric, Report, Setting, System};
use detoxd::jobs::child::Program;
use detoxd::jobs::request::{ActivationPolicy, Evaluation, Hyperparameters, ObjectiveName};
use detoxd::jobs::{Ended, Job, JobState, NewJob, Queue, Submitted, TickOutcome, TrainRequest, Worker};
use detoxd::model::fingerprint::fingerprint;
use detoxd::store::Store;
use tokio_util::sync::CancellationToken;

use crate::support::adapters;
use crate::support::databases::{self, TestDatabase};
use crate::support::proxy::Proxy;

/// A worker with everything around it.
struct Bench {
    folder: tempfile::TempDir,
    queue: Queue,
    datasets: Datasets,
    registry: Registry,
    db: Database,
    dataset: String,
}

async fn on_each(test: impl AsyncFn(&Bench)) {
    for database in databases::each().await {
        let bench = Bench::on(database.db.clone()).await;
        test(&bench).await;
        database.drop().await;
    }
}

impl Bench {
    async fn on(db: Database) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(None, folder.path()).unwrap();
        let datasets = Datasets::new(db.clone(), store.clone()).with_folder(folder.path().join("uploads"));
        let mut upload = datasets.begin(None, None, 1 << 20).await.unwrap();
        for page in 0..20 {
            let line =
                format!("{{\"toxic\": \"Read page {page}, you idiot.\", \"neutral\": [\"Read page {page}.\"]}}\n");
            upload.write(line.as_bytes()).await.unwrap();
        }
        let (Uploaded::New(dataset) | Uploaded::Same(dataset)) = upload.finish(&actor()).await.unwrap();
        let bench = Self {
            queue: Queue::new(db.clone()),
            registry: Registry::new(db.clone(), store),
            dataset: dataset.id,
            datasets,
            db,
            folder,
        };
        bench.compares(&comparison(0.7, 0.6));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the evaluation says.
    fn compares(&self, comparison: &Report) {
        let text = serde_json::to_string(comparison).unwrap() + "\n";
        std::fs::write(self.path("comparison"), text).unwrap();
    }

    fn worker(&self) -> Worker {
        self.worker_on(&self.db)
    }

    /// A worker that reaches the database by a way of its own.
    fn worker_on(&self, db: &Database) -> Worker {
        let config = JobsConfig {
            run: true,
            threads: Some(1),
            niceness: 0,
            checkpoint_interval: Duration::from_secs(60),
            lease: Duration::from_secs(3),
            max_attempts: 3,
        };
        let program = Program {
            path: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/program.sh").into(),
            niceness: 0,
            threads: Some(1),
            judges: JudgesConfig::default(),
            log: LogConfig::default(),
        };
        let registry = Registry::new(db.clone(), self.registry.store().clone());
        let backend = (Queue::new(db.clone()), self.datasets.clone(), registry);
        Worker::new(
            backend,
            config,
            self.path("data"),
            program,
            Arc::new(|_: &str| Ok(adapters::model())),
        )
    }

    async fn submit(&self, activate: ActivationPolicy, change: impl FnOnce(&mut TrainRequest)) -> String {
        let mut request = TrainRequest {
            name: "trained".to_owned(),
            base: "micro".to_owned(),
            dataset: self.dataset.clone(),
            objective: ObjectiveName::Sft,
            hyperparameters: Hyperparameters::default(),
            evaluate: Evaluation::default(),
            activate,
        };
        change(&mut request);
        let new = NewJob {
            request,
            priority: 0,
            idempotency_key: None,
            max_attempts: 3,
            created_by: "test".to_owned(),
        };
        match self.queue.submit(new, &actor()).await.unwrap() {
            Submitted::New(job) => job.id,
            Submitted::Same(job) => panic!("{job:?}"),
        }
    }

    async fn job(&self, id: &str) -> Job {
        self.queue.get(id).await.unwrap().unwrap()
    }

    async fn run(&self) -> TickOutcome {
        self.worker().tick(&CancellationToken::new()).await.unwrap()
    }

    /// Registers the micro model's adapter, in a scale of its own, for a base with this fingerprint.
    async fn import(&self, name: &str, base_fingerprint: &str) -> AdapterVersion {
        let files = adapters::scaled(3.0);
        let new = NewVersion {
            name: name.to_owned(),
            sha256: files.sha256(),
            bytes: files.bytes(),
            rank: 4,
            base: "micro".to_owned(),
            base_fingerprint: base_fingerprint.to_owned(),
            source: Source::Import,
            job: None,
            dataset: None,
            dataset_sha256: None,
            hyperparameters: None,
            metrics: None,
        };
        let imported = self.registry.import(&files, &new, &actor()).await.unwrap();
        let Imported::New(version) = imported else {
            panic!("{imported:?}")
        };
        version
    }

    async fn activate(&self, version: &AdapterVersion) {
        let mut transaction = self.db.begin().await.unwrap();
        let change = Change::Activate(version.clone());
        let action = detoxd::adapters::Action::Activate;
        detoxd::adapters::insert_deployment(&mut transaction, change, None, action, None, &actor())
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }

    async fn active(&self) -> String {
        self.registry.deployment().await.unwrap().unwrap().active.to_string()
    }

    async fn trained(&self) -> Vec<VersionRecord> {
        let all = self.registry.list().await.unwrap();
        all.into_iter().filter(|record| record.source == Source::Job).collect()
    }

    async fn audited(&self) -> Vec<String> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT action FROM audit WHERE actor = 'worker' ORDER BY id")
            .fetch_all(self.db.pool())
            .await
            .unwrap();
        rows.into_iter().map(|(action,)| action).collect()
    }

    /// Lets the evaluation wait, runs the job, does something while it waits.
    async fn meanwhile(&self, worker: Worker, act: impl AsyncFnOnce()) -> TickOutcome {
        std::fs::write(self.path("wait"), "").unwrap();
        let running = tokio::spawn(async move { worker.tick(&CancellationToken::new()).await });
        let started = Instant::now();
        while !self.path("evaluating").exists() {
            assert!(started.elapsed() < Duration::from_secs(20), "no evaluation");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        act().await;
        std::fs::remove_file(self.path("wait")).unwrap();
        running.await.unwrap().unwrap()
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.path("calls")).unwrap()
    }
}

fn actor() -> Actor {
    Actor::part("test")
}

fn base() -> String {
    fingerprint(&adapters::model()).unwrap()
}

fn comparison(candidate: f64, baseline: f64) -> Report {
    let figure = |value: f64| Estimate {
        value,
        low: value,
        high: value,
    };
    let system = |adapter: &str, j: f64, difference: Figures| System {
        adapter: adapter.to_owned(),
        examples: 2,
        figures: [
            (Metric::ToxicityRate, figure(0.1)),
            (Metric::Similarity, figure(0.8)),
            (Metric::J, figure(j)),
        ]
        .into(),
        differences: difference,
    };
    let difference = [(Metric::J, figure(candidate - baseline))].into();
    Report {
        setting: Setting {
            model: "micro".to_owned(),
            outputs: How::Greedy,
            toxicity_model: "built-in".to_owned(),
            similarity_model: "built-in".to_owned(),
            skipped: 0,
            neutral_texts: 0,
            samples: 0,
            windows: 0,
            window_tokens: 0,
            resamples: 1,
            seed: 0,
        },
        base: Figures::new(),
        systems: vec![
            system("baseline@1", baseline, Figures::new()),
            system("adapter@1", candidate, difference),
        ],
        note: None,
    }
}

const SUCCEEDED: TickOutcome = TickOutcome::Ran(Ended::As(JobState::Succeeded));

#[tokio::test]
async fn a_better_adapter_is_registered_with_its_lineage_and_activated() {
    on_each(async |bench| {
        let before = bench.import("start", &base()).await;
        bench.activate(&before).await;
        let id = bench.submit(ActivationPolicy::IfBetter, |_| ()).await;
        assert_eq!(bench.run().await, SUCCEEDED);
        let job = bench.job(&id).await;
        let version = job.adapter.unwrap();
        assert_eq!(
            (version.to_string().as_str(), bench.active().await.as_str()),
            ("trained@1", "trained@1")
        );
        let deployment = bench.registry.deployment().await.unwrap().unwrap();
        assert_eq!(
            (deployment.action.as_str(), deployment.actor.as_str()),
            ("policy", "worker")
        );
        assert!(
            deployment.reason.unwrap().contains("start@1"),
            "by its name in the registry"
        );
        let metrics = job.metrics.unwrap();
        assert_eq!(metrics["candidate"]["adapter"], "trained@1");
        assert_eq!(metrics["baseline"]["adapter"], "start@1");
        assert_eq!(metrics["decision"]["activate"], true);

        let record = bench.registry.get(&version).await.unwrap().unwrap();
        let dataset = bench.datasets.get(&bench.dataset).await.unwrap().unwrap();
        assert_eq!(
            (record.job.as_deref(), record.dataset.as_deref()),
            (Some(&*id), Some(&*dataset.id))
        );
        assert_eq!(record.dataset_sha256, Some(dataset.sha256));
        assert_eq!((record.base.as_str(), record.base_fingerprint), ("micro", base()));
        assert_eq!(
            (record.rank, record.hyperparameters.unwrap()["learning_rate"].as_f64()),
            (4, Some(0.5))
        );
        assert_eq!(record.metrics.unwrap()["figures"]["j"]["value"], 0.7);
        assert_eq!(bench.registry.files(&version).await.unwrap(), adapters::files());
        assert_eq!(
            bench.audited().await,
            ["adapter.register", "adapter.activate", "job.succeed"]
        );
        assert!(bench.calls().contains("/baseline --adapter"), "{}", bench.calls());
    })
    .await;
}

#[tokio::test]
async fn a_worse_one_is_registered_and_left_alone() {
    on_each(async |bench| {
        bench.compares(&comparison(0.5, 0.6));
        let before = bench.import("start", &base()).await;
        bench.activate(&before).await;
        let id = bench.submit(ActivationPolicy::IfBetter, |_| ()).await;
        assert_eq!(bench.run().await, SUCCEEDED);
        assert_eq!(
            (bench.active().await.as_str(), bench.trained().await.len()),
            ("start@1", 1)
        );
        let reason = bench.job(&id).await.metrics.unwrap()["decision"]["reason"].to_string();
        assert!(reason.contains("J 0.500"), "{reason}");
    })
    .await;
}

#[tokio::test]
async fn an_activation_during_the_evaluation_is_not_undone_by_it() {
    on_each(async |bench| {
        let before = bench.import("start", &base()).await;
        bench.activate(&before).await;
        let meanwhile = bench.import("meanwhile", &base()).await;
        let id = bench.submit(ActivationPolicy::IfBetter, |_| ()).await;
        let outcome = bench
            .meanwhile(bench.worker(), async || bench.activate(&meanwhile).await)
            .await;
        assert_eq!(outcome, SUCCEEDED);
        assert_eq!(
            (bench.active().await.as_str(), bench.trained().await.len()),
            ("meanwhile@1", 1)
        );
        let decision = bench.job(&id).await.metrics.unwrap()["decision"].clone();
        assert_eq!(decision["activate"], false);
        assert!(
            decision["reason"]
                .as_str()
                .unwrap()
                .contains("meanwhile@1 became active"),
            "{decision}"
        );
    })
    .await;
}

#[tokio::test]
async fn nothing_is_activated_over_an_adapter_of_another_base() {
    on_each(async |bench| {
        let before = bench.import("start", "another base's").await;
        bench.activate(&before).await;
        for policy in [ActivationPolicy::IfBetter, ActivationPolicy::Always] {
            let id = bench.submit(policy, |_| ()).await;
            assert_eq!(bench.run().await, SUCCEEDED);
            let decision = bench.job(&id).await.metrics.unwrap()["decision"].clone();
            assert!(
                decision["reason"].as_str().unwrap().contains("another base"),
                "{decision}"
            );
            assert_eq!(bench.active().await, "start@1");
        }
        assert!(bench.calls().contains("--adapter none --adapter"), "{}", bench.calls());
    })
    .await;
}

#[tokio::test]
async fn always_is_activated_without_a_look_and_without_an_evaluation() {
    on_each(async |bench| {
        bench
            .submit(ActivationPolicy::Always, |request| request.evaluate.held_back = 0.0)
            .await;
        assert_eq!(bench.run().await, SUCCEEDED);
        assert_eq!(bench.active().await, "trained@1");
        assert!(!bench.calls().contains("evaluate"), "{}", bench.calls());
    })
    .await;
}

#[tokio::test]
async fn whoever_lost_the_job_during_the_evaluation_registers_nothing() {
    on_each(async |bench| {
        let id = bench.submit(ActivationPolicy::Always, |_| ()).await;
        let other = Queue::new(bench.db.clone());
        let outcome = bench
            .meanwhile(bench.worker(), async || {
                // As if the heartbeat had not come: the job goes to another worker.
                sqlx::query("UPDATE jobs SET lease_until = 0")
                    .execute(bench.db.pool())
                    .await
                    .unwrap();
                assert_eq!(other.rescue().await.unwrap().len(), 1);
                let claim = other.claim("other", Duration::from_secs(60)).await.unwrap().unwrap();
                assert_eq!(claim.epoch, 2);
            })
            .await;
        assert_eq!(outcome, TickOutcome::Ran(Ended::Lost));
        assert_eq!((bench.trained().await.len(), bench.audited().await.len()), (0, 0));
        assert!(bench.registry.deployment().await.unwrap().is_none());
        let job = bench.job(&id).await;
        assert_eq!((job.state, job.worker.as_deref()), (JobState::Running, Some("other")));
    })
    .await;
}

#[tokio::test]
async fn an_adapter_to_start_from_is_brought_and_one_of_another_base_refused() {
    on_each(async |bench| {
        let own = bench.import("own", &base()).await;
        let foreign = bench.import("foreign", "another base's").await;
        for (wanted, state) in [
            (own.to_string(), JobState::Succeeded),
            (foreign.to_string(), JobState::Failed),
            ("none@0".to_owned(), JobState::Failed),
            ("missing@3".to_owned(), JobState::Failed),
        ] {
            let from = |request: &mut TrainRequest| request.hyperparameters.init_adapter = Some(wanted.clone());
            let id = bench.submit(ActivationPolicy::Never, from).await;
            assert_eq!(bench.run().await, TickOutcome::Ran(Ended::As(state)), "{wanted}");
            let job = bench.job(&id).await;
            assert_eq!(
                job.error.is_some_and(|error| error.kind == "invalid"),
                state == JobState::Failed
            );
        }
        assert!(bench.calls().contains("/initial"), "{}", bench.calls());
    })
    .await;
}

#[tokio::test]
async fn an_evaluation_without_a_result_is_tried_again() {
    on_each(async |bench| {
        std::fs::remove_file(bench.path("comparison")).unwrap();
        let id = bench.submit(ActivationPolicy::Never, |_| ()).await;
        assert_eq!(bench.run().await, TickOutcome::Ran(Ended::As(JobState::Queued)));
        assert_eq!(bench.job(&id).await.error.unwrap().kind, "evaluation");
        assert_eq!(bench.trained().await.len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_away_at_the_end_gets_the_result_once_it_is_back() {
    let Ok(server) = std::env::var("DETOXD_TEST_POSTGRES") else {
        eprintln!("SKIPPED: DETOXD_TEST_POSTGRES is not set");
        return;
    };
    let database = TestDatabase::postgres(&server).await;
    let (credentials, rest) = database.url.rsplit_once('@').unwrap();
    let (host, name) = rest.split_once('/').unwrap();
    let mut proxy = Proxy::to(host).await;
    let url = format!("{credentials}@{}/{name}", proxy.address);
    let far = Database::open(Some(&url), Path::new(".")).await.unwrap();
    let bench = Bench::on(database.db.clone()).await;
    let id = bench.submit(ActivationPolicy::Always, |_| ()).await;
    // For longer than the lease: nobody else has asked for the job.
    let outcome = bench
        .meanwhile(bench.worker_on(&far), async || {
            proxy.cut();
            tokio::time::sleep(Duration::from_secs(4)).await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                proxy.mend().await;
                std::future::pending::<()>().await;
            });
        })
        .await;
    assert_eq!(outcome, SUCCEEDED, "{:?}", bench.job(&id).await);
    assert_eq!(
        (bench.trained().await.len(), bench.active().await.as_str()),
        (1, "trained@1")
    );
    far.pool().close().await;
    database.drop().await;
}
