//! `Cluster`: the nodes of a Redis Cluster, and which of them to ask.

use parking_lot::Mutex;
use redis::{Client, aio::MultiplexedConnection};
use tokio::sync::Notify;

use crate::{
    Error, Server,
    names::PARTITIONS_SLOT,
    process::open,
    server::{Address, Views},
};

/// A Redis Cluster, as its nodes describe it.
pub(crate) struct Cluster {
    server: Server,
    known: Mutex<Known>,
    /// Something has happened that may be a change.
    look: Notify,
}

#[derive(Default)]
struct Known {
    nodes: Vec<Address>,
    /// Nodes that own slots.
    masters: Vec<Address>,
    /// The node that keeps the number of partitions.
    keeper: Option<Address>,
}

impl Cluster {
    pub(crate) fn new(server: Server) -> Self {
        Self {
            server,
            known: Mutex::default(),
            look: Notify::new(),
        }
    }

    /// The cluster as a whole.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The next look is now.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    /// Resolves when a look is due.
    pub(crate) async fn look_is_due(&self) {
        self.look.notified().await;
    }

    /// The masters that own slots.
    pub(crate) fn masters(&self) -> Vec<Address> {
        self.known.lock().masters.clone()
    }

    /// Whether no node knows a later owner of these slots than the node at this address. None unless more than half of
    /// the masters answer, because fewer could not have made another node the owner.
    pub(crate) async fn confirms(&self, address: &Address, slots: &[u16]) -> Option<bool> {
        let masters = self.masters();
        let views = self.server.ask_cluster(&masters).await.ok()?;
        let is_owner = |slot: &u16| views.owner(*slot).is_some_and(|it| it.address == *address);
        (views.count() > masters.len() / 2).then(|| slots.iter().all(is_owner))
    }

    /// A connection to the node that keeps the number of partitions.
    pub(crate) async fn keeper(&self) -> Result<MultiplexedConnection, Error> {
        let keeper = self.known.lock().keeper.clone();
        let keeper = keeper.ok_or(Error::NoOwner)?;
        let info = self.server.at(&keeper).locate(None).await?.info;
        let connection = open(&Client::open(info.clone())?).await;
        connection.map_err(|error| Error::connecting(&info, &error))
    }

    /// Asks this many of the known nodes, any of them, or the seeds if they do not answer.
    pub(crate) async fn ask(&self, count: usize) -> Result<Views, Error> {
        let mut nodes = self.known.lock().nodes.clone();
        fastrand::shuffle(&mut nodes);
        nodes.truncate(count);
        if let Ok(views) = self.server.ask_cluster(&nodes).await
            && views.count() > 0
        {
            return Ok(views);
        }
        self.server.ask_cluster(&self.server.seeds()).await
    }

    /// Remembers which nodes to ask.
    pub(crate) fn learn(&self, views: &Views) {
        let masters = views.masters().into_iter().map(|owner| owner.address);
        *self.known.lock() = Known {
            nodes: views.nodes(),
            masters: masters.collect(),
            keeper: views
                .owner(*PARTITIONS_SLOT)
                .map(|owner| owner.address.clone()),
        };
    }
}
