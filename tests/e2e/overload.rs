//! More than the model can do.

use std::time::{Duration, Instant};

use super::{Service, serve_with};

/// Status, `Retry-After`, and how long it took.
fn ask(service: &Service, text: &str) -> (u16, Option<u64>, Duration) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let started = Instant::now();
    let response = agent
        .post(format!("http://{}/detoxify", service.address))
        .header("content-type", "application/json")
        .send(serde_json::json!({ "text": text }).to_string())
        .unwrap();
    let after = response
        .headers()
        .get("retry-after")
        .map(|value| value.to_str().unwrap().parse().unwrap());
    (response.status().as_u16(), after, started.elapsed())
}

fn metric(service: &Service, name: &str) -> f64 {
    let mut response = ureq::get(format!("http://{}/metrics", service.address)).call().unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

#[test]
fn what_would_wait_too_long_is_refused_at_once_and_texts_that_need_no_model_are_not() {
    // Nobody may wait, and nothing is remembered: while one text is with the model, others are refused.
    let service = serve_with(&[
        "--max-queue-wait",
        "1ms",
        "--rewrite-cache-bytes",
        "0",
        "--timeout",
        "60s",
    ]);
    let toxic = "You stupid fool, close the window.";
    assert_eq!(ask(&service, toxic).0, 200);
    let sentences: Vec<String> = (0..400)
        .map(|number| format!("You are a stupid fool, Anna forgot the letter {number} yesterday."))
        .collect();
    let long = sentences.join(" ");
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| ask(&service, &long));
        while !busy.is_finished() && metric(&service, "detoxd_engine_running") == 0.0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut refused = 0;
        while !busy.is_finished() {
            let (status, after, took) = ask(&service, toxic);
            if status == 503 {
                refused += 1;
                assert!(after.is_some_and(|seconds| seconds >= 1), "when to come back");
                assert!(took < Duration::from_secs(1), "{took:?}");
                assert_eq!(ask(&service, "The door is open.").0, 200);
            }
        }
        assert!(refused > 0, "nothing was refused");
        assert_eq!(busy.join().unwrap().0, 200, "who was let in is carried through");
    });
    assert_eq!(ask(&service, toxic).0, 200, "as before");
}
