//! `GET /jobs/{id}/events`: a job as server-sent events.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_core::Stream;
use tokio::sync::mpsc;

use super::{
    jobs::JobAnswer,
    path::InPath,
    problem::{OneKeptProblems, Problem},
    state::AppState,
};
use crate::jobs::{Job, JobState, Phase, queue::QueueError};

/// Time between two looks at the job.
const INTERVAL: Duration = Duration::from_millis(300);

/// Looks in a row that may fail: a database that restarts is waited for.
const PATIENCE: u32 = 200;

/// Proxies that gather answers let this one pass as it comes.
const NOT_GATHERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// Follow a job
///
/// Server-sent events, each with the whole job as its data: at once where the job stands, then an event at each change. `progress`
/// when only training is further, `status` for every other change, `done` when the job is finished; after it the stream ends. The id
/// of an event counts the job's changes: a client that comes back with `Last-Event-ID` is told only what it has not seen; for
/// a finished job that is nothing (204). The stream also ends when the service shuts down: come back.
#[utoipa::path(
    get,
    path = "/jobs/{id}/events",
    tag = "training",
    params(
        ("id" = String, Path, description = "Of the job"),
        ("Last-Event-ID" = Option<i64>, Header, description = "Of the last event that was seen")
    ),
    responses(
        (status = 200, description = "The events", body = String, content_type = "text/event-stream"),
        (status = 204, description = "All was seen"),
        OneKeptProblems,
    )
)]
pub async fn events(
    State(state): State<Arc<AppState>>,
    InPath(id): InPath<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job = state.backend.jobs.get(&id).await?.ok_or(QueueError::NotFound)?;
    let seen: Option<i64> = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    // A browser comes back to a stream that has ended, until it is told that there is nothing more.
    if job.state.is_final() && seen == Some(job.revision) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(follow(state, job, seen, sender));
    let stream = Sse::new(Events(receiver)).keep_alive(KeepAlive::default());
    Ok(([NOT_GATHERED], stream).into_response())
}

/// Sends what happens to a job until it is finished, the client has left, or the service stops.
async fn follow(state: Arc<AppState>, first: Job, seen: Option<i64>, sender: mpsc::Sender<Event>) {
    let id = first.id.clone();
    let mut told = Told::default();
    // What was seen up to now is not told again.
    if seen == Some(first.revision) {
        told.note(&first);
    }
    let mut found = Ok(Some(first));
    let mut failures = 0;
    loop {
        match found {
            Ok(Some(job)) => {
                failures = 0;
                let is_final = job.state.is_final();
                if let Some(event) = told.event(job)
                    && sender.send(event).await.is_err()
                {
                    return;
                }
                if is_final {
                    return;
                }
            }
            // Nobody removes jobs; if somebody did, there is nothing more to say.
            Ok(None) => return,
            Err(_) => failures += 1,
        }
        if failures > PATIENCE || state.is_draining() {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        found = state.backend.jobs.get(&id).await;
    }
}

/// What a client knows of a job.
#[derive(Debug, Default)]
struct Told {
    revision: Option<i64>,
    /// What only an event with the whole job tells.
    standing: Option<Standing>,
}

#[derive(Debug, PartialEq)]
struct Standing {
    state: JobState,
    phase: Option<Phase>,
    attempts: i64,
    cancel_requested: bool,
    checkpoint_step: Option<i64>,
}

impl Told {
    fn note(&mut self, job: &Job) -> bool {
        let standing = Some(Standing {
            state: job.state,
            phase: job.phase,
            attempts: job.attempts,
            cancel_requested: job.cancel_requested,
            checkpoint_step: job.checkpoint.as_ref().map(|(_, step)| *step),
        });
        let changed = self.standing != standing;
        self.revision = Some(job.revision);
        self.standing = standing;
        changed
    }

    /// The event that tells what is new, if anything is.
    fn event(&mut self, job: Job) -> Option<Event> {
        if self.revision == Some(job.revision) {
            return None;
        }
        let more_than_progress = self.note(&job);
        let name = match job.state.is_final() {
            true => "done",
            false if more_than_progress => "status",
            false => "progress",
        };
        Some(event(name, job))
    }
}

fn event(name: &str, job: Job) -> Event {
    let event = Event::default().event(name).id(job.revision.to_string());
    event.json_data(JobAnswer::from(job)).unwrap_or_else(|error| {
        tracing::error!(%error, "an event can't be written as JSON");
        Event::default().comment("an event can't be written")
    })
}

struct Events(mpsc::Receiver<Event>);

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
