//! What a request to `/detoxify` says, and its check: raw JSON in, a `Job` that can't be wrong out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    limits::{check_length, until},
    problem::{FieldError, Problem},
};
use crate::{
    adapters::{AdapterLease, AdapterRef, Residents},
    config::{Limits, Policy},
    pipeline::{self, Guidance, MAX_CANDIDATES, Options, Strength, Threshold, Turn},
};

/// Most texts in one request.
pub const MAX_TEXTS: usize = 64;

/// Texts to make milder, and how. Exactly one of `text` and `texts` is given.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "text": "You are an idiot. The file is missing a semicolon." }))]
pub struct DetoxifyRequest {
    /// One text; the answer is one result. Not empty, at most `max_text_chars` of the service long.
    #[schema(min_length = 1)]
    text: Option<String>,
    /// Several texts; the answer is `results`, in the same order.
    #[schema(min_items = 1, max_items = 64)]
    texts: Option<Vec<String>>,
    /// A sentence is acted on when its toxicity, by the built-in scorer or the service's `toxicity_model`, is above this.
    #[schema(minimum = 0, maximum = 1)]
    threshold: Option<f32>,
    /// What is done when a sentence is toxic.
    action: Option<Action>,
    /// Adapter that rewrites: `name@version`, or `name` for its active version, else its newest. One that is not in memory is loaded
    /// first. Without it, what is deployed.
    #[schema(example = "default@1")]
    adapter: Option<String>,
    /// Scale of the adapter: 0 is the bare base model, 1 the adapter as trained.
    #[schema(minimum = 0, maximum = 2)]
    strength: Option<f32>,
    /// Model arithmetic: each token is chosen by log p + guidance (log p - log p_base), with p under the adapter and p_base under the bare base
    /// model. 0 is the adapter alone; more takes twice the time.
    #[schema(minimum = 0, maximum = 2)]
    guidance: Option<f32>,
    /// Rewrites drawn for each toxic sentence, of which the best verified one is taken.
    #[schema(minimum = 1, maximum = 16)]
    candidates: Option<usize>,
    /// Seed of the sampling; the same seed and request give the same answer.
    seed: Option<u64>,
    /// How the text is written; in Markdown, code, links and quotes are left alone.
    format: Option<Format>,
    /// Whether `segments` tell the rewrites there were to choose from, and how each was judged.
    explain: Option<bool>,
    /// Time for this request in milliseconds; more than the service's own timeout counts as that.
    #[schema(minimum = 1)]
    timeout_ms: Option<u64>,
}

/// What is done when a sentence is toxic: `rewrite` it, `annotate` it in `segments` only, or
/// `block` the whole text.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Action {
    /// It is rewritten.
    Rewrite,
    /// It is left as it is and reported in `segments`.
    Annotate,
    /// The whole text is withheld: the answer's `text` is empty.
    Block,
}

/// How a text is written.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// Plain text.
    Plain,
    /// Markdown.
    Markdown,
}

/// A checked request, before it has its adapter.
pub struct Checked {
    /// What to make milder.
    pub input: Input,
    /// The adapter it names.
    pub adapter: Option<AdapterRef>,
    /// Until when.
    pub deadline: Instant,
    threshold: Option<Threshold>,
    strength: Option<Strength>,
    guidance: Option<Guidance>,
    candidates: Option<usize>,
    seed: Option<u64>,
    action: Option<Action>,
    format: Option<Format>,
    explain: Option<bool>,
    max_wait: Duration,
}

/// A request that has its adapter.
pub struct Job {
    /// What to make milder.
    pub input: Input,
    /// How.
    pub options: Options,
    /// Until when.
    pub deadline: Instant,
    /// Another adapter that is to answer as well, unseen.
    pub shadow: Option<AdapterLease>,
}

