//! Everything about Redis: the names and contents of its keys, and the rules for writing them.
//!
//! Events arrive in three ways: [`Recorder`] receives raw messages and appends them, [`Publisher`] appends for callers
//! that need the id, and backends may call the function `sse_publish` themselves. All three end in one procedure of the
//! function library, which gives the event its id, stores it and publishes it to all subscribers.
//!
//! Events leave in two ways: [`Subscriber`] subscribes to the channels that the hubs want and attaches them.
//! [`History`] reads pages of history for readers that are behind.
//!
//! Guarantees, and the part that ensures each:
//! - Ids of a partition only grow, also over a failover: the caller's watermark, in `library.lua`.
//! - A raw message is recorded once while one in-sync recorder survives: [`Recorder`]'s machine.
//! - Nothing is missing between a page and the live events after it: the fence channel, in [`Subscriber`].
//! - Clients receive a gap for events that Redis has lost: the horizon, in `library.lua`.
//!
//! Not guaranteed: Redis replicates asynchronously, and a raw message is lost if no recorder is subscribed.
//!
//! This crate knows nothing of HTTP. Start reading at [`Broker::new`], then `library.lua`.

mod backoff;
mod call;
mod connection;
mod entry;
mod error;
mod finding;
mod history;
mod inspect;
mod library;
mod metrics;
mod names;
mod node;
mod payload;
mod publisher;
mod recorder;
mod renewal;
mod seldom;
mod serializer;
mod server;
mod subscriber;
mod tickets;
mod times;
mod upstream;
mod wire;
mod witness;

use std::sync::Arc;

use hub::{Partitions, Update};
pub use redis::{ClientTlsConfig, TlsCertificates};
use tokio::sync::{mpsc, watch};

pub use self::{
    error::Error,
    finding::{Finding, Verdict},
    history::History,
    inspect::{RawChannels, inspect, watch_raw},
    library::Rule,
    metrics::Metrics,
    payload::{MAX_RETRY, MIN_RETRY, Payload, Rejected},
    publisher::{Append, Appended, Appender, NotAppended, Publisher},
    recorder::Recorder,
    renewal::Renewal,
    seldom::Seldom,
    server::{BadUrl, Misconfigured, Server},
    subscriber::Subscriber,
    tickets::Tickets,
    times::HANDOVER,
    upstream::Upstream,
    witness::{Recorded, Witness},
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
    /// How many replicas subscribe to raw messages.
    pub recorders: u32,
    /// Retention by channel pattern. A channel that matches no pattern is kept by [`Rule::default`].
    pub rules: Vec<Rule>,
    /// Largest payload, in bytes.
    pub max_payload: usize,
    /// Bytes of raw messages that may wait to be recorded, in each partition.
    pub max_pending: usize,
    /// Receives each event that this process appends.
    pub witness: Option<Arc<dyn Witness>>,
}

/// All parts that use Redis. Each runs as a task of its own.
pub struct Broker {
    /// Subscribes for the hubs.
    pub subscriber: Subscriber,
    /// Reads history for the hubs.
    pub history: History,
    /// Records raw messages.
    pub recorder: Recorder,
    /// Appends the events of the publishers.
    pub appender: Appender,
    /// For callers that append events; clone it.
    pub publisher: Publisher,
    /// Keeps tickets; clone it.
    pub tickets: Tickets,
    /// Changes the settings that can change while the broker runs; clone it.
    pub renewal: Renewal,
    /// One per hub, in the order of the hubs.
    pub links: Vec<Link>,
    /// True while the subscription connection is up and Redis answers over it.
    pub ready: watch::Receiver<bool>,
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
    let mut connection = redis.connect().await?;
    let mut publish = redis::Cmd::new();
    publish.arg("PUBLISH").arg(names::REVOKE).arg(subject);
    Ok(publish.query_async(&mut connection).await?)
}

/// Publishes an event like any backend, and returns its id.
///
/// # Errors
/// When Redis cannot be reached, or refuses the event.
pub async fn publish(redis: &Server, channel: &str, payload: &[u8]) -> Result<String, Error> {
    let mut connection = redis.connect().await?;
    let mut call = redis::Cmd::new();
    call.arg("FCALL").arg("sse_publish").arg(0);
    call.arg(channel).arg(payload);
    Ok(call.query_async(&mut connection).await?)
}

impl Broker {
    /// Makes all parts for that many hubs. Does not connect yet.
    pub fn new(config: &Config, metrics: &Metrics, hubs: usize) -> Self {
        let redis = connection::Redis::new(config, metrics.clone());
        // Unbounded, because a hub must never wait. A connection has at most one request under way, and a channel at
        // most one command per linger.
        let (commands, commands_in) = mpsc::unbounded_channel();
        let (requests, requests_in) = mpsc::unbounded_channel();
        let (ready, ready_out) = watch::channel(false);
        let mut hubs_out = Vec::new();
        let links = (0..hubs).map(|worker| {
            let (updates, updates_in) = mpsc::channel(subscriber::QUEUE);
            let (revoked, revoked_in) = mpsc::channel(subscriber::QUEUE);
            hubs_out.push(subscriber::Worker::new(updates, revoked));
            Link {
                upstream: Upstream::new(worker, commands.clone(), requests.clone()),
                updates: updates_in,
                revoked: revoked_in,
            }
        });
        let links = links.collect();
        let (publisher, appender) = Publisher::new(redis.clone());
        Self {
            publisher,
            appender,
            tickets: Tickets::new(redis.clone()),
            renewal: Renewal::new(redis.clone()),
            subscriber: Subscriber::new(
                config,
                redis.clone(),
                metrics.clone(),
                commands_in,
                hubs_out,
                ready,
            ),
            history: History::new(redis.clone(), metrics.clone(), requests_in),
            recorder: Recorder::new(config, redis, metrics.clone()),
            links,
            ready: ready_out,
        }
    }
}
