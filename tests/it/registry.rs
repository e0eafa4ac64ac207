//! The registry of adapters on each kind of database: the statements are the same, the databases are not.

use detoxd::access::Actor;
use detoxd::adapters::{
    Action, AdapterFiles, AdapterVersion, Change, Deployment, Imported, NewVersion, Registry, RegistryError, Replica,
    Share, Source, WEIGHTS, insert_deployment,
};
use detoxd::db::now;
use detoxd::store::Store;

use crate::support::databases::{self, TestDatabase};

struct Kept {
    registry: Registry,
    actor: Actor,
    folder: tempfile::TempDir,
    database: TestDatabase,
}

async fn each() -> Vec<Kept> {
    let databases = databases::each().await.into_iter();
    databases
        .map(|database| {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(None, folder.path()).unwrap();
            Kept {
                registry: Registry::new(database.db.clone(), store),
                actor: Actor::anonymous(),
                folder,
                database,
            }
        })
        .collect()
}

fn files(content: &str) -> AdapterFiles {
    AdapterFiles {
        config: b"{}".to_vec(),
        weights: content.as_bytes().to_vec(),
    }
}

fn new(name: &str, files: &AdapterFiles) -> NewVersion {
    NewVersion {
        name: name.to_owned(),
        sha256: files.sha256(),
        bytes: files.bytes(),
        rank: 4,
        base: "micro".to_owned(),
        base_fingerprint: "f".to_owned(),
        source: Source::Import,
        job: None,
        dataset: None,
        dataset_sha256: None,
        hyperparameters: Some(serde_json::json!({ "seed": 3 })),
        metrics: None,
    }
}

fn version(text: &str) -> AdapterVersion {
    text.parse().unwrap()
}

impl Kept {
    async fn import(&self, name: &str, content: &str) -> Imported {
        let files = files(content);
        self.registry
            .import(&files, &new(name, &files), &self.actor)
            .await
            .unwrap()
    }

    async fn change(
        &self,
        change: Change,
        action: Action,
        expected: Option<&str>,
    ) -> Result<Deployment, RegistryError> {
        let expected = expected.map(version);
        let mut transaction = self.registry.database().begin().await?;
        let made = insert_deployment(&mut transaction, change, expected.as_ref(), action, None, &self.actor).await?;
        transaction.commit().await?;
        Ok(made)
    }

    async fn activate(&self, text: &str, expected: Option<&str>) -> Result<Deployment, RegistryError> {
        self.change(Change::Activate(version(text)), Action::Activate, expected)
            .await
    }

    async fn rollback(&self) -> Result<Deployment, RegistryError> {
        self.change(Change::Rollback, Action::Rollback, None).await
    }

    async fn actions(&self) -> Vec<String> {
        let rows: Vec<(String, String)> = sqlx::query_as("SELECT action, subject FROM audit ORDER BY id")
            .fetch_all(self.registry.database().pool())
            .await
            .unwrap();
        rows.into_iter()
            .map(|(action, subject)| format!("{action} {subject}"))
            .collect()
    }
}

#[tokio::test]
async fn the_same_files_are_one_version_and_numbers_are_not_given_twice() {
    for kept in each().await {
        assert_eq!(kept.import("a", "one").await, Imported::New(version("a@1")));
        assert_eq!(kept.import("a", "one").await, Imported::Same(version("a@1")));
        assert_eq!(kept.import("a", "two").await, Imported::New(version("a@2")));
        assert_eq!(kept.import("b", "two").await, Imported::New(version("b@1")));
        let record = kept.registry.get(&version("a@2")).await.unwrap().unwrap();
        assert_eq!(record.hyperparameters, Some(serde_json::json!({ "seed": 3 })));
        assert_eq!(record.created_by, "anonymous");
        assert_eq!(kept.registry.files(&version("a@2")).await.unwrap(), files("two"));

        kept.registry.delete(&version("a@2"), &kept.actor).await.unwrap();
        assert!(kept.registry.get(&version("a@2")).await.unwrap().is_none());
        // Another version has the same files: they stay.
        assert_eq!(kept.registry.files(&version("b@1")).await.unwrap(), files("two"));
        kept.registry.delete(&version("b@1"), &kept.actor).await.unwrap();
        let left = std::fs::read_dir(kept.folder.path().join("store/adapters")).unwrap();
        assert_eq!(left.count(), 1);
        assert_eq!(kept.import("a", "two").await, Imported::New(version("a@3")));
        assert_eq!(
            kept.actions().await,
            [
                "adapter.register a@1",
                "adapter.register a@2",
                "adapter.register b@1",
                "adapter.delete a@2",
                "adapter.delete b@1",
                "adapter.register a@3",
            ]
        );
        kept.database.drop().await;
    }
}

