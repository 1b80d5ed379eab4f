//! `Topology`: which node holds each partition.
//!
//! One Redis always holds all partitions. In a Redis Cluster everything of a partition happens on the master that owns its
//! slot. A failover and a slot that moves are the same here: some partitions move from one node to another. The task
//! [`Topology::watch`] notices that, and retires the partitions on the old node first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    Config, Error,
    backoff::Backoff,
    call::{Call, PlainCommand},
    cluster::Cluster,
    deployment::Deployment,
    metrics::Metrics,
    node::Node,
    server::{Address, Owner, Views},
    throttled,
};

/// Between two looks at the cluster, if nothing happens.
const LOOK: Duration = Duration::from_secs(5);
/// A look that nothing has caused asks this many nodes.
const ASKED: usize = 3;
/// A command about a partition that is on its way to another node is tried again for this long.
const MOVING: Duration = Duration::from_secs(2);
/// Longest wait between two looks for new masters to load the function library.
const EQUIP: Duration = Duration::from_millis(500);
/// Shortest time between two looks, and the longest while nothing changes.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The nodes of a deployment. A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Topology(Arc<Shared>);

struct Shared {
    deployment: Deployment,
    /// None if there is one server, or one with sentinels.
    cluster: Option<Arc<Cluster>>,
    layout: watch::Sender<Arc<Layout>>,
}

/// The nodes that hold partitions.
#[derive(Clone, Default)]
pub(crate) struct Layout {
    nodes: Vec<Node>,
    /// By partition: the place of its node, and in a cluster the config epoch under which the node owns it. None before
    /// it was found.
    owners: Vec<Option<(usize, u64)>>,
}

