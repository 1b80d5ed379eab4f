//! Carrying: a partition moves to another node of a Redis Cluster, and its recording is not interrupted.
//!
//! Every node passes every raw message on to all others, so all receive the same messages, but not in the same order.
//! [`Machine`] relies on one order, that of the node to which its recorders are subscribed. So the active recorder
//! *carries* the partition for a few seconds: it still receives raw messages from the node that the partition has left,
//! and appends them at the new one. No other recorder can record in that time, and the replies show which messages are
//! recorded.
//!
//! A [`Successor`] of the same replica collects the messages that the new node delivers. After [`SETTLE_TWICE`], every
//! message that either of them has received is compared. The successor takes over messages that only the new node has
//! delivered. Messages that only the other node has delivered are recorded already, and will arrive: the successor
//! [expects](Inheritance) them. It records their notices only, so that other recorders see them recorded as well.
//!
//! Other recorders at the new node also see notices of messages that have not arrived there. If the carrier dies, one of
//! them records, out of sync, and clients receive a gap. It must not record those messages again.
//!
//! Equal messages have equal digests and are interchangeable, so of each digest only the number counts. Within
//! [`SETTLE`] a message has arrived from all nodes, unless the cluster has lost it on the way.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hub::Channel;
use tokio::time::Instant;

use super::{Content, Machine, Overflow, Pending, StepDown, queue::Queue, state::State};
use super::{Outcome, Reply};
use crate::times::{SETTLE, SETTLE_TICKS};

/// For so long two nodes are listened to before the messages of the second half are compared.
const SETTLE_TWICE: Duration = SETTLE.saturating_mul(2);

/// A recorder that carries a partition.
pub(crate) struct Carrier {
    pub(crate) machine: Machine,
    since: Instant,
    received: Received,
    /// Since then messages are left to the successor.
    until: Option<Instant>,
}

/// The messages that the carrier has received, for its successor. All of them are recorded.
pub(crate) struct Handover {
    received: Received,
    /// The carrier has recorded no message that arrived later.
    until: Instant,
}

/// A partition that the node has taken over, and that another recorder of this replica carries.
pub(crate) struct Successor {
    since: Instant,
    /// Messages and announced ends, and when they arrived.
    received: VecDeque<(Instant, Pending)>,
    bytes: usize,
    limit: usize,
    /// It has asked for the partition, so it needs all messages that it has received since.
    has_asked: bool,
    /// Too much has arrived after that.
    has_overflowed: bool,
}

/// The digests of messages, and when they arrived.
#[derive(Default)]
struct Received(VecDeque<(Instant, String)>);

/// A machine's knowledge of messages that a carrier has recorded.
#[derive(Default)]
pub(super) struct Inheritance {
    /// Messages that are recorded and have not arrived, by digest.
    expected: HashMap<String, usize>,
    /// The same, from [`SETTLE`] ago and longer.
    older: HashMap<String, usize>,
    /// This machine takes over from the carrier, and its own fence has not arrived. Notices before that are of messages
    /// that are not pending.
    ignores_notices: bool,
    ticks: u32,
}

impl Carrier {
    /// From now on this machine [carries](Machine::carry) the partition.
    pub(crate) fn new(machine: Machine, now: Instant) -> Self {
        let mut received = Received::default();
        for pending in machine.pending.iter() {
            received.push(now, pending);
        }
        Self {
            machine,
            since: now,
            received,
            until: None,
        }
    }

    /// A raw message has arrived.
    ///
    /// # Errors
    /// When too much is pending.
    pub(crate) fn raw(
        &mut self,
        channel: Channel,
        payload: Bytes,
        now: Instant,
    ) -> Result<(), Overflow> {
        if self.until.is_some() {
            return Ok(());
        }
        self.machine.raw(channel, payload)?;
        if let Some(pending) = self.machine.pending.iter().next_back() {
            self.received.push(now, pending);
        }
        Ok(())
    }

    /// A successor asks for the partition. Returns whether it may have it soon.
    pub(crate) fn leave(&mut self, now: Instant) -> bool {
        if now < self.since + SETTLE_TWICE {
            return false;
        }
        self.until.get_or_insert(now);
        true
    }

    /// The message to the successor, once all messages are recorded.
    pub(crate) fn handover(&mut self) -> Option<Handover> {
        let is_idle = self.machine.is_carrying() && !self.machine.busy;
        let until = self
            .until
            .filter(|_| is_idle && self.machine.pending.is_empty())?;
        Some(Handover {
            received: std::mem::take(&mut self.received),
            until,
        })
    }

