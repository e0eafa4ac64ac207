//! The store in a folder and, when `DETOXD_TEST_S3` is the address of a service that speaks S3, in a bucket.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::{Router, http::StatusCode};
use detoxd::{
    db::new_id,
    store::{Store, StoreError},
};

/// A store, and how to open it with another prefix.
struct TestStore {
    store: Store,
    /// The bucket and how to get at it; none for a folder.
    bucket: Option<(String, Vec<(String, String)>)>,
    folder: tempfile::TempDir,
}

/// One of each kind that there is.
fn each() -> Vec<TestStore> {
    let folder = tempfile::tempdir().unwrap();
    let mut all = vec![TestStore {
        store: Store::open(None, folder.path()).unwrap(),
        bucket: None,
        folder,
    }];
    match std::env::var("DETOXD_TEST_S3") {
        Ok(endpoint) => all.push(in_bucket(&endpoint)),
        Err(_) => eprintln!("SKIPPED on S3: DETOXD_TEST_S3 is not set"),
    }
    all
}

fn in_bucket(endpoint: &str) -> TestStore {
    let bucket = format!("test-{}", new_id());
    ureq::put(format!("{endpoint}/{bucket}")).send_empty().unwrap();
    let variables = variables(endpoint);
    let folder = tempfile::tempdir().unwrap();
    TestStore {
        store: open(&format!("s3://{bucket}/some/prefix"), &variables).unwrap(),
        bucket: Some((bucket, variables)),
        folder,
    }
}

fn variables(endpoint: &str) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "tester"),
        ("AWS_SECRET_ACCESS_KEY", "not-to-be-shown"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn open(url: &str, variables: &[(String, String)]) -> Result<Store, StoreError> {
    Store::open_with(Some(url), Path::new("."), variables.iter().cloned())
}

#[tokio::test]
async fn objects_are_kept_replaced_found_and_removed() {
    for TestStore { store, .. } in each() {
        let missing = store.get("a/b").await.unwrap_err();
        assert!(
            matches!(&missing, StoreError::Missing { key } if key == "a/b"),
            "{missing}"
        );
        assert!(!store.contains("a/b").await.unwrap());
        store.put("a/b", b"first".to_vec()).await.unwrap();
        store.put("a/b", b"second".to_vec()).await.unwrap();
        store.put("a/empty", Vec::new()).await.unwrap();
        assert_eq!(store.get("a/b").await.unwrap(), b"second");
        assert_eq!(store.get("a/empty").await.unwrap(), b"");
        assert!(store.contains("a/b").await.unwrap());
        store.delete("a/b").await.unwrap();
        store.delete("a/b").await.unwrap();
        assert!(!store.contains("a/b").await.unwrap());
        assert!(store.contains("a/empty").await.unwrap());
    }
}

#[tokio::test]
async fn a_file_of_many_parts_comes_back_byte_for_byte() {
    for TestStore { store, folder, .. } in each() {
        let file = folder.path().join("large");
        let bytes: Vec<u8> = (0..20u32 << 20).map(|at| (at ^ (at >> 8)) as u8).collect();
        std::fs::write(&file, &bytes).unwrap();
        store.put_file("large", &file).await.unwrap();
        let copy = folder.path().join("new/copy");
        store.get_file("large", &copy).await.unwrap();
        assert!(std::fs::read(&copy).unwrap() == bytes);

        let nothing = store.get_file("none", &folder.path().join("none")).await.unwrap_err();
        assert!(matches!(nothing, StoreError::Missing { .. }), "{nothing}");
        assert!(!folder.path().join("none").exists());
        let unreadable = store.put_file("other", &folder.path().join("none")).await.unwrap_err();
        assert!(unreadable.to_string().contains("other"), "{unreadable}");
        assert!(!store.contains("other").await.unwrap());
    }
}

#[tokio::test]
async fn a_prefix_keeps_two_services_in_one_bucket_apart() {
    for test in each() {
        let Some((bucket, variables)) = test.bucket else {
            continue;
        };
        test.store.put("key", b"mine".to_vec()).await.unwrap();
        let whole = open(&format!("s3://{bucket}"), &variables).unwrap();
        assert_eq!(whole.get("some/prefix/key").await.unwrap(), b"mine");
        let other = open(&format!("s3://{bucket}/other"), &variables).unwrap();
        assert!(!other.contains("key").await.unwrap());

        let absent = open("s3://no-such-bucket-here", &variables).unwrap();
        let error = absent.put("key", b"lost".to_vec()).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Missing { .. } | StoreError::Failed { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn denied_access_says_what_to_look_at_and_shows_no_key() {
    let denying = Router::new().fallback(|| async {
        let body = "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>tester</AWSAccessKeyId></Error>";
        (StatusCode::FORBIDDEN, body)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, denying).into_future());
    let store = open("s3://bucket", &variables(&endpoint)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for error in [
        store.put_file("key", file.path()).await.unwrap_err(),
        store.put("key", vec![1]).await.unwrap_err(),
        store.get("key").await.unwrap_err(),
    ] {
        let message = error.to_string();
        assert!(message.contains("AWS_SECRET_ACCESS_KEY"), "{message}");
        assert!(
            !message.contains("tester") && !message.contains("not-to-be-shown"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn a_service_that_is_away_fails_within_its_time() {
    let store = open("s3://bucket", &variables("http://127.0.0.1:1")).unwrap();
    let started = Instant::now();
    let error = store.get("key").await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(
        matches!(&error, StoreError::Failed { key, .. } if key == "key"),
        "{error}"
    );
    assert!(!error.to_string().contains("not-to-be-shown"), "{error}");
}

#[test]
fn plain_http_is_refused_unless_allowed() {
    let mut variables = variables("http://127.0.0.1:1");
    variables.retain(|(name, _)| name != "AWS_ALLOW_HTTP");
    // What is refused is the request; the address itself is fine.
    let store = open("s3://bucket", &variables).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    assert!(runtime.block_on(store.get("key")).is_err());
}
