//! `Machine`: the recorder protocol of one partition, without any input or output.
//!
//! Every recorder receives every raw message, and keeps it as *pending* until it has seen it recorded. One recorder
//! holds the lease and appends. It acquires the lease under a **new token** when it takes over, and after any doubt
//! about the outcome of an append. Then it waits for the **fence**, which was published in the same step. When the
//! fence arrives, every earlier append has been seen, and no later one can happen under an older token. So *pending* is
//! exactly the messages that are not recorded yet.
//!
//! A recorder that has just subscribed is out of sync: it has not received some messages that are not recorded yet. It
//! publishes a **barrier**, which the active recorder records in its turn, like a message. When the barrier is
//! recorded, all messages published before it have been recorded, and no message received after it has been. From then
//! on the recorder is in sync.
//!
//! An out-of-sync recorder acquires the lease only if no in-sync one is known, and only after its own barrier has
//! arrived. If several recorders are out of sync, the first subscriber acquires it, because it has received all that
//! the others have. Redis numbers the subscriptions, in the same step in which it carries them out. A silent
//! recorder does not count for long. So a recorder that was stalled, in sync or out of sync, may have pending messages
//! that the new holder has missed: those before the holder's barrier. Then it **preempts** the holder: it takes the
//! lease and records them itself. If raw messages were recorded since then, it is too late, because its own would
//! follow later ones. Then the recorder starts again as an out-of-sync one, and clients receive a gap for the messages.
//!
//! A recorder whose subscription is **cut** misses messages from then on. But if it holds the lease, no other recorder
//! can record, and the replies to its appends show which messages are recorded. So it appends the messages that it has
//! received before it releases the lease.
//!
//! A recorder that is to stop **steps down** in one step, in which Redis checks that another one is in sync. Until then
//! it continues to record. Its pending messages are also pending at that successor, unless the successor was out of
//! sync when it acquired the lease. The fence that shows this may not have arrived yet. So the recorder stops only when
//! the notice of its stepping down has arrived, and it has no holder to preempt.
//!
//! Above a limit of bytes a recorder drops the payloads of the channels that hold most. It keeps a *tombstone* of each
//! such message, which is recorded in its turn, as a gap. The tombstone has the digest of the message, so other
//! recorders need not drop the same ones. Each message is recorded once, as an event or as a gap, by any of the
//! recorders.
//!
//! A function that is to append the **end** of a channel stores it in Redis, and announces it to the recorders. The
//! announcement becomes pending like a message. So the end is appended after all raw messages before it.
//!
//! The caller passes in each input, with [`Machine::raw`], [`Machine::end`], [`Machine::notice`], [`Machine::reply`] and
//! [`Machine::tick`]. It asks for the next step with [`Machine::next`].

mod carry;
mod effect;
mod queue;
mod state;
mod takeover;

use std::time::SystemTime;

use bytes::Bytes;
use hub::Channel;

use self::{
    carry::Inheritance,
    queue::Queue,
    state::{Barrier, Preemption, State, StepDown},
};
pub(crate) use self::{
    carry::{Carrier, Handover, Successor},
    effect::{Effect, Outcome, Overflow, Reply},
    queue::{Content, Digest, OVERHEAD, Pending},
};
use crate::times::{BARRIER_TICKS, FENCE_TICKS, RENEW_TICKS};

/// When more bytes are pending, channels take turns: a channel that is flooded does not keep the others waiting.
const TURNS_BYTES: usize = 4 << 20;
/// When too much is pending, one part in this many is dropped at once, because each time all pending messages are
/// examined.
const SHED_PART: usize = 8;
/// Ends the token of a recorder that was out of sync when it asked for the lease.
const OUT_OF_SYNC: &str = "?";
/// Ends the token of a recorder that takes over from a carrier: it has not received earlier barriers. Also ends the fence
/// of an out-of-sync recorder, if a carrier held the lease before: that has recorded messages of another node.
const INHERITED: &str = ">";
/// Ends a barrier if an earlier one of the same recorder was published, and the recorder has received everything since.
const REPEATED: char = '+';

