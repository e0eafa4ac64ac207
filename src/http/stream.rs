//! `POST /detoxify` as server-sent events, sentence by sentence.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    http::HeaderMap,
    response::sse::{Event, KeepAlive, KeepAliveStream, Sse},
};
use futures_core::Stream;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    detoxify::{Beside, accepts},
    limits::{Permit, until},
    problem::Problem,
    result::{DetoxifyResult, Segment},
};
use crate::pipeline::{self, BoxFuture, Options};

/// Whether the client asks for events.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    accepts(headers, "text/event-stream")
}

/// Data of an event `segment`.
#[derive(Debug, Serialize)]
struct SegmentEvent<'a> {
    #[serde(flatten)]
    segment: Segment,
    /// What stands in the output for this sentence.
    text: &'a str,
}

/// The events of a text. The work runs inside the stream: a client that leaves drops it, and with
/// it the sentences in the engine. The permit is held until the last event.
pub fn segments(
    beside: Beside,
    text: String,
    options: Options,
    deadline: Instant,
    arrived: Instant,
    permit: Permit,
) -> Sse<KeepAliveStream<Events>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let work = async move {
        // The pipeline may call from several threads; the channel's order is that of its calls.
        let observe = move |segment: &pipeline::Segment| {
            let data = SegmentEvent {
                segment: segment.into(),
                text: &segment.text,
            };
            // Without a receiver nobody listens any more, and this future is about to be dropped.
            let _ = sender.send(event("segment", &data));
        };
        let work = beside.detoxify(&text, &options, &observe);
        let last = match until(deadline, work).await {
            Ok(done) => event("result", &DetoxifyResult::new(done, arrived.elapsed())),
            Err(problem) => {
                beside.metrics().rejected(problem.code());
                event("problem", &problem)
            }
        };
        drop(permit);
        last
    };
    let events = Events {
        work: Mutex::new(Some(Box::pin(work))),
        segments: receiver,
        last: None,
    };
    Sse::new(events).keep_alive(KeepAlive::default())
}

fn event(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).unwrap_or_else(|error| {
        tracing::error!(%error, "an event can't be written as JSON");
        let problem = Problem::internal();
        Event::default().event("problem").data(problem.detail)
    })
}

/// Polls the work and hands on what it reports.
pub struct Events {
    // A body must be `Sync` and the work is only `Send`; `get_mut` never locks.
    work: Mutex<Option<BoxFuture<'static, Event>>>,
    segments: mpsc::UnboundedReceiver<Event>,
    last: Option<Event>,
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let work = this.work.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = work
            && let Poll::Ready(event) = running.as_mut().poll(context)
        {
            *work = None;
            this.last = Some(event);
        }
        // The work owns the sender: the channel ends when the work has, all segments read.
        match this.segments.poll_recv(context) {
            Poll::Ready(Some(event)) => Poll::Ready(Some(Ok(event))),
            Poll::Ready(None) => Poll::Ready(this.last.take().map(Ok)),
            Poll::Pending => Poll::Pending,
        }
    }
}
