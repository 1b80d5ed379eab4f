//! A page of history as JSON, for clients that poll: the events that a stream would deliver until it is up to date.
//!
//! A page is read by a subscription, as a stream is, so that the same rules apply to gaps.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use fair::{Holder, Room, Share, counted};
use hub::{Batch, Hub, Next, Occasion, Reader, Subscription};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::timeout,
};

use crate::http::answer;
use crate::http::error::Problem;
use crate::http::stream::request::StreamRequest;

/// Events of a page by default, and at most.
pub(crate) const EVENTS: usize = 100;
pub(crate) const MAX_EVENTS: usize = 1000;
/// Bytes of JSON after which a page ends.
const MAX_BYTES: usize = 4 << 20;
/// The longest wait for Redis, and for room. It is shorter than the time that a drain leaves to requests.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Bytes of all pages that are read or on their way, in the whole process.
const ROOM: usize = 64 << 20;
/// Bytes of room that a page needs to begin: about as many as are read at once. A page waits for this room, which
/// limits the number of pages that are read at once.
const FIRST: usize = 512 << 10;

/// A requested page. The response carries it as an extension, like a [`StreamRequest`].
#[derive(Clone, Debug)]
pub(crate) struct PageRequest {
    pub(crate) stream: StreamRequest,
    pub(crate) limit: usize,
    /// The holder of its room.
    pub(crate) holder: Holder,
}

/// The holder of a page's room. Pages of one subject share their room. Without a subject, those of one address do.
pub(crate) fn holder(subject: Option<&Arc<str>>, client: IpAddr, connection: u64) -> Holder {
    let client = match subject {
        Some(subject) => format!("subject {subject}").into(),
        None => format!("address {}", counted(client)).into(),
    };
    Holder { client, connection }
}

#[derive(Serialize)]
struct Page {
    events: Vec<PageEvent>,
    /// The `last_event_id` with which a client requests the next page.
    last_event_id: String,
    /// Whether more events exist already.
    more: bool,
    /// Whether every channel is complete, and was read to its end.
    ended: bool,
}

#[derive(Serialize)]
struct PageEvent {
    id: String,
    event: String,
    data: String,
}

/// Reads pages, and limits their memory in the whole process.
pub(crate) struct Pages {
    room: Arc<Room>,
}

impl Pages {
    pub(crate) fn new() -> Self {
        Self {
            room: Room::new(ROOM),
        }
    }

    /// A page as JSON, and its room.
    pub(crate) async fn read(
        &self,
        hub: &Hub,
        request: PageRequest,
    ) -> Result<(Bytes, answer::Room), Problem> {
        let read = async {
            let mut share = self.room.wait(&request.holder, FIRST).await?;
            let page = collect(hub, request, &mut share).await?;
            let _turn = turn().await;
            let mut bytes = serde_json::to_vec(&page).expect("texts can be written as JSON");
            drop(page);
            bytes.shrink_to_fit();
            share.shrink(bytes.len());
            Some((bytes.into(), share.into()))
        };
        match timeout(PATIENCE, read).await {
            Ok(Some(page)) => Ok(page),
            // Redis is unreachable, this replica stops, or too many pages are under way.
            Ok(None) | Err(_) => Err(Problem::HistoryUnavailable),
        }
    }
}

/// Wakes the task that reads.
struct Woken(RefCell<Waker>);

impl Reader for Woken {
    fn turn(&self, _: Occasion) {
        self.0.borrow().wake_by_ref();
    }
}

/// A page while it is being read.
struct Reading {
    parser: sse::Parser,
    events: Vec<PageEvent>,
    /// Their size as JSON.
    bytes: usize,
    /// Whether there is no room for more.
    is_crowded: bool,
    /// The client's cursor before the first event.
    start: Option<String>,
}

/// Bytes that an event takes in addition to its texts.
const OVERHEAD: usize = 64;

/// Bytes of a text in JSON.
fn written(text: &str) -> usize {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(byte).sum()
}

