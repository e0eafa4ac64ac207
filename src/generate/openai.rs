//! Any server of OpenAI's chat completions: `POST {base}/chat/completions`.
//!
//! One request an answer, since not every server knows `n`. What may pass is tried again: no connection, a time-out, 408, 425, 429, 5xx and
//! answers that are no completion, after waiting exponentially longer, with jitter, and never shorter than `Retry-After`. Any other 4xx
//! ends the run, but for those that are about one prompt: a content filter, a text that is too long.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use ureq::Agent;
use ureq::http::header;

use super::llm::{Answer, Asking, Llm, LlmError, Question};
use crate::outgoing;

/// Most bytes of an answer.
const MAX_BYTES: u64 = 8 << 20;
/// Most letters of what a server says about an error.
const MAX_MESSAGE: usize = 300;
/// The longest wait that is chosen here.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(900);

/// How to speak to a server.
#[derive(Clone)]
pub struct OpenAiSettings {
    /// Up to `/v1`, or the whole address of the completions.
    pub url: String,
    /// What the server calls the model.
    pub model: String,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// More fields of each request.
    pub more: Map<String, Value>,
    /// Requests at once.
    pub parallel: usize,
    /// Longest time for one request.
    pub timeout: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// The first wait before another attempt; each is twice the one before.
    pub first_wait: Duration,
    /// A PEM file of certificate authorities instead of the built-in ones.
    pub certificates: Option<PathBuf>,
}

/// A client; clones share its connections and its limit of requests.
#[derive(Clone)]
pub struct OpenAi {
    agent: Agent,
    settings: Arc<OpenAiSettings>,
    url: String,
    permits: Arc<Semaphore>,
}

/// How one attempt ended.
enum Attempt {
    Answered(Answer),
    Again { reason: String, after: Option<Duration> },
    Failed(LlmError),
}

