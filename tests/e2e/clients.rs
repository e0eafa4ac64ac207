//! The clients of the command line against a real service, and a real worker beside it.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{ADAPTER, MODEL, detoxd};

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended is what it should be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A data folder, and a port for the service on it.
struct House {
    folder: tempfile::TempDir,
    port: u16,
    key: Option<String>,
}

impl House {
    fn new() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self {
            folder: tempfile::tempdir().unwrap(),
            port,
            key: None,
        }
    }

    fn data(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// Starts the service, without a worker, and waits until it answers.
    fn serve(&self, more: &[&str]) -> Process {
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = detoxd(&["serve", "--model", MODEL, "--adapter", ADAPTER, "--run-jobs", "false"]);
        command
            .args(["--listen", &listen, "--data-dir", self.data()])
            .args(more);
        let process = start(command);
        let begun = Instant::now();
        while ureq::get(format!("http://{listen}/health/ready")).call().is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the service does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        process
    }

    fn worker(&self) -> Process {
        start(detoxd(&[
            "worker",
            "--model",
            MODEL,
            "--data-dir",
            self.data(),
            "--checkpoint-interval",
            "1s",
        ]))
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = detoxd(arguments);
        command.env("DETOXD_SERVER", format!("http://127.0.0.1:{}", self.port));
        match &self.key {
            Some(key) => command.env("DETOXD_API_KEY", key),
            None => command.env_remove("DETOXD_API_KEY"),
        };
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that goes well prints.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What a command that fails says.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    fn lines(&self) -> PathBuf {
        let file = self.folder.path().join("pairs.jsonl");
        let line =
            |n: u32| format!("{{\"toxic\": \"You idiot, read page {n}.\", \"neutral\": [\"Read page {n}.\"]}}\n");
        std::fs::write(&file, (10..90).map(line).collect::<String>()).unwrap();
        file
    }

    fn submit(&self, data: &Path, name: &str, steps: u32) -> String {
        self.ok(&[
            "jobs",
            "submit",
            "--name",
            name,
            "--dataset",
            data.to_str().unwrap(),
            "--set",
            &format!("max_steps={steps}"),
            "--set",
            "epochs=1000",
            "--set",
            "batch_tokens=256",
            "--set",
            "lora_rank=4",
            "--evaluate",
            "false",
        ])
    }
}

fn start(mut command: std::process::Command) -> Process {
    let mut child = command.spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    // The log must be read for as long as it is written.
    std::thread::spawn(move || for _ in log.lines() {});
    Process(child)
}

#[test]
fn a_job_is_submitted_watched_listed_cancelled_and_tried_again() {
    let house = House::new();
    let down = house.fails(&["jobs", "list"]);
    assert!(down.contains("detoxd serve") && down.contains("--server"), "{down}");
    let _service = house.serve(&[]);
    let data = house.lines();

    let id = house.submit(&data, "milder", 30);
    assert_eq!(house.json(&["jobs", "show", &id])["status"], "queued");
    let datasets = house.json(&["dataset", "list"]);
    assert_eq!(
        (&datasets["datasets"][0]["rows"], &datasets["datasets"][0]["name"]),
        (&80.into(), &"pairs.jsonl".into())
    );
    house.ok(&["jobs", "cancel", &id]);
    let watched = house.fails(&["jobs", "watch", &id]);
    assert!(watched.contains("cancelled"), "{watched}");
    house.ok(&["jobs", "retry", &id]);
    assert!(house.fails(&["jobs", "retry", &id]).contains("queued"));

    let _worker = house.worker();
    let watched = house.ok(&["jobs", "watch", &id]);
    assert!(watched.starts_with("succeeded: milder@1"), "{watched}");
    let table = house.ok(&["jobs", "list", "--status", "succeeded"]);
    let row = table.lines().nth(1).unwrap();
    assert!(
        table.starts_with("ID") && row.contains(&id) && row.contains("milder@1"),
        "{table}"
    );
    // Everything a program needs, a line an event.
    let events = house.ok(&["jobs", "watch", &id, "--json"]);
    let last: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["status"], &last["progress"]["step"]),
        (&"succeeded".into(), &30.into())
    );

    let wrong = house.fails(&[
        "jobs",
        "submit",
        "--name",
        "a b",
        "--dataset",
        "none",
        "--set",
        "learning_rate=7",
    ]);
    for field in ["name: ", "dataset: ", "hyperparameters.learning_rate: "] {
        assert!(wrong.contains(field), "{wrong}");
    }
    assert!(house.fails(&["jobs", "show", "unknown"]).contains("no job"));
    std::fs::write(&data, "{\"toxic\": 1}\n").unwrap();
    let bad = house.fails(&["dataset", "upload", data.to_str().unwrap()]);
    assert!(bad.contains("line 1: "), "{bad}");
}

#[test]
fn a_watch_outlasts_the_service() {
    let house = House::new();
    let service = house.serve(&[]);
    let id = house.submit(&house.lines(), "milder", 400);
    let _worker = house.worker();
    let mut watch = Process(house.command(&["jobs", "watch", &id, "--json"]).spawn().unwrap());
    let mut events = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    let job: Value = serde_json::from_str(&events.next().unwrap().unwrap()).unwrap();
    assert_eq!(job["id"], id);
    drop(service);
    let _service = house.serve(&[]);
    let rest: Vec<String> = events.map(Result::unwrap).collect();
    let last: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
    assert_eq!(last["status"], "succeeded", "{last}");
    assert!(watch.0.wait().unwrap().success());
}

