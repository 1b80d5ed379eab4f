//! Everything about Redis: the names and contents of its keys, and the rules for writing them.
//!
//! Events arrive in three ways: [`Recorders`] receive raw messages and append them, [`Publisher`] appends for callers
//! that need the id, and backends may call the function `sse_publish` themselves. All three end in one procedure of the
//! function library, which gives the event its id, stores it and publishes it to all subscribers.
//!
//! Events leave in two ways: [`Subscriber`] subscribes to the channels that the hubs want and attaches them.
//! [`History`] reads pages of history for readers that are behind.
//!
//! Guarantees, and the part that ensures each:
//! - Ids of a partition only grow, also over a failover: the caller's watermark, in `library/partition.lua`.
//! - A raw message is recorded once while one in-sync recorder survives: [`Recorders`]'s machine.
//! - Nothing is missing between a page and the live events after it: the answer channel, in [`Subscriber`].
//! - Clients receive a gap for events that Redis has lost: the horizon, in `library/handshake.lua`.
//!
//! Not guaranteed: Redis replicates asynchronously, and a raw message is lost if no recorder is subscribed.
//!
//! This crate knows nothing of HTTP. Start reading at [`Broker::new`], then `library/partition.lua`.

mod append;
mod backoff;
mod call;
mod cluster;
mod deliver;
mod deployment;
mod entry;
mod error;
mod finding;
mod inspect;
mod library;
mod log_throttle;
mod metrics;
mod migrate;
mod names;
mod node;
mod observer;
mod partition_view;
mod payload;
mod process;
mod publish_keys;
mod record;
mod renewal;
#[cfg(test)]
mod seeds;
mod serializer;
mod server;
mod tickets;
mod times;
mod topology;
mod upstream;
mod wire;

use std::sync::Arc;

use hub::{Partitions, Update};
pub use redis::{ClientTlsConfig, TlsCertificates};
use tokio::sync::mpsc;

use self::topology::Topology;
pub use self::{
    append::{Append, Appended, Appenders, MAX_COPIES, NotAppended, Publisher},
    deliver::{History, Ready, Subscriber},
    error::Error,
    finding::{Finding, Verdict},
    inspect::{RawChannels, inspect, watch_raw},
    library::Rule,
    log_throttle::LogThrottle,
    metrics::Metrics,
    migrate::{Migration, NotMigrated},
    observer::{AppendObserver, AppendedEvent},
    payload::{Envelope, MAX_RETRY, MIN_RETRY, Payload, Rejected},
    publish_keys::PublishKeys,
    record::Recorders,
    renewal::Renewal,
    server::{BadUrl, Misconfigured, Server},
    tickets::{EncodedTicket, NotIssued, Ticket, TicketChannels, Tickets},
    times::HANDOVER,
    upstream::Upstream,
};

/// How to connect to Redis, and the settings of the deployment. All replicas of a deployment have the same ones, except
/// `replica`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub redis: Server,
    /// Names this process; unique. Letters, digits and `-` only.
    pub replica: String,
    /// How many partitions the deployment has.
    pub partitions: Partitions,
    /// Raw channels begin with this; not empty, and not `ssegw:`.
    pub prefix: String,
    /// How many replicas subscribe to raw messages. 0: raw messages are not recorded.
    pub recorders: u32,
    /// Retention by channel pattern. A channel that matches no pattern is kept by [`Rule::default`].
    pub rules: Vec<Rule>,
    /// Largest payload, in bytes.
    pub max_payload: usize,
    /// Bytes of raw messages that may wait to be recorded, in each partition.
    pub max_pending: usize,
    /// Receives each event that this process appends.
    pub observer: Option<Arc<dyn AppendObserver>>,
}

/// All parts that use Redis. Each runs as a task of its own.
pub struct Broker {
    /// Subscribes for the hubs.
    pub subscriber: Subscriber,
    /// Reads history for the hubs.
    pub history: History,
    /// Records raw messages.
    pub recorders: Recorders,
    /// Appends the events of the publishers.
    pub appenders: Appenders,
    /// For callers that append events; clone it.
    pub publisher: Publisher,
    /// Keeps tickets; clone it.
    pub tickets: Tickets,
    /// Changes the settings that can change while the broker runs; clone it.
    pub renewal: Renewal,
    /// One per hub, in the order of the hubs.
    pub links: Vec<Link>,
    /// Whether live events arrive.
    pub ready: Ready,
}