impl OpenAi {
    /// A client.
    ///
    /// # Errors
    /// When the address is none, the key can't be sent, or the certificates can't be read.
    pub fn new(settings: OpenAiSettings) -> Result<Self, LlmError> {
        let url = completions(&settings.url)?;
        if settings
            .key
            .as_ref()
            .is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(LlmError::Settings(
                "the key has characters in it that no header can carry".to_owned(),
            ));
        }
        let tls =
            outgoing::tls(settings.certificates.as_deref()).map_err(|error| LlmError::Settings(error.to_string()))?;
        let config = Agent::config_builder()
            .user_agent(outgoing::USER_AGENT)
            .http_status_as_error(false)
            // A redirected POST would be a GET, and the key is for one host.
            .max_redirects(0)
            .max_idle_connections_per_host(settings.parallel)
            .max_idle_connections(settings.parallel)
            .timeout_global(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout.min(Duration::from_secs(10))))
            .tls_config(tls)
            .build();
        Ok(Self {
            agent: config.into(),
            permits: Arc::new(Semaphore::new(settings.parallel.max(1))),
            settings: Arc::new(settings),
            url,
        })
    }

    /// Where requests go.
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn answers(&self, question: &Question) -> Result<Vec<Answer>, LlmError> {
        // Dropping the set aborts what still waits.
        let mut tasks = JoinSet::new();
        for number in 0..question.answers {
            let (this, body, prompt) = (self.clone(), self.body(question, number), question.prompt.clone());
            tasks.spawn(async move { this.answer(body, prompt).await });
        }
        let mut answers = Vec::with_capacity(question.answers);
        while let Some(done) = tasks.join_next().await {
            answers.push(done.map_err(|_| LlmError::Broken)??);
        }
        Ok(answers)
    }

    fn body(&self, question: &Question, number: usize) -> String {
        let system = question
            .system
            .iter()
            .map(|text| json!({ "role": "system", "content": text }));
        let user = json!({ "role": "user", "content": question.prompt });
        let messages: Vec<Value> = system.chain([user]).collect();
        // As decimals: 0.95f32 would be written 0.949999988079071.
        let decimal = |number: f32| number.to_string().parse::<f64>().unwrap_or(number.into());
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.settings.model));
        body.insert("messages".to_owned(), json!(messages));
        body.insert("temperature".to_owned(), json!(decimal(question.temperature)));
        body.insert("top_p".to_owned(), json!(decimal(question.top_p)));
        if !self.settings.more.contains_key("max_completion_tokens") {
            body.insert("max_tokens".to_owned(), json!(question.max_tokens));
        }
        if let Some(seed) = question.seed {
            // Some servers read a signed 32-bit number.
            let seed = seed.wrapping_add(number as u64) & 0x7fff_ffff;
            body.insert("seed".to_owned(), json!(seed));
        }
        body.extend(self.settings.more.clone());
        Value::Object(body).to_string()
    }

    async fn answer(&self, body: String, prompt: String) -> Result<Answer, LlmError> {
        // Kept while waiting: a server that is overloaded gets fewer requests for it.
        let _permit = self.permits.acquire().await.map_err(|_| LlmError::Broken)?;
        let (body, prompt): (Arc<str>, Arc<str>) = (body.into(), prompt.into());
        let mut attempts = 0;
        loop {
            let (this, body, prompt) = (self.clone(), body.clone(), prompt.clone());
            let attempt = tokio::task::spawn_blocking(move || this.attempt(&body, &prompt));
            attempts += 1;
            let (reason, after) = match attempt.await.map_err(|_| LlmError::Broken)? {
                Attempt::Answered(answer) => return Ok(answer),
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { reason, after } => (reason, after),
            };
            if attempts > self.settings.retries {
                return Err(LlmError::Exhausted {
                    url: self.url.clone(),
                    attempts,
                    reason,
                });
            }
            let wait = wait(self.settings.first_wait, attempts, after, rand::rng().random());
            tracing::debug!(attempts, reason, wait_ms = wait.as_millis() as u64, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One request. Blocks.
    fn attempt(&self, body: &str, prompt: &str) -> Attempt {
        let again = |reason: String| Attempt::Again { reason, after: None };
        let mut request = self
            .agent
            .post(&self.url)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.settings.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return again(error.to_string()),
        };
        let status = response.status().as_u16();
        let after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?));
        let text = match response.body_mut().with_config().limit(MAX_BYTES).read_to_string() {
            Ok(text) => text,
            Err(error) => return again(format!("the answer broke off: {error}")),
        };
        if (200..300).contains(&status) {
            return match completion(&text) {
                Some(answer) => Attempt::Answered(answer),
                None => again(
                    "its answer is no chat completion; is this the address of an OpenAI-compatible server?".to_owned(),
                ),
            };
        }
        let problem = problem(&text);
        let code = problem.code.as_str();
        if matches!(
            code,
            "content_filter" | "content_policy_violation" | "moderation_blocked"
        ) {
            return Attempt::Answered(Answer::Refused);
        }
        if matches!(code, "context_length_exceeded" | "string_above_max_length") {
            return Attempt::Answered(Answer::TooLong);
        }
        let message = self.shown(&problem.message, prompt);
        if matches!(status, 408 | 425 | 429 | 500..) && code != "insufficient_quota" {
            let reason = format!("{status} {message}").trim().to_owned();
            return Attempt::Again { reason, after };
        }
        Attempt::Failed(LlmError::Rejected {
            url: self.url.clone(),
            status,
            message: match (message.is_empty(), status) {
                (false, _) => message,
                (true, 300..400) => "it redirects; give the address that it redirects to".to_owned(),
                (true, _) => "it does not say why".to_owned(),
            },
        })
    }

    /// What a server says of an error, short, and without the prompt or the key if it quotes them.
    fn shown(&self, message: &str, prompt: &str) -> String {
        let mut message = message.replace(prompt, "…");
        if let Some(key) = self.settings.key.as_deref().filter(|key| !key.is_empty()) {
            message = message.replace(key, "…");
        }
        let line: Vec<&str> = message.split_whitespace().collect();
        line.join(" ").chars().take(MAX_MESSAGE).collect()
    }
}

impl Llm for OpenAi {
    fn ask<'a>(&'a self, question: &'a Question) -> Asking<'a> {
        Box::pin(self.answers(question))
    }
}

/// The address of the completions.
fn completions(url: &str) -> Result<String, LlmError> {
    let url = url.trim().trim_end_matches('/');
    let wrong = || LlmError::Settings("the URL of the LLM must be http://… or https://…, up to /v1".to_owned());
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .ok_or_else(wrong)?;
    if rest.is_empty() || rest.contains(['@', ' ', '?', '#']) {
        return Err(wrong());
    }
    Ok(match rest.split_once('/') {
        _ if url.ends_with("/chat/completions") => url.to_owned(),
        None => format!("{url}/v1/chat/completions"),
        Some(_) => format!("{url}/chat/completions"),
    })
}

/// The answer in a completion.
fn completion(text: &str) -> Option<Answer> {
    let json: Value = serde_json::from_str(text).ok()?;
    let choice = json.get("choices")?.get(0)?;
    let message = choice.get("message")?;
    let finish = choice.get("finish_reason").and_then(Value::as_str).unwrap_or("stop");
    if finish == "content_filter" || message.get("refusal").is_some_and(Value::is_string) {
        return Some(Answer::Refused);
    }
    let content = match message.get("content")? {
        Value::String(content) => content.clone(),
        Value::Null => String::new(),
        // Some servers answer in parts, as a request may be.
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        _ => return None,
    };
    Some(if finish == "length" {
        Answer::CutOff(content)
    } else {
        Answer::Whole(content)
    })
}

