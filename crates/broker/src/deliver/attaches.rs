//! `Attaches`: which channels the next attach is for, and which calls are under way. It does no I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    time::{Duration, Instant},
};

use hub::Channel;

use super::CHUNK;

/// Calls under way at once.
pub(super) const MAX_CALLS: usize = 4;
/// A call without an answer within this time is made again.
pub(super) const UNANSWERED: Duration = Duration::from_secs(2);

/// How an attach brings the newest event of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachMode {
    /// Together with other channels.
    Batched,
    /// In an answer of its own.
    Alone,
    /// Not at all, because it is larger than any message that is accepted here. Readers get it as a page.
    WithoutEntry,
}

/// A call for an attach of some channels of one partition.
#[derive(Clone, Debug)]
pub(super) struct AttachCall {
    /// Names the call in its answer. Never 0, which names a probe.
    pub(super) number: u64,
    pub(super) partition: u16,
    /// One, unless the mode is [`AttachMode::Batched`].
    pub(super) channels: Vec<Channel>,
    pub(super) mode: AttachMode,
}

impl AttachCall {
    /// A call for no channel. Its answer brings the clock and the horizon.
    pub(super) fn probe(partition: u16) -> Self {
        Self {
            number: 0,
            partition,
            channels: Vec::new(),
            mode: AttachMode::Batched,
        }
    }
}

/// The channels that wait for a call, and the calls without a complete answer.
#[derive(Debug, Default)]
pub(super) struct Attaches {
    /// By partition; never an empty queue.
    waiting: BTreeMap<u16, VecDeque<Channel>>,
    /// The partition of the last call.
    last_partition: u16,
    calls: Vec<(AttachCall, Instant)>,
    last_call: u64,
}

impl Attaches {
    /// A channel waits for a call. It is not added again before it is returned here.
    pub(super) fn add(&mut self, channel: Channel) {
        let queue = self.waiting.entry(channel.partition()).or_default();
        queue.push_back(channel);
    }

    /// Removes channels from the front of the queues, as long as `is_unwanted`. So channels whose clients have left do
    /// not delay others.
    pub(super) fn skip(&mut self, mut is_unwanted: impl FnMut(&Channel) -> bool) {
        self.waiting.retain(|_, queue| {
            while queue.front().is_some_and(&mut is_unwanted) {
                queue.pop_front();
            }
            !queue.is_empty()
        });
    }

    /// The next call, if a channel waits and not too many calls are under way. A channel that is not batched has a call
    /// of its own, and no other call at the same time.
    pub(super) fn next(
        &mut self,
        mode: impl Fn(&Channel) -> AttachMode,
        now: Instant,
    ) -> Option<AttachCall> {
        let is_batched = |channel: &Channel| mode(channel) == AttachMode::Batched;
        let mut under_way = self.calls.iter().map(|(call, _)| call.mode);
        if self.calls.len() >= MAX_CALLS || under_way.any(|it| it != AttachMode::Batched) {
            return None;
        }
        // After the last one, so that busy partitions do not keep the others waiting.
        let later = self
            .waiting
            .range((Excluded(self.last_partition), Unbounded));
        let mut partitions = later.chain(self.waiting.range(..=self.last_partition));
        let partition = *partitions.next()?.0;
        let queue = self.waiting.get_mut(&partition)?;
        let first = mode(queue.front()?);
        if first != AttachMode::Batched && !self.calls.is_empty() {
            return None;
        }
        let batched = queue
            .iter()
            .take(CHUNK)
            .take_while(|channel| is_batched(channel));
        let count = batched.count().max(1);
        let channels: Vec<_> = queue.drain(..count).collect();
        if queue.is_empty() {
            self.waiting.remove(&partition);
        }
        self.last_partition = partition;
        self.last_call += 1;
        let call = AttachCall {
            number: self.last_call,
            partition,
            channels,
            mode: first,
        };
        self.calls.push((call.clone(), now));
        Some(call)
    }

    /// The answer to a call is complete. Returns its channels, none if the call was given up before.
    pub(super) fn end(&mut self, number: u64) -> Option<AttachCall> {
        let mut calls = self.calls.iter();
        let index = calls.position(|(call, _)| call.number == number)?;
        Some(self.calls.swap_remove(index).0)
    }

    /// Gives up the calls that were not answered in time.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<AttachCall> {
        let is_late = |(_, since): &mut (AttachCall, Instant)| now - *since > UNANSWERED;
        let late = self.calls.extract_if(.., is_late);
        late.map(|(call, _)| call).collect()
    }

    /// The partition was given to another session. All its calls end.
    pub(super) fn remove(&mut self, partition: u16) {
        self.waiting.remove(&partition);
        self.calls.retain(|(call, _)| call.partition != partition);
    }

    /// The calls under way in a partition.
    pub(super) fn under_way(&self, partition: u16) -> impl Iterator<Item = &AttachCall> {
        let calls = self.calls.iter().map(|(call, _)| call);
        calls.filter(move |call| call.partition == partition)
    }

    /// The connection has ended, and with it all calls.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.calls.clear();
    }
}
