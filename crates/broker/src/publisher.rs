//! `Publisher`: appends for callers who want to be told the id.
//!
//! What is asked for while calls are under way goes out together in the next one: a publisher at
//! a time costs a round trip each, a thousand at once a few.

use std::collections::BTreeMap;

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, EventId};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error,
    connection::{Function, Redis},
};

/// Requests that may wait; whoever comes later waits to be let in.
const QUEUE: usize = 1024;
/// Calls under way at once.
const MAX_CALLS: usize = 4;
/// Events of one call at most, unless a single request has more.
const CALL_EVENTS: usize = 256;
/// Bytes of payload of one call at most, unless a single request has more.
const CALL_BYTES: usize = 1 << 20;

/// An event to be appended. Whoever makes one has checked that its payload can be one.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where to.
    pub channel: Channel,
    /// As it will be stored; see [`crate::Payload`].
    pub payload: Vec<u8>,
    /// A repetition with the same key within five minutes stores nothing, and is answered the
    /// first one's id.
    pub idempotency_key: Option<String>,
}

/// Why an event was not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAppended {
    /// This event cannot be stored, whatever happens to others: its key holds something else.
    #[error("redis cannot store this event: {0}")]
    Impossible(String),
    /// Redis takes no writes now. Nothing was stored.
    #[error("{0}")]
    Refused(String),
    /// No answer: the event may or may not be stored.
    #[error("redis did not answer, the event may or may not be stored: {0}")]
    Unknown(String),
}

/// The id of an event; none if its channel keeps no history.
pub type Appended = Result<Option<EventId>, NotAppended>;

/// A handle; cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher(mpsc::Sender<Request>);

/// Makes the calls, as a task of its own: connections belong to the runtime that made them.
pub struct Appender {
    redis: Redis,
    requests: mpsc::Receiver<Request>,
}

#[derive(Debug)]
struct Request {
    partition: u16,
    events: Vec<Append>,
    reply: oneshot::Sender<Vec<Appended>>,
}

impl Publisher {
    pub(crate) fn new(redis: Redis) -> (Self, Appender) {
        let (sender, requests) = mpsc::channel(QUEUE);
        (Self(sender), Appender { redis, requests })
    }

    /// Appends events in their order, those of one partition in one step. Answers one result for
    /// each.
    pub async fn append(&self, events: Vec<Append>) -> Vec<Appended> {
        let gone = || Err(NotAppended::Unknown("the gateway is ending".to_owned()));
        let count = events.len();
        let mut partitions = BTreeMap::<u16, (Vec<usize>, Vec<Append>)>::new();
        for (place, event) in events.into_iter().enumerate() {
            let (places, events) = partitions.entry(event.channel.partition()).or_default();
            places.push(place);
            events.push(event);
        }
        let mut waiting = Vec::new();
        for (partition, (places, events)) in partitions {
            let (reply, answer) = oneshot::channel();
            let request = Request {
                partition,
                events,
                reply,
            };
            // One that cannot be sent drops its end of `answer`.
            let _gone = self.0.send(request).await;
            waiting.push((places, answer));
        }
        let mut results: Vec<Appended> = (0..count).map(|_| gone()).collect();
        for (places, answer) in waiting {
            let answers = answer.await.unwrap_or_default();
            for (place, answer) in places.into_iter().zip(answers) {
                results[place] = answer;
            }
        }
        results
    }
}

impl Appender {
    /// Appends until every [`Publisher`] is gone.
    pub async fn run(mut self) {
        let mut calls = FuturesUnordered::<BoxFuture<'static, ()>>::new();
        let mut held = None;
        loop {
            let request = tokio::select! {
                biased;
                Some(()) = calls.next() => continue,
                request = next(&mut held, &mut self.requests), if calls.len() < MAX_CALLS => request,
            };
            let Some(first) = request else {
                while calls.next().await.is_some() {}
                return;
            };
            let call = self.gather(first, &mut held);
            calls.push(perform(self.redis.clone(), call).boxed());
        }
    }

    /// What waits already and fits into the same call. The first one that does not is held.
    fn gather(&mut self, first: Request, held: &mut Option<Request>) -> Vec<Request> {
        let (mut events, mut bytes) = first.size();
        let mut call = vec![first];
        while let Ok(request) = self.requests.try_recv() {
            let (more_events, more_bytes) = request.size();
            events += more_events;
            bytes += more_bytes;
            let fits = events <= CALL_EVENTS && bytes <= CALL_BYTES;
            if request.partition != call[0].partition || !fits {
                *held = Some(request);
                break;
            }
            call.push(request);
        }
        call
    }
}

impl Request {
    fn size(&self) -> (usize, usize) {
        let bytes = self.events.iter().map(|event| event.payload.len());
        (self.events.len(), bytes.sum())
    }
}

async fn next(
    held: &mut Option<Request>,
    requests: &mut mpsc::Receiver<Request>,
) -> Option<Request> {
    match held.take() {
        Some(request) => Some(request),
        None => requests.recv().await,
    }
}

async fn perform(redis: Redis, call: Vec<Request>) {
    let partition = call[0].partition;
    let floor = redis.floor(partition).to_string();
    let mut args: Vec<&[u8]> = vec![redis.replica().as_bytes(), floor.as_bytes()];
    for event in call.iter().flat_map(|request| &request.events) {
        args.push(event.channel.as_str().as_bytes());
        args.push(&event.payload);
        args.push(event.idempotency_key.as_deref().unwrap_or("").as_bytes());
    }
    let answer: Result<Vec<String>, Error> = redis.call(Function::Append, partition, &args).await;
    let count: usize = call.iter().map(|request| request.events.len()).sum();
    let mut results = match answer {
        Ok(ids) if ids.len() == count => ids.iter().map(|id| read(id)).collect(),
        Ok(_) => vec![Err(NotAppended::Unknown(Error::Malformed.to_string())); count],
        Err(error) => {
            tracing::warn!(partition, %error, "events were not appended");
            let failed = match error {
                Error::Refused(_) => NotAppended::Refused(error.to_string()),
                _ => NotAppended::Unknown(error.to_string()),
            };
            vec![Err(failed); count]
        }
    };
    let greatest = results.iter().filter_map(|result| *result.as_ref().ok()?);
    if let Some(greatest) = greatest.max() {
        redis.saw(partition, greatest);
    }
    for request in call {
        let rest = results.split_off(request.events.len());
        // Whoever asked may have gone.
        let _gone = request.reply.send(std::mem::replace(&mut results, rest));
    }
}

/// One answer of the function.
fn read(answer: &str) -> Appended {
    if let Some(reason) = answer.strip_prefix('!') {
        return Err(NotAppended::Impossible(reason.to_owned()));
    }
    if answer == "-" {
        return Ok(None);
    }
    let malformed = |_| NotAppended::Unknown(Error::Malformed.to_string());
    answer.parse().map(Some).map_err(malformed)
}