/// One recorder's view of one partition.
pub(crate) struct Machine {
    /// Names this recorder and its subscription. Tokens and barriers begin with it.
    name: String,
    state: State,
    /// Every message that this recorder has not received has been recorded, or is lost.
    in_sync: bool,
    /// Received, and not seen recorded. While the recorder is out of sync, a best guess.
    pending: Queue,
    /// Maximum of these bytes; tombstones may take as many again.
    limit: usize,
    /// Makes tokens and barriers unique.
    counter: u64,
    /// The number of the last append.
    number: u64,
    /// How many pending messages the append under way carries; none while there is none.
    in_flight: usize,
    /// The size of the next append, if it repeats an append without a reply. Redis may have carried out the first one
    /// and would ignore the repetition, so both have to carry the same messages.
    repeat: Option<usize>,
    /// The barrier that this recorder waits for.
    barrier: Option<Barrier>,
    /// A barrier of this recorder has arrived, and the recorder has dropped no message since.
    has_barrier: bool,
    preemption: Option<Preemption>,
    /// When the newest message was received that this recorder cannot record any more.
    lost: Option<SystemTime>,
    /// The partition has moved here, and a recorder that receives messages of another node has recorded some.
    inheritance: Option<Inheritance>,
    /// An effect is under way; the next one waits for its answer.
    busy: bool,
    /// The partition was on its way to another node. Appends wait for the next tick.
    waits: bool,
    acquire_due: bool,
    renew_due: bool,
    barrier_due: bool,
    step_down: StepDown,
    /// Notices of stepping down count from this number on. A preemption followed each earlier one and took it back.
    step_down_from: u64,
}

impl Machine {
    /// A recorder that has received nothing yet. `subscription` begins with the name of the replica and a colon. It
    /// distinguishes its tokens from those of an earlier subscription, whose commands may still be under way.
    pub(crate) fn new(subscription: &str) -> Self {
        Self {
            name: subscription.to_owned(),
            state: State::Standby,
            in_sync: false,
            pending: Queue::default(),
            limit: usize::MAX,
            counter: 0,
            number: 0,
            in_flight: 0,
            repeat: None,
            barrier: None,
            has_barrier: false,
            preemption: None,
            lost: None,
            inheritance: None,
            busy: false,
            waits: false,
            acquire_due: false,
            renew_due: false,
            barrier_due: true,
            step_down: StepDown::No,
            step_down_from: 0,
        }
    }

    /// The same, with a limit of the bytes that may be pending.
    pub(crate) fn limited(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// From now on this recorder steps down as soon as it is sure that this loses nothing.
    pub(crate) fn step_down(&mut self) {
        self.step_down = StepDown::Due;
    }

    /// The subscription was cut, and no more messages arrive. A recorder that holds the lease continues until it has
    /// recorded the messages that it has received.
    pub(crate) fn cut(&mut self) {
        self.drop_barrier();
        let cut = |asked| State::Cut { held: false, asked };
        self.state = match std::mem::replace(&mut self.state, cut(None)) {
            State::Active { token, sent, .. } => {
                // Notices arrive in the order of appends, so the acknowledged messages are at the front.
                let in_flight = self.in_flight.min(sent);
                self.pending.drop_first(sent - in_flight);
                State::Draining {
                    token,
                    sent: in_flight,
                }
            }
            State::Fencing { token, .. } => cut(Some(token)),
            _ => return,
        };
    }

    /// Whether it is known exactly which messages are not recorded, and nothing is under way.
    pub(crate) fn can_divert(&self) -> bool {
        matches!(self.state, State::Active { .. })
            && self.in_sync
            && !self.busy
            && self.preemption.is_none()
    }

    /// The raw messages that are not recorded, in their order.
    pub(crate) fn divert(mut self) -> Vec<Pending> {
        if let State::Active { sent, .. } = self.state {
            self.pending.drop_first(sent);
        }
        let messages = self.pending.iter().filter(|pending| pending.is_raw());
        messages.cloned().collect()
    }

    /// Whether a recorder whose subscription was cut has more to record.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining { .. }) && !self.pending.is_empty()
    }

    /// When the newest message was received that is still pending.
    pub(crate) fn newest_received(&self) -> Option<SystemTime> {
        self.pending.newest_received(self.pending.len())
    }

    /// The token of the lease, while it is held or may be.
    pub(crate) fn token(&self) -> Option<&str> {
        match &self.state {
            State::Fencing { token, .. } => Some(token),
            State::Cut { asked, .. } => asked.as_deref(),
            _ => self.active(),
        }
    }

    /// How many messages the holder of a lease that was cut could not record.
    pub(crate) fn held(&self) -> usize {
        match self.state {
            State::Draining { .. } | State::Cut { held: true, .. } => self.pending.len(),
            _ => 0,
        }
    }

