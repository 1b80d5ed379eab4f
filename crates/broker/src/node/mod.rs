//! `Node`: one Redis server, and the partitions that it holds.
//!
//! If sentinels give the partitions of a node to another server, the node follows. Its tasks notice that by
//! [`Node::generation`], [`Node::uses`] and [`Node::has_moved`]. A node of a cluster stays where it is, and its partitions
//! come and go.

mod calls;
mod failover;
mod handshake;
mod identity;
mod master;
pub(crate) mod trust;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};

use deadpool_redis::PoolError;
use hub::EventId;
use redis::{Cmd, ConnectionInfo, RedisError, aio::MultiplexedConnection};
use tokio::sync::{Notify, watch};

use self::master::Master;
use crate::{
    Error, Server,
    cluster::Cluster,
    deployment::Deployment,
    metrics::Metrics,
    process::open,
    server::{Address, Owner},
    wire::Listener,
};

/// A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Node(Arc<Shared>);

struct Shared {
    deployment: Deployment,
    /// In order. Empty when a node of a cluster holds none any more.
    partitions: watch::Sender<Arc<[u16]>>,
    server: Server,
    /// The cluster, and the node's address in it.
    cluster: Option<Arc<Cluster>>,
    address: Option<Address>,
    /// The id of a node that holds partitions, in a cluster.
    id: Option<Arc<str>>,
    /// The config epoch of a node of a cluster.
    epoch: AtomicU64,
    /// Partitions that have left it, and whose calls it has confirmed to refuse. Its answers are from before that.
    retired: Mutex<BTreeSet<u16>>,
    /// The last known master; none before it was located.
    master: Mutex<Option<Arc<Master>>>,
    read_only: AtomicBool,
    /// The master has to be looked for.
    look: Notify,
    /// This process has moved to another master.
    moved: Notify,
}

/// A connection that is not shared through the pool.
#[derive(Clone)]
pub(crate) struct Connection {
    redis: MultiplexedConnection,
    /// The server that it is connected to.
    master: Arc<Master>,
}

impl Connection {
    /// Whether the server answers.
    pub(crate) async fn pongs(&mut self) -> bool {
        let ping = Cmd::new().arg("PING").to_owned();
        ping.query_async::<()>(&mut self.redis).await.is_ok()
    }

    /// The server process that it was made to; empty before that is known.
    pub(crate) fn run(&self) -> &str {
        self.master.run.get().map_or("", String::as_str)
    }

    /// The generation in which the connection was made.
    pub(crate) fn generation(&self) -> u64 {
        self.master.generation
    }
}

impl Node {
    /// Does not connect yet. `partitions` is not empty.
    pub(crate) fn new(deployment: Deployment, server: Server, partitions: Vec<u16>) -> Self {
        Self::with(deployment, server, None, None, partitions)
    }

    /// A node of a cluster, without partitions yet. It needs its id before it holds any.
    pub(crate) fn of_cluster(
        deployment: Deployment,
        cluster: &Arc<Cluster>,
        address: Address,
        id: Option<Arc<str>>,
    ) -> Self {
        let server = cluster.server().at(&address);
        let cluster = Some((cluster, address));
        Self::with(deployment, server, cluster, id, Vec::new())
    }

    fn with(
        deployment: Deployment,
        server: Server,
        cluster: Option<(&Arc<Cluster>, Address)>,
        id: Option<Arc<str>>,
        partitions: Vec<u16>,
    ) -> Self {
        Self(Arc::new(Shared {
            deployment,
            partitions: watch::Sender::new(partitions.into()),
            server,
            cluster: cluster.as_ref().map(|(cluster, _)| Arc::clone(cluster)),
            address: cluster.map(|(_, address)| address),
            id,
            epoch: AtomicU64::new(0),
            retired: Mutex::default(),
            master: Mutex::default(),
            read_only: AtomicBool::new(false),
            look: Notify::new(),
            moved: Notify::new(),
        }))
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        &self.0.deployment
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.0.deployment.metrics()
    }

