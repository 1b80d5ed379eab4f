//! All Redis knowledge: what is stored under which name, and who may write it.
//!
//! The way in: [`Recorder`] hears raw messages and appends them, [`Publisher`] appends for callers
//! who want the id, and backends may call the function `sse_publish` themselves. All end in one
//! procedure of the function library, which gives the event its id, stores it and publishes it to
//! whoever listens.
//!
//! The way out: [`Subscriber`] listens to the channels that the hubs want and attaches them;
//! [`History`] reads pages of the past for readers that fell behind.
//!
//! What is guaranteed, and by what:
//! - Ids of a partition only grow, also over a failover: the caller's watermark, in `library.lua`.
//! - A raw message is recorded once while one in-sync recorder survives: [`Recorder`]'s machine.
//! - Nothing is missing between a page and what follows live: the fence, in [`Subscriber`].
//! - What Redis has forgotten is told: the horizon, in `library.lua`.
//!
//! What cannot be guaranteed: Redis replicates asynchronously, and a PUBLISH while no recorder listens
//! reaches nobody.
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

/// How to reach Redis and what to do there. The same on all replicas of a deployment, but for
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
    /// How many replicas listen to raw messages.
    pub recorders: u32,
    /// Retention by channel pattern; what matches none is kept as [`Rule::default`] says.
    pub rules: Vec<Rule>,
    /// Largest payload, in bytes.
    pub max_payload: usize,
    /// Bytes of raw messages that may wait to be recorded, in each partition.
    pub max_pending: usize,
    /// Is told of what this process appends.
    pub witness: Option<Arc<dyn Witness>>,
}

/// Everything that talks to Redis. Each part runs as a task of its own.
pub struct Broker {
    /// Listens for the hubs.
    pub subscriber: Subscriber,
    /// Reads the past for the hubs.
    pub history: History,
    /// Records raw messages.
    pub recorder: Recorder,
    /// Appends what the publishers ask for.
    pub appender: Appender,
    /// For whoever wants to append; clone it.
    pub publisher: Publisher,
    /// Keeps tickets; clone it.
    pub tickets: Tickets,
    /// Changes what can be changed later; clone it.
    pub renewal: Renewal,
    /// One per hub, in the order of the hubs.
    pub links: Vec<Link>,
    /// True while the subscription connection is up and Redis answers over it.
    pub ready: watch::Receiver<bool>,
}

/// What connects one hub.
pub struct Link {
    /// To be given to [`hub::Hub::new`].
    pub upstream: Upstream,
    /// To be fed to [`hub::Hub::apply`], batch by batch.
    pub updates: mpsc::Receiver<Vec<Update>>,
    /// Subjects whose streams are to end.
    pub revoked: mpsc::Receiver<Arc<str>>,
}

/// The longest subject, in bytes, of a token, a ticket, a backend's answer or a revocation. OpenID Connect allows 255.
pub const MAX_SUBJECT: usize = 256;

/// Ends the streams of a subject on every replica that listens. Answers how many of them heard it.
///
/// # Errors
/// When Redis cannot be reached.
pub async fn revoke(redis: &Server, subject: &str) -> Result<u64, Error> {
    let mut connection = connection::connect(redis).await?;
    let mut publish = redis::Cmd::new();
    publish.arg("PUBLISH").arg(names::REVOKE).arg(subject);
    Ok(publish.query_async(&mut connection).await?)
}

/// Publishes an event as any backend does, and answers its id.
///
/// # Errors
/// When Redis cannot be reached, or refuses the event.
pub async fn publish(redis: &Server, channel: &str, payload: &[u8]) -> Result<String, Error> {
    let mut connection = connection::connect(redis).await?;
    let mut call = redis::Cmd::new();
    call.arg("FCALL").arg("sse_publish").arg(0);
    call.arg(channel).arg(payload);
    Ok(call.query_async(&mut connection).await?)
}

impl Broker {
    /// Makes all parts for so many hubs; connects to nothing yet.
    pub fn new(config: &Config, metrics: &Metrics, hubs: usize) -> Self {
        let redis = connection::Redis::new(config, metrics.clone());
        // Unbounded, for a hub must never wait: a connection has at most one request under way,
        // and a channel at most one command per linger.
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