impl Topology {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let deployment = Deployment::new(config, metrics);
        let partitions: Vec<_> = config.partitions.all().collect();
        let (layout, cluster) = if config.redis.is_cluster() {
            let layout = Layout {
                nodes: Vec::new(),
                owners: vec![None; partitions.len()],
            };
            let cluster = Cluster::new(config.redis.clone());
            (layout, Some(Arc::new(cluster)))
        } else {
            let owners = vec![Some((0, 0)); partitions.len()];
            let nodes = vec![Node::new(
                deployment.clone(),
                config.redis.clone(),
                partitions,
            )];
            (Layout { nodes, owners }, None)
        };
        Self(Arc::new(Shared {
            deployment,
            cluster,
            layout: watch::Sender::new(Arc::new(layout)),
        }))
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        &self.0.deployment
    }

    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.0.layout.borrow())
    }

    /// The node that holds a partition.
    ///
    /// # Errors
    /// When it is not known yet.
    pub(crate) fn node(&self, partition: u16) -> Result<Node, Error> {
        let layout = self.layout();
        layout.node(partition).cloned().ok_or(Error::NoOwner)
    }

    /// Calls a function on the node that holds its partition.
    pub(crate) async fn call<T: redis::FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Error> {
        self.node(call.partition)?.call(call).await
    }

    /// Sends a plain command about one key of a partition. While the partition is on its way to another node, it is
    /// tried again for a moment.
    pub(crate) async fn command<T: redis::FromRedisValue>(
        &self,
        partition: u16,
        name: PlainCommand,
        command: &redis::Cmd,
    ) -> Result<T, Error> {
        let give_up = Instant::now() + MOVING;
        loop {
            let sent = async { self.node(partition)?.command(name, command).await };
            match sent.await {
                Err(error) if error.is_elsewhere() && Instant::now() < give_up => {
                    sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Runs tasks for the nodes. `start` receives each layout, and returns tasks to add. A task ends itself when its node
    /// holds nothing any more. Ends when all tasks have ended and there can be no more: after `over`, or with one Redis.
    ///
    /// # Errors
    /// The first error of a task.
    pub(crate) async fn follow(
        &self,
        mut start: impl FnMut(&Layout) -> Vec<BoxFuture<'static, Result<(), Error>>>,
        over: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        tokio::pin!(over);
        let mut layouts = self.0.layout.subscribe();
        let (mut may_change, mut is_over) = (self.0.cluster.is_some(), false);
        let mut tasks = FuturesUnordered::new();
        let layout = Arc::clone(&layouts.borrow_and_update());
        tasks.extend(start(&layout));
        while may_change || !tasks.is_empty() {
            tokio::select! {
                () = &mut over, if !is_over => (is_over, may_change) = (true, false),
                changed = layouts.changed(), if may_change => {
                    may_change = changed.is_ok();
                    let layout = Arc::clone(&layouts.borrow_and_update());
                    tasks.extend(start(&layout));
                }
                Some(ended) = tasks.next() => ended?,
            }
        }
        Ok(())
    }

    /// Looks at the cluster from time to time, and whenever something may have changed. Returns at once if it is none.
    ///
    /// # Errors
    /// When trying again is pointless.
    pub(crate) async fn watch(&self) -> Result<(), Error> {
        let Some(cluster) = self.0.cluster.clone() else {
            return Ok(());
        };
        let mut backoff = Backoff::default();
        let mut is_checked = false;
        let mut equipped = BTreeSet::new();
        let (mut count, mut pause) = (usize::MAX, PAUSE);
        loop {
            let looked = async {
                let views = cluster.ask(count).await?;
                cluster.learn(&views);
                if !is_checked {
                    self.check(&cluster).await?;
                    is_checked = true;
                }
                Ok::<_, Error>(self.adopt(&cluster, &views).await)
            };
            match looked.await {
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    throttled!(warn, %error, "the cluster cannot be asked");
                    sleep(backoff.next()).await;
                    continue;
                }
                Ok(true) => (pause, backoff) = (PAUSE, Backoff::default()),
                Ok(false) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
            // A master that does not answer is equipped later.
            let _later = timeout(EQUIP, self.equip(&cluster, &mut equipped)).await;
            sleep(pause).await;
            let is_late = timeout(LOOK, cluster.look_is_due()).await.is_err();
            count = if is_late { ASKED } else { usize::MAX };
            if is_late {
                pause = PAUSE;
            }
        }
    }

    /// Loads the function library on new masters. A master that holds partitions is checked again with each new
    /// connection.
    async fn equip(&self, cluster: &Arc<Cluster>, equipped: &mut BTreeSet<Address>) {
        let masters = cluster.masters();
        equipped.retain(|master| masters.contains(master));
        let new = masters.into_iter().filter(|it| !equipped.contains(it));
        let equip = new.map(async |master| {
            let deployment = self.deployment().clone();
            let node = Node::of_cluster(deployment, cluster, master.clone(), None);
            match node.equip().await {
                Ok(()) => Some(master),
                Err(error) => {
                    throttled!(warn, node = %master, %error, "the function library cannot be loaded");
                    None
                }
            }
        });
        equipped.extend(join_all(equip).await.into_iter().flatten());
    }

    /// Before the first layout: another number of partitions would spread the channels differently.
    async fn check(&self, cluster: &Cluster) -> Result<(), Error> {
        let mut keeper = cluster.keeper().await?;
        self.deployment().check_partitions(&mut keeper).await
    }

    /// Moves partitions to other nodes where the views are newer than the layout. Returns whether any was moved.
    async fn adopt(&self, cluster: &Arc<Cluster>, views: &Views) -> bool {
        let before = self.layout();
        for node in before.nodes.iter().filter(|node| !is_known(node, views)) {
            let node = node.address().map(ToString::to_string);
            throttled!(warn, node, "a node is no longer a part of the cluster");
        }
        let names = self.deployment().names();
        let partitions = names.partitions().all();
        let owners = partitions.filter_map(|it| Some((it, views.owner(names.slot(it))?)));
        let owners: Vec<_> = owners
            .filter(|(it, owner)| before.is_older(*it, names.slot(*it), owner, views))
            .collect();
        let left = before.left(&owners, views);
        let retired = left.iter().map(async |(node, (epoch, partitions))| {
            let node = &before.nodes[*node];
            let partitions = Moved(partitions);
            let from = node.address().map(ToString::to_string);
            throttled!(warn, from, %partitions, "partitions have moved to other nodes of the cluster");
            node.retire_partitions(partitions.0, *epoch).await;
        });
        join_all(retired).await;
        let mut layout = Layout::clone(&before);
        for (partition, owner) in owners {
            let at = |node: &Node| node.is_owner(owner) && node.address() == Some(&owner.address);
            let node = layout.nodes.iter().position(at).unwrap_or_else(|| {
                if let Some(known) = layout.nodes.iter().find(|node| node.is_owner(owner)) {
                    let from = known.address().map(ToString::to_string);
                    let to = &owner.address;
                    throttled!(warn, from, %to, "a node of the cluster has another address");
                }
                let deployment = self.deployment().clone();
                let id = Some(Arc::clone(&owner.id));
                let node = Node::of_cluster(deployment, cluster, owner.address.clone(), id);
                layout.nodes.push(node);
                layout.nodes.len() - 1
            });
            layout.nodes[node].see_epoch(owner.epoch);
            layout.owners[usize::from(partition)] = Some((node, owner.epoch));
        }
        let has_changed = layout.settle();
        self.0.layout.send_if_modified(|current| {
            *current = Arc::new(layout);
            has_changed
        })
    }
}

impl Layout {
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn node(&self, partition: u16) -> Option<&Node> {
        let (node, _) = (*self.owners.get(usize::from(partition))?)?;
        self.nodes.get(node)
    }

    /// Whether the views know a newer owner than this layout.
    fn is_older(&self, partition: u16, slot: u16, owner: &Owner, views: &Views) -> bool {
        let Some((node, epoch)) = self.owners[usize::from(partition)] else {
            return true;
        };
        let known = self.nodes[node].id();
        known.is_none_or(|known| views.are_newer(slot, owner, known, epoch))
    }

    /// By node: the partitions that have other owners now, and the greatest epoch of these. A node that has changed its
    /// address is not another one. A node that no other one knows is gone.
    fn left(&self, owners: &[(u16, &Owner)], views: &Views) -> BTreeMap<usize, (u64, Vec<u16>)> {
        let mut left = BTreeMap::<usize, (u64, Vec<u16>)>::new();
        for (partition, owner) in owners {
            if let Some((node, _)) = self.owners[usize::from(*partition)]
                && !self.nodes[node].is_owner(owner)
                && is_known(&self.nodes[node], views)
            {
                let (epoch, partitions) = left.entry(node).or_default();
                *epoch = owner.epoch.max(*epoch);
                partitions.push(*partition);
            }
        }
        left
    }

    /// Gives each node its partitions, and drops nodes without any. Returns whether a node has others than before.
    fn settle(&mut self) -> bool {
        let mut held = vec![Vec::new(); self.nodes.len()];
        for (owner, partition) in self.owners.iter().zip(0_u16..) {
            if let Some((node, _)) = owner {
                held[*node].push(partition);
            }
        }
        let (mut places, mut kept, mut has_changed) = (Vec::new(), Vec::new(), false);
        for (node, partitions) in self.nodes.iter().zip(held) {
            places.push(kept.len());
            if !partitions.is_empty() {
                kept.push(node.clone());
            }
            has_changed |= node.hold(partitions);
        }
        for (node, _) in self.owners.iter_mut().flatten() {
            *node = places[*node];
        }
        self.nodes = kept;
        has_changed
    }
}

/// Whether a node is still a part of the cluster.
fn is_known(node: &Node, views: &Views) -> bool {
    node.id().is_some_and(|id| views.know(id))
}

/// Partitions, as in a log.
struct Moved<'a>(&'a [u16]);

impl fmt::Display for Moved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, partition) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{partition}")?;
        }
        Ok(())
    }
}
