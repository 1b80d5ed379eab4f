//! `RawSubscription`: the state of one subscription to raw messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use futures_util::{FutureExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Recorder,
    bus_links::Link,
    candidacy::Candidacy,
    carried::{Carried, Waiting},
    carriers::{Entries, Request},
    ear::{Ear, Republished},
    executor::Performed,
    gauges::Gauges,
    machine::{Handover, Machine, Outcome, Reply},
    unrecorded::Owed,
};
use crate::{
    Error,
    node::{Connection, Node},
    times::{HANDOVER, LAST_APPENDS},
};

/// Names a subscription of this replica to raw messages.
pub(super) fn new_name(node: &Node) -> String {
    format!("{}:{:x}", node.deployment().replica(), fastrand::u64(..))
}

/// The results of a subscription's futures.
pub(super) enum Done {
    Performed(Performed),
    /// Clients have received gaps for all lost messages except these.
    Reported(Owed),
    Connected(Result<Connection, Error>),
    /// The node that holds a carried partition, and a connection to it.
    Located {
        partition: u16,
        at: Result<(Node, Connection), Error>,
    },
    /// Another recorder of this replica has left a partition to this one; none if it cannot, or not yet.
    Left(u16, Option<Handover>),
    Republished(Republished),
    /// The node has answered which links of the cluster bus there are to it.
    BusLinks(Result<Vec<Link>, Error>),
    Candidacy(Candidacy),
    /// The candidacy was released.
    CandidacyReleased,
    /// Redis answered on another connection, or did not.
    Alive(bool),
}

/// The state of one subscription.
pub(super) struct RawSubscription {
    /// Names this subscription. The tokens and barriers of its machines begin with it.
    pub(super) name: String,
    /// The server process that it is subscribed to; empty before it is subscribed.
    pub(super) run: String,
    pub(super) machines: BTreeMap<u16, Machine>,
    /// Partitions that the node has taken over since, and how many subscriptions to their notices are confirmed.
    pub(super) arriving: BTreeMap<u16, usize>,
    /// Partitions of the node that another recorder of this replica carries.
    pub(super) successors: BTreeMap<u16, Waiting>,
    /// Partitions that have moved to another node, and that this recorder carries.
    pub(super) carried: BTreeMap<u16, Carried>,
    /// Its entries among the active recorders, and the requests of successors.
    pub(super) entries: Entries,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    /// Partitions to whose notices Redis has ended the subscription.
    pub(super) ended: BTreeSet<u16>,
    /// Its part in the deliveries of all nodes of a cluster, since the raw subscription is confirmed.
    pub(super) ear: Option<Ear>,
    /// The raw subscription is confirmed.
    pub(super) has_begun: bool,
    /// It is confirmed and has not ended.
    pub(super) listening: bool,
    pub(super) connection: Option<Connection>,
    pub(super) connecting: bool,
    /// When this replica stops at the latest, if it is to stop.
    pub(super) stops_at: Option<Instant>,
    /// The command that migrates has taken over.
    pub(super) is_diverted: bool,
    /// The raw subscription has been given up, or is about to be.
    pub(super) closing: bool,
    pub(super) gauges: Gauges,
    pub(super) under_way: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl RawSubscription {
    pub(super) fn new(recorder: &Recorder) -> Self {
        let node = &recorder.node;
        let name = new_name(node);
        let partitions = node.partitions();
        let (carried, own): (Vec<u16>, Vec<u16>) =
            (partitions.iter()).partition(|it| recorder.carriers.has(**it));
        let machines = own.into_iter().map(|it| (it, recorder.machine(&name)));
        let (entries, requests) = recorder.carriers.entries();
        Self {
            run: String::new(),
            machines: machines.collect(),
            name,
            arriving: carried.into_iter().map(|it| (it, 0)).collect(),
            successors: BTreeMap::new(),
            carried: BTreeMap::new(),
            entries,
            requests,
            ended: BTreeSet::new(),
            ear: None,
            has_begun: false,
            listening: false,
            connection: None,
            connecting: false,
            stops_at: None,
            is_diverted: false,
            closing: false,
            gauges: Gauges::new(node.metrics()),
            under_way: FuturesUnordered::new(),
        }
    }

    /// An effect was performed. If this recorder cannot record some messages any more because of it, returns their
    /// partition, and when the newest of them was received.
    pub(super) fn performed(&mut self, performed: Performed) -> Option<(u16, SystemTime)> {
        let Performed {
            partition,
            reply,
            dropped,
        } = performed;
        let machine = match self.machines.get_mut(&partition) {
            Some(machine) => {
                if reply.outcome() == Outcome::Unknown {
                    self.connection = None;
                }
                machine
            }
            None => self.carried.get_mut(&partition)?.performed(reply.outcome()),
        };
        machine.reply(reply);
        let newest = dropped.max(machine.take_lost())?;
        Some((partition, newest))
    }

    /// The barriers of this subscription may not have been published. They are published later.
    pub(super) fn without_barriers(&mut self) {
        for machine in self.machines.values_mut() {
            machine.reply(Reply::PublishBarrier(Outcome::Refused));
        }
    }

    /// This replica is to stop.
    pub(super) fn step_down(&mut self) {
        self.stops_at = Some(Instant::now() + HANDOVER);
        self.machines.values_mut().for_each(Machine::step_down);
    }

    /// The candidacy is released by this call.
    pub(super) fn give_up(&self, call: impl Future<Output = ()> + Send + 'static) {
        let done = call.map(|()| Done::CandidacyReleased);
        self.under_way.push(done.boxed());
    }

    /// Whether no other recorder will record the messages that arrive here: there is no other replica, or none became a
    /// candidate in time.
    pub(super) fn is_last(&self) -> bool {
        let may_go = |machine: &Machine| machine.has_stepped_down() || machine.is_alone();
        self.stops_at.is_some_and(|end| {
            Instant::now() + LAST_APPENDS > end
                || !self.is_between_nodes() && self.machines.values().all(may_go)
        })
    }

    /// Whether this recorder may stop: it is not needed any more, or its time is over.
    pub(super) fn has_stepped_down(&self) -> bool {
        let Some(end) = self.stops_at else {
            return false;
        };
        // It has recorded all messages that were published to it, and receives no more.
        let is_empty =
            !self.listening && self.machines.values().all(|machine| machine.pending() == 0);
        let is_done = is_empty || self.machines.values().all(Machine::has_stepped_down);
        is_done && !self.is_between_nodes() || Instant::now() > end
    }

    /// Whether this recorder carries a partition, or is to take one over.
    fn is_between_nodes(&self) -> bool {
        !self.carried.is_empty() || !self.successors.is_empty()
    }

    /// Whether this recorder is or will be that of a partition of its node.
    pub(super) fn has(&self, partition: u16) -> bool {
        self.machines.contains_key(&partition)
            || self.successors.contains_key(&partition)
            || self.arriving.contains_key(&partition)
    }

    /// Whether no partition needs this subscription.
    pub(super) fn holds_nothing(&self) -> bool {
        self.machines.is_empty() && !self.is_between_nodes()
    }

    /// Sets the gauges. `hears`: the subscription works.
    pub(super) fn measure(&mut self, hears: bool) {
        let carried = self.carried.values().map(Carried::machine);
        let machines = self.machines.values().chain(carried);
        self.gauges.measure(machines, hears);
    }

    /// Whether this replica holds the lease of some partition.
    pub(super) fn records(&self) -> bool {
        let mut machines = self.machines.values();
        !self.carried.is_empty() || machines.any(|machine| machine.active().is_some())
    }
}