    /// The partitions that it holds, in order.
    pub(crate) fn partitions(&self) -> Arc<[u16]> {
        Arc::clone(&self.0.partitions.borrow())
    }

    /// The same, and each change.
    pub(crate) fn watch_partitions(&self) -> watch::Receiver<Arc<[u16]>> {
        self.0.partitions.subscribe()
    }

    /// The partition for calls that concern the whole node; none if it holds none.
    pub(crate) fn first_partition(&self) -> Option<u16> {
        self.0.partitions.borrow().first().copied()
    }

    pub(crate) fn holds(&self, partition: u16) -> bool {
        self.0.partitions.borrow().contains(&partition)
    }

    /// From now on it holds these partitions. Returns whether they are others than before.
    pub(crate) fn hold(&self, partitions: Vec<u16>) -> bool {
        for partition in &partitions {
            self.0.retired.lock().remove(partition);
        }
        self.0.partitions.send_if_modified(|held| {
            let is_new = **held != *partitions;
            *held = partitions.into();
            is_new
        })
    }

    /// Where a node of a cluster is.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.0.address.as_ref()
    }

    /// The id of a node that holds partitions, in a cluster.
    pub(crate) fn id(&self) -> Option<&Arc<str>> {
        self.0.id.as_ref()
    }

    /// Whether this is that node of the cluster. It may have another address now.
    pub(crate) fn is_owner(&self, owner: &Owner) -> bool {
        self.0.id.as_ref() == Some(&owner.id)
    }

    /// The config epoch of a node of a cluster grows.
    pub(crate) fn see_epoch(&self, epoch: u64) {
        self.0.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Whether it is the same node.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// From now on new connections use the certificates of `server`. Existing connections stay.
    pub(crate) fn renew(&self, server: &Server) -> Result<(), RedisError> {
        self.0.server.renew(server);
        let Some(master) = self.master().clone() else {
            return Ok(());
        };
        let info = self.0.server.renewed(&master.place().info);
        master.reconnect_as(info)
    }

    /// Whether other servers may take its place, and can be asked about that.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.server.has_sentinels() || self.0.cluster.is_some()
    }

    /// Notes an id that was read from the server to which this process was connected in that generation. Returns
    /// whether it is still connected to that server.
    pub(crate) fn read_at(&self, generation: u64, partition: u16, id: EventId) -> bool {
        let master = self.master().clone();
        let Some(master) = master.filter(|master| master.generation == generation) else {
            return false;
        };
        let mut seen = self.deployment().view(partition);
        // Ids of a server process are noted only after its handshake, because the handshake reports ids of earlier
        // ones.
        if master.run.get() == Some(&seen.run) {
            seen.saw(id);
        }
        true
    }

    /// A connection of the caller's own, on which commands keep their order.
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        let master = self.locate().await?;
        let connector = master.connector();
        let redis = open(&connector.client).await;
        let redis =
            redis.map_err(|error| self.failed(connector.client.get_connection_info(), &error))?;
        Ok(Connection { redis, master })
    }

    /// A connection that only receives messages, and the server process to which it is connected. Messages count only
    /// while this process [`uses`](Self::uses) that server process. Payloads of more than `max_payload` bytes are
    /// skipped.
    pub(crate) async fn listen(&self, max_payload: usize) -> Result<(Listener, String), Error> {
        let master = self.locate().await?;
        let connector = master.connector();
        let info = connector.client.get_connection_info();
        let listener = Listener::connect(&self.0.server, info, max_payload);
        let failed = |error| self.failed(info, &error);
        let mut listener = listener.await.map_err(failed)?;
        let process = self.process_of(&mut listener, info).await?;
        if self.0.cluster.is_none() && process.is_cluster {
            return Err(Error::IsCluster);
        }
        self.adopt_server(&master, &process.run);
        Ok((listener, process.run))
    }

    /// The reason why the server refuses a subscription to all channels that begin with a prefix; none if it allows it.
    pub(crate) async fn refusal_of_raw(&self, prefix: &str) -> Result<Option<String>, Error> {
        let master = self.locate().await?;
        let connector = master.connector();
        let info = connector.client.get_connection_info();
        let refusal = async {
            let listener = Listener::connect(&self.0.server, info, 0).await?;
            listener.refusal_of_prefix(prefix).await
        };
        refusal.await.map_err(|error| self.failed(info, &error))
    }

    /// Whether this process uses that server process. If not, messages from there must not be shown any more. This
    /// process may have completed the handshake with another one already, and that handshake covers only what was seen
    /// until then.
    pub(crate) fn uses(&self, run: &str) -> bool {
        let current = self.master();
        current.as_ref().is_some_and(|master| {
            let is_replaced = master.retired_elsewhere.load(Ordering::Relaxed);
            !is_replaced && master.run.get().is_some_and(|met| met == run)
        })
    }

    /// Whether this process uses another server process than that one.
    pub(crate) fn has_left(&self, run: &str) -> bool {
        let current = self.master();
        let met = current.as_ref().and_then(|master| master.run.get());
        met.is_some_and(|met| met != run)
    }

    /// A server process answers at the master's address. If it is another one than before, the address points to a new
    /// server, and some connections may still be to the old one.
    fn adopt_server(&self, asked: &Master, run: &str) {
        let mut current = self.master();
        // If this process has moved in between, the answer is from an earlier master.
        let asked = |master: &&Arc<Master>| master.generation == asked.generation;
        let Some(master) = current.as_ref().filter(asked) else {
            return;
        };
        if master.run.get_or_init(|| run.to_owned()) == run {
            return;
        }
        match master.anew() {
            Ok(master) => {
                master.run.get_or_init(|| run.to_owned());
                *current = Some(Arc::new(master));
                self.0.moved.notify_waiters();
            }
            Err(error) => tracing::error!(%error, "redis cannot be reached as configured"),
        }
    }

    /// There is no connection, for this reason. Another node of the cluster may have the partitions by now.
    fn failed(&self, info: &ConnectionInfo, reason: &dyn fmt::Display) -> Error {
        if self.0.cluster.is_some() {
            self.look();
        }
        Error::connecting(info, reason)
    }

    /// A connection of the pool.
    async fn connection(&self) -> Result<(deadpool_redis::Connection, Arc<Master>), Error> {
        let master = self.master().clone();
        let master = match master {
            Some(master) => master,
            None => self.locate().await?,
        };
        let connector = master.connector();
        let connection = connector.pool.get().await.map_err(|error| {
            let info = connector.client.get_connection_info();
            match &error {
                PoolError::Backend(error) => self.failed(info, error),
                PoolError::Timeout(_) => self.failed(info, &"timed out"),
                error => self.failed(info, error),
            }
        })?;
        Ok((connection, master))
    }

    /// Held for a comparison or a copy only.
    fn master(&self) -> MutexGuard<'_, Option<Arc<Master>>> {
        self.0.master.lock()
    }

    /// How often this process has moved to another server. A task that keeps a connection of its own, and does not
    /// subscribe, makes a new one when this changes.
    pub(crate) fn generation(&self) -> u64 {
        self.master().as_ref().map_or(0, |master| master.generation)
    }

    /// Resolves when this process has moved to another master.
    pub(crate) async fn has_moved(&self) {
        self.0.moved.notified().await;
    }

    /// Whether Redis answers on a new connection.
    pub(crate) async fn is_alive(&self) -> bool {
        let ping = async {
            let mut connection = self.connect().await?.redis;
            let pong = Cmd::new().arg("PING").query_async(&mut connection).await;
            Ok::<(), Error>(pong?)
        };
        // A Redis that takes no writes may refuse a ping, but it is alive.
        matches!(ping.await, Ok(()) | Err(Error::Refused(_)))
    }
}
