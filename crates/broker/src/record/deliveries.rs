//! `Deliveries`: the nodes of a cluster that have delivered each raw message, to find messages that their own node has missed.
//!
//! A node passes a raw message on to all others, over links that lose messages without an error. Recorders record what
//! the node of the partition delivers, because only its order is the same for all of them. But a replica is subscribed
//! to raw messages at several nodes. If another node has delivered a message and its own node has not for [`SETTLE`], it
//! is **missed**. Then the recorder has its own node publish it to the recorders **again**. It arrives in the order of
//! that node, so all recorders treat it like any other message.
//!
//! A message may also be later than that. Then it is recorded before it arrives itself, and must not be recorded once
//! more. Each recorder judges by its own deliveries, and only the judgement of the active one has an effect: the others
//! see its notices.
//!
//! All this holds if a message reaches the nodes within [`LATEST`] of each other, or never. Messages cannot be
//! distinguished if another one with the same channel and payload was published in that time. Such *common* messages are
//! not compared.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hub::Channel;
use tokio::time::Instant;

use super::machine::{Digest, OVERHEAD};
use crate::times::{LATEST, SETTLE};

/// Maximum messages that are remembered: those of the last [`LATEST`], or fewer.
const MESSAGES: usize = 1 << 18;
/// Maximum nodes. Messages of further ones are not compared.
const NODES: usize = u64::BITS as usize;
/// Maximum missed messages that are published again at once, and the bytes after which no further one is.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// The deliveries of all nodes that this replica is subscribed to.
pub(super) struct Deliveries {
    nodes: Vec<Subscription>,
    /// The id of the node that is listened to only to compare it.
    overheard: Option<Arc<str>>,
    /// By partition: its own node, if this replica has a recorder there.
    owners: BTreeMap<u16, Owner>,
    messages: HashMap<Digest, Message>,
    /// The order in which messages are forgotten.
    order: VecDeque<(Instant, Digest)>,
    /// By partition: messages that other nodes have delivered first, and since when they wait.
    waiting: BTreeMap<u16, VecDeque<(Instant, Digest)>>,
    /// By partition: when a message could not be remembered.
    dropped: BTreeMap<u16, Instant>,
    /// The bytes of all messages that their own nodes have not delivered.
    bytes: usize,
    limit: usize,
}

/// A subscription to the raw messages of a node.
struct Subscription {
    id: Arc<str>,
    since: Option<Instant>,
}

struct Owner {
    node: Source,
    since: Instant,
}

struct Message {
    /// The nodes that have delivered it, as bits.
    nodes: u64,
    /// When it arrived first.
    at: Instant,
    /// When something was learned about it last.
    touched: Instant,
    /// None if the node of the partition has delivered it or has published it again, or if it is not compared.
    missed: Option<Box<(Channel, Bytes)>>,
    late: Late,
    /// How many times the node of the partition has published it again, as far as is known.
    repetitions: u64,
}

/// The fate of a message that its own node has not delivered in time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    /// Nothing.
    No,
    /// It has arrived itself.
    Arrived,
    /// It was published again.
    Again,
    /// Both.
    Both,
}

/// A node that delivers messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source(u8);

/// The kind of a message that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is to be recorded, if the node is that of the partition.
    New,
    /// It was recorded before it arrived.
    Recorded,
}

/// A message that its own node has not delivered.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    pub(super) channel: Channel,
    pub(super) payload: Bytes,
    pub(super) digest: Digest,
    /// How many times its node has published messages with this digest again, as far as this replica knows.
    pub(super) repetitions: u64,
}

impl Source {
    fn bit(self) -> u64 {
        1 << self.0
    }
}

impl Message {
    fn new(nodes: u64, at: Instant) -> Self {
        Self {
            nodes,
            at,
            touched: at,
            missed: None,
            late: Late::No,
            repetitions: 0,
        }
    }

    fn size(&self) -> usize {
        let missed = self.missed.as_ref();
        missed.map_or(0, |missed| missed.1.len() + OVERHEAD)
    }

    /// It is not missed any more. Returns the bytes that become free.
    fn found(&mut self) -> usize {
        let size = self.size();
        self.missed = None;
        size
    }
}

