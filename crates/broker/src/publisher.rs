//! `Publisher`: appends for callers that need the id.
//!
//! A partition has one call under way. Requests that arrive in that time are sent together in the next call. So one
//! publisher waits for one round trip, and a hundred at once wait as long.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, EventId};
use sha1::{Digest as _, Sha1};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    Error, Recorded,
    call::Function,
    connection::{Connection, Redis},
    seldom::Seldom,
};

/// Requests that may wait until the appender takes them, and as many that may wait for a call. At least as many as
/// there are partitions, because a batch is accepted as a whole.
const QUEUE: usize = 1024;
/// Calls under way at once.
const MAX_CALLS: usize = 4;
/// Events of one call at most, unless a single request has more.
const CALL_EVENTS: usize = 256;
/// Bytes of payload of one call at most, unless a single request has more.
const CALL_BYTES: usize = 1 << 20;
/// A connection that was used this recently is not pinged first.
const FRESH: Duration = Duration::from_millis(500);
/// A caller is answered within this time.
const DEADLINE: Duration = Duration::from_secs(5);

/// An event to be appended. The caller has checked that its payload can be an event.
#[derive(Clone, Debug)]
pub struct Append {
    /// The channel of the event.
    pub channel: Channel,
    /// As it will be stored; see [`crate::Payload`].
    pub payload: Vec<u8>,
    /// A repetition with the same key and payload within five minutes stores nothing, and receives the id of the first
    /// one. The caller puts the publisher's name into the key, because a key belongs to one publisher.
    pub idempotency_key: Option<String>,
}

impl Append {
    /// The key as the function takes it, with the digest of the payload before it; empty without a key.
    fn digest_and_key(&self) -> Vec<u8> {
        let Some(key) = &self.idempotency_key else {
            return Vec::new();
        };
        let digest = Sha1::digest(&self.payload);
        let mut text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(key);
        text.into_bytes()
    }
}

/// Why an event was not appended. The error of Redis is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAppended {
    /// This event cannot be stored, although others may be.
    #[error("the channel's key in redis holds something that is no history of events")]
    Impossible,
    /// Nothing was stored.
    #[error(
        "this publisher's Idempotency-Key came with another payload within the last five minutes; nothing is stored"
    )]
    KeyReused,
    /// Nothing was stored.
    #[error("redis takes no writes now; the event is not stored")]
    Refused,
    /// Nothing was stored.
    #[error("redis cannot be reached; the event is not stored")]
    Unreachable,
    /// The event may or may not be stored.
    #[error("redis did not answer in time; the event may or may not be stored")]
    Unknown,
}

/// The id of an event; none if its channel keeps no history.
pub type Appended = Result<Option<EventId>, NotAppended>;

/// A handle; cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher(mpsc::Sender<Request>);

/// Makes the calls, as a task of its own, because connections belong to the runtime that made them.
pub struct Appender {
    redis: Redis,
    requests: mpsc::Receiver<Request>,
    /// Requests that wait for a call, by partition; never an empty queue.
    waiting: BTreeMap<u16, VecDeque<Request>>,
    /// Partitions that have a call under way.
    busy: BTreeSet<u16>,
    /// Not from the pool, which pings each connection first. That would be a second round trip.
    connection: Option<Idle>,
}

#[derive(Clone)]
struct Idle {
    redis: Connection,
    used: Instant,
}

#[derive(Debug)]
struct Request {
    partition: u16,
    events: Vec<Append>,
    asked: SystemTime,
    reply: oneshot::Sender<Vec<Appended>>,
}

