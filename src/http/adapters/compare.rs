//! `GET /adapters/compare`: versions side by side.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{find, problems::AdapterProblems, time};
use crate::{
    adapters::{AdapterVersion, VersionRecord},
    http::{
        problem::{FieldError, Problem, Reason},
        state::AppState,
    },
    pipeline::{ShadowStatistics, Sums},
};

/// Most versions that are compared.
const MOST: usize = 16;

/// Which versions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CompareQuery {
    /// Versions with commas between them.
    #[param(example = "default@1,default@2")]
    versions: Option<String>,
}

/// Versions side by side.
#[derive(Debug, Serialize, ToSchema)]
pub struct Compared {
    /// In the order of the request.
    versions: Vec<ComparedVersion>,
}

/// A version, where it comes from, and how good it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComparedVersion {
    /// `name@version`.
    #[schema(example = "default@2")]
    adapter: String,
    /// Where it comes from.
    lineage: Lineage,
    /// What its evaluation has measured: `figures`, each with `value`, `low` and `high` (95% interval), and `differences` from the version that was
    /// active then.
    #[schema(value_type = Option<Object>)]
    metrics: Option<serde_json::Value>,
    /// How its answers to copies of requests compare with those that were given, in the process that answers, since its start.
    shadow: Vec<ShadowComparison>,
}

/// Where a version comes from.
#[derive(Debug, Serialize, ToSchema)]
pub struct Lineage {
    /// `shipped` with the program, `import`ed, or made by a `job`.
    source: &'static str,
    /// SHA-256 over its configuration and weights.
    sha256: String,
    /// Base model.
    base: String,
    /// What tells the base model from others.
    base_fingerprint: String,
    /// The version that its training started from.
    #[schema(example = "default@1")]
    parent: Option<String>,
    /// The job that made it.
    job: Option<String>,
    /// The dataset it was trained on.
    dataset: Option<String>,
    /// SHA-256 of the dataset.
    dataset_sha256: Option<String>,
    /// How it was trained.
    #[schema(value_type = Option<Object>)]
    hyperparameters: Option<serde_json::Value>,
    /// When it was registered.
    #[schema(format = DateTime)]
    created_at: String,
    /// Who registered it.
    created_by: String,
}

/// Answers to the same texts by two versions.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShadowComparison {
    /// The version whose answers were given.
    #[schema(example = "default@1")]
    served_by: String,
    /// Texts compared.
    texts: u64,
    /// Texts that this version did not answer.
    failed: u64,
    /// Texts whose answer by this version had more merit: similarity in meaning times what is left of toxicity to one.
    better: u64,
    /// Texts whose answer by this version had less merit.
    worse: u64,
    /// Mean toxicity of what came in.
    toxicity_before: Option<f64>,
    /// Of this version's answers.
    candidate: Means,
    /// Of the answers that were given.
    served: Means,
}

/// Means over texts; null without texts.
#[derive(Debug, Serialize, ToSchema)]
pub struct Means {
    /// Toxicity of the answer.
    toxicity: Option<f64>,
    /// Similarity in meaning to the input.
    similarity: Option<f64>,
    /// Time the model took, in milliseconds.
    inference_ms: Option<f64>,
}

/// Compare versions
///
/// Lineage, evaluation, and what the shadow has come to, side by side.
#[utoipa::path(
    get,
    path = "/adapters/compare",
    operation_id = "compare_adapters",
    tag = "adapters",
    params(CompareQuery),
    responses((status = 200, description = "The versions", body = Compared), AdapterProblems)
)]
pub async fn compare(State(state): State<Arc<AppState>>, uri: axum::http::Uri) -> Result<Json<Compared>, Problem> {
    let Query(query) = Query::<CompareQuery>::try_from_uri(&uri)
        .map_err(|error| Problem::new(Reason::Malformed, error.body_text()))?;
    let wrong = |detail: String| Problem::invalid(vec![FieldError::new("versions", detail)]);
    let names = query.versions.unwrap_or_default();
    let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    if names.is_empty() || names.len() > MOST {
        return Err(wrong(format!("names {} versions, must name 1 to {MOST}", names.len())));
    }
    let mut versions = Vec::with_capacity(names.len());
    for name in names {
        let version: AdapterVersion = name.parse().map_err(|error| wrong(format!("{name}: {error}")))?;
        let record = find(&state, &version).await?;
        let shadow = state.shadow.statistics(&version);
        versions.push(ComparedVersion::new(record, shadow));
    }
    Ok(Json(Compared { versions }))
}

impl ComparedVersion {
    fn new(record: VersionRecord, shadow: Vec<(AdapterVersion, ShadowStatistics)>) -> Self {
        let parent = record
            .hyperparameters
            .as_ref()
            .and_then(|hyperparameters| hyperparameters.get("init_adapter")?.as_str().map(str::to_owned));
        Self {
            adapter: record.version.to_string(),
            lineage: Lineage {
                source: record.source.as_str(),
                sha256: record.sha256,
                base: record.base,
                base_fingerprint: record.base_fingerprint,
                parent,
                job: record.job,
                dataset: record.dataset,
                dataset_sha256: record.dataset_sha256,
                hyperparameters: record.hyperparameters,
                created_at: time(record.created_at),
                created_by: record.created_by,
            },
            metrics: record.metrics,
            shadow: shadow
                .into_iter()
                .map(|(served, statistics)| ShadowComparison::new(&served, &statistics))
                .collect(),
        }
    }
}

impl ShadowComparison {
    fn new(served: &AdapterVersion, statistics: &ShadowStatistics) -> Self {
        let mean = |sum: f64| (statistics.texts > 0).then(|| sum / statistics.texts as f64);
        let means = |sums: &Sums| Means {
            toxicity: mean(sums.toxicity),
            similarity: mean(sums.similarity),
            inference_ms: mean(sums.seconds * 1000.0),
        };
        Self {
            served_by: served.to_string(),
            texts: statistics.texts,
            failed: statistics.failed,
            better: statistics.candidate_better,
            worse: statistics.served_better,
            toxicity_before: mean(statistics.toxicity_before),
            candidate: means(&statistics.candidate),
            served: means(&statistics.served),
        }
    }
}