impl Deliveries {
    /// Missed messages take at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            nodes: Vec::new(),
            overheard: None,
            owners: BTreeMap::new(),
            messages: HashMap::new(),
            order: VecDeque::new(),
            waiting: BTreeMap::new(),
            dropped: BTreeMap::new(),
            bytes: 0,
            limit,
        }
    }

    /// Whether a node without a recorder of this replica has to be listened to, as the second one.
    pub(super) fn needs(&mut self, id: &Arc<str>) -> bool {
        if self.overheard.as_ref().is_some_and(|other| other != id) {
            return false;
        }
        let mut subscribed = self.nodes.iter().filter(|it| it.since.is_some());
        let others = subscribed.by_ref().filter(|it| it.id != *id).count();
        let is_needed = others == 1 && !self.owners.is_empty();
        self.overheard = is_needed.then(|| Arc::clone(id));
        is_needed
    }

    /// The node is not listened to any more.
    pub(super) fn needs_no_longer(&mut self, id: &Arc<str>) {
        self.overheard.take_if(|overheard| overheard == id);
    }

    /// A subscription to the raw messages of a node begins; none if there are too many nodes.
    pub(super) fn begin(&mut self, id: &Arc<str>, now: Instant) -> Option<Source> {
        let known = self.nodes.iter().position(|it| it.id == *id);
        let free = || match self.nodes.len() {
            NODES => self.nodes.iter().position(|it| it.since.is_none()),
            len => Some(len),
        };
        let place = known.or_else(free)?;
        let subscription = Subscription {
            id: Arc::clone(id),
            since: Some(now),
        };
        match self.nodes.get_mut(place) {
            Some(node) => *node = subscription,
            None => self.nodes.push(subscription),
        }
        u8::try_from(place).ok().map(Source)
    }

    /// The subscription has ended.
    pub(super) fn end(&mut self, node: Source, now: Instant) {
        self.nodes[usize::from(node.0)].since = None;
        self.own(node, &[], now);
    }

    /// This replica has recorders of these partitions, and no others, at their node. Returns the new ones.
    pub(super) fn own(&mut self, node: Source, partitions: &[u16], now: Instant) -> Vec<u16> {
        let is_lost = |(partition, owner): (&u16, &Owner)| {
            (owner.node == node && !partitions.contains(partition)).then_some(*partition)
        };
        let lost: Vec<_> = self.owners.iter().filter_map(is_lost).collect();
        for partition in lost {
            self.disown(partition);
        }
        let is_own = |partition: &u16| {
            let owner = self.owners.get(partition);
            owner.is_some_and(|owner| owner.node == node)
        };
        let new = partitions.iter().copied().filter(|it| !is_own(it));
        let new: Vec<_> = new.collect();
        for partition in &new {
            self.disown(*partition);
            self.owners.insert(*partition, Owner { node, since: now });
        }
        new
    }

    fn disown(&mut self, partition: u16) {
        self.owners.remove(&partition);
        self.dropped.remove(&partition);
        for (_, digest) in self.waiting.remove(&partition).unwrap_or_default() {
            if let Some(message) = self.messages.get_mut(&digest) {
                self.bytes -= message.found();
            }
        }
    }

    /// A node has delivered a message. `message` is called if its own node has not.
    pub(super) fn arrived(
        &mut self,
        node: Source,
        digest: Digest,
        partition: u16,
        now: Instant,
        message: impl FnOnce() -> (Channel, Bytes),
    ) -> Arrival {
        let owner = self.owners.get(&partition).map(|owner| owner.node);
        let is_own = owner == Some(node);
        let known = match self.messages.entry(digest) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let new = vacant.insert(Message::new(node.bit(), now));
                self.order.push_back((now, digest));
                if !is_own && owner.is_some() {
                    new.missed = Some(Box::new(message()));
                    if self.bytes + new.size() > self.limit {
                        new.missed = None;
                        self.dropped.insert(partition, now);
                    } else {
                        self.bytes += new.size();
                        let waiting = self.waiting.entry(partition).or_default();
                        waiting.push_back((now, digest));
                    }
                }
                return Arrival::New;
            }
        };
        let is_first = known.nodes & node.bit() == 0;
        if !is_first {
            known.touched = now;
            self.bytes -= known.found();
        }
        known.nodes |= node.bit();
        if !is_own {
            return Arrival::New;
        }
        if known.late == Late::Again {
            known.late = Late::Both;
            return Arrival::Recorded;
        }
        if is_first && known.late == Late::No && now > known.at + SETTLE {
            known.late = Late::Arrived;
            known.touched = now;
        }
        self.bytes -= known.found();
        Arrival::New
    }

    /// The node of the partition has published a message again. With this one, it has published messages with this digest
    /// so many times.
    pub(super) fn republished(
        &mut self,
        digest: Digest,
        repetitions: u64,
        now: Instant,
    ) -> Arrival {
        let known = self.messages.entry(digest);
        let message = known.or_insert_with(|| Message::new(0, now));
        self.order.push_back((now, digest));
        self.bytes -= message.found();
        (message.touched, message.repetitions) = (now, repetitions);
        if message.late == Late::Arrived {
            message.late = Late::Both;
            return Arrival::Recorded;
        }
        message.late = Late::Again;
        Arrival::New
    }

    /// Messages that the node of the partition has missed, if all that it had delivered until `alive` has arrived here,
    /// and messages are missed after `patience`. The caller has the node publish them again. If that fails, they are
    /// returned once more later.
    pub(super) fn missed(
        &mut self,
        partition: u16,
        alive: Instant,
        patience: Duration,
        now: Instant,
    ) -> Vec<Missed> {
        let (mut missed, mut bytes) = (Vec::new(), 0);
        while missed.len() < BATCH_MESSAGES
            && bytes < BATCH_BYTES
            && let Some(waiting) = self.waiting.get_mut(&partition)
            && let Some((since, digest)) = waiting.front().copied()
            && since + patience <= alive
        {
            waiting.pop_front();
            let Some(message) = self.messages.get(&digest) else {
                continue;
            };
            let Some((channel, payload)) = message.missed.as_deref() else {
                continue;
            };
            if self.is_certain(partition, message.nodes, message.at) {
                bytes += payload.len();
                missed.push(Missed {
                    channel: channel.clone(),
                    payload: payload.clone(),
                    digest,
                    repetitions: message.repetitions,
                });
                let waiting = self.waiting.entry(partition).or_default();
                waiting.push_back((now, digest));
            } else if let Some(message) = self.messages.get_mut(&digest) {
                self.bytes -= message.found();
            }
        }
        missed
    }

    /// How many partitions of the node are compared with others: a message that arrives now from another node would be
    /// noticed.
    pub(super) fn compared(&self, node: Source, now: Instant) -> usize {
        let others = !node.bit();
        let own = self.owners.iter().filter(|(_, owner)| owner.node == node);
        own.filter(|(partition, _)| self.is_certain(**partition, others, now))
            .count()
    }

    /// Whether a message is new that one of these nodes has delivered at that time. The node of its partition may have
    /// delivered it before this replica compared.
    fn is_certain(&self, partition: u16, nodes: u64, at: Instant) -> bool {
        let is_long = |since: Instant| since + LATEST <= at;
        let owner = self.owners.get(&partition);
        let is_one = |place| nodes & Source(place).bit() != 0;
        owner.is_some_and(|owner| is_long(owner.since))
            && (self.nodes.iter().zip(0..))
                .any(|(node, place)| is_one(place) && node.since.is_some_and(is_long))
    }

    /// Whether a message of the partition could not be remembered, and may have been missed.
    pub(super) fn take_dropped(&mut self, partition: u16, alive: Instant) -> bool {
        let dropped = self.dropped.get(&partition);
        let is_due = dropped.is_some_and(|at| *at + SETTLE <= alive);
        if is_due {
            self.dropped.remove(&partition);
        }
        is_due
    }

    /// The node of the partition has published messages with this digest again so many times. If that was before this
    /// replica compared them, the newest may still arrive itself.
    pub(super) fn was_again(&mut self, digest: Digest, repetitions: u64, now: Instant) {
        let known = self.messages.entry(digest);
        let message = known.or_insert_with(|| {
            self.order.push_back((now, digest));
            Message {
                late: Late::Again,
                ..Message::new(0, now)
            }
        });
        message.repetitions = repetitions;
    }

    /// Forgets messages that no node will deliver any more.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some((at, digest)) = self.order.front().copied()
            && (at + LATEST < now || self.order.len() > MESSAGES)
        {
            self.order.pop_front();
            let Entry::Occupied(message) = self.messages.entry(digest) else {
                continue;
            };
            let since = message.get().touched;
            if message.get().missed.is_some() || (since > at && since + LATEST >= now) {
                // Its own node may be stalled.
                self.order.push_back((now, digest));
            } else {
                message.remove();
            }
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_node_is_listened_to_if_there_is_only_one() {
        let (mut deliveries, now) = (Deliveries::new(0), Instant::now());
        let ids: [Arc<str>; 3] = ["x", "y", "z"].map(Arc::from);
        let x = deliveries.begin(&ids[0], now).expect("there is room");
        assert!(!deliveries.needs(&ids[1]), "nothing is recorded");
        deliveries.own(x, &[0], now);
        assert!(deliveries.needs(&ids[1]));
        assert!(!deliveries.needs(&ids[2]));
        let y = deliveries.begin(&ids[1], now).expect("there is room");
        assert!(deliveries.needs(&ids[1]));
        deliveries.end(y, now);
        deliveries.needs_no_longer(&ids[1]);
        assert!(deliveries.needs(&ids[2]));
        // This replica records from it, too.
        deliveries.begin(&ids[1], now);
        assert!(!deliveries.needs(&ids[2]));
    }
}