impl Publisher {
    pub(crate) fn new(redis: Redis) -> (Self, Appender) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let appender = Appender {
            redis,
            requests,
            waiting: BTreeMap::new(),
            busy: BTreeSet::new(),
            connection: None,
        };
        (Self(sender), appender)
    }

    /// Appends events in their order, those of one partition in one step. Returns one result for each, within five
    /// seconds.
    pub async fn append(&self, events: Vec<Append>) -> Vec<Appended> {
        let deadline = Instant::now() + DEADLINE;
        let (count, asked) = (events.len(), SystemTime::now());
        let mut partitions = BTreeMap::<u16, (Vec<usize>, Vec<Append>)>::new();
        for (place, event) in events.into_iter().enumerate() {
            let (places, events) = partitions.entry(event.channel.partition()).or_default();
            places.push(place);
            events.push(event);
        }
        // All are accepted, or none.
        let permits = self.0.reserve_many(partitions.len());
        let Ok(Ok(permits)) = timeout_at(deadline, permits).await else {
            return vec![Err(NotAppended::Unreachable); count];
        };
        let mut answers = Vec::new();
        for (permit, (partition, (places, events))) in permits.zip(partitions) {
            let (reply, answer) = oneshot::channel();
            permit.send(Request {
                partition,
                events,
                asked,
                reply,
            });
            answers.push((places, answer));
        }
        let mut results = vec![Err(NotAppended::Unknown); count];
        for (places, answer) in answers {
            let Ok(Ok(answer)) = timeout_at(deadline, answer).await else {
                continue;
            };
            for (place, result) in places.into_iter().zip(answer) {
                results[place] = result;
            }
        }
        results
    }
}

impl Appender {
    /// Appends until every [`Publisher`] is gone.
    pub async fn run(mut self) {
        let mut calls = FuturesUnordered::<BoxFuture<'static, (u16, Option<Idle>)>>::new();
        let mut taken = Vec::new();
        loop {
            while calls.len() < MAX_CALLS
                && let Some((partition, call)) = self.next_call()
            {
                let connection = self.connection.clone();
                calls.push(perform(self.redis.clone(), connection, partition, call).boxed());
            }
            let waiting: usize = self.waiting.values().map(VecDeque::len).sum();
            tokio::select! {
                Some((partition, connection)) = calls.next() => {
                    self.busy.remove(&partition);
                    // A connection that failed is not used again, in any call.
                    self.connection = connection;
                }
                count = self.requests.recv_many(&mut taken, QUEUE), if waiting < QUEUE => {
                    if count == 0 {
                        break;
                    }
                    for request in taken.drain(..) {
                        self.waiting.entry(request.partition).or_default().push_back(request);
                    }
                }
            }
        }
        while calls.next().await.is_some() {}
    }