#[tokio::test]
async fn files_that_changed_in_the_store_are_refused() {
    for kept in each().await {
        kept.import("a", "one").await;
        let store = kept.registry.store();
        let key = format!("adapters/{}/{WEIGHTS}", files("one").sha256());
        store.put(&key, b"other".to_vec()).await.unwrap();
        let error = kept.registry.files(&version("a@1")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
        assert!(matches!(
            kept.registry.files(&version("a@9")).await.unwrap_err(),
            RegistryError::Unknown(_)
        ));
        kept.database.drop().await;
    }
}

#[tokio::test]
async fn a_name_means_its_active_version_else_its_newest() {
    for kept in each().await {
        for content in ["one", "two", "three"] {
            kept.import("a", content).await;
        }
        let resolve = async |text: &str| {
            let found = kept.registry.resolve(&text.parse().unwrap()).await.unwrap();
            found.map(|version| version.to_string())
        };
        assert_eq!(resolve("a").await.as_deref(), Some("a@3"));
        kept.activate("a@2", None).await.unwrap();
        assert_eq!(resolve("a").await.as_deref(), Some("a@2"));
        kept.activate("none@0", None).await.unwrap();
        kept.registry.delete(&version("a@3"), &kept.actor).await.unwrap();
        assert_eq!(resolve("a").await.as_deref(), Some("a@2"));
        assert_eq!(resolve("a@1").await.as_deref(), Some("a@1"));
        assert_eq!(resolve("a@3").await, None);
        assert_eq!(resolve("none").await.as_deref(), Some("none@0"));
        assert_eq!(resolve("none@1").await, None);
        assert_eq!(resolve("b").await, None);
        kept.database.drop().await;
    }
}

#[tokio::test]
async fn a_deployment_is_compared_and_set() {
    for kept in each().await {
        kept.import("a", "one").await;
        kept.import("a", "two").await;
        assert_eq!(kept.registry.deployment().await.unwrap(), None);
        assert_eq!(kept.activate("a@1", Some("none@0")).await.unwrap().revision, 1);
        let error = kept.activate("a@2", Some("a@2")).await.unwrap_err();
        assert_eq!(error.to_string(), "expected a@2 to be active, but it is a@1");
        assert!(matches!(
            kept.activate("a@9", None).await.unwrap_err(),
            RegistryError::Unknown(_)
        ));
        assert_eq!(kept.activate("a@2", Some("a@1")).await.unwrap().revision, 2);
        let last = kept.registry.deployment().await.unwrap().unwrap();
        assert_eq!((last.active, last.action), (version("a@2"), Action::Activate));
        assert_eq!(kept.registry.deployments(Some(2), 9).await.unwrap().len(), 1);
        // What failed left no trace.
        assert_eq!(kept.actions().await.len(), 4);
        kept.database.drop().await;
    }
}

#[tokio::test]
async fn of_two_changes_at_once_one_is_refused() {
    for kept in each().await {
        kept.import("a", "one").await;
        let tasks = (0..8).map(|_| kept.activate("a@1", Some("none@0"))).collect();
        let mut made = 0;
        for result in futures(tasks).await {
            match result {
                Ok(_) => made += 1,
                Err(RegistryError::Conflict { .. } | RegistryError::Raced) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(made, 1);
        assert_eq!(kept.registry.deployment().await.unwrap().unwrap().revision, 1);
        kept.database.drop().await;
    }
}

/// All of them, side by side on one task.
async fn futures<T>(tasks: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (Box::pin(task), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (task, done) in &mut tasks {
            if done.is_none() {
                match task.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    tasks.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn a_rollback_goes_to_what_was_active_before_and_is_there() {
    for kept in each().await {
        for content in ["one", "two", "three"] {
            kept.import("a", content).await;
        }
        assert!(matches!(
            kept.rollback().await.unwrap_err(),
            RegistryError::NothingBefore
        ));
        kept.activate("a@1", None).await.unwrap();
        kept.activate("a@2", None).await.unwrap();
        kept.activate("a@3", None).await.unwrap();
        let shadowed = Change::Traffic {
            weights: Vec::new(),
            shadow: Some(version("a@1")),
        };
        kept.change(shadowed, Action::Traffic, None).await.unwrap();
        kept.registry.delete(&version("a@2"), &kept.actor).await.unwrap();
        let back = kept.rollback().await.unwrap();
        assert_eq!((&back.active, back.shadow), (&version("a@1"), None));
        assert_eq!(kept.registry.before().await.unwrap(), version("a@3"));
        kept.database.drop().await;
    }
}

#[tokio::test]
async fn shares_are_checked_and_what_is_deployed_is_not_deleted() {
    for kept in each().await {
        for content in ["one", "two", "three", "four"] {
            kept.import("a", content).await;
        }
        kept.activate("a@1", None).await.unwrap();
        let shares = |shares: &[(&str, f64)], shadow: Option<&str>| Change::Traffic {
            weights: shares
                .iter()
                .map(|(text, weight)| Share {
                    adapter: version(text),
                    weight: *weight,
                })
                .collect(),
            shadow: shadow.map(version),
        };
        for wrong in [
            shares(&[("a@2", 0.7), ("a@3", 0.4)], None),
            shares(&[("a@2", 0.1), ("a@2", 0.1)], None),
            shares(&[("a@1", 0.1)], None),
            shares(&[("a@2", 0.0)], None),
            shares(&[("a@2", f64::NAN)], None),
        ] {
            let error = kept.change(wrong, Action::Traffic, None).await.unwrap_err();
            assert!(matches!(error, RegistryError::Shares(_)), "{error}");
        }
        let right = shares(&[("a@2", 0.7), ("none@0", 0.1), ("a@4", 0.2)], Some("a@3"));
        let deployment = kept.change(right, Action::Traffic, Some("a@1")).await.unwrap();
        assert_eq!(kept.registry.deployment().await.unwrap(), Some(deployment));
        for (text, why) in [
            ("a@1", "active"),
            ("a@2", "part of the traffic"),
            ("a@3", "shadow"),
            ("none@0", "base model"),
        ] {
            let error = kept.registry.delete(&version(text), &kept.actor).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        kept.activate("a@1", None).await.unwrap();
        kept.registry.pin(&version("a@2"), true, &kept.actor).await.unwrap();
        let error = kept.registry.delete(&version("a@2"), &kept.actor).await.unwrap_err();
        assert!(error.to_string().contains("pinned"), "{error}");
        kept.registry.pin(&version("a@2"), false, &kept.actor).await.unwrap();
        kept.registry.delete(&version("a@2"), &kept.actor).await.unwrap();
        assert!(kept.registry.pin(&version("a@2"), true, &kept.actor).await.is_err());
        kept.database.drop().await;
    }
}

#[tokio::test]
async fn processes_say_what_they_serve_and_are_forgotten() {
    for kept in each().await {
        let replica = |id: &str| Replica {
            id: id.to_owned(),
            base: "micro".to_owned(),
            revision: 1,
            active: version("a@1"),
            error: None,
            seen_at: 0,
        };
        kept.registry.report(&replica("one")).await.unwrap();
        kept.registry.report(&replica("two")).await.unwrap();
        let changed = Replica {
            revision: 2,
            active: AdapterVersion::none(),
            error: Some("why".to_owned()),
            ..replica("one")
        };
        kept.registry.report(&changed).await.unwrap();
        let found = kept.registry.replicas().await.unwrap();
        assert_eq!((found[0].revision, found[0].error.as_deref()), (2, Some("why")));
        assert!(found[0].active.is_none() && now() - found[0].seen_at < 10_000);
        kept.registry
            .forget_replicas(now() - 60_000, Some("one"))
            .await
            .unwrap();
        let left: Vec<_> = kept.registry.replicas().await.unwrap();
        assert_eq!(left.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["two"]);
        kept.registry.forget_replicas(now() + 60_000, None).await.unwrap();
        assert!(kept.registry.replicas().await.unwrap().is_empty());
        kept.database.drop().await;
    }
}
