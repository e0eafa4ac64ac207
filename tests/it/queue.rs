//! The rules of the queue, on SQLite and, where there is a server, on Postgres.

use std::collections::BTreeSet;
use std::time::Duration;

use detoxd::access::Actor;
use detoxd::adapters::AdapterVersion;
use detoxd::db::{Database, new_id, now};
use detoxd::jobs::claims::{Healing, Heartbeat, hold, succeed};
use detoxd::jobs::request::{ActivationPolicy, Evaluation, Hyperparameters, ObjectiveName};
use detoxd::jobs::{
    Claim, ClaimError, Job, JobError, JobFilter, JobState, NewJob, Phase, Progress, Queue, QueueError, Submitted,
    TrainRequest,
};

use crate::support::databases::{self, TestDatabase};

const LEASE: Duration = Duration::from_secs(30);
/// Runs out at once.
const NO_LEASE: Duration = Duration::ZERO;

/// A queue with a dataset that jobs may name.
struct Bench {
    queue: Queue,
    db: Database,
    dataset: String,
}

/// Runs a test on each kind of database.
async fn on_each(test: impl AsyncFn(&Bench)) {
    for database in databases::each().await {
        let bench = Bench::on(&database).await;
        test(&bench).await;
        database.drop().await;
    }
}

impl Bench {
    async fn on(database: &TestDatabase) -> Self {
        let (db, dataset) = (database.db.clone(), new_id());
        sqlx::query("INSERT INTO datasets (id, sha256, examples, bytes, created_at, created_by) VALUES ($1, 'x', 1, 1, 0, 'test')")
            .bind(&dataset)
            .execute(db.pool())
            .await
            .unwrap();
        Self {
            queue: Queue::new(db.clone()),
            db,
            dataset,
        }
    }

    fn new_job(&self, name: &str) -> NewJob {
        NewJob {
            request: TrainRequest {
                name: name.to_owned(),
                base: "micro".to_owned(),
                dataset: self.dataset.clone(),
                objective: ObjectiveName::Cp,
                hyperparameters: Hyperparameters {
                    learning_rate: Some(0.0003),
                    ..Hyperparameters::default()
                },
                evaluate: Evaluation::default(),
                activate: ActivationPolicy::Never,
            },
            priority: 0,
            idempotency_key: None,
            max_attempts: 3,
            created_by: "asker".to_owned(),
        }
    }

    async fn put(&self, new: NewJob) -> Job {
        match self.queue.submit(new, &actor()).await.unwrap() {
            Submitted::New(job) => job,
            Submitted::Same(job) => panic!("not new: {job:?}"),
        }
    }

    async fn claim(&self) -> Option<Claim> {
        self.queue.claim("worker", LEASE).await.unwrap()
    }

    async fn job(&self, id: &str) -> Job {
        self.queue.get(id).await.unwrap().unwrap()
    }

    /// A job that waits for its time is due now.
    async fn forget_pauses(&self) {
        sqlx::query("UPDATE jobs SET run_after = 0")
            .execute(self.db.pool())
            .await
            .unwrap();
    }

    async fn audited(&self) -> Vec<(String, String)> {
        sqlx::query_as("SELECT action, subject FROM audit ORDER BY id")
            .fetch_all(self.db.pool())
            .await
            .unwrap()
    }
}

fn actor() -> Actor {
    Actor::part("asker")
}

fn error(kind: &str) -> JobError {
    JobError {
        kind: kind.to_owned(),
        message: "it went wrong".to_owned(),
    }
}

const PROGRESS: Progress = Progress {
    step: 3,
    steps: 40,
    loss: 1.5,
    tokens_per_second: 600.0,
    eta_seconds: 74.0,
};