    /// It cannot record any more.
    pub(crate) fn has_failed(&self) -> bool {
        !self.machine.is_carrying()
    }
}

impl Received {
    fn push(&mut self, now: Instant, pending: &Pending) {
        if matches!(pending.content, Content::End(_) | Content::Barrier) {
            return;
        }
        while let Some((at, _)) = self.0.front()
            && *at + SETTLE_TWICE < now
        {
            self.0.pop_front();
        }
        self.0.push_back((now, pending.digest.clone()));
    }
}

impl Successor {
    /// Notices and raw messages arrive from now on. If more than `limit` bytes arrive within a few seconds, it starts
    /// again, and the carrier continues for so long.
    pub(crate) fn new(limit: usize, now: Instant) -> Self {
        Self {
            since: now,
            received: VecDeque::new(),
            bytes: 0,
            limit,
            has_asked: false,
            has_overflowed: false,
        }
    }

    /// A raw message has arrived.
    pub(crate) fn raw(&mut self, channel: Channel, payload: Bytes, now: Instant) {
        self.push(Pending::message(channel, payload), now);
    }

    /// The end of a channel was announced. It is announced again as long as it is not appended.
    pub(crate) fn end(&mut self, channel: Channel, name: &str, now: Instant) {
        self.push(Pending::other(Content::End(channel), name.to_owned()), now);
    }

    fn push(&mut self, pending: Pending, now: Instant) {
        // Older ones have arrived from the other node as well.
        while let Some((at, oldest)) = self.received.front()
            && !self.has_asked
            && *at + SETTLE_TWICE < now
        {
            self.bytes -= oldest.size();
            self.received.pop_front();
        }
        self.bytes += pending.size();
        self.received.push_back((now, pending));
        if self.bytes > self.limit {
            self.received.clear();
            (self.bytes, self.since) = (0, now);
            self.has_overflowed |= self.has_asked;
        }
    }

    /// Whether it has received enough to ask for the partition.
    pub(crate) fn asks(&mut self, now: Instant) -> bool {
        self.has_asked |= now >= self.since + SETTLE_TWICE;
        self.has_asked
    }

    /// The machine that takes over.
    pub(crate) fn inherit(self, subscription: &str, handover: Handover) -> Machine {
        if self.has_overflowed {
            let lost = Some(SystemTime::now());
            let machine = Machine::new(subscription).in_cluster();
            return Machine { lost, ..machine }.limited(self.limit);
        }
        let from = handover.until.checked_sub(SETTLE);
        let is_recent = |at: Instant| from.is_none_or(|from| at >= from);
        let mut others = HashMap::<String, VecDeque<Instant>>::new();
        for (at, digest) in handover.received.0 {
            others.entry(digest).or_default().push_back(at);
        }
        let mut pending = Queue::default();
        for (at, own) in self.received {
            let is_known = own.is_raw() && take_nearest(others.get_mut(&own.digest), at);
            if !is_known && (is_recent(at) || !own.is_raw()) {
                pending.push(own);
            }
        }
        let expected = others.into_iter().filter_map(|(digest, times)| {
            let recent = times.into_iter().filter(|at| is_recent(*at)).count();
            (recent > 0).then_some((digest, recent))
        });
        Machine {
            pending,
            in_sync: true,
            acquire_due: true,
            barrier_due: false,
            inheritance: Some(Inheritance {
                expected: expected.collect(),
                ignores_notices: true,
                ..Inheritance::default()
            }),
            ..Machine::new(subscription)
        }
        .limited(self.limit)
    }
}

/// Removes the time that is nearest to `at`, if one is near enough. Equal messages may arrive at any rate, and a part of
/// them may have been received by one recorder only.
fn take_nearest(times: Option<&mut VecDeque<Instant>>, at: Instant) -> bool {
    let Some(times) = times else {
        return false;
    };
    let distance = |time: Instant| time.max(at).duration_since(time.min(at));
    let place = (0..times.len()).min_by_key(|place| distance(times[*place]));
    match place.filter(|place| distance(times[*place]) <= SETTLE) {
        Some(place) => times.remove(place).is_some(),
        None => false,
    }
}

impl Inheritance {
    fn is_empty(&self) -> bool {
        self.expected.is_empty() && self.older.is_empty()
    }

    /// Whether the message is expected. From now on one less is.
    fn take(&mut self, digest: &str) -> bool {
        let all = [&mut self.older, &mut self.expected];
        let Some(expected) = all.into_iter().find(|it| it.contains_key(digest)) else {
            return false;
        };
        if let Some(count) = expected.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                expected.remove(digest);
            }
        }
        true
    }
}

