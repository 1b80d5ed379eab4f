//! `Completeness`: up to which id each partition is complete, by the messages on the present connection.

use std::{collections::BTreeMap, sync::Arc};

use hub::EventId;

/// The partitions of a session.
#[derive(Default)]
pub(super) struct Completeness(BTreeMap<u16, Partition>);

#[derive(Clone, Copy, Default)]
struct Partition {
    complete: EventId,
    /// From the last answer; none before the first.
    horizon: Option<EventId>,
    /// Probes since the last answer.
    unanswered: u32,
    /// The node has refused the last probe.
    is_refused: bool,
}

impl Completeness {
    /// The session has taken over a partition.
    pub(super) fn add(&mut self, partition: u16) {
        self.0.insert(partition, Partition::default());
    }

    /// The session has given a partition away.
    pub(super) fn remove(&mut self, partition: u16) {
        self.0.remove(&partition);
    }

    pub(super) fn has(&self, partition: u16) -> bool {
        self.0.contains_key(&partition)
    }

    /// The numbers of all partitions, in order.
    pub(super) fn all(&self) -> Arc<[u16]> {
        self.0.keys().copied().collect()
    }

    /// Nothing is known of the next connection.
    pub(super) fn clear(&mut self) {
        let partitions = self.0.values_mut();
        partitions.for_each(|it| *it = Partition::default());
    }

    /// Each partition is probed again. Returns whether some partition has left more than that many probes unanswered.
    pub(super) fn probe(&mut self, max_unanswered: u32) -> bool {
        if self.0.values().any(|it| it.unanswered > max_unanswered) {
            return true;
        }
        self.0.values_mut().for_each(|it| it.unanswered += 1);
        false
    }

    /// Whether this partition answers probes.
    pub(super) fn has_answered(&self, partition: u16) -> bool {
        let partition = self.0.get(&partition);
        partition.is_some_and(|it| it.horizon.is_some() && !it.is_refused)
    }

    /// Every event of the partition up to this id has arrived, except those of channels that are not attached.
    pub(super) fn complete(&self, partition: u16) -> EventId {
        self.0
            .get(&partition)
            .map_or(EventId::ZERO, |it| it.complete)
    }

    /// An event has arrived.
    pub(super) fn advance(&mut self, partition: u16, id: EventId) {
        if let Some(partition) = self.0.get_mut(&partition) {
            partition.complete = partition.complete.max(id);
        }
    }

    /// The answer to a probe has arrived, with the clock of the partition.
    pub(super) fn answered(&mut self, partition: u16, clock: EventId) {
        self.advance(partition, clock);
        if let Some(partition) = self.0.get_mut(&partition) {
            (partition.unanswered, partition.is_refused) = (0, false);
        }
    }

    /// The node has refused a probe, because the partition is on its way to another node. So probes are not lost.
    pub(super) fn refused(&mut self, partition: u16) {
        if let Some(partition) = self.0.get_mut(&partition) {
            (partition.unanswered, partition.is_refused) = (0, true);
        }
    }

    /// An answer brings the horizon of the partition. Returns whether it has moved.
    pub(super) fn meet_horizon(&mut self, partition: u16, horizon: EventId) -> bool {
        let partition = self.0.get_mut(&partition);
        let known = partition.and_then(|it| it.horizon.replace(horizon));
        known.is_some_and(|known| known != horizon)
    }
}