#[tokio::test]
async fn a_submitted_job_is_queued_and_in_the_audit() {
    on_each(async |bench| {
        let new = bench.new_job("polite");
        let job = bench.put(new.clone()).await;
        assert_eq!((job.state, &job.request), (JobState::Queued, &new.request));
        assert_eq!((job.attempts, job.epoch, job.max_attempts), (0, 0, 3));
        assert_eq!(bench.job(&job.id).await, job);
        assert_eq!(bench.audited().await, [("job.submit".to_owned(), job.id)]);
        assert_eq!(bench.queue.get("no-such-job").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn higher_priorities_first_then_in_the_order_they_came() {
    on_each(async |bench| {
        let mut expected = Vec::new();
        for priority in [0, 5, -1, 5, 0] {
            let job = bench
                .put(NewJob {
                    priority,
                    ..bench.new_job("a")
                })
                .await;
            expected.push((-priority, job.id));
        }
        expected.sort();
        for (_, id) in expected {
            assert_eq!(bench.claim().await.unwrap().job.id, id);
        }
        assert_eq!(bench.claim().await, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_job_is_claimed_exactly_once_among_sixteen_workers() {
    on_each(async |bench| {
        let mut jobs = BTreeSet::new();
        for _ in 0..80 {
            jobs.insert(bench.put(bench.new_job("a")).await.id);
        }
        let workers: Vec<_> = (0..16)
            .map(|number| {
                let queue = bench.queue.clone();
                tokio::spawn(async move {
                    let mut claimed = Vec::new();
                    while let Some(claim) = queue.claim(&format!("worker-{number}"), LEASE).await.unwrap() {
                        assert_eq!((claim.epoch, claim.job.attempts), (1, 1));
                        claimed.push(claim.job.id);
                    }
                    claimed
                })
            })
            .collect();
        let mut claimed = Vec::new();
        for worker in workers {
            claimed.extend(worker.await.unwrap());
        }
        assert_eq!(claimed.len(), jobs.len(), "a job was claimed twice");
        assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), jobs);
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_writes_nothing() {
    on_each(async |bench| {
        let id = bench.put(bench.new_job("a")).await.id;
        let late = bench.queue.claim("late", NO_LEASE).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
        assert_eq!(
            bench.queue.rescue().await.unwrap(),
            [(id.clone(), JobState::Queued)],
            "the lease ran out"
        );
        // While nobody has the job, and when another worker has it; also one that took the late one's name.
        for next in [None, Some("other"), Some("late")] {
            if let Some(next) = next {
                bench.queue.claim(next, NO_LEASE).await.unwrap().unwrap();
            }
            let before = bench.job(&id).await;
            assert_writes_nothing(bench, &late).await;
            assert_eq!(bench.job(&id).await, before);
            tokio::time::sleep(Duration::from_millis(3)).await;
            bench.queue.rescue().await.unwrap();
            bench.forget_pauses().await;
        }
    })
    .await;
}

async fn assert_writes_nothing(bench: &Bench, late: &Claim) {
    let queue = &bench.queue;
    assert_eq!(queue.heartbeat(late, LEASE).await.unwrap(), Heartbeat::Lost);
    let lost = |result: Result<(), ClaimError>| assert!(matches!(result, Err(ClaimError::Lost)), "{result:?}");
    lost(queue.progress(late, &PROGRESS).await);
    lost(queue.phase(late, Phase::Registering).await);
    lost(queue.checkpoint(late, "stale.tar", 9).await.map(drop));
    lost(queue.release(late).await.map(drop));
    lost(queue.fail(late, &error("failed"), Healing::Possible).await.map(drop));
    lost(queue.fail(late, &error("invalid"), Healing::Impossible).await.map(drop));
    lost(queue.cancelled(late).await.map(drop));
    let mut transaction = bench.db.begin().await.unwrap();
    lost(hold(&mut transaction, late).await);
    lost(
        succeed(&mut transaction, late, &AdapterVersion::new("a", 1), None)
            .await
            .map(drop),
    );
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_heartbeat_keeps_the_job() {
    on_each(async |bench| {
        bench.put(bench.new_job("a")).await;
        let claim = bench.queue.claim("worker", NO_LEASE).await.unwrap().unwrap();
        let held = Heartbeat::Held {
            cancel_requested: false,
        };
        assert_eq!(bench.queue.heartbeat(&claim, LEASE).await.unwrap(), held);
        assert_eq!(bench.queue.rescue().await.unwrap(), []);
        bench.queue.progress(&claim, &PROGRESS).await.unwrap();
        bench.queue.phase(&claim, Phase::Training).await.unwrap();
        let job = bench.job(&claim.job.id).await;
        assert_eq!((job.progress, job.phase), (Some(PROGRESS), Some(Phase::Training)));
        assert!(job.revision > claim.job.revision && job.heartbeat_at >= claim.job.heartbeat_at);
    })
    .await;
}

#[tokio::test]
async fn a_rescue_counts_as_an_attempt_and_the_last_one_makes_a_dead_letter() {
    on_each(async |bench| {
        let new = NewJob {
            max_attempts: 2,
            ..bench.new_job("a")
        };
        let id = bench.put(new).await.id;
        for (attempt, then) in [(1, JobState::Queued), (2, JobState::Failed)] {
            let claim = bench.queue.claim("worker", NO_LEASE).await.unwrap().unwrap();
            assert_eq!((claim.job.attempts, claim.epoch), (attempt, attempt));
            tokio::time::sleep(Duration::from_millis(3)).await;
            assert_eq!(bench.queue.rescue().await.unwrap(), [(id.clone(), then)]);
        }
        let job = bench.job(&id).await;
        assert_eq!(job.error.unwrap().kind, "lost");
        assert!(job.finished_at.is_some());
        assert_eq!(bench.claim().await, None);
    })
    .await;
}

#[tokio::test]
async fn a_worker_known_to_have_ended_loses_its_job_before_its_lease_is_over() {
    on_each(async |bench| {
        let (first, second) = (
            bench.put(bench.new_job("a")).await.id,
            bench.put(bench.new_job("b")).await.id,
        );
        let lease = Duration::from_secs(60);
        let ended = bench.queue.claim("ended", lease).await.unwrap().unwrap();
        let alive = bench.queue.claim("alive", lease).await.unwrap().unwrap();
        assert_eq!((&ended.job.id, &alive.job.id), (&first, &second));
        assert_eq!(bench.queue.rescue_from("nobody").await.unwrap(), []);
        let rescued = bench.queue.rescue_from("ended").await.unwrap();
        assert_eq!(rescued, [(first.clone(), JobState::Queued)]);
        assert_writes_nothing(bench, &ended).await;
        assert_eq!(bench.job(&second).await.state, JobState::Running);
        // Before jobs that came later, and with the attempt spent.
        let again = bench.queue.claim("next", lease).await.unwrap().unwrap();
        assert_eq!((again.job.id, again.job.attempts), (first, 2));
    })
    .await;
}

#[tokio::test]
async fn handing_a_job_back_spends_no_attempt() {
    on_each(async |bench| {
        let new = NewJob {
            max_attempts: 1,
            ..bench.new_job("a")
        };
        bench.put(new).await;
        for epoch in 1..6 {
            let claim = bench.claim().await.unwrap();
            assert_eq!((claim.job.attempts, claim.epoch), (1, epoch));
            assert_eq!(bench.queue.release(&claim).await.unwrap(), JobState::Queued);
        }
        let claim = bench.claim().await.unwrap();
        bench.queue.checkpoint(&claim, "1.tar", 1).await.unwrap();
        bench.queue.release(&claim).await.unwrap();
        assert_eq!(
            bench.claim().await.unwrap().job.checkpoint,
            Some(("1.tar".to_owned(), 1))
        );
    })
    .await;
}

#[tokio::test]
async fn what_may_heal_is_tried_again_after_a_pause_and_what_may_not_is_not() {
    on_each(async |bench| {
        let new = NewJob {
            max_attempts: 2,
            ..bench.new_job("a")
        };
        let id = bench.put(new).await.id;
        let claim = bench.claim().await.unwrap();
        let state = bench.queue.fail(&claim, &error("failed"), Healing::Possible).await;
        assert_eq!(state.unwrap(), JobState::Queued);
        let job = bench.job(&id).await;
        assert!(
            (7_000..11_000).contains(&(job.run_after - now())),
            "{}",
            job.run_after - now()
        );
        assert_eq!((job.error, job.finished_at), (Some(error("failed")), None));
        assert_eq!(bench.claim().await, None, "not due yet");
        bench.forget_pauses().await;
        let claim = bench.claim().await.unwrap();
        let state = bench.queue.fail(&claim, &error("killed"), Healing::Possible).await;
        assert_eq!(state.unwrap(), JobState::Failed, "that was the last attempt");

        bench.put(bench.new_job("a")).await;
        let claim = bench.claim().await.unwrap();
        let state = bench.queue.fail(&claim, &error("invalid"), Healing::Impossible).await;
        assert_eq!(state.unwrap(), JobState::Failed, "at once");
        let job = bench.job(&claim.job.id).await;
        assert!(job.finished_at.is_some() && job.attempts == 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_key_and_request_is_the_same_job() {
    on_each(async |bench| {
        let keyed = |name: &str, asker: &str| NewJob {
            idempotency_key: Some("key".to_owned()),
            created_by: asker.to_owned(),
            ..bench.new_job(name)
        };
        let tries: Vec<_> = (0..8)
            .map(|_| {
                let (queue, new) = (bench.queue.clone(), keyed("a", "asker"));
                tokio::spawn(async move { queue.submit(new, &actor()).await.unwrap() })
            })
            .collect();
        let (mut new, mut ids) = (0, BTreeSet::new());
        for submitted in tries {
            let (Submitted::New(job) | Submitted::Same(job)) = &match submitted.await.unwrap() {
                submitted @ Submitted::New(_) => {
                    new += 1;
                    submitted
                }
                same => same,
            };
            ids.insert(job.id.clone());
        }
        assert_eq!((new, ids.len()), (1, 1));
        assert_eq!(bench.audited().await.len(), 1);
        let reused = bench.queue.submit(keyed("b", "asker"), &actor()).await;
        assert!(matches!(reused, Err(QueueError::KeyReused)), "{reused:?}");
        let other = bench.queue.submit(keyed("b", "somebody else"), &actor()).await.unwrap();
        assert!(matches!(other, Submitted::New(_)), "another asker's keys are others");
        bench.put(bench.new_job("a")).await;
        bench.put(bench.new_job("a")).await;
    })
    .await;
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once_and_a_running_one_by_its_worker() {
    on_each(async |bench| {
        let queue = &bench.queue;
        let queued = bench.put(bench.new_job("a")).await;
        let cancelled = queue.cancel(&queued.id, &actor()).await.unwrap();
        assert_eq!(cancelled.state, JobState::Cancelled);
        assert!(cancelled.finished_at.is_some());
        assert_eq!(bench.claim().await, None);

        bench.put(bench.new_job("a")).await;
        let claim = bench.claim().await.unwrap();
        let job = queue.cancel(&claim.job.id, &actor()).await.unwrap();
        assert_eq!((job.state, job.cancel_requested), (JobState::Running, true));
        let heard = Heartbeat::Held { cancel_requested: true };
        assert_eq!(queue.heartbeat(&claim, LEASE).await.unwrap(), heard);
        assert_eq!(queue.cancelled(&claim).await.unwrap(), JobState::Cancelled);

        let again = queue.cancel(&claim.job.id, &actor()).await;
        assert!(
            matches!(again, Err(QueueError::WrongState(JobState::Cancelled))),
            "{again:?}"
        );
        let unknown = queue.cancel("no-such-job", &actor()).await;
        assert!(matches!(unknown, Err(QueueError::NotFound)), "{unknown:?}");
        let actions: Vec<_> = bench.audited().await.into_iter().map(|(action, _)| action).collect();
        assert_eq!(actions, ["job.submit", "job.cancel", "job.submit", "job.cancel"]);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_is_to_be_stopped_is_not_queued_again_by_any_way() {
    on_each(async |bench| {
        for way in ["release", "fail", "rescue"] {
            bench.put(bench.new_job("a")).await;
            let claim = bench.queue.claim("worker", NO_LEASE).await.unwrap().unwrap();
            bench.queue.cancel(&claim.job.id, &actor()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(3)).await;
            match way {
                "release" => drop(bench.queue.release(&claim).await.unwrap()),
                "fail" => drop(
                    bench
                        .queue
                        .fail(&claim, &error("killed"), Healing::Possible)
                        .await
                        .unwrap(),
                ),
                _ => drop(bench.queue.rescue().await.unwrap()),
            }
            let job = bench.job(&claim.job.id).await;
            assert_eq!(job.state, JobState::Cancelled, "{way}");
            assert!(job.finished_at.is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_or_cancelled_job_is_tried_again_from_its_checkpoint() {
    on_each(async |bench| {
        bench.put(bench.new_job("a")).await;
        let claim = bench.claim().await.unwrap();
        let running = bench.queue.retry(&claim.job.id, &actor()).await;
        assert!(
            matches!(running, Err(QueueError::WrongState(JobState::Running))),
            "{running:?}"
        );
        bench.queue.checkpoint(&claim, "20.tar", 20).await.unwrap();
        bench
            .queue
            .fail(&claim, &error("invalid"), Healing::Impossible)
            .await
            .unwrap();

        let job = bench.queue.retry(&claim.job.id, &actor()).await.unwrap();
        assert_eq!((job.state, job.attempts, &job.error), (JobState::Queued, 0, &None));
        assert_eq!(job.finished_at, None);
        let claim = bench.claim().await.unwrap();
        assert_eq!(
            (claim.job.checkpoint.clone(), claim.epoch),
            (Some(("20.tar".to_owned(), 20)), 2)
        );

        bench.queue.cancel(&claim.job.id, &actor()).await.unwrap();
        bench.queue.cancelled(&claim).await.unwrap();
        let job = bench.queue.retry(&claim.job.id, &actor()).await.unwrap();
        assert!(!job.cancel_requested);
        assert!(bench.claim().await.is_some());
        let unknown = bench.queue.retry("no-such-job", &actor()).await;
        assert!(matches!(unknown, Err(QueueError::NotFound)), "{unknown:?}");
    })
    .await;
}

#[tokio::test]
async fn a_checkpoint_gives_back_the_key_of_the_one_before() {
    on_each(async |bench| {
        bench.put(bench.new_job("a")).await;
        let claim = bench.claim().await.unwrap();
        assert_eq!(bench.queue.checkpoint(&claim, "20.tar", 20).await.unwrap(), None);
        let before = bench.queue.checkpoint(&claim, "40.tar", 40).await.unwrap();
        assert_eq!(before.as_deref(), Some("20.tar"));
        assert_eq!(bench.queue.checkpoint(&claim, "40.tar", 40).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn success_is_part_of_the_transaction_that_registers() {
    on_each(async |bench| {
        bench.put(bench.new_job("a")).await;
        let claim = bench.claim().await.unwrap();
        let metrics = serde_json::json!({"j": 0.5});
        bench.queue.checkpoint(&claim, "40.tar", 40).await.unwrap();
        for commit in [false, true] {
            let mut transaction = bench.db.begin().await.unwrap();
            hold(&mut transaction, &claim).await.unwrap();
            let version = AdapterVersion::new("a", 7);
            succeed(&mut transaction, &claim, &version, Some(&metrics))
                .await
                .unwrap();
            if commit {
                transaction.commit().await.unwrap();
            } else {
                transaction.rollback().await.unwrap();
                assert_eq!(bench.job(&claim.job.id).await.state, JobState::Running);
            }
        }
        let job = bench.job(&claim.job.id).await;
        assert_eq!(
            (job.state, job.adapter),
            (JobState::Succeeded, Some(AdapterVersion::new("a", 7)))
        );
        assert_eq!((job.metrics, job.checkpoint), (Some(metrics), None));
        let mut transaction = bench.db.begin().await.unwrap();
        assert!(
            matches!(hold(&mut transaction, &claim).await, Err(ClaimError::Lost)),
            "only once"
        );
    })
    .await;
}

#[tokio::test]
async fn lists_are_filtered_and_paged_from_the_newest() {
    on_each(async |bench| {
        let mut ids = Vec::new();
        for number in 0..7 {
            ids.push(
                bench
                    .put(bench.new_job(if number % 2 == 0 { "even" } else { "odd" }))
                    .await
                    .id,
            );
        }
        bench.claim().await.unwrap();
        ids.reverse();
        let list = async |filter: JobFilter| -> Vec<String> {
            let jobs = bench.queue.list(&filter).await.unwrap();
            jobs.into_iter().map(|job| job.id).collect()
        };
        let page = |before: Option<&String>| JobFilter {
            before: before.cloned(),
            limit: 3,
            ..JobFilter::default()
        };
        let mut paged = list(page(None)).await;
        while let more = list(page(paged.last())).await
            && !more.is_empty()
        {
            assert!(more.len() <= 3);
            paged.extend(more);
        }
        assert_eq!(paged, ids);
        let odd = JobFilter {
            name: Some("odd".to_owned()),
            limit: 9,
            ..JobFilter::default()
        };
        assert_eq!(
            list(odd.clone()).await,
            [ids[1].clone(), ids[3].clone(), ids[5].clone()]
        );
        let before = JobFilter {
            before: Some(ids[3].clone()),
            ..odd
        };
        assert_eq!(list(before).await, [ids[5].clone()]);
        let running = JobFilter {
            states: vec![JobState::Running, JobState::Failed],
            limit: 9,
            ..JobFilter::default()
        };
        assert_eq!(list(running).await, [ids[6].clone()]);
    })
    .await;
}

#[tokio::test]
async fn counts_are_by_state_and_name_the_oldest_that_waits() {
    on_each(async |bench| {
        assert_eq!(bench.queue.counts().await.unwrap(), Default::default());
        bench.put(bench.new_job("a")).await;
        bench.claim().await.unwrap();
        let oldest = bench.put(bench.new_job("a")).await;
        bench.put(bench.new_job("a")).await;
        let counts = bench.queue.counts().await.unwrap();
        let of = |state| counts.of(state);
        assert_eq!(
            (of(JobState::Queued), of(JobState::Running), of(JobState::Failed)),
            (2, 1, 0)
        );
        assert_eq!(counts.oldest_queued_at, Some(oldest.created_at));
    })
    .await;
}

#[tokio::test]
async fn a_worker_in_the_same_process_hears_of_a_new_job() {
    on_each(async |bench| {
        let hears = async || {
            tokio::time::timeout(Duration::from_secs(5), bench.queue.clone().queued())
                .await
                .is_ok()
        };
        let job = bench.put(bench.new_job("a")).await;
        assert!(hears().await);
        bench.queue.cancel(&job.id, &actor()).await.unwrap();
        bench.queue.retry(&job.id, &actor()).await.unwrap();
        assert!(hears().await);
    })
    .await;
}
