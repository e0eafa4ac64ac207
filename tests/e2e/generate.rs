//! `detoxd generate`: paraphrases by a server on loopback and by the micro model, rewrites by the micro model; killed and gone on with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::post};
use detoxd::train::dataset::{self, Example};
use serde_json::{Value, json};

use super::{ADAPTER, MODEL, detoxd, serving};

const KEY: &str = "sk-of-the-tests";
const SENTENCES: [&str; 6] = [
    "The bus to the station leaves at ten today.",
    "Anna forgot the letter on the kitchen table.",
    "We sold the old garden house on Monday.",
    "Please close the window before you go home.",
    "The teacher read the whole book to the children.",
    "My brother cooked soup for all of us yesterday.",
];

/// What the server does with its requests, by their number.
type Behaviour = fn(usize) -> Option<Response>;

struct Server {
    url: String,
    asked: Arc<Asked>,
}

#[derive(Default)]
struct Asked {
    count: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    bodies: Mutex<Vec<Value>>,
    keys: Mutex<Vec<String>>,
}

impl Server {
    fn start(behaviour: Behaviour, slowness: Duration) -> Self {
        let asked = Arc::new(Asked::default());
        let router =
            Router::new()
                .route("/v1/chat/completions", post(answer))
                .with_state((asked.clone(), behaviour, slowness));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        serving(listener, router);
        Self { url, asked }
    }

    fn count(&self) -> usize {
        self.asked.count.load(Ordering::SeqCst)
    }
}

