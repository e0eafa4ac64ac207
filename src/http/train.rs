//! `POST /train`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    body::JsonBody,
    fields::Fields,
    hyperparameters::{self, HyperparametersBody},
    problem::{FieldError, KeptProblems, Problem},
    state::{AppState, Backend},
};
use crate::{
    access::Actor,
    adapters::{AdapterVersion, Registry},
    jobs::{
        queue::{NewJob, QueueError, Submitted},
        request::{ActivationPolicy, Evaluation, Hyperparameters, ObjectiveName, TrainRequest},
    },
    model::catalogue::Catalogue,
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_NAME: usize = 64;

/// A training job.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "name": "milder",
    "dataset": "01932b7e-6d0b-7c54-a5b0-0e6c6d3f7a10",
    "objective": "cp",
    "hyperparameters": { "epochs": 1, "learning_rate": 0.0002 },
    "evaluate": true,
    "activate": "if_better"
}))]
#[allow(dead_code, reason = "what `read` reads, for the OpenAPI document")]
pub struct TrainBody {
    /// Name of the adapter that a new version is made of: letters, digits, `-`, `_` and `.`, at first a letter or digit.
    #[schema(min_length = 1, max_length = 64, example = "milder")]
    name: String,
    /// Base model: the one that is served, or a name of the catalogue. The one that is served without it.
    #[schema(example = "smollm2-135m")]
    base: Option<String>,
    /// Id of a dataset.
    dataset: String,
    /// What is minimised.
    objective: Option<ObjectiveWord>,
    /// Settings of the run.
    hyperparameters: Option<HyperparametersBody>,
    /// How the result is measured: `true` for the defaults, `false` for not at all.
    evaluate: Option<EvaluateBody>,
    /// When the result becomes the active version.
    activate: Option<ActivateWord>,
    /// Jobs of a higher one are run first, equal ones in the order they came.
    #[schema(minimum = -100, maximum = 100, default = 0)]
    priority: Option<i64>,
}

/// What is minimised: `cp` contrastive perplexity (the default), `sft` the likelihood of the positives, `dpo` and `simpo` preferences of
/// positives over negatives; `ppo` maximises similarity times (1 - toxicity) of rewrites that the model writes.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "for the OpenAPI document")]
enum ObjectiveWord {
    Cp,
    Sft,
    Dpo,
    #[schema(rename = "simpo")]
    SimPo,
    Ppo,
}

/// When the result becomes the active version: `never` by itself (the default), `if_better` than the active one, `always`.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "for the OpenAPI document")]
enum ActivateWord {
    Never,
    IfBetter,
    Always,
}

/// Whether and how the result is measured, on examples of the dataset that it is not trained on.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the OpenAPI document")]
enum EvaluateBody {
    /// With the defaults, or not at all.
    Whether(bool),
    /// In numbers.
    How(EvaluationBody),
}

/// How the result is measured.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document")]
struct EvaluationBody {
    /// Share of the dataset that is held back; 0 measures nothing.
    #[schema(minimum = 0, maximum = 0.5, default = 0.1)]
    held_back: Option<f64>,
    /// Most examples that are held back.
    #[schema(minimum = 1, maximum = 10_000, default = 64)]
    max_examples: Option<u64>,
}

/// A job that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// What `/jobs` calls it.
    #[schema(example = "01932b80-1c8e-7d31-9d0a-3c5a5a1f0d22")]
    id: String,
    /// Where it stands: `queued` for a new one.
    #[schema(example = "queued")]
    status: &'static str,
}

/// Train an adapter
///
/// Queues a job; a worker trains a new version of the adapter, measures it, registers it and, by `activate`, makes it the active one.
/// Follow it at `/jobs/{id}` and `/jobs/{id}/events`.
///
/// With an `Idempotency-Key`, a request that is sent again by the same key's holder is answered with the job it made the first time (200).
#[utoipa::path(
    post,
    path = "/train",
    tag = "training",
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255, description = "The same for every try of one request")),
    request_body = TrainBody,
    responses(
        (
            status = 202,
            description = "Queued",
            body = Accepted,
            headers(("Location" = String, description = "`/jobs/{id}`"))
        ),
        (status = 200, description = "The same request made this job before", body = Accepted),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The idempotency key was used for another request", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not declared as JSON", body = Problem, content_type = "application/problem+json"),
        KeptProblems,
    )
)]
pub async fn train(
    State(state): State<Arc<AppState>>,
    Extension(actor): Extension<Actor>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Value>,
) -> Result<Response, Problem> {
    let backend = &state.backend;
    let idempotency_key = idempotency_key(&headers)?;
    let (request, priority) = read(Fields::of(body)?, backend).await?;
    let new = NewJob {
        request,
        priority,
        idempotency_key,
        max_attempts: backend.max_attempts,
        created_by: actor.id.clone(),
    };
    let (status, job) = match backend.jobs.submit(new, &actor).await {
        Ok(Submitted::New(job)) => (StatusCode::ACCEPTED, job),
        Ok(Submitted::Same(job)) => (StatusCode::OK, job),
        // The dataset was deleted since it was looked up.
        Err(QueueError::Db(error)) if error.is_reference() => {
            return Err(Problem::invalid(vec![FieldError::new("dataset", NO_DATASET)]));
        }
        Err(error) => return Err(error.into()),
    };
    let location = [(header::LOCATION, format!("/jobs/{}", job.id))];
    let accepted = Accepted {
        id: job.id,
        status: job.state.as_str(),
    };
    Ok((status, location, Json(accepted)).into_response())
}

