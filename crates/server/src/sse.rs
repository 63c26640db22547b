//! Server-sent events: a generation as a stream that a client reads as it grows.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;

use crate::ApiError;
use crate::answer::Format;
use crate::generate::Generation;
use crate::input::sampling::StreamOptions;
use crate::protocol::common::ChunkUsage;

/// How long a stream may be silent before a comment keeps it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with a stream of events. The client's leaving drops the stream, and the generation with it.
pub(crate) fn respond(
    generation: Generation,
    format: impl Format,
    options: StreamOptions,
) -> Response {
    let events = Events { generation, format, options, ready: VecDeque::new(), ended: false };
    let stream = stream::unfold(events, async |mut events| {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(event)), events))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // A proxy that collects events would undo the streaming.
    let no_buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(no_buffering, HeaderValue::from_static("no"));
    response
}

/// A generation's events: its chunks, its usage if wanted, `[DONE]`.
struct Events<F> {
    generation: Generation,
    format: F,
    options: StreamOptions,
    /// Events that are due.
    ready: VecDeque<String>,
    /// Whether `ready` holds the last ones.
    ended: bool,
}

impl<F: Format> Events<F> {
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.ended {
            self.advance().await;
        }
        self.ready.pop_front()
    }

    /// Waits for the engine and turns what it has into events.
    async fn advance(&mut self) {
        match self.generation.next().await {
            Ok(deltas) if deltas.is_empty() => self.end(None),
            Ok(deltas) => {
                for delta in deltas {
                    let usage = self.chunk_usage(delta.choice);
                    let chunk = self.format.chunk(self.generation.request(), delta, usage);
                    self.ready.push_back(chunk);
                }
            }
            Err(error) => self.end(Some(&error)),
        }
    }

    fn chunk_usage(&self, choice: usize) -> Option<ChunkUsage> {
        if self.options.continuous_usage_stats {
            Some(ChunkUsage::Known(self.generation.usage_of(choice)))
        } else {
            self.options.include_usage.then_some(ChunkUsage::Null)
        }
    }

    fn end(&mut self, error: Option<&ApiError>) {
        self.ended = true;
        if let Some(error) = error {
            // The status has long been sent; an event is the only way left to tell.
            let body = serde_json::to_string(&error.body()).unwrap_or_default();
            self.ready.push_back(body);
        } else if self.options.include_usage {
            self.ready.push_back(self.format.usage_chunk(self.generation.usage()));
        }
        self.ready.push_back("[DONE]".to_owned());
    }
}
