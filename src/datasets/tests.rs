use super::*;

const LINE: &str = r#"{"toxic": "You idiot, read this.", "neutral": ["Please read this."]}"#;

async fn datasets(folder: &Path) -> Datasets {
    let db = Database::open(None, folder).await.unwrap();
    let store = Store::open(None, folder).unwrap();
    Datasets::new(db, store).with_folder(folder.join("uploads"))
}

fn actor() -> Actor {
    Actor::part("test")
}

async fn upload(datasets: &Datasets, text: &str) -> Result<Uploaded, DatasetError> {
    let mut upload = datasets.begin(Some("pairs".to_owned()), None, 1 << 20).await?;
    upload.write(text.as_bytes()).await?;
    upload.finish(&actor()).await
}

/// Files below a folder, the database aside.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.to_string_lossy().contains("detoxd.db") {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn what_was_uploaded_can_be_fetched_and_the_same_bytes_are_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = datasets(folder.path()).await;
    let Uploaded::New(first) = upload(&datasets, LINE).await.unwrap() else {
        panic!("not new");
    };
    assert_eq!((first.examples, first.bytes), (1, LINE.len() as u64));
    assert_eq!(upload(&datasets, LINE).await.unwrap(), Uploaded::Same(first.clone()));
    assert_eq!(files(folder.path()).len(), 1);
    let file = folder.path().join("new/lines.jsonl");
    datasets.fetch(&first.id, &file).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), LINE);
    assert_eq!(datasets.get(&first.id).await.unwrap(), Some(first.clone()));

    datasets.store().put(&key(&first.id), b"other".to_vec()).await.unwrap();
    let error = datasets.fetch(&first.id, &file).await.unwrap_err();
    assert!(matches!(error, DatasetError::Damaged { .. }), "{error}");
    assert!(!file.exists(), "what is damaged must not be trained on");
}

#[tokio::test]
async fn two_uploads_of_the_same_bytes_at_once_are_one_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = datasets(folder.path()).await;
    let (one, two) = tokio::join!(upload(&datasets, LINE), upload(&datasets, LINE));
    let id = |uploaded: Uploaded| match uploaded {
        Uploaded::New(dataset) | Uploaded::Same(dataset) => dataset.id,
    };
    assert_eq!(id(one.unwrap()), id(two.unwrap()));
    assert_eq!(files(folder.path()).len(), 1, "{:?}", files(folder.path()));
}

#[tokio::test]
async fn of_an_upload_that_fails_nothing_stays() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = datasets(folder.path()).await;
    let error = upload(&datasets, &format!("{LINE}\nnothing\n")).await.unwrap_err();
    assert!(matches!(&error, DatasetError::BadLines { lines } if lines[0].number == 2));
    let error = upload(&datasets, "\n \n").await.unwrap_err();
    assert!(matches!(error, DatasetError::Empty));
    let error = upload(&datasets, &"nothing\n".repeat(1000)).await.unwrap_err();
    assert!(matches!(&error, DatasetError::BadLines { lines } if lines.len() == 20));
    let error = datasets.begin(None, Some(11), 10).await.unwrap_err().to_string();
    assert_eq!(error, "the dataset has 11 bytes, at most 10 bytes are accepted");
    let mut sent = datasets.begin(None, None, 10).await.unwrap();
    sent.write(b"0123456789").await.unwrap();
    let error = sent.write(b"0").await.unwrap_err().to_string();
    assert_eq!(
        error,
        "the dataset has at least 11 bytes, at most 10 bytes are accepted"
    );
    drop(sent);
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
    assert!(datasets.list(None, 10).await.unwrap().is_empty());

    datasets.database().pool().close().await;
    upload(&datasets, LINE).await.unwrap_err();
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
}

#[tokio::test]
async fn uploads_at_once_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = datasets(folder.path()).await;
    let mut begun = Vec::new();
    for _ in 0..MAX_UPLOADS {
        begun.push(datasets.begin(None, None, 10).await.unwrap());
    }
    assert!(matches!(datasets.begin(None, None, 10).await, Err(DatasetError::Busy)));
    begun.pop();
    datasets.begin(None, None, 10).await.unwrap();
}

#[tokio::test]
async fn a_dataset_goes_when_no_job_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let datasets = datasets(folder.path()).await;
    let Uploaded::New(dataset) = upload(&datasets, LINE).await.unwrap() else {
        panic!("not new");
    };
    let run = async |statement: String| {
        let query = sqlx::query(sqlx::AssertSqlSafe(statement));
        query.execute(datasets.database().pool()).await.unwrap();
    };
    run(format!(
        "INSERT INTO jobs (id, kind, state, request, name, dataset, created_at, created_by, run_after, max_attempts) \
         VALUES ('j', 'train', 'running', '{{}}', 'n', '{}', 0, 'test', 0, 1)",
        dataset.id
    ))
    .await;
    let error = datasets.delete(&dataset.id, &actor()).await.unwrap_err();
    assert!(
        error.to_string().ends_with("is needed by job j, which is running"),
        "{error}"
    );
    run("UPDATE jobs SET state = 'failed'".to_owned()).await;
    datasets.delete(&dataset.id, &actor()).await.unwrap();
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
    let error = datasets.delete(&dataset.id, &actor()).await.unwrap_err();
    assert!(matches!(error, DatasetError::NotFound { .. }));
    let error = datasets.fetch(&dataset.id, &folder.path().join("x")).await.unwrap_err();
    assert!(matches!(error, DatasetError::NotFound { .. }));
}
