//! Models of a hub by their id, from a hub on loopback that serves folders of the fixtures.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use detoxd::model::catalogue::Checksum;
use serde_json::json;

use super::{ADAPTER, MODEL, detoxd, serving};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SHARDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama-tiny/untied");
const TOKEN: &str = "hf_token_of_the_tests";

/// What the hub has, and what it was asked.
#[derive(Default)]
struct Hub {
    /// Content by path, of `tester/model`.
    files: HashMap<String, Vec<u8>>,
    /// Only for who has [`TOKEN`].
    gated: bool,
    /// Sends half of the weights, the first time.
    breaks: bool,
    /// Names another checksum.
    damaged: bool,
    asked: Mutex<Vec<String>>,
    elsewhere: String,
}

impl Hub {
    fn of(folder: &str) -> Self {
        let mut files = HashMap::new();
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_file() {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
        files.insert("README.md".to_owned(), b"not needed".to_vec());
        Self {
            files,
            ..Self::default()
        }
    }

    /// Its address, and how often it was asked so far.
    fn start(mut self) -> (String, Arc<Self>) {
        // Large files are elsewhere: another name of the same server.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        self.elsewhere = format!("http://localhost:{port}");
        let breaking = self.breaks.then(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        if let Some(listener) = &breaking {
            self.elsewhere = format!("http://{}", listener.local_addr().unwrap());
        }
        let hub = Arc::new(self);
        serving(listener, Router::new().fallback(answer).with_state(hub.clone()));
        if let Some(listener) = breaking {
            let hub = hub.clone();
            std::thread::spawn(move || listener.incoming().for_each(|stream| hub.half(stream.unwrap())));
        }
        (format!("http://127.0.0.1:{port}"), hub)
    }

    /// Half of a file, then the end of the connection; the rest to who asks for it.
    fn half(&self, mut stream: std::net::TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let content = &self.files[path.strip_prefix("/elsewhere/").unwrap()];
        let half = content.len() / 2;
        let (status, length, body) = match head.to_ascii_lowercase().contains(&format!("range: bytes={half}-")) {
            true => ("206 Partial Content", content.len() - half, &content[half..]),
            false => ("200 OK", content.len(), &content[..half]),
        };
        self.asked.lock().unwrap().push(path);
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn listing(&self) -> String {
        let siblings: Vec<_> = self
            .files
            .iter()
            .map(|(name, content)| {
                let sha256 = Checksum::of(&mut &content[..]).unwrap().0.to_string();
                let blob = sha256[..40].to_owned();
                let sha256 = if self.damaged { "f".repeat(64) } else { sha256 };
                let mut sibling = json!({ "rfilename": name, "size": content.len(), "blobId": blob });
                if name.ends_with(".safetensors") {
                    sibling["lfs"] = json!({ "sha256": sha256, "size": content.len() });
                }
                sibling
            })
            .collect();
        json!({ "sha": COMMIT, "siblings": siblings }).to_string()
    }
}

async fn answer(State(hub): State<Arc<Hub>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let headers = request.headers();
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    hub.asked.lock().unwrap().push(path.clone());
    if let Some(name) = path.strip_prefix("/elsewhere/") {
        assert_eq!(token, None, "the token is for the hub alone");
        return content(&hub, name, headers);
    }
    if hub.gated && token != Some(&format!("Bearer {TOKEN}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if path == "/api/models/tester/model/revision/main" || path.ends_with(&format!("/revision/{COMMIT}")) {
        return hub.listing().into_response();
    }
    let Some(name) = path.strip_prefix(&format!("/tester/model/resolve/{COMMIT}/")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if name.ends_with(".safetensors") {
        return Redirect::temporary(&format!("{}/elsewhere/{name}", hub.elsewhere)).into_response();
    }
    content(&hub, name, headers)
}

fn content(hub: &Hub, name: &str, headers: &HeaderMap) -> Response {
    let Some(content) = hub.files.get(name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    if let Some(start) = start {
        return (StatusCode::PARTIAL_CONTENT, content[start..].to_vec()).into_response();
    }
    content.clone().into_response()
}

/// `detoxd rewrite` of one line, with the variables that a hub's tools know.
fn rewrite(model: &str, home: &Path, more: &[(&str, &str)]) -> Output {
    let adapter = if model.contains("micro") || model == MODEL {
        ADAPTER
    } else {
        "none"
    };
    rewriting(&["--model", model, "--adapter", adapter], home, more)
}

/// One line, with the hub's variables as given and no others.
fn rewriting(arguments: &[&str], home: &Path, more: &[(&str, &str)]) -> Output {
    let mut command = detoxd(&["rewrite", "--json"]);
    command.args(arguments);
    for name in [
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
    ] {
        command.env_remove(name);
    }
    command
        .env("HF_HOME", home)
        .envs(more.iter().copied())
        .stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let line = b"You stupid fool, close the window.\n";
    child.stdin.take().unwrap().write_all(line).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    let result: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    result["text"].as_str().unwrap().to_owned()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let (endpoint, hub) = Hub {
        breaks: true,
        ..Hub::of(MODEL)
    }
    .start();
    let expected = rewrite(MODEL, home.path(), &[]);
    let first = rewrite("tester/model", home.path(), &[("HF_ENDPOINT", &endpoint)]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let result: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(result["model"], "model");
    let asked = hub.asked();
    assert_eq!(
        asked.iter().filter(|path| path.contains("elsewhere")).count(),
        2,
        "half, then the rest: {asked:?}"
    );
    assert!(!asked.iter().any(|path| path.ends_with("README.md")), "{asked:?}");

    let folder = home.path().join("hub/models--tester--model");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let snapshot = folder.join("snapshots").join(COMMIT);
    let same = std::fs::read(snapshot.join("model.safetensors")).unwrap();
    assert!(same == hub.files["model.safetensors"]);
    assert!(
        std::fs::read_link(snapshot.join("config.json"))
            .unwrap()
            .starts_with("../../blobs")
    );

    // Asked for the list again, and for no file.
    let second = rewrite("tester/model", home.path(), &[("HF_ENDPOINT", &endpoint)]);
    assert_eq!(text(&second), text(&first));
    assert_eq!(hub.asked().len(), asked.len() + 1);
    // A commit is for ever; without a network what is there is used, with the cache's folder named by either variable.
    let pinned = format!("tester/model@{COMMIT}");
    assert_eq!(
        text(&rewrite(&pinned, home.path(), &[("HF_ENDPOINT", &endpoint)])),
        text(&first)
    );
    assert_eq!(hub.asked().len(), asked.len() + 1);
    let nowhere = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    assert_eq!(text(&rewrite("tester/model", home.path(), &nowhere)), text(&first));
    let cache = home.path().join("hub");
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    assert_eq!(
        text(&rewrite("tester/model", Path::new("/nonexistent"), &offline)),
        text(&first)
    );
    assert!(expected.status.success());
}

#[test]
fn shards_are_fetched_by_their_index() {
    let home = tempfile::tempdir().unwrap();
    let (endpoint, hub) = Hub::of(SHARDED).start();
    let output = rewrite("tester/model", home.path(), &[("HF_ENDPOINT", &endpoint)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shards = hub.asked().iter().filter(|path| path.contains("elsewhere")).count();
    assert_eq!(shards, 3);
    // One shard lost from the cache: fetched alone, or named where there is no network.
    let folder = home.path().join("hub/models--tester--model");
    let shard = folder
        .join("snapshots")
        .join(COMMIT)
        .join("model-00002-of-00003.safetensors");
    std::fs::remove_file(std::fs::canonicalize(&shard).unwrap()).unwrap();
    let offline = rewrite("tester/model", home.path(), &[("HF_HUB_OFFLINE", "1")]);
    let message = complaint(&offline);
    assert!(
        message.contains("model-00002-of-00003.safetensors") && message.contains("HF_HUB_OFFLINE"),
        "{message}"
    );
    assert!(
        rewrite("tester/model", home.path(), &[("HF_ENDPOINT", &endpoint)])
            .status
            .success()
    );
    assert_eq!(hub.asked().iter().filter(|path| path.contains("elsewhere")).count(), 4);
}

#[test]
fn a_gated_model_needs_a_token_from_the_variable_or_the_file() {
    let (endpoint, _) = Hub {
        gated: true,
        ..Hub::of(MODEL)
    }
    .start();
    let home = tempfile::tempdir().unwrap();
    let endpoint = ("HF_ENDPOINT", endpoint.as_str());
    let message = complaint(&rewrite("tester/model", home.path(), &[endpoint]));
    assert!(
        message.contains("tester/model") && message.contains("set HF_TOKEN"),
        "{message}"
    );
    let message = complaint(&rewrite(
        "tester/model",
        home.path(),
        &[endpoint, ("HF_TOKEN", "wrong")],
    ));
    assert!(message.contains("the token has no right"), "{message}");
    assert!(!message.contains("wrong"), "{message}");
    assert!(
        rewrite("tester/model", home.path(), &[endpoint, ("HF_TOKEN", TOKEN)])
            .status
            .success()
    );
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), format!("{TOKEN}\n")).unwrap();
    assert!(rewrite("tester/model", home.path(), &[endpoint]).status.success());
}

#[test]
fn what_cannot_be_had_is_named_with_the_next_step() {
    let home = tempfile::tempdir().unwrap();
    let without = |name: &str, instead: &str| {
        let mut hub = Hub::of(MODEL);
        hub.files.remove(name);
        hub.files.insert(instead.to_owned(), b"x".to_vec());
        hub.start().0
    };
    let damaged = Hub {
        damaged: true,
        ..Hub::of(MODEL)
    };
    let good = Hub::of(MODEL).start().0;
    for (model, endpoint, says) in [
        ("tester/other", &good, "tester/other@main: http://127.0.0.1"),
        ("tester/model@v9", &good, "no such revision"),
        ("tester/model:x.gguf", &good, "no x.gguf"),
        ("tester/model", &without("tokenizer.json", "x.txt"), "no tokenizer.json"),
        (
            "tester/model",
            &without("model.safetensors", "a.gguf"),
            "tester/model@main:a.gguf",
        ),
        (
            "tester/model",
            &without("model.safetensors", "pytorch_model.bin"),
            "only safetensors",
        ),
        ("tester/model", &damaged.start().0, "another SHA-256"),
        (
            "tester/model",
            &"http://127.0.0.1:9".to_owned(),
            "the list of its files",
        ),
    ] {
        let message = complaint(&rewrite(model, home.path(), &[("HF_ENDPOINT", endpoint)]));
        assert!(
            message.contains(says) && message.contains("tester/"),
            "{model}, {says}: {message}"
        );
    }
    let message = complaint(&rewrite("tester/model", home.path(), &[("HF_HUB_OFFLINE", "1")]));
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
}

/// An embedder's pooling is in a folder of its own; older classifiers have a bare vocabulary and pickled weights.
#[test]
fn judges_are_fetched_with_all_that_makes_them() {
    let folder = |name: &str| format!("{}/tests/fixtures/judges/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut embedder = Hub::of(&folder("embed-mean"));
    let pooling = "1_Pooling/config.json";
    let content = std::fs::read(format!("{}/{pooling}", folder("embed-mean"))).unwrap();
    embedder.files.insert(pooling.to_owned(), content);
    let mut classifier = Hub::of(&folder("distilbert"));
    classifier
        .files
        .insert("rust_model.ot".to_owned(), b"not needed".to_vec());
    let judged = |setting: &str, home: &Path, more: &[(&str, &str)]| {
        rewriting(
            &["--model", MODEL, "--adapter", ADAPTER, setting, "tester/model"],
            home,
            more,
        )
    };
    for (setting, hub, needed) in [
        ("--similarity-model", embedder, pooling),
        ("--toxicity-model", classifier, "pytorch_model.bin"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let (endpoint, hub) = hub.start();
        let first = judged(setting, home.path(), &[("HF_ENDPOINT", &endpoint)]);
        assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
        let asked = hub.asked();
        assert!(asked.iter().any(|path| path.ends_with(needed)), "{asked:?}");
        assert!(!asked.iter().any(|path| path.ends_with("rust_model.ot")), "{asked:?}");
        let offline = judged(setting, home.path(), &[("HF_HUB_OFFLINE", "1")]);
        assert_eq!(text(&offline), text(&first));
        let nothing = tempfile::tempdir().unwrap();
        let message = complaint(&judged(setting, nothing.path(), &[("HF_HUB_OFFLINE", "1")]));
        assert!(
            message.contains("tester/model") && message.contains("HF_HUB_OFFLINE"),
            "{message}"
        );
    }
}
