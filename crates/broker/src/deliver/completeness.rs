//! `Completeness`: up to which id each partition is complete, by the messages on the present connection.

use std::sync::Arc;

use hub::EventId;

/// The partitions of a session.
pub(super) struct Completeness {
    /// Their numbers, in order.
    own: Arc<[u16]>,
    /// By number. Those of other sessions do not count.
    partitions: Vec<Partition>,
}

#[derive(Clone, Copy, Default)]
struct Partition {
    complete: EventId,
    /// From the last answer; none before the first.
    horizon: Option<EventId>,
    /// Probes since the last answer.
    unanswered: u32,
}

impl Completeness {
    pub(super) fn new(partitions: impl IntoIterator<Item = u16>) -> Self {
        let own: Arc<[u16]> = partitions.into_iter().collect();
        let count = own.last().map_or(0, |last| usize::from(*last) + 1);
        Self {
            own,
            partitions: vec![Partition::default(); count],
        }
    }

    /// The numbers of all partitions, in order.
    pub(super) fn all(&self) -> Arc<[u16]> {
        Arc::clone(&self.own)
    }

    /// Nothing is known of the next connection.
    pub(super) fn clear(&mut self) {
        self.partitions.fill(Partition::default());
    }

    /// Each partition is probed again. Returns whether some partition has left more than that many probes unanswered.
    pub(super) fn probe(&mut self, max_unanswered: u32) -> bool {
        if self.of_own().any(|it| it.unanswered > max_unanswered) {
            return true;
        }
        self.partitions.iter_mut().for_each(|it| it.unanswered += 1);
        false
    }

    /// Whether all partitions have answered a probe.
    pub(super) fn have_answered(&self) -> bool {
        self.of_own().all(|it| it.horizon.is_some())
    }

    /// Every event of the partition up to this id has arrived, except those of channels that are not attached.
    pub(super) fn complete(&self, partition: u16) -> EventId {
        self.partitions[usize::from(partition)].complete
    }

    /// An event has arrived.
    pub(super) fn advance(&mut self, partition: u16, id: EventId) {
        let partition = &mut self.partitions[usize::from(partition)];
        partition.complete = partition.complete.max(id);
    }

    /// The answer to a probe has arrived, with the clock of the partition.
    pub(super) fn answered(&mut self, partition: u16, clock: EventId) {
        self.advance(partition, clock);
        self.partitions[usize::from(partition)].unanswered = 0;
    }

    /// An answer brings the horizon of the partition. Returns whether it has moved.
    pub(super) fn meet_horizon(&mut self, partition: u16, horizon: EventId) -> bool {
        let known = self.partitions[usize::from(partition)]
            .horizon
            .replace(horizon);
        known.is_some_and(|known| known != horizon)
    }

    fn of_own(&self) -> impl Iterator<Item = &Partition> {
        let own = self.own.iter();
        own.map(|partition| &self.partitions[usize::from(*partition)])
    }
}
