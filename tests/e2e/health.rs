//! `detoxd health`, and the metrics of a worker.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use super::{detoxd, serve};

fn health(server: &str, more: &[&str]) -> std::process::Output {
    detoxd(&["health", "--server", server]).args(more).output().unwrap()
}

#[test]
fn a_service_that_is_up_is_told_from_one_that_is_not() {
    let service = serve();
    let server = format!("http://{}/", service.address);
    let live = health(&server, &[]);
    assert!(live.status.success(), "{live:?}");
    assert!(String::from_utf8_lossy(&live.stdout).contains("live"));
    drop(service);
    let gone = health(&server, &["--ready", "--timeout", "1"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&gone.stderr).contains("/health/ready"),
        "{gone:?}"
    );
}

#[test]
fn a_worker_shows_its_metrics_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = detoxd(&["worker", "--metrics-listen", "127.0.0.1:0", "--log-format", "json"])
        .arg("--data-dir")
        .arg(folder.path())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(worker.stderr.take().unwrap()).lines();
    let address = log
        .find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).ok()?;
            let fields = line.get("fields").unwrap_or(&line);
            Some(fields.get("address")?.as_str()?.to_owned())
        })
        .unwrap();
    std::thread::spawn(move || for _ in log {});
    let server = format!("http://{address}");
    assert!(health(&server, &[]).status.success());
    let metrics = || {
        let mut answer = ureq::get(format!("{server}/metrics")).call().unwrap();
        answer.body_mut().read_to_string().unwrap()
    };
    let mut text = metrics();
    for _ in 0..100 {
        if text.contains("\ndetoxd_database_up 1\n") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        text = metrics();
    }
    for line in [
        "detoxd_database_up 1",
        "detoxd_jobs{state=\"queued\"} 0",
        "detoxd_job_attempts_total{outcome=\"failed\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(text.contains("\nprocess_resident_memory_bytes "));
    worker.kill().unwrap();
    worker.wait().unwrap();
}