impl Machine {
    /// The partition has moved to another node. If this recorder is active, and nothing about its messages is in doubt, it
    /// continues to record, by the replies alone. Returns whether it does.
    pub(crate) fn carry(&mut self) -> bool {
        let may = self.in_sync
            && self.preemption.is_none()
            && !self.ignores_notices()
            && self.repeat.is_none()
            && matches!(self.step_down, StepDown::No | StepDown::Due);
        let State::Active {
            token, sent, ticks, ..
        } = &mut self.state
        else {
            return false;
        };
        if !may {
            return false;
        }
        let (token, ticks) = (std::mem::take(token), *ticks);
        // Notices arrive in the order of appends, so the acknowledged messages are at the front.
        let in_flight = self.in_flight.min(*sent);
        self.pending.drop_first(*sent - in_flight);
        self.drop_barrier();
        self.state = State::Carrying {
            token,
            sent: in_flight,
            ticks,
        };
        true
    }

    pub(super) fn is_carrying(&self) -> bool {
        matches!(self.state, State::Carrying { .. })
    }

    /// An effect of a carrier was answered.
    pub(super) fn carried(&mut self, reply: Reply) {
        let State::Carrying { sent, .. } = &mut self.state else {
            return;
        };
        match reply {
            Reply::Append(Outcome::Done) => {
                let sent = std::mem::take(sent);
                self.pending.drop_first(sent);
            }
            Reply::Append(Outcome::Elsewhere) => *sent = 0,
            // An append in doubt cannot be repeated at another server.
            Reply::Append(_) | Reply::Renew(Outcome::Denied) => {
                self.state = State::Cut {
                    held: true,
                    asked: None,
                };
            }
            _ => {}
        }
    }

    /// Whether notices are of messages that a carrier has recorded. They are not pending here.
    pub(super) fn ignores_notices(&self) -> bool {
        self.inheritance
            .as_ref()
            .is_some_and(|it| it.ignores_notices)
    }

    /// Its own fence has arrived. All later notices are of this machine's appends.
    pub(super) fn inherited(&mut self) {
        if let Some(inheritance) = &mut self.inheritance {
            inheritance.ignores_notices = false;
        }
    }

    /// The partition may have moved here. Until this recorder is in sync, notices may arrive before their messages.
    pub(crate) fn in_cluster(self) -> Self {
        let inheritance = Some(Inheritance::default());
        Self {
            inheritance,
            ..self
        }
    }

    /// A notice of a message that is not pending.
    pub(super) fn expect(&mut self, digest: &str) {
        let is_message = !digest.starts_with('!');
        if let Some(inheritance) = &mut self.inheritance
            && is_message
            && !self.in_sync
        {
            *inheritance.expected.entry(digest.to_owned()).or_default() += 1;
        }
    }

    /// A message that has not arrived after a while was lost on the way, or arrived before this recorder subscribed.
    pub(super) fn settle(&mut self) {
        let Some(inheritance) = &mut self.inheritance else {
            return;
        };
        inheritance.ticks += 1;
        if inheritance.ticks.is_multiple_of(SETTLE_TICKS) {
            inheritance.older = std::mem::take(&mut inheritance.expected);
        }
        if self.in_sync && !inheritance.ignores_notices && inheritance.is_empty() {
            self.inheritance = None;
        }
    }

    /// The message as it becomes pending. If a carrier has recorded it, only its notice is to be recorded. A recorder
    /// that is out of sync has seen that.
    pub(super) fn unless_recorded(&mut self, mut message: Pending) -> Option<Pending> {
        let Some(inheritance) = &mut self.inheritance else {
            return Some(message);
        };
        match inheritance.take(&message.digest) {
            true if self.in_sync => Some(Pending::other(Content::Recorded, message.digest)),
            true => None,
            false => {
                message.is_early = !self.in_sync && inheritance.ticks <= SETTLE_TICKS;
                Some(message)
            }
        }
    }

    /// Another recorder has acquired the lease before this one has taken over. It may have recorded messages that are
    /// pending here, so these are given up.
    pub(super) fn disinherit(&mut self) {
        let newest = self.pending.newest_received(self.pending.len());
        self.lost = self.lost.max(newest);
        self.pending = Queue::default();
        self.inheritance = None;
        self.state = State::Standby;
        self.in_sync = false;
        self.has_barrier = false;
        self.drop_barrier();
    }
}

#[cfg(test)]
mod simulation;