    /// There is no other replica that could take over.
    pub(crate) fn is_alone(&self) -> bool {
        self.step_down == StepDown::Alone
    }

    /// This recorder is not needed any more.
    pub(crate) fn has_stepped_down(&self) -> bool {
        self.step_down == StepDown::Done
    }

    /// The token of the lease, while it is held.
    pub(crate) fn active(&self) -> Option<&str> {
        match &self.state {
            State::Active { token, .. }
            | State::Carrying { token, .. }
            | State::Draining { token, .. } => Some(token),
            _ => None,
        }
    }

    /// Whether every message that is neither recorded nor lost is pending here.
    pub(crate) fn is_in_sync(&self) -> bool {
        self.in_sync
    }

    /// How many messages wait to be recorded.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// A fence was published and did not arrive.
    pub(crate) fn is_stuck(&self) -> bool {
        matches!(self.state, State::Fencing { ticks, .. } if ticks > FENCE_TICKS)
    }

    /// A raw message has arrived.
    ///
    /// # Errors
    /// When too much is pending. Then this recorder has to forget everything and start again.
    pub(crate) fn raw(&mut self, channel: Channel, payload: Bytes) -> Result<(), Overflow> {
        self.message(Pending::message(channel, payload))
    }

    /// The same. Its digest is known already.
    ///
    /// # Errors
    /// As of [`Machine::raw`].
    pub(crate) fn message(&mut self, message: Pending) -> Result<(), Overflow> {
        if let Some(message) = self.unless_recorded(message) {
            self.push(message);
        }
        match self.bytes() > self.limit {
            true => self.shed(),
            false => Ok(()),
        }
    }

    /// A raw message has arrived that was recorded before. Its notice is recorded once more, for recorders that do not know
    /// that.
    pub(crate) fn recorded_before(&mut self, digest: Digest) {
        let digest = digest.to_string();
        self.push(Pending::other(Content::Recorded, digest));
    }

    /// A function has stored the end of a channel under this name. It becomes pending, so it is appended after all
    /// messages before it.
    pub(crate) fn end(&mut self, channel: Channel, name: &str) {
        self.push(Pending::other(Content::End(channel), name.to_owned()));
    }

    /// Bytes of all messages that are kept here.
    fn bytes(&self) -> usize {
        let behind = self.barrier.as_ref().and_then(|own| own.behind.as_ref());
        self.pending.bytes() + behind.map_or(0, Queue::bytes)
    }

    fn shed(&mut self) -> Result<(), Overflow> {
        let sent = match &self.state {
            State::Active { sent, .. } | State::Carrying { sent, .. } => *sent,
            _ => 0,
        };
        let goal = self.bytes() - self.limit + self.limit / SHED_PART;
        let mut tombstones = self.pending.shed(sent, goal);
        // The same messages once more: their payloads are shared.
        if let Some(behind) = self.barrier.as_mut().and_then(|own| own.behind.as_mut()) {
            tombstones += behind.shed(0, goal);
        }
        // The messages of the append under way were not dropped; they are bounded by the size of one append.
        if tombstones * OVERHEAD > self.limit {
            return Err(Overflow(self.pending.len()));
        }
        Ok(())
    }

    /// A notice has arrived. Its words are:
    /// - a digest: this message was recorded. Digests are in the order of the appends.
    /// - `#token`: a fence. A number follows the token if the recorder is out of sync.
    /// - `?barrier`: the barrier of a recorder. It becomes pending, so it is recorded after all messages before it.
    /// - `~`: a recorder has released the lease.
    /// - `=recorder-number`: a recorder has stepped down.
    pub(crate) fn notice(&mut self, notice: &str) {
        for word in notice.split(' ') {
            if let Some(token) = word.strip_prefix('#') {
                self.fence(token);
            } else if let Some(barrier) = word.strip_prefix('?') {
                self.barrier(format!("!{barrier}"));
            } else if word == "~" {
                self.acquire_due = true;
            } else if let Some(number) = word.strip_prefix('=') {
                self.stepped_down(number);
            } else {
                self.recorded(word);
            }
        }
    }

