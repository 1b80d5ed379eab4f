//! `PublishKeys`: the keys of the function `sse_publish`, for backends that call it in a Redis Cluster.

use hub::{Channel, Partitions};

use crate::names::{CLOCK, ENDS, IDS, LOG, Names, PAST};

/// The keys that a call of `sse_publish` declares. A client of a Redis Cluster finds the node by them.
#[derive(Clone, Debug)]
pub struct PublishKeys(Names);

impl PublishKeys {
    /// The keys of a deployment with these partitions.
    #[must_use]
    pub fn new(partitions: Partitions) -> Self {
        Self(Names::new(partitions))
    }

    /// The number of partitions. It validates channels.
    #[must_use]
    pub fn partitions(&self) -> Partitions {
        self.0.partitions()
    }

    /// The beginning of all keys of a partition.
    #[must_use]
    pub fn prefix(&self, partition: u16) -> String {
        self.0.name(partition, "")
    }

    /// The slot of all keys of a partition.
    #[must_use]
    pub fn slot(&self, partition: u16) -> u16 {
        self.0.slot(partition)
    }

    /// The keys of a call for this channel, in the order in which the call declares them.
    #[must_use]
    pub fn of(&self, channel: &Channel, idempotency_key: Option<&str>) -> Vec<String> {
        let (partition, name) = (channel.partition(), channel.as_str());
        let of_partition = [CLOCK, PAST, ENDS].map(|key| self.0.name(partition, key));
        let of_channel = [LOG, IDS].map(|kind| self.0.name(partition, kind) + name);
        let key = idempotency_key.map(|key| {
            // Publishers over HTTP have other namespaces.
            let key = format!("FCALL:{key}");
            self.0.idempotency(partition, name, &key)
        });
        of_partition
            .into_iter()
            .chain(of_channel)
            .chain(key)
            .collect()
    }
}
