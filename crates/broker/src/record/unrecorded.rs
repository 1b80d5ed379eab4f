//! `Unrecorded`: raw messages that this replica has received and that are not recorded. They are kept until clients
//! have received a gap.

use std::{collections::BTreeMap, time::SystemTime};

/// Messages that this replica will not record, by partition.
pub(super) type Owed = BTreeMap<u16, Lost>;

/// Messages of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// When the newest of them was received.
    pub(super) received_at: SystemTime,
    pub(super) other: Other,
}

/// Which other recorder has received the same messages, and records them. `ssegw_forsake` takes its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Other {
    None,
    /// A recorder in sync at the same server process.
    InSync,
    /// The recorder that carries the partition to another node of the cluster.
    Carrier,
}

/// While a replica is subscribed, its messages are pending, and the machine decides about them. When the subscription
/// ends, other recorders usually still have them. The exception is a server process that is gone or was replaced,
/// because the recorders that had the messages were all subscribed to it.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    /// The server process of the last subscription.
    run: String,
    /// Messages that were pending when it ended: the time at which the newest was received, by partition.
    pending: BTreeMap<u16, SystemTime>,
    owed: Owed,
}

impl Unrecorded {
    /// The server process of the last subscription; empty before the first.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// A subscription to this server process has ended, with these messages pending.
    pub(super) fn ended(&mut self, run: &str, pending: impl Iterator<Item = (u16, SystemTime)>) {
        self.begins(run);
        self.pending = pending.collect();
    }

    /// A subscription to this server process begins.
    pub(super) fn begins(&mut self, run: &str) {
        if self.run != run {
            self.moved();
            run.clone_into(&mut self.run);
        }
        self.pending.clear();
    }

    /// The server process of the last subscription is gone, or another one has replaced it.
    pub(super) fn moved(&mut self) {
        for lost in self.owed.values_mut() {
            if lost.other == Other::InSync {
                lost.other = Other::None;
            }
        }
        for lost in std::mem::take(&mut self.pending) {
            self.lose(Some(lost));
        }
    }

    /// Messages of this partition are lost.
    pub(super) fn owe(&mut self, partition: u16, lost: Lost) {
        let owed = self.owed.entry(partition).or_insert(lost);
        owed.received_at = owed.received_at.max(lost.received_at);
        owed.other = owed.other.min(lost.other);
    }

    /// Messages of a partition are lost, if any are. The newest of them was received then.
    pub(super) fn lose(&mut self, lost: Option<(u16, SystemTime)>) {
        if let Some((partition, received_at)) = lost {
            let other = Other::None;
            self.owe(partition, Lost { received_at, other });
        }
    }

    /// Takes all messages, also the pending ones, because no subscription to their server process will follow.
    pub(super) fn take_all(&mut self) -> Option<Owed> {
        self.moved();
        self.take()
    }

    /// Takes the lost messages, to send clients gaps. The caller puts back messages for which that failed.
    pub(super) fn take(&mut self) -> Option<Owed> {
        let owed = std::mem::take(&mut self.owed);
        (!owed.is_empty()).then_some(owed)
    }

    /// Puts back lost messages for which clients could not be sent a gap.
    pub(super) fn put_back(&mut self, owed: Owed) {
        for (partition, lost) in owed {
            self.owe(partition, lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pending_messages_are_owed_when_their_server_process_is_gone() {
        let received_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let mut unrecorded = Unrecorded::default();
        unrecorded.begins("a");
        unrecorded.ended("a", [(3, received_at)].into_iter());
        assert_eq!(unrecorded.take(), None);
        // Other recorders have them.
        unrecorded.begins("a");
        unrecorded.begins("b");
        assert_eq!(unrecorded.take(), None);
        unrecorded.ended("b", [(3, received_at)].into_iter());
        unrecorded.begins("c");
        let other = Other::None;
        let owed = Owed::from([(3, Lost { received_at, other })]);
        assert_eq!(unrecorded.take(), Some(owed));
    }

    #[test]
    fn messages_of_another_recorder_are_lost_with_the_server_process() {
        let received_at = SystemTime::UNIX_EPOCH;
        let mut unrecorded = Unrecorded::default();
        unrecorded.begins("a");
        for (partition, other) in [(0, Other::InSync), (1, Other::Carrier)] {
            unrecorded.owe(partition, Lost { received_at, other });
        }
        let owed = unrecorded.take().expect("they are owed");
        assert_eq!(owed[&0].other, Other::InSync);
        unrecorded.put_back(owed);
        unrecorded.moved();
        let owed = unrecorded.take().expect("they still are");
        assert_eq!(owed[&0].other, Other::None);
        // The carrier is not subscribed to that process alone.
        assert_eq!(owed[&1].other, Other::Carrier);
    }
}
