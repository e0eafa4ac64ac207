//! Datasets, keys and the audit on each kind of database: the statements are the same, the databases are not.

use detoxd::{
    access::{Actor, Audit, Keys, Scope},
    datasets::{DatasetError, Datasets, Uploaded},
    jobs::{NewJob, Queue, TrainRequest},
    store::Store,
};
use serde_json::json;

use crate::support::databases;

fn actor() -> Actor {
    Actor::part("test")
}

async fn upload(datasets: &Datasets, number: usize) -> Uploaded {
    let mut upload = datasets.begin(None, None, 1 << 20).await.unwrap();
    let line = format!("{{\"toxic\": \"You idiot, {number}.\", \"neutral\": [\"Please, {number}.\"]}}\n");
    upload.write(line.as_bytes()).await.unwrap();
    upload.finish(&actor()).await.unwrap()
}

#[tokio::test]
async fn datasets_are_kept_once_listed_in_pages_and_stay_while_needed() {
    for database in databases::each().await {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(None, folder.path()).unwrap();
        let datasets = Datasets::new(database.db.clone(), store).with_folder(folder.path().join("uploads"));
        let mut ids = Vec::new();
        for number in 0..5 {
            ids.insert(0, upload(&datasets, number).await.dataset().id.clone());
        }
        let same = upload(&datasets, 4).await;
        assert!(
            matches!(&same, Uploaded::Same(dataset) if dataset.id == ids[0]),
            "{same:?}"
        );
        let (one, two) = tokio::join!(upload(&datasets, 9), upload(&datasets, 9));
        assert_eq!(one.dataset(), two.dataset());
        ids.insert(0, one.dataset().id.clone());

        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = datasets.list(seen.last().map(String::as_str), 4).await.unwrap();
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|dataset| dataset.id));
        }
        assert_eq!(seen, ids);

        let queue = Queue::new(database.db.clone());
        let request: TrainRequest = serde_json::from_value(json!({
            "name": "milder", "base": "micro", "dataset": ids[0], "objective": "cp", "hyperparameters": {},
            "evaluate": { "held_back": 0.1, "max_examples": 64 }, "activate": "never"
        }))
        .unwrap();
        let new = NewJob {
            request,
            priority: 0,
            idempotency_key: None,
            max_attempts: 1,
            created_by: "test".to_owned(),
        };
        // A job and the deletion of its data at once: the one or the other.
        let asker = actor();
        let (submitted, deleted) = tokio::join!(queue.submit(new, &asker), datasets.delete(&ids[0], &asker));
        match (submitted, deleted) {
            (Ok(_), Err(DatasetError::InUse { .. })) => {}
            (Err(detoxd::jobs::QueueError::Db(error)), Ok(())) => assert!(error.is_reference(), "{error}"),
            other => panic!("{other:?}"),
        }
        database.drop().await;
    }
}

#[tokio::test]
async fn keys_are_found_listed_and_revoked_and_the_audit_has_it_all() {
    for database in databases::each().await {
        let keys = Keys::new(database.db.clone());
        let (first, secret) = keys.create("first", Scope::Train, &actor()).await.unwrap();
        let (second, _) = keys.create("second", Scope::Admin, &actor()).await.unwrap();
        let holder = keys.holder(secret.expose()).await.unwrap().unwrap();
        assert_eq!((holder.id, holder.scope), (first.id.clone(), Scope::Train));
        assert_eq!(keys.list(None, 1).await.unwrap(), std::slice::from_ref(&second));
        let rest = keys.list(Some(&second.id), 9).await.unwrap();
        assert_eq!(rest, std::slice::from_ref(&first));
        keys.revoke(&first.id, &actor()).await.unwrap();
        assert_eq!(keys.holder(secret.expose()).await.unwrap(), None);
        assert!(keys.any(Scope::Admin).await.unwrap() && !keys.any(Scope::Train).await.unwrap());
        let audit = Audit::new(database.db.clone());
        let acts = audit.list(None, 9).await.unwrap();
        let told: Vec<_> = acts
            .iter()
            .map(|act| (&*act.action, &*act.subject, act.detail.as_deref()))
            .collect();
        assert_eq!(
            told,
            [
                ("key.revoke", &*first.id, None),
                ("key.create", &*second.id, Some("admin")),
                ("key.create", &*first.id, Some("train")),
            ]
        );
        assert_eq!(audit.list(Some(&acts[1].id), 9).await.unwrap(), acts[2..]);
        database.drop().await;
    }
}