const NO_DATASET: &str = "there is no dataset of this id";

/// Reads the body, looks up what it names, and notes all that is wrong.
async fn read(mut fields: Fields, backend: &Backend) -> Result<(TrainRequest, i64), Problem> {
    let name = adapter_name(&mut fields);
    let base = base(&mut fields, &backend.base);
    let dataset = fields.text("dataset");
    let dataset = fields.required("dataset", dataset);
    if let Some(id) = &dataset
        && backend.datasets.get(id).await?.is_none()
    {
        fields.error("dataset", NO_DATASET);
    }
    let objective = objective(&mut fields);
    let max_rank = backend.max_adapter_rank;
    let hyperparameters = fields
        .object("hyperparameters", |fields| {
            hyperparameters::read(fields, objective, max_rank)
        })
        .unwrap_or_default();
    check_init_adapter(&mut fields, &hyperparameters, &backend.registry).await?;
    let evaluate = evaluation(&mut fields);
    let activate = match fields.word("activate", &["never", "if_better", "always"]) {
        Some("if_better") => ActivationPolicy::IfBetter,
        Some("always") => ActivationPolicy::Always,
        _ => ActivationPolicy::Never,
    };
    if activate == ActivationPolicy::IfBetter && evaluate.held_back == 0.0 {
        fields.error("activate", "can't be if_better when evaluate measures nothing");
    }
    let priority = fields.whole("priority", -100..=100).unwrap_or(0);
    let request = name.zip(dataset).map(|(name, dataset)| TrainRequest {
        name,
        base,
        dataset,
        objective,
        hyperparameters,
        evaluate,
        activate,
    });
    Ok((fields.finish(request)?, priority))
}

fn adapter_name(fields: &mut Fields) -> Option<String> {
    let name = fields.text("name");
    let name = fields.required("name", name)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let sound =
        name.len() <= MAX_NAME && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed);
    if !sound {
        let detail = format!("must have 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, at first a letter or digit");
        fields.error("name", detail);
    } else if ["none", "auto"].contains(&name.as_str()) {
        fields.error("name", "has a meaning of its own; choose another");
    }
    Some(name)
}

fn base(fields: &mut Fields, served: &str) -> String {
    let Some(base) = fields.text("base") else {
        return served.to_owned();
    };
    let known = |catalogue: Catalogue| catalogue.entry(&base).is_some();
    if base != served && !Catalogue::embedded().is_ok_and(known) {
        fields.error(
            "base",
            "must be the model that is served, or a name that `detoxd model list` shows",
        );
    }
    base
}

fn objective(fields: &mut Fields) -> ObjectiveName {
    let Some(given) = fields.text("objective") else {
        return ObjectiveName::default();
    };
    ObjectiveName::ALL
        .into_iter()
        .find(|objective| objective.as_str() == given)
        .unwrap_or_else(|| {
            fields.error("objective", "must be one of: cp, sft, dpo, simpo, ppo");
            ObjectiveName::default()
        })
}

fn evaluation(fields: &mut Fields) -> Evaluation {
    let defaults = Evaluation::default();
    if fields.is_truth("evaluate") {
        return match fields.truth("evaluate") {
            Some(false) => Evaluation {
                held_back: 0.0,
                ..defaults
            },
            _ => defaults,
        };
    }
    let given = fields.object("evaluate", |fields| Evaluation {
        held_back: fields
            .number("held_back", "from 0 to 0.5", |n| (0.0..=0.5).contains(&n))
            .unwrap_or(defaults.held_back),
        max_examples: fields
            .count("max_examples", 1..=10_000)
            .unwrap_or(defaults.max_examples),
    });
    given.unwrap_or(defaults)
}

/// One version, not the newest at the time: a second try must begin where the first did.
async fn check_init_adapter(
    fields: &mut Fields,
    hyperparameters: &Hyperparameters,
    registry: &Registry,
) -> Result<(), Problem> {
    const FIELD: &str = "hyperparameters.init_adapter";
    let Some(wanted) = &hyperparameters.init_adapter else {
        return Ok(());
    };
    match wanted.parse::<AdapterVersion>() {
        Err(error) => fields.error(FIELD, error),
        Ok(version) => {
            if registry.get(&version).await?.is_none() {
                fields.error(FIELD, "there is no such version in the registry");
            }
        }
    }
    Ok(())
}

/// The key as it is, or as the string of a structured header (RFC 8941).
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let key = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(text);
    if (1..=255).contains(&key.len()) {
        return Ok(Some(key.to_owned()));
    }
    let detail = "must have 1 to 255 visible ASCII characters";
    Err(Problem::invalid(vec![FieldError::new("Idempotency-Key", detail)]))
}