    /// The next call: the requests of a partition without a call, as many as fit.
    fn next_call(&mut self) -> Option<(u16, Vec<Request>)> {
        let is_free = |partition: &&u16| !self.busy.contains(partition);
        let partition = *self.waiting.keys().find(is_free)?;
        let mut queue = self.waiting.remove(&partition)?;
        let (mut call, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(request) = queue.pop_front() {
            // The caller does not wait for it any more, and has received an error.
            if request.reply.is_closed() {
                continue;
            }
            let (more_events, more_bytes) = request.size();
            events += more_events;
            bytes += more_bytes;
            if !call.is_empty() && (events > CALL_EVENTS || bytes > CALL_BYTES) {
                queue.push_front(request);
                break;
            }
            call.push(request);
        }
        if !queue.is_empty() {
            self.waiting.insert(partition, queue);
        }
        if call.is_empty() {
            return self.next_call();
        }
        self.busy.insert(partition);
        Some((partition, call))
    }
}

impl Request {
    fn size(&self) -> (usize, usize) {
        let bytes = self.events.iter().map(|event| event.payload.len());
        (self.events.len(), bytes.sum())
    }
}

/// Makes a call for requests of one partition, and answers them. Returns the partition, and the connection if it is
/// good.
async fn perform(
    redis: Redis,
    connection: Option<Idle>,
    partition: u16,
    call: Vec<Request>,
) -> (u16, Option<Idle>) {
    let watermark = redis.watermark(partition).to_string();
    let events = || call.iter().flat_map(|request| &request.events);
    let keys: Vec<_> = events().map(Append::digest_and_key).collect();
    let mut append = redis
        .new_call(Function::Append, partition)
        .of_channels(events().map(|event| event.channel.as_str()))
        .arg(redis.replica())
        .arg(&watermark);
    for (event, key) in events().zip(&keys) {
        if let Some(key) = &event.idempotency_key {
            append = append.of_idempotency_key(event.channel.as_str(), key);
        }
        append = append
            .arg(event.channel.as_str())
            .arg(&event.payload)
            .arg(key);
    }
    let sent = SystemTime::now();
    let (answer, connection) = match connect(&redis, connection).await {
        Ok(mut connection) => {
            let called = redis.call_on(&mut connection.redis, &append);
            let answer: Result<Vec<String>, Error> = called.await;
            connection.used = Instant::now();
            let is_good = !matches!(
                answer,
                Err(Error::Unavailable(_) | Error::Unreachable(_) | Error::Left)
            );
            (answer, is_good.then_some(connection))
        }
        // Nothing was sent.
        Err(error) => (Err(Error::Unreachable(Box::new(error))), None),
    };
    let count: usize = call.iter().map(|request| request.events.len()).sum();
    let mut results = match answer {
        Ok(ids) if ids.len() == count => ids.iter().map(|id| read(id)).collect(),
        Ok(_) => vec![Err(NotAppended::Unknown); count],
        Err(error) => {
            static SELDOM: Seldom = Seldom::new();
            if let Some(suppressed) = SELDOM.pass() {
                tracing::warn!(partition, count, %error, suppressed, "events were not appended");
            }
            let failed = match error {
                Error::Refused(_) => NotAppended::Refused,
                Error::Connect { .. }
                | Error::Unreachable(_)
                | Error::TooOld
                | Error::Partitions { .. } => NotAppended::Unreachable,
                _ => NotAppended::Unknown,
            };
            vec![Err(failed); count]
        }
    };
    let ids = results.iter().filter_map(|result| *result.as_ref().ok()?);
    if let Some(greatest) = ids.max() {
        redis.saw(partition, greatest);
    }
    for request in call {
        if let Some(witness) = redis.witness() {
            for (event, result) in request.events.iter().zip(&results) {
                if let Ok(Some(id)) = *result {
                    witness.recorded(&Recorded {
                        channel: &event.channel,
                        id,
                        asked: request.asked,
                        sent,
                    });
                }
            }
        }
        let rest = results.split_off(request.events.len());
        // The caller may not wait any more.
        let _gone = request.reply.send(std::mem::replace(&mut results, rest));
    }
    (partition, connection)
}

/// The connection, if it can be relied on, or a new one. An idle connection may be dead, so it is pinged first.
/// Otherwise an event could be sent on a dead connection, and it would be unknown whether the event was stored.
async fn connect(redis: &Redis, connection: Option<Idle>) -> Result<Idle, Error> {
    let moves = redis.moves();
    if let Some(mut connection) = connection.filter(|idle| idle.redis.moves() == moves)
        && (connection.used.elapsed() < FRESH || connection.redis.pongs().await)
    {
        return Ok(connection);
    }
    Ok(Idle {
        redis: redis.connect().await?,
        used: Instant::now(),
    })
}

/// One answer of the function.
fn read(answer: &str) -> Appended {
    if let Some(error) = answer.strip_prefix('!') {
        // The publisher gets this error in its answer. It is not logged, because nothing is wrong here.
        if error.starts_with("KEYREUSED") {
            return Err(NotAppended::KeyReused);
        }
        static SELDOM: Seldom = Seldom::new();
        if let Some(suppressed) = SELDOM.pass() {
            tracing::warn!(error, suppressed, "an event cannot be appended");
        }
        return Err(NotAppended::Impossible);
    }
    if answer == "-" {
        return Ok(None);
    }
    answer.parse().map(Some).map_err(|_| NotAppended::Unknown)
}
