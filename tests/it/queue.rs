//! The rules of the queue, on SQLite and, where there is a server, on Postgres.

use std::collections::BTreeSet;
use std::time::Duration;

use detoxd::adapters::AdapterVersion;
use detoxd::jobs::claims::{Healing, Heartbeat, hold, succeed};
use detoxd::jobs::{ClaimError, JobFilter, JobState, NewJob, QueueError, Submitted};

use crate::support::queue::{LEASE, NO_LEASE, actor, error, on_each};

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