/// The connections of one hub.
pub struct Link {
    /// For [`hub::Hub::new`].
    pub upstream: Upstream,
    /// For [`hub::Hub::apply`], batch by batch.
    pub updates: mpsc::Receiver<Vec<Update>>,
    /// Subjects whose streams are to end.
    pub revoked: mpsc::Receiver<Arc<str>>,
}

/// The longest subject, in bytes, of a token, a ticket, a backend's answer or a revocation. OpenID Connect allows 255.
pub const MAX_SUBJECT: usize = 256;

/// Ends the streams of a subject on every replica that is subscribed. Returns how many replicas received it.
///
/// # Errors
/// When Redis cannot be reached.
pub async fn revoke(redis: &Server, subject: &str) -> Result<u64, Error> {
    let mut publish = redis::Cmd::new();
    publish.arg("PUBLISH").arg(names::REVOKE).arg(subject);
    // Replicas subscribe at each node of a cluster that holds partitions, and a node counts its own subscribers.
    let (mut most, mut failed) = (None, None);
    for server in redis.masters().await? {
        let published = async {
            let mut connection = server.connect().await?;
            Ok::<u64, Error>(publish.query_async(&mut connection).await?)
        };
        match published.await {
            Ok(count) => most = most.max(Some(count)),
            Err(error) => failed = Some(error),
        }
    }
    match (most, failed) {
        (None, Some(error)) => Err(error),
        (most, _) => Ok(most.unwrap_or_default()),
    }
}

/// Publishes an event like any backend, and returns its id.
///
/// # Errors
/// When Redis cannot be reached, or refuses the event.
pub async fn publish(redis: &Server, channel: &str, payload: &[u8]) -> Result<String, Error> {
    let mut call = redis::Cmd::new();
    call.arg("FCALL").arg("sse_publish").arg(0);
    call.arg(channel).arg(payload);
    let mut failed = None;
    // In a cluster, the node that holds the partition.
    for server in redis.masters().await? {
        let mut connection = server.connect().await?;
        match call.query_async(&mut connection).await.map_err(Error::of) {
            Err(error) if error.is_elsewhere() => failed = Some(error),
            done => return done,
        }
    }
    Err(failed.unwrap_or(Error::NoOwner))
}

impl Broker {
    /// Makes all parts for that many hubs. Does not connect yet.
    pub fn new(config: &Config, metrics: &Metrics, hubs: usize) -> Self {
        let topology = Topology::new(config, metrics.clone());
        // Unbounded, because a hub must never wait. A stream has few requests under way.
        let (requests, requests_in) = mpsc::unbounded_channel();
        let (mut workers, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..hubs {
            let (updates, updates_in) = mpsc::channel(deliver::QUEUE);
            let (revoked, revoked_in) = mpsc::channel(deliver::QUEUE);
            workers.push(deliver::Worker::new(updates, revoked));
            receivers.push((updates_in, revoked_in));
        }
        let (subscriber, commands, ready) = Subscriber::new(config, &topology, &workers);
        let links = receivers.into_iter().enumerate();
        let links = links.map(|(worker, (updates, revoked))| Link {
            upstream: Upstream::new(worker, commands.clone(), requests.clone()),
            updates,
            revoked,
        });
        let (publisher, appenders) = Publisher::new(&topology);
        Self {
            links: links.collect(),
            publisher,
            appenders,
            tickets: Tickets::new(topology.clone()),
            renewal: Renewal::new(topology.clone()),
            subscriber,
            history: History::new(topology.clone(), requests_in),
            recorders: Recorders::new(config, &topology),
            ready,
        }
    }
}

#[cfg(test)]
impl Config {
    /// For parts that do not connect.
    pub(crate) fn of(partitions: Partitions) -> Self {
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: None,
        };
        Self {
            redis: Server::new("redis://127.0.0.1", certificates, [], []).expect("it is a URL"),
            replica: "a".into(),
            partitions,
            prefix: "sse:".into(),
            recorders: 1,
            rules: Vec::new(),
            max_payload: 1 << 20,
            max_pending: 1 << 20,
            observer: None,
        }
    }
}
