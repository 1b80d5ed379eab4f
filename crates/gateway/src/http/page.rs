//! A page of history as JSON: what a stream would bring until it is up to date, for who polls.
//!
//! It is read by a subscription like any other, so that gaps are told by the same rules.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::{Rc, Weak},
    task::{Poll, Waker},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use hub::{Batch, Hub, Next, Occasion, Reader, Subscription};
use serde::Serialize;
use tokio::time::timeout;

use super::{error::Problem, subscribe::StreamRequest};

/// Events of a page unless asked for fewer or more, and at most.
pub(super) const EVENTS: usize = 100;
pub(super) const MAX_EVENTS: usize = 1000;
/// Bytes of data after which a page ends.
const MAX_BYTES: usize = 4 << 20;
/// The longest wait for Redis.
const PATIENCE: Duration = Duration::from_secs(5);

/// A page that was asked for. It travels like a stream that was.
#[derive(Clone, Debug)]
pub(crate) struct PageRequest {
    pub(crate) stream: StreamRequest,
    pub(crate) limit: usize,
}

#[derive(Serialize)]
struct Page {
    events: Vec<Event>,
    /// What the next page is asked for with.
    last_event_id: String,
    /// There is more already.
    more: bool,
    /// Every channel is complete, and was read to its end.
    ended: bool,
}

#[derive(Serialize)]
struct Event {
    id: String,
    event: String,
    data: String,
}

/// Reads it and puts it into the answer, whose headers are there already.
pub(super) async fn answer(hub: &Hub, request: PageRequest, mut response: Response) -> Response {
    match timeout(PATIENCE, collect(hub, request)).await {
        Ok(Some(page)) => {
            let body = serde_json::to_vec(&page).expect("texts can be written as JSON");
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            *response.body_mut() = Body::from(body);
            response
        }
        // Redis is away, or this replica goes.
        Ok(None) | Err(_) => Problem::HistoryUnavailable.with_headers_of(&response),
    }
}

/// Wakes the task that reads.
struct Woken(RefCell<Waker>);

impl Reader for Woken {
    fn turn(&self, _: Occasion) {
        self.0.borrow().wake_by_ref();
    }
}

/// What is being read.
struct Reading {
    parser: sse::Parser,
    events: Vec<Event>,
    bytes: usize,
    /// Where the client stands before the first event.
    start: Option<String>,
}

async fn collect(hub: &Hub, request: PageRequest) -> Option<Page> {
    let woken = Rc::new(Woken(RefCell::new(Waker::noop().clone())));
    let reader: Weak<dyn Reader> = Rc::downgrade(&(Rc::clone(&woken) as Rc<dyn Reader>));
    let StreamRequest {
        channels, start, ..
    } = request.stream.clone();
    let mut subscription = hub.subscribe(channels, start, &reader);
    let mut reading = Reading {
        parser: sse::Parser::new(usize::MAX),
        events: Vec::new(),
        bytes: 0,
        start: None,
    };
    let mut batch = Batch::default();
    let end = poll_fn(|cx| {
        woken.0.borrow_mut().clone_from(cx.waker());
        loop {
            batch.clear();
            match subscription.poll_next(cx, &mut batch) {
                Poll::Ready(Next::Open | Next::Events) => reading.take(&batch),
                Poll::Ready(Next::Heartbeat) => {}
                Poll::Ready(Next::Ended) => return Poll::Ready(Some(true)),
                Poll::Ready(Next::Close) => return Poll::Ready(None),
                Poll::Pending if subscription.is_caught_up() => return Poll::Ready(Some(false)),
                Poll::Pending => return Poll::Pending,
            }
            if reading.is_full(request.limit) {
                return Poll::Ready(Some(false));
            }
        }
    });
    let ended = end.await?;
    Some(reading.cut(request.limit, ended, &subscription))
}

impl Reading {
    fn take(&mut self, batch: &Batch) {
        let joined = batch.joined().map(|joined| joined.bytes());
        for chunk in batch.chunks().iter().chain(joined) {
            let (events, bytes, start) = (&mut self.events, &mut self.bytes, &mut self.start);
            let parsed = self.parser.push(chunk, |event| {
                if event.event == "gateway.open" {
                    *start = Some(event.id.to_owned());
                    return;
                }
                *bytes += event.data.len();
                events.push(Event {
                    id: event.id.to_owned(),
                    event: event.event.to_owned(),
                    data: event.data.to_owned(),
                });
            });
            // What was encoded here can be read.
            debug_assert!(parsed.is_ok());
        }
    }

    /// Where a page of `limit` events ends: behind one that takes the client further. Of several
    /// gaps at one place only the last does.
    fn length(&self, limit: usize) -> Option<usize> {
        let start = self.start.as_deref().unwrap_or_default();
        let moves = |event: &Event| event.id != start;
        let further = self.events.get(limit - 1..)?.iter().position(moves)?;
        Some(limit + further)
    }

    fn is_full(&self, limit: usize) -> bool {
        let limit = if self.bytes < MAX_BYTES { limit } else { 1 };
        self.length(limit).is_some()
    }

    fn cut(mut self, limit: usize, ended: bool, subscription: &Subscription) -> Page {
        let length = self.length(limit).unwrap_or(self.events.len());
        let is_cut = length < self.events.len() || !(ended || subscription.is_caught_up());
        self.events.truncate(length);
        let last = self.events.last().filter(|_| is_cut);
        Page {
            last_event_id: match last {
                Some(event) => event.id.clone(),
                None => subscription.cursor().to_string(),
            },
            events: self.events,
            more: is_cut,
            ended: ended && !is_cut,
        }
    }
}
