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

use futures_util::FutureExt as _;
use hub::{Channel, EventId};
use sha1::{Digest as _, Sha1};
use tokio::{
    sync::{
        mpsc::{self, error::SendError},
        oneshot, watch,
    },
    time::{Instant, timeout_at},
};

use self::appender::{AppendRequest, Appender};
pub use self::copies::MAX_COPIES;
use crate::{
    node::Node,
    topology::{Layout, Topology},
};

/// Requests that may wait until an appender takes them, and as many that may wait for a call. At least as many as there
/// are partitions, because a batch is accepted as a whole.
const QUEUE: usize = 1024;
/// A caller is answered within this time.
const DEADLINE: Duration = Duration::from_secs(5);
/// This long before the deadline, a request whose partition has no node is refused.
const MARGIN: Duration = Duration::from_millis(500);

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
pub struct Publisher(watch::Receiver<Lanes>);

/// By partition: the appender of its node, and the place of that node. None before it is known.
type Lanes = Arc<[Option<(usize, mpsc::Sender<AppendRequest>)>]>;

/// Makes the calls, as a task of its own, because connections belong to the runtime that made them.
pub struct Appenders {
    topology: Topology,
    lanes: Arc<watch::Sender<Lanes>>,
}

impl Publisher {
    pub(crate) fn new(topology: &Topology) -> (Self, Appenders) {
        let (lanes, published) = watch::channel(Lanes::default());
        let appenders = Appenders {
            topology: topology.clone(),
            lanes: Arc::new(lanes),
        };
        (Self(published), appenders)
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
        let mut published = self.0.clone();
        let are_known = |lanes: &Lanes| {
            let mut partitions = partitions.keys();
            partitions.all(|it| lane(lanes, *it).is_some())
        };
        let known = timeout_at(deadline, published.wait_for(are_known)).await;
        let Ok(Ok(lanes)) = known.map(|known| known.map(|lanes| Arc::clone(&lanes))) else {
            return vec![Err(NotAppended::Unreachable); count];
        };
        let lane_of = |partition| lane(&lanes, partition).expect("it is known");
        let mut counts = BTreeMap::new();
        for partition in partitions.keys() {
            let (node, sender) = lane_of(*partition);
            counts.entry(*node).or_insert((sender, 0)).1 += 1;
        }
        let reserve = async {
            let mut permits = BTreeMap::new();
            for (node, (sender, count)) in counts {
                permits.insert(node, sender.reserve_many(count).await?);
            }
            Ok::<_, SendError<()>>(permits)
        };
        let Ok(Ok(mut permits)) = timeout_at(deadline, reserve).await else {
            return vec![Err(NotAppended::Unreachable); count];
        };
        let mut answers = Vec::new();
        for (partition, (places, events)) in partitions {
            let (node, _) = lane_of(partition);
            let permit = permits.get_mut(node).and_then(Iterator::next);
            let permit = permit.expect("there is one for each partition");
            let (reply, answer) = oneshot::channel();
            permit.send(AppendRequest {
                partition,
                events,
                copies,
                asked,
                give_up: deadline - MARGIN,
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

fn lane(lanes: &Lanes, partition: u16) -> Option<&(usize, mpsc::Sender<AppendRequest>)> {
    lanes.get(usize::from(partition))?.as_ref()
}

impl Appenders {
    /// Appends until every [`Publisher`] is gone.
    pub async fn run(self) {
        let mut nodes = Vec::<(Node, mpsc::WeakSender<AppendRequest>)>::new();
        let start = |layout: &Layout| {
            nodes.retain(|(node, _)| layout.nodes().iter().any(|it| it.is(node)));
            let (mut new, mut senders) = (Vec::new(), Vec::new());
            for node in layout.nodes() {
                if nodes.iter().any(|(it, _)| it.is(node)) {
                    continue;
                }
                let (sender, requests) = mpsc::channel(QUEUE);
                nodes.push((node.clone(), sender.downgrade()));
                let appender = Appender::new(node.clone(), requests, Arc::clone(&self.lanes));
                new.push(appender.run().map(Ok).boxed());
                senders.push(sender);
            }
            let partitions = self.topology.deployment().partitions();
            let lanes = partitions.all().map(|partition| {
                let node = layout.node(partition)?;
                let place = nodes.iter().position(|(it, _)| it.is(node))?;
                Some((place, nodes[place].1.upgrade()?))
            });
            self.lanes.send_replace(lanes.collect());
            new
        };
        let over = async {
            self.lanes.closed().await;
            // The appenders end with their last sender.
            self.lanes.send_replace(Lanes::default());
        };
        // Appenders try again after any error.
        let _ended = self.topology.follow(start, over).await;
    }
}
