//! `Ear`: one subscription's part in the deliveries of all nodes of a cluster.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use hub::Channel;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    bus_links::BusLinks,
    deliveries::{Arrival, Deliveries, Source},
    machine::Digest,
    pulse::Pulse,
};
use crate::{Error, node::Node};

/// The deliveries of all nodes to which this replica is subscribed. A handle; cheap to clone.
pub(super) type AllDeliveries = Arc<Mutex<Deliveries>>;

/// The part of one subscription. It ends when this is dropped.
pub(super) struct Ear {
    pub(super) deliveries: AllDeliveries,
    pub(super) source: Source,
    pub(super) pulse: Pulse,
    pub(super) links: BusLinks,
    /// Partitions with a call under way.
    pub(super) calling: BTreeSet<u16>,
}

/// The answer to a call that publishes messages again, or asks which were.
pub(super) struct Republished {
    pub(super) partition: u16,
    /// The digest of each message, and how many times it was published again. Before the call this replica knew of so
    /// many; none if it has not named the message.
    pub(super) answers: Result<Vec<(Digest, u64, Option<u64>)>, Error>,
}

impl Ear {
    /// A subscription to the raw messages of a node of a cluster begins. None if there are too many nodes.
    pub(super) fn new(deliveries: &AllDeliveries, node: &Node) -> Option<Self> {
        let source = deliveries.lock().begin(node.id()?, Instant::now())?;
        Some(Self {
            deliveries: Arc::clone(deliveries),
            source,
            pulse: Pulse::default(),
            links: BusLinks::default(),
            calling: BTreeSet::new(),
        })
    }

    /// A raw message has arrived.
    pub(super) fn arrived(&self, channel: &Channel, payload: &[u8], digest: Digest) -> Arrival {
        let message = || (channel.clone(), Bytes::copy_from_slice(payload));
        let (now, partition) = (Instant::now(), channel.partition());
        let mut deliveries = self.deliveries.lock();
        deliveries.arrived(self.source, digest, partition, now, message)
    }

    /// The node has published a message again.
    pub(super) fn republished(&self, digest: Digest, repetitions: u64) -> Arrival {
        let mut deliveries = self.deliveries.lock();
        deliveries.republished(digest, repetitions, Instant::now())
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.deliveries.lock().end(self.source, Instant::now());
    }
}