async fn collect(hub: &Hub, request: PageRequest, share: &mut Share) -> Option<Page> {
    let woken = Rc::new(Woken(RefCell::new(Waker::noop().clone())));
    let reader: Weak<dyn Reader> = Rc::downgrade(&(Rc::clone(&woken) as Rc<dyn Reader>));
    let StreamRequest {
        channels,
        start,
        format,
        ..
    } = request.stream.clone();
    let mut subscription = hub.subscribe(channels, start, &reader);
    let mut reading = Reading {
        parser: sse::Parser::new(usize::MAX),
        events: Vec::new(),
        bytes: 0,
        is_crowded: false,
        start: None,
    };
    let mut batch = Batch::default();
    let ended = loop {
        let next = poll_fn(|cx| {
            woken.0.borrow_mut().clone_from(cx.waker());
            batch.clear();
            match subscription.poll_next(cx, &mut batch) {
                Poll::Pending if subscription.is_caught_up() => Poll::Ready(None),
                next => next.map(Some),
            }
        });
        match next.await {
            // A heartbeat is not part of a page. Its batch is empty.
            Some(Next::Open | Next::Events | Next::Heartbeat) => {
                let _turn = turn().await;
                let before = reading.bytes;
                batch.encode(|control| format.encode(control));
                reading.take(&batch);
                // Twice the size: the events, and later the JSON that is made of them.
                reading.is_crowded |= !share.grow(2 * (reading.bytes - before));
            }
            Some(Next::Ended) => break true,
            Some(Next::Close) => return None,
            None => break false,
        }
        if reading.is_full(request.limit) {
            break false;
        }
    };
    Some(reading.cut(request.limit, ended, &subscription))
}

/// Waits until this thread works on no other page. Many pages may become ready at once, each with milliseconds of work.
/// Between two of them the thread serves its sockets and its other tasks.
async fn turn() -> OwnedSemaphorePermit {
    thread_local! {
        static TURN: Arc<Semaphore> = Arc::new(Semaphore::new(1));
    }
    let turn = TURN.with(Arc::clone).acquire_owned().await;
    // Without the yield, the permit would pass from page to page before any other task runs.
    yield_now().await;
    turn.expect("it is never closed")
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
                let texts = [event.id, event.event, event.data].map(written);
                *bytes += OVERHEAD + texts.into_iter().sum::<usize>();
                events.push(PageEvent {
                    id: event.id.to_owned(),
                    event: event.event.to_owned(),
                    data: event.data.to_owned(),
                });
            });
            // This process encoded the text, so it can be parsed.
            debug_assert!(parsed.is_ok());
        }
    }

    /// The length of a page of `limit` events. A page ends after an event that advances the client. Of several gaps at
    /// one position, only the last one advances it.
    fn length(&self, limit: usize) -> Option<usize> {
        let start = self.start.as_deref().unwrap_or_default();
        let moves = |event: &PageEvent| event.id != start;
        let further = self.events.get(limit - 1..)?.iter().position(moves)?;
        Some(limit + further)
    }

    fn is_full(&self, limit: usize) -> bool {
        let is_large = self.bytes >= MAX_BYTES || self.is_crowded;
        let limit = if is_large { 1 } else { limit };
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

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io::Write as _};

    use tokio::{io::AsyncReadExt as _, net::UnixStream, task::LocalSet};

    use super::*;

    #[test]
    fn the_size_of_a_text_is_its_size_as_json() {
        let text: String = (0..=0x2FF).filter_map(char::from_u32).collect();
        let json = serde_json::to_string(&text).unwrap();
        assert_eq!(written(&text), json.len() - 2);
    }

    /// Breaks when pages that become ready at once are worked on one after the other, while other clients wait.
    #[tokio::test(flavor = "current_thread")]
    async fn between_two_pages_the_thread_serves_its_sockets() {
        const PAGES: usize = 100;
        let (client, other) = std::os::unix::net::UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = UnixStream::from_std(client).unwrap();
        let served = Rc::new(Cell::new(0));
        let count = Rc::clone(&served);
        let tasks = LocalSet::new();
        tasks.spawn_local(async move {
            while client.read_u8().await.is_ok() {
                count.set(count.get() + 1);
            }
        });
        let other = Rc::new(other);
        let pages = (0..PAGES).map(|_| {
            let (served, other) = (Rc::clone(&served), Rc::clone(&other));
            tasks.spawn_local(async move {
                let _turn = turn().await;
                // Work, during which another client sends something.
                (&*other).write_all(b"x").unwrap();
                served.get()
            })
        });
        let pages: Vec<_> = pages.collect();
        tasks
            .run_until(async {
                for (number, page) in pages.into_iter().enumerate() {
                    assert_eq!(page.await.unwrap(), number, "served before this page");
                }
            })
            .await;
    }
}