struct Problem {
    message: String,
    code: String,
}

/// What an error document says, in any of the shapes that are about.
fn problem(text: &str) -> Problem {
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    let error = json.get("error").unwrap_or(&json);
    let word = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let message = word(error.get("message"))
        .or_else(|| word(Some(error)))
        .or_else(|| word(error.get("detail")))
        .or_else(|| error.get("detail").map(Value::to_string));
    let inner = || word(error.get("innererror").and_then(|inner| inner.get("code")));
    let code = word(error.get("code"))
        .or_else(inner)
        .or_else(|| word(error.get("type")));
    Problem {
        message: message.unwrap_or_default(),
        code: code.unwrap_or_default().to_ascii_lowercase(),
    }
}

/// Seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?;
    let date: SystemTime = date.into();
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// How long to wait after so many attempts: between half of and the whole of what doubles each time, or what the server asked for and up to a tenth
/// more. `chance` lies between 0 and 1.
fn wait(first: Duration, attempts: u32, after: Option<Duration>, chance: f64) -> Duration {
    let doubled = first.saturating_mul(1 << (attempts - 1).min(16)).min(MAX_WAIT);
    match after {
        Some(after) => after.min(MAX_RETRY_AFTER).mul_f64(1.0 + 0.1 * chance),
        None => doubled.mul_f64(0.5 + 0.5 * chance),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (given, called) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/chat/completions"),
            ("https://x.example/api/v3", "https://x.example/api/v3/chat/completions"),
            (
                "https://x.example/v1/chat/completions",
                "https://x.example/v1/chat/completions",
            ),
        ] {
            assert_eq!(completions(given).unwrap(), called);
        }
        for wrong in [
            "",
            "127.0.0.1:8000",
            "ftp://x",
            "http://",
            "https://user:pass@x.example/v1",
        ] {
            assert!(completions(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn waits_double_with_jitter_and_obey_the_server() {
        let first = Duration::from_millis(500);
        assert_eq!(wait(first, 1, None, 1.0), first);
        assert_eq!(wait(first, 1, None, 0.0), first / 2);
        assert_eq!(wait(first, 4, None, 1.0), first * 8);
        assert_eq!(wait(first, 40, None, 1.0), MAX_WAIT);
        assert_eq!(
            wait(first, 1, Some(Duration::from_secs(7)), 0.0),
            Duration::from_secs(7)
        );
        assert_eq!(wait(first, 1, Some(Duration::from_secs(1 << 40)), 0.0), MAX_RETRY_AFTER);
        assert_eq!(retry_after("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after("-1"), None);
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
    }

    #[test]
    fn completions_are_read() {
        let answer = |message: &str, finish: &str| {
            completion(&format!(
                "{{\"choices\": [{{\"message\": {message}, \"finish_reason\": {finish}}}]}}"
            ))
        };
        assert_eq!(
            answer(r#"{"content": "a"}"#, "\"stop\""),
            Some(Answer::Whole("a".to_owned()))
        );
        assert_eq!(
            answer(r#"{"content": "a"}"#, "null"),
            Some(Answer::Whole("a".to_owned()))
        );
        assert_eq!(
            answer(r#"{"content": "a"}"#, "\"length\""),
            Some(Answer::CutOff("a".to_owned()))
        );
        assert_eq!(
            answer(r#"{"content": null, "refusal": "no"}"#, "\"stop\""),
            Some(Answer::Refused)
        );
        assert_eq!(
            answer(r#"{"content": ""}"#, "\"content_filter\""),
            Some(Answer::Refused)
        );
        assert_eq!(
            answer(r#"{"content": [{"type": "text", "text": "a"}]}"#, "\"stop\""),
            Some(Answer::Whole("a".to_owned()))
        );
        for text in ["", "<html>", "{}", r#"{"choices": []}"#] {
            assert_eq!(completion(text), None, "{text}");
        }
    }

    #[test]
    fn problems_are_read_in_all_their_shapes() {
        for text in [
            r#"{"error": {"message": "no such model", "code": null, "type": "not_found"}}"#,
            r#"{"error": "no such model"}"#,
            r#"{"message": "no such model"}"#,
            r#"{"detail": "no such model"}"#,
        ] {
            assert_eq!(problem(text).message, "no such model", "{text}");
        }
        assert_eq!(problem("<html>").message, "");
    }
}