    /// An effect was answered.
    pub(crate) fn reply(&mut self, reply: Reply) {
        // Other effects do not wait for the answer to a barrier.
        self.busy &= matches!(reply, Reply::PublishBarrier(_));
        if let Reply::Append(outcome) = reply {
            let in_flight = std::mem::take(&mut self.in_flight);
            if let State::Active { sent, .. } = &self.state
                && outcome == Outcome::Done
            {
                let first = *sent - in_flight.min(*sent);
                self.pending.forget_payloads(first..*sent);
            }
            if outcome == Outcome::Elsewhere {
                self.waits = true;
                if let State::Active { sent, .. } = &mut self.state {
                    *sent -= in_flight.min(*sent);
                }
            }
            if let State::Draining { sent, .. } = &mut self.state {
                let sent = std::mem::take(sent);
                match outcome {
                    Outcome::Done => self.pending.drop_first(sent),
                    // The same append again, if it was not seen recorded.
                    Outcome::Unknown if sent > 0 => {
                        self.number -= 1;
                        self.repeat = Some(sent);
                    }
                    Outcome::Unknown => {}
                    Outcome::Denied | Outcome::Refused | Outcome::Elsewhere => {
                        self.state = State::Cut {
                            held: true,
                            asked: None,
                        };
                    }
                }
            }
        }
        if self.is_carrying() {
            self.carried(reply);
        }
        if matches!(
            self.state,
            State::Carrying { .. } | State::Draining { .. } | State::Cut { .. }
        ) {
            return;
        }
        match reply {
            // The fence makes the recorder active, and may have arrived before the answer.
            Reply::Acquire(Outcome::Done) | Reply::Renew(_) if self.active().is_none() => {}
            Reply::Acquire(Outcome::Done)
            | Reply::Renew(
                Outcome::Done | Outcome::Refused | Outcome::Elsewhere | Outcome::Unknown,
            )
            | Reply::Append(Outcome::Done | Outcome::Elsewhere) => {}
            Reply::Acquire(Outcome::Denied) if self.ignores_notices() => self.disinherit(),
            Reply::Acquire(Outcome::Denied)
            | Reply::Renew(Outcome::Denied)
            | Reply::Append(Outcome::Denied) => self.state = State::Standby,
            // Tried again with the next tick, not at once, because the failure may last for a while.
            Reply::Acquire(Outcome::Refused | Outcome::Elsewhere | Outcome::Unknown)
            | Reply::Append(Outcome::Refused | Outcome::Unknown) => self.state = State::Standby,
            Reply::Late => {
                self.state = State::Standby;
                self.give_up_preemption();
            }
            Reply::PublishBarrier(Outcome::Done) => {}
            Reply::PublishBarrier(_) => self.drop_barrier(),
            // No other replica will have the messages that this recorder has received.
            Reply::Alone if !self.has_stepped_down() => self.step_down = StepDown::Alone,
            // The notice decides. Without one it is asked again with the next tick.
            Reply::StepDown(_) | Reply::Alone => {}
        }
    }

    /// Time has passed. The caller calls it several times within the duration of a lease.
    pub(crate) fn tick(&mut self) {
        if matches!(self.step_down, StepDown::Asked | StepDown::Alone) {
            self.step_down = StepDown::Due;
        }
        self.waits = false;
        self.settle();
        if let Some(barrier) = &mut self.barrier {
            barrier.ticks += 1;
            if barrier.ticks > BARRIER_TICKS {
                self.drop_barrier();
            }
        }
        match &mut self.state {
            State::Standby if self.in_sync || self.preemption.is_some() => self.acquire_due = true,
            State::Standby => match &self.barrier {
                None => self.barrier_due = true,
                Some(barrier) => self.acquire_due = barrier.behind.is_some(),
            },
            State::Draining { .. } | State::Cut { .. } => {}
            State::Fencing { ticks, .. } => *ticks += 1,
            State::Active { ticks, .. } | State::Carrying { ticks, .. } => {
                *ticks += 1;
                self.renew_due |= ticks.is_multiple_of(RENEW_TICKS);
            }
        }
    }

    /// Returns the notice of a new barrier, which the caller publishes. A recorder that has just been created publishes
    /// it in the same step in which it subscribes.
    pub(crate) fn begin(&mut self) -> String {
        self.barrier_due = false;
        let mut barrier = self.unique();
        if self.has_barrier {
            barrier.push(REPEATED);
        }
        let notice = format!("?{barrier}");
        self.barrier = Some(Barrier {
            digest: format!("!{barrier}"),
            ticks: 0,
            behind: None,
        });
        notice
    }

    /// When the newest message was received that this recorder cannot record any more. Each loss is returned once.
    pub(crate) fn take_lost(&mut self) -> Option<SystemTime> {
        self.lost.take()
    }