impl Checked {
    /// Leases the adapter, which may have to be loaded first.
    ///
    /// # Errors
    /// When there is none of that name, it can't be loaded, or not before the deadline.
    pub async fn lease(self, policy: &Policy, residents: &Residents) -> Result<Job, Problem> {
        let lease = until(self.deadline, async {
            Ok(residents.lease(self.adapter.as_ref()).await?)
        })
        .await?;
        let shadow = match self.adapter {
            // Who asks for a version has made the choice.
            Some(_) => None,
            None => residents.shadow().filter(|shadow| shadow.version() != lease.version()),
        };
        let mut options = policy.options(lease);
        options.deadline = Some(self.deadline);
        options.turn = Arc::new(Turn::new(Some(self.max_wait)));
        options.threshold = self.threshold.unwrap_or(options.threshold);
        options.strength = self.strength.unwrap_or(options.strength);
        options.guidance = self.guidance.unwrap_or(options.guidance);
        options.candidates = self.candidates.unwrap_or(options.candidates);
        options.seed = self.seed.unwrap_or(options.seed);
        options.explain = self.explain.unwrap_or(options.explain);
        options.action = self.action.map_or(options.action, Into::into);
        options.format = self.format.map_or(options.format, Into::into);
        Ok(Job {
            input: self.input,
            options,
            deadline: self.deadline,
            shadow,
        })
    }
}

/// One text or several; the answer has the same shape.
#[derive(Debug)]
pub enum Input {
    /// One text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

impl DetoxifyRequest {
    /// Checks every field. `arrived` is when the request's time began.
    ///
    /// # Errors
    /// 413 for a text that is too long, else 422 with all fields that are wrong.
    pub fn check(self, limits: &Limits, arrived: Instant) -> Result<Checked, Problem> {
        let max_chars = limits.max_text_chars;
        if let Some(text) = &self.text {
            check_length("text", text, max_chars)?;
        }
        for (index, text) in self.texts.iter().flatten().enumerate() {
            check_length(&format!("texts[{index}]"), text, max_chars)?;
        }

        let mut errors = Errors::default();
        let input = input(self.text, self.texts, &mut errors);
        let threshold = errors.check("threshold", self.threshold.map(Threshold::new));
        let strength = errors.check("strength", self.strength.map(Strength::new));
        let guidance = errors.check("guidance", self.guidance.map(Guidance::new));
        let adapter = errors.check("adapter", self.adapter.map(|name| name.parse::<AdapterRef>()));
        if self.candidates.is_some_and(|n| !(1..=MAX_CANDIDATES).contains(&n)) {
            errors.add("candidates", "must be a number from 1 to 16");
        }
        if self.timeout_ms == Some(0) {
            errors.add("timeout_ms", "must be at least 1");
        }
        let input = errors.finish(input)?;

        let timeout = self
            .timeout_ms
            .map_or(limits.timeout, Duration::from_millis)
            .min(limits.timeout);
        Ok(Checked {
            input,
            adapter,
            deadline: arrived + timeout,
            threshold,
            strength,
            guidance,
            candidates: self.candidates,
            seed: self.seed,
            action: self.action,
            format: self.format,
            explain: self.explain,
            max_wait: limits.max_queue_wait,
        })
    }
}

fn input(text: Option<String>, texts: Option<Vec<String>>, errors: &mut Errors) -> Option<Input> {
    match (text, texts) {
        (Some(text), None) => {
            if text.is_empty() {
                errors.add("text", "must not be empty");
            }
            Some(Input::One(text))
        }
        (None, Some(texts)) => {
            if texts.is_empty() || texts.len() > MAX_TEXTS {
                errors.add("texts", format!("has {} texts, must have 1 to 64", texts.len()));
            }
            for (index, _) in texts.iter().enumerate().filter(|(_, text)| text.is_empty()) {
                errors.add(&format!("texts[{index}]"), "must not be empty");
            }
            Some(Input::Many(texts))
        }
        (Some(_), Some(_)) => {
            errors.add("texts", "give either `text` or `texts`, not both");
            None
        }
        (None, None) => {
            errors.add("text", "is missing; give `text` or `texts`");
            None
        }
    }
}

/// The fields found wrong so far: a client gets all at once.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, field: &str, detail: impl ToString) {
        self.0.push(FieldError::new(field, detail));
    }

    fn check<T, E: ToString>(&mut self, field: &str, value: Option<Result<T, E>>) -> Option<T> {
        value?.map_err(|error| self.add(field, error)).ok()
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, Problem> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Problem::invalid(self.0)),
        }
    }
}

impl From<Action> for pipeline::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Rewrite => Self::Rewrite,
            Action::Annotate => Self::Annotate,
            Action::Block => Self::Block,
        }
    }
}

impl From<Format> for pipeline::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Plain => Self::Plain,
            Format::Markdown => Self::Markdown,
        }
    }
}
