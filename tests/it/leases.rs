//! Claims and leases: who may write for a job, and what becomes of it when its worker ends, on SQLite and, where there is a server, on Postgres.

use std::collections::BTreeSet;
use std::time::Duration;

use detoxd::adapters::AdapterVersion;
use detoxd::db::now;
use detoxd::jobs::claims::{Healing, Heartbeat, hold, succeed};
use detoxd::jobs::{Claim, ClaimError, JobState, NewJob, Phase};

use crate::support::queue::{Bench, LEASE, NO_LEASE, PROGRESS, error, on_each};

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