    /// The next effect; none if there is nothing to do.
    pub(crate) fn next(&mut self) -> Option<Effect> {
        if self.has_stepped_down() {
            return None;
        }
        let is_cut = matches!(self.state, State::Draining { .. } | State::Cut { .. });
        let is_between = matches!(self.state, State::Fencing { .. } | State::Carrying { .. });
        if self.step_down == StepDown::Due
            && !self.busy
            && self.preemption.is_none()
            && !self.ignores_notices()
            && !is_between
            && !is_cut
        {
            self.step_down = StepDown::Asked;
            self.busy = true;
            let notice = format!("={}", self.unique());
            return Some(Effect::StepDown { notice });
        }
        if std::mem::take(&mut self.barrier_due) && !is_cut {
            return Some(Effect::PublishBarrier {
                notice: self.begin(),
            });
        }
        if self.busy {
            return None;
        }
        // A message that arrived after the fence passes no message that was pending when the fence arrived.
        if self.bytes() > TURNS_BYTES && self.repeat.is_none() {
            match self.state {
                State::Active { sent, old, .. } => self.pending.take_turns(sent, old),
                State::Carrying { sent, .. } | State::Draining { sent, .. } => {
                    self.pending.take_turns(sent, 0);
                }
                _ => {}
            }
        }
        let unique = self.counter + 1;
        let effect = match &mut self.state {
            State::Standby if self.acquire_due => {
                self.acquire_due = false;
                self.counter = unique;
                if self.preemption.is_some() {
                    self.step_down_from = unique;
                }
                let kind = match () {
                    () if !self.in_sync => OUT_OF_SYNC,
                    () if self.ignores_notices() => INHERITED,
                    () => "",
                };
                let token = format!("{}-{unique}{kind}", self.name);
                self.state = State::Fencing {
                    token: token.clone(),
                    preempts: self.preemption.is_some(),
                    ticks: 0,
                };
                Effect::Acquire {
                    token,
                    in_sync: self.in_sync,
                    preemption: self
                        .preemption
                        .as_ref()
                        .map(|preemption| preemption.appends),
                }
            }
            State::Active { token, .. } | State::Carrying { token, .. } if self.renew_due => {
                self.renew_due = false;
                Effect::Renew {
                    token: token.clone(),
                }
            }
            State::Active { token, sent, .. }
            | State::Carrying { token, sent, .. }
            | State::Draining { token, sent }
                if *sent < self.pending.len() && !self.waits =>
            {
                let batch = match self.repeat.take() {
                    Some(count) => self
                        .pending
                        .iter()
                        .skip(*sent)
                        .take(count)
                        .cloned()
                        .collect(),
                    None => self.pending.batch(*sent),
                };
                *sent += batch.len();
                self.in_flight = batch.len();
                self.number += 1;
                Effect::Append {
                    token: token.clone(),
                    number: self.number,
                    batch,
                }
            }
            _ => return None,
        };
        self.busy = true;
        Some(effect)
    }

    fn push(&mut self, pending: Pending) {
        if let Some(barrier) = &mut self.barrier
            && let Some(behind) = &mut barrier.behind
        {
            behind.push(pending.clone());
        }
        self.pending.push(pending);
    }

    /// A message was recorded: the oldest pending message with this digest is removed. Messages that were published
    /// before this recorder subscribed are not pending.
    fn recorded(&mut self, digest: &str) {
        if self.ignores_notices() {
            return;
        }
        if self
            .barrier
            .as_ref()
            .is_some_and(|own| own.digest == digest)
        {
            let barrier = self.barrier.take();
            // Messages received before the barrier are recorded, and those received after it are not.
            self.pending = barrier.and_then(|own| own.behind).unwrap_or_default();
            self.in_sync = true;
            self.preemption = None;
            self.inheritance = None;
            return;
        }
        let Some(index) = self.pending.remove(digest) else {
            self.expect(digest);
            return;
        };
        if let Some(preemption) = &mut self.preemption {
            preemption.missed -= usize::from(index < preemption.missed);
        }
        let mut is_over = self.pending.is_empty();
        if let State::Active { sent, old, .. } = &mut self.state {
            *sent -= usize::from(index < *sent);
            *old -= usize::from(index < *old);
            is_over |= *old == 0;
        }
        if is_over {
            self.preemption = None;
        }
    }

    fn unique(&mut self) -> String {
        self.counter += 1;
        format!("{}-{}", self.name, self.counter)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod states;
