//! Appending for callers that need the id.
//!
//! A partition has one call under way. Requests that arrive in that time are sent together in the next call. So one
//! publisher waits for one round trip, and a hundred at once wait as long.

mod appender;
mod copies;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use hub::{Channel, EventId};
use sha1::{Digest as _, Sha1};
use tokio::{
    sync::{
        mpsc::{self, error::SendError},
        oneshot,
    },
    time::{Instant, timeout_at},
};

use self::appender::{AppendRequest, Appender};
pub use self::copies::MAX_COPIES;
use crate::topology::Topology;

/// Requests that may wait until an appender takes them, and as many that may wait for a call. At least as many as there
/// are partitions, because a batch is accepted as a whole.
const QUEUE: usize = 1024;
/// A caller is answered within this time.
const DEADLINE: Duration = Duration::from_secs(5);

/// An event to be appended. The caller has checked that its payload can be an event.
#[derive(Clone, Debug)]
pub struct Append {
    /// The channel of the event.
    pub channel: Channel,
    /// As it will be stored; see [`crate::Payload`].
    pub payload: Vec<u8>,
    /// Whether the channel is complete with this event. It is then appended after the raw messages that were published
    /// before it, and has no id yet when the caller is answered.
    pub is_end: bool,
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

/// Why an event was not appended, or not copied. The error of Redis is in the log.
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
    /// The event is stored, but not copied.
    #[error("the event is stored, but fewer copies of redis than requested had it within a second")]
    NotCopied(Option<EventId>),
    /// The event may or may not be stored.
    #[error("redis did not answer in time; the event may or may not be stored")]
    Unknown,
}

/// The id of an event; none if its channel keeps no history, or if it is an end that waits for raw messages.
pub type Appended = Result<Option<EventId>, NotAppended>;

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    topology: Topology,
    /// One for each node.
    appenders: Arc<[mpsc::Sender<AppendRequest>]>,
}

/// Makes the calls, as a task of its own, because connections belong to the runtime that made them.
pub struct Appenders(Vec<Appender>);

impl Publisher {
    pub(crate) fn new(topology: &Topology) -> (Self, Appenders) {
        let nodes = topology.nodes().iter();
        let (senders, appenders): (Vec<_>, _) = nodes
            .map(|node| {
                let (sender, requests) = mpsc::channel(QUEUE);
                (sender, Appender::new(node.clone(), requests))
            })
            .unzip();
        let publisher = Self {
            topology: topology.clone(),
            appenders: senders.into(),
        };
        (publisher, Appenders(appenders))
    }

    /// Appends events in their order, those of one partition in one step. Waits until so many copies of Redis have them,
    /// at most [`MAX_COPIES`]. Returns one result for each, within five seconds.
    pub async fn append(&self, events: Vec<Append>, copies: u8) -> Vec<Appended> {
        let deadline = Instant::now() + DEADLINE;
        let (count, asked) = (events.len(), SystemTime::now());
        let mut partitions = BTreeMap::<u16, (Vec<usize>, Vec<Append>)>::new();
        for (place, event) in events.into_iter().enumerate() {
            let (places, events) = partitions.entry(event.channel.partition()).or_default();
            places.push(place);
            events.push(event);
        }
        // All are accepted, or none. A node's places are taken at once, and nodes in their order. Otherwise two callers
        // could each wait for places that the other one has.
        let node = |partition: &u16| self.topology.index(*partition);
        let mut counts = BTreeMap::<usize, usize>::new();
        for partition in partitions.keys() {
            *counts.entry(node(partition)).or_default() += 1;
        }
        let reserve = async {
            let mut permits = BTreeMap::new();
            for (node, count) in counts {
                permits.insert(node, self.appenders[node].reserve_many(count).await?);
            }
            Ok::<_, SendError<()>>(permits)
        };
        let Ok(Ok(mut permits)) = timeout_at(deadline, reserve).await else {
            return vec![Err(NotAppended::Unreachable); count];
        };
        let mut answers = Vec::new();
        for (partition, (places, events)) in partitions {
            let permit = permits.get_mut(&node(&partition)).and_then(Iterator::next);
            let permit = permit.expect("there is one for each partition");
            let (reply, answer) = oneshot::channel();
            permit.send(AppendRequest {
                partition,
                events,
                copies,
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

impl Appenders {
    /// Appends until every [`Publisher`] is gone.
    pub async fn run(self) {
        join_all(self.0.into_iter().map(Appender::run)).await;
    }
}