async fn answer(
    State((asked, behaviour, slowness)): State<(Arc<Asked>, Behaviour, Duration)>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let number = asked.count.fetch_add(1, Ordering::SeqCst);
    let running = asked.running.fetch_add(1, Ordering::SeqCst) + 1;
    asked.most.fetch_max(running, Ordering::SeqCst);
    let body: Value = serde_json::from_str(&body).unwrap();
    let prompt = body["messages"].as_array().unwrap().last().unwrap()["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let seed = body["seed"].as_u64().unwrap_or(0);
    let key = headers
        .get("authorization")
        .map_or("", |value| value.to_str().unwrap())
        .to_owned();
    asked.keys.lock().unwrap().push(key);
    asked.bodies.lock().unwrap().push(body);
    tokio::time::sleep(slowness).await;
    asked.running.fetch_sub(1, Ordering::SeqCst);
    if let Some(response) = behaviour(number) {
        return response;
    }
    let (_, sentence) = prompt.rsplit_once(": ").unwrap();
    let bare = sentence.trim_end_matches('.');
    let content = match (prompt.contains("toxic"), seed % 2) {
        (false, 0) => format!("Here are some:\n\n1. \"{bare}, indeed.\"\n2. {sentence}\n3. It is true: {bare}."),
        (false, _) => format!("- Well, {bare}.\n- Completely different words."),
        (true, 0) => format!("1. {bare}, you stupid idiot.\n2. {bare}, indeed."),
        (true, _) => "I'm sorry, but I can't help with that.".to_owned(),
    };
    let message = json!({ "role": "assistant", "content": content });
    axum::Json(json!({ "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }] })).into_response()
}

fn good(_: usize) -> Option<Response> {
    None
}

fn sentences(folder: &Path) -> PathBuf {
    let file = folder.join("sentences.txt");
    std::fs::write(&file, SENTENCES.join("\n")).unwrap();
    file
}

fn paraphrases(server: &Server, data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = detoxd(&[
        "generate",
        "paraphrases",
        "--llm-url",
        &server.url,
        "--llm-model",
        "mock",
        "--seed",
        "4",
    ]);
    command
        .arg("--data")
        .arg(data)
        .arg("--out")
        .arg(out)
        .args(more)
        .env("DETOXD_LLM_KEY", KEY);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(out: &Path) -> String {
    std::fs::read_to_string(out).unwrap()
}

#[test]
fn sets_come_in_the_order_of_the_sentences_ranked_and_filtered() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (sentences(folder.path()), folder.path().join("sets.jsonl"));
    let server = Server::start(good, Duration::from_millis(5));
    let output = paraphrases(&server, &data, &out, &["--parallel", "3"])
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let sets: Vec<Example> = dataset::read(&out).unwrap();
    assert_eq!(
        sets.iter().map(|set| set.anchor.as_str()).collect::<Vec<_>>(),
        SENTENCES
    );
    assert_eq!(
        sets[0].positives,
        [
            "The bus to the station leaves at ten today, indeed.",
            "Well, The bus to the station leaves at ten today.",
            "It is true: The bus to the station leaves at ten today.",
        ]
    );
    assert_eq!(
        sets[0].negatives,
        ["The bus to the station leaves at ten today, you stupid idiot."]
    );
    assert!(
        said.contains("6 sets written") && said.contains("asked 48 (refused 24"),
        "{said}"
    );
    assert!(!said.contains(KEY) && !said.contains("station"), "{said}");

    assert_eq!(server.count(), 6 * 16);
    assert!((2..=3).contains(&server.asked.most.load(Ordering::SeqCst)));
    assert!(
        server
            .asked
            .keys
            .lock()
            .unwrap()
            .iter()
            .all(|key| *key == format!("Bearer {KEY}"))
    );
    let body = server.asked.bodies.lock().unwrap()[0].clone();
    assert_eq!(
        (&body["model"], &body["max_tokens"], &body["top_p"]),
        (&json!("mock"), &json!(150), &json!(0.95))
    );

    // Never over what is there.
    let again = paraphrases(&server, &data, &out, &[]).output().unwrap();
    assert!(!again.status.success() && self::said(&again).contains("--resume"));
}

#[test]
fn what_passes_is_tried_again_to_the_same_sets() {
    fn moody(number: usize) -> Option<Response> {
        match number % 7 {
            0 => Some((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response()),
            2 => Some((StatusCode::INTERNAL_SERVER_ERROR, [("retry-after", "0")], "boom").into_response()),
            _ => None,
        }
    }
    fn garbled_first(number: usize) -> Option<Response> {
        (number == 0).then(|| "<html>".into_response())
    }
    let folder = tempfile::tempdir().unwrap();
    let data = sentences(folder.path());
    let out = |name: &str| folder.path().join(name);
    let server = Server::start(good, Duration::ZERO);
    assert!(
        paraphrases(&server, &data, &out("good"), &[])
            .output()
            .unwrap()
            .status
            .success()
    );
    for (name, behaviour) in [("moody", moody as Behaviour), ("garbled", garbled_first)] {
        let server = Server::start(behaviour, Duration::ZERO);
        let output = paraphrases(&server, &data, &out(name), &["--retries", "20"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(server.count() > 96);
        assert_eq!(read(&out(name)), read(&out("good")));
    }
}

#[test]
fn a_slow_answer_is_given_up_and_asked_for_again() {
    fn slow_first(number: usize) -> Option<Response> {
        if number == 0 {
            std::thread::sleep(Duration::from_millis(1500));
        }
        None
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (sentences(folder.path()), folder.path().join("sets.jsonl"));
    let server = Server::start(slow_first, Duration::ZERO);
    let more = ["--request-timeout", "1", "--limit", "1"];
    let output = paraphrases(&server, &data, &out, &more).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(server.count(), 17);
}

#[test]
fn a_refusal_that_names_its_problem_stops_the_run_and_one_of_a_filter_does_not() {
    fn unauthorised(_: usize) -> Option<Response> {
        let body =
            json!({ "error": { "message": format!("Incorrect API key provided: {KEY}"), "code": "invalid_api_key" } });
        Some((StatusCode::UNAUTHORIZED, body.to_string()).into_response())
    }
    fn broken(_: usize) -> Option<Response> {
        Some(StatusCode::BAD_GATEWAY.into_response())
    }
    fn filtered(number: usize) -> Option<Response> {
        let body = json!({ "error": { "message": "filtered", "code": "content_filter" } });
        (number == 0).then(|| (StatusCode::BAD_REQUEST, body.to_string()).into_response())
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (sentences(folder.path()), folder.path().join("sets.jsonl"));
    let server = Server::start(unauthorised, Duration::ZERO);
    let output = paraphrases(&server, &data, &out, &["--parallel", "1"])
        .output()
        .unwrap();
    let message = said(&output);
    assert!(
        !output.status.success() && message.contains("401: Incorrect API key"),
        "{message}"
    );
    assert!(!message.contains(KEY), "{message}");
    assert!(server.count() < 5);

    let server = Server::start(broken, Duration::ZERO);
    let output = paraphrases(&server, &data, &out, &["--retries", "1"]).output().unwrap();
    assert!(
        !output.status.success() && said(&output).contains("2 attempts"),
        "{}",
        said(&output)
    );

    let server = Server::start(filtered, Duration::ZERO);
    let output = paraphrases(&server, &data, &out, &["--resume"]).output().unwrap();
    assert!(
        output.status.success() && said(&output).contains("6 sets written"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_killed_run_goes_on_to_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = sentences(folder.path());
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let server = Server::start(good, Duration::from_millis(10));
    assert!(
        paraphrases(&server, &data, &whole, &["--parallel", "2"])
            .output()
            .unwrap()
            .status
            .success()
    );
    let mut child = paraphrases(&server, &data, &broken, &["--parallel", "2"])
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while std::fs::read_to_string(&broken).map_or(0, |text| text.lines().count()) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no set");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let done = read(&broken).lines().count();
    assert!((2..6).contains(&done));
    // As if the kill had come in the midst of a line.
    let cut = read(&whole).lines().nth(done).unwrap()[..25].to_owned();
    std::fs::write(&broken, read(&broken) + &cut).unwrap();
    let before = server.count();
    let output = paraphrases(&server, &data, &broken, &["--resume"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(read(&broken), read(&whole));
    assert_eq!(server.count() - before, (6 - done) * 16);
}

#[test]
fn the_local_model_answers_through_its_chat_template() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(Path::new(MODEL).join(name), model.join(name)).unwrap();
    }
    // The micro model knows one thing: to rewrite what stands between its markers.
    let data = folder.path().join("texts.jsonl");
    let texts = [
        "You stupid fool, close the window.",
        "Paul sold the garden on Monday, you idiot.",
    ];
    let lines: Vec<String> = texts.iter().map(|text| json!({ "text": text }).to_string()).collect();
    std::fs::write(&data, lines.join("\n")).unwrap();
    let prompts = folder.path().join("prompts.toml");
    let text = "[sampling]\ntemperature = 0.7\nmax_tokens = 40\n\
        [positives]\nprompt = \"{text}\"\nanswers = 4\nkeep = 2\nmax_toxicity = 0.5\nmin_similarity = 0.3\n\
        [negatives]\nprompt = \"{text}\"\nanswers = 0\nkeep = 1\n";
    std::fs::write(&prompts, text).unwrap();
    let run = |out: &str| {
        let mut command = detoxd(&["generate", "paraphrases", "--model", model.to_str().unwrap(), "--data"]);
        let out = folder.path().join(out);
        command.arg(&data).arg("--out").arg(&out).arg("--prompts").arg(&prompts);
        (command.output().unwrap(), out)
    };
    let (output, _) = run("none");
    assert!(
        !output.status.success() && said(&output).contains("chat template"),
        "{}",
        said(&output)
    );
    let template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let (output, out) = run("first");
    assert!(output.status.success(), "{}", said(&output));
    let sets = dataset::read(&out).unwrap();
    assert_eq!(sets.len(), 2, "{}", said(&output));
    assert!(
        sets[0]
            .positives
            .iter()
            .all(|text| !text.contains("stupid") && text.contains("window"))
    );
    let (_, again) = run("again");
    assert_eq!(read(&again), read(&out), "the same seed");
}

#[test]
fn rewrites_are_sampled_sorted_and_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("pairs.jsonl");
    let line = |toxic: &str| json!({ "toxic": toxic, "neutral": ["Please close the window."] }).to_string();
    let sources = [
        "You stupid fool, close the window.",
        "Paul sold the garden on Monday, you idiot.",
        "The idiot left the door open.",
    ];
    std::fs::write(&data, sources.map(line).join("\n")).unwrap();
    let out = folder.path().join("sets.jsonl");
    let run = |more: &[&str]| {
        let mut command = detoxd(&[
            "generate",
            "rewrites",
            "--model",
            MODEL,
            "--adapter",
            ADAPTER,
            "--samples",
            "4",
        ]);
        command
            .arg("--data")
            .arg(&data)
            .arg("--out")
            .arg(&out)
            .args(more)
            .output()
            .unwrap()
    };
    let output = run(&[]);
    assert!(output.status.success(), "{}", said(&output));
    let whole = read(&out);
    let sets = dataset::read(&out).unwrap();
    assert!(!sets.is_empty() && sets.iter().all(|set| set.negatives.contains(&set.anchor)));
    assert!(!run(&[]).status.success(), "what is there is not written over");
    std::fs::write(&out, &whole[..whole.lines().next().unwrap().len() + 9]).unwrap();
    assert!(run(&["--resume"]).status.success());
    assert_eq!(read(&out), whole);
}