#[test]
fn a_service_for_others_needs_a_key_and_serves_whoever_has_it() {
    let mut house = House::new();
    let data = house.data().to_owned();
    let storage = ["--data-dir", data.as_str()];
    let open = ["serve", "--model", MODEL, "--adapter", ADAPTER, "--listen", "0.0.0.0:0"];
    let refused = house.fails(&[&open[..], &storage].concat());
    assert!(
        refused.contains("detoxd key create --scope admin") && refused.contains("--auth off"),
        "{refused}"
    );

    let create = |name, scope| [&["key", "create", "--name", name, "--scope", scope][..], &storage].concat();
    let admin = house.ok(&create("ops", "admin"));
    assert!(admin.starts_with("dtx_") && admin.len() == 36, "{admin}");
    let app = house.ok(&create("chat", "use"));
    let _service = house.serve(&["--auth", "required"]);
    let lines = house.lines();
    let upload = ["dataset", "upload", lines.to_str().unwrap()];
    let without = house.fails(&upload);
    assert!(
        without.contains("scope `train`") && without.contains("--api-key"),
        "{without}"
    );
    house.key = Some(app);
    assert!(house.fails(&upload).contains("this one has scope `use`"));
    house.key = Some(admin);
    house.ok(&upload);

    let listed = house.ok(&[&["key", "list"][..], &storage].concat());
    let row = listed.lines().find(|line| line.contains("ops")).unwrap();
    let id = row.split_whitespace().next().unwrap();
    house.ok(&[&["key", "revoke", id][..], &storage].concat());
    let begun = Instant::now();
    while house.run(&["jobs", "list"]).status.success() {
        assert!(begun.elapsed() < Duration::from_secs(3), "a revoked key still works");
    }
    assert!(house.fails(&["jobs", "list"]).contains("revoked"));
}

/// A client that declares more than is accepted is answered before it has sent it; one that does not is stopped.
#[test]
fn a_dataset_of_gigabytes_is_refused_without_being_read() {
    let house = House::new();
    let _service = house.serve(&["--max-dataset-bytes", "1000000"]);
    let file = house.folder.path().join("huge.jsonl");
    // A sparse file: 10 GB that take no room.
    std::fs::File::create(&file).unwrap().set_len(10 << 30).unwrap();
    let begun = Instant::now();
    let refused = house.fails(&["dataset", "upload", file.to_str().unwrap()]);
    assert!(
        refused.contains("10737418240 bytes, at most 1000000 bytes"),
        "{refused}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));

    let endless = std::fs::File::open(&file).unwrap();
    let mut body = std::io::Read::take(endless, 3_000_000);
    let url = format!("http://127.0.0.1:{}/datasets", house.port);
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .new_agent();
    let sent = agent
        .post(url)
        .header("content-type", "application/x-ndjson")
        .send(ureq::SendBody::from_reader(&mut body));
    let mut answer = String::new();
    sent.unwrap()
        .into_body()
        .into_reader()
        .read_to_string(&mut answer)
        .unwrap();
    assert!(answer.contains("at most 1000000 bytes are accepted"), "{answer}");
}

#[test]
fn an_adapter_is_imported_activated_rolled_back_exported_and_deleted() {
    let house = House::new();
    let _service = house.serve(&[]);
    let active = || {
        house.json(&["adapter", "list"])["deployment"]["active"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(active(), "adapter@1");
    house.ok(&["adapter", "import", ADAPTER, "--name", "other"]);
    let shown = house.json(&["adapter", "show", "other@1"]);
    assert_eq!((&shown["source"], &shown["name"]), (&"import".into(), &"other".into()));
    let wrong = house.fails(&["adapter", "activate", "other@1", "--expected", "other@7"]);
    assert!(wrong.contains("adapter@1") && wrong.contains("other@7"), "{wrong}");
    house.ok(&["adapter", "activate", "other@1", "--expected", "adapter@1"]);
    assert_eq!(active(), "other@1");
    let history = house.ok(&["adapter", "history"]);
    assert!(history.lines().nth(1).unwrap().contains("other@1"), "{history}");
    house.ok(&["adapter", "rollback", "--expected", "other@1"]);
    assert_eq!(active(), "adapter@1");

    house.ok(&["adapter", "traffic", "other@1=0.25", "--shadow", "other@1"]);
    let deployment = &house.json(&["adapter", "list"])["deployment"];
    assert_eq!(
        (&deployment["weights"][0]["weight"], &deployment["shadow"]),
        (&0.25.into(), &"other@1".into())
    );
    house.ok(&["adapter", "traffic"]);
    house.ok(&["adapter", "compare", "adapter@1", "other@1"]);

    let archive = house.folder.path().join("other.tar.gz");
    house.ok(&["adapter", "export", "other@1", "--out", archive.to_str().unwrap()]);
    house.ok(&["adapter", "import", archive.to_str().unwrap(), "--name", "third"]);
    let sha256 = |version: &str| house.json(&["adapter", "show", version])["sha256"].clone();
    assert_eq!(sha256("third@1"), sha256("other@1"));

    house.ok(&["adapter", "pin", "other@1"]);
    house.fails(&["adapter", "delete", "other@1"]);
    house.ok(&["adapter", "unpin", "other@1"]);
    house.ok(&["adapter", "delete", "other@1"]);
    house.fails(&["adapter", "show", "other@1"]);
}
