//! Taking over: barriers, fences, preemptions, and stepping down.

use std::time::SystemTime;

use super::{
    INHERITED, Machine, OUT_OF_SYNC, REPEATED,
    queue::{Content, Pending, Queue},
    state::{Barrier, Preemption, State, StepDown},
};

impl Machine {
    /// A barrier has arrived, this recorder's own or another's.
    pub(super) fn barrier(&mut self, digest: String) {
        let own = self
            .barrier
            .as_ref()
            .is_some_and(|own| own.digest == digest);
        self.push(Pending::other(Content::Barrier, digest));
        match self.barrier.as_mut().filter(|_| own) {
            Some(barrier) => {
                barrier.behind = Some(Queue::default());
                self.has_barrier = true;
            }
            // This recorder subscribed before the other one, so it has received more and is the better one to record.
            None => self.acquire_due |= self.has_listened(),
        }
    }

    /// Whether this recorder is on standby, and its own barrier has arrived or has been recorded.
    pub(super) fn has_listened(&self) -> bool {
        let has_arrived = |barrier: &Barrier| barrier.behind.is_some();
        self.state == State::Standby
            && (self.in_sync || self.barrier.as_ref().is_some_and(has_arrived))
    }

    /// How many of the first pending messages the recorder with this token may have missed, and when the newest of them
    /// was received. That recorder was out of sync when it acquired the lease.
    pub(super) fn missed_by(&self, token: &str) -> Option<(usize, SystemTime)> {
        let name = token.rsplit_once('-').map_or(token, |(name, _)| name);
        let is_its = |pending: &Pending| {
            let barrier = pending.digest.strip_prefix('!');
            let number = barrier.and_then(|barrier| barrier.strip_prefix(name));
            number.is_some_and(|number| number.starts_with('-'))
        };
        // Its barrier is not pending if it was recorded, or was published before this recorder subscribed. At an
        // out-of-sync recorder only the second is possible here.
        let all = if self.in_sync { self.pending.len() } else { 0 };
        let missed = match self
            .pending
            .iter()
            .enumerate()
            .find(|(_, pending)| is_its(pending))
        {
            // An earlier one was recorded, or was published before this recorder subscribed. So none was missed.
            Some((_, barrier)) if barrier.digest.ends_with(REPEATED) => 0,
            Some((place, _)) => place,
            None => all,
        };
        Some((missed, self.pending.newest_received(missed)?))
    }

    /// The messages cannot be recorded any more. From now on this recorder is out of sync, and its pending messages are
    /// a best guess.
    pub(super) fn give_up_preemption(&mut self) {
        if let Some(Preemption {
            missed,
            received_at,
            ..
        }) = self.preemption.take()
        {
            self.lost = self.lost.max(Some(received_at));
            self.pending.drop_first(missed);
            self.in_sync = false;
            self.has_barrier = false;
            self.drop_barrier();
        }
    }

    /// A recorder has acquired the lease. If it was out of sync, the number of appends that have recorded raw messages
    /// follows its token.
    pub(super) fn fence(&mut self, arrived: &str) {
        let appends = arrived.rsplit_once(OUT_OF_SYNC).map(|(_, appends)| appends);
        let arrived = &arrived[..arrived.len() - appends.map_or(0, str::len)];
        if let State::Fencing {
            token, preempts, ..
        } = &mut self.state
            && token == arrived
        {
            if self.preemption.is_some() && !*preempts {
                // An out-of-sync recorder held the lease before, and may have recorded later messages.
                self.state = State::Standby;
                self.acquire_due = true;
                return;
            }
            if appends.is_some_and(|appends| appends.ends_with(INHERITED)) {
                self.pending.drop_early();
            }
            let old = self.pending.len();
            self.state = State::Active {
                token: std::mem::take(token),
                sent: 0,
                old,
                ticks: 0,
            };
            if let Some(preemption) = &mut self.preemption {
                preemption.missed = old;
            }
            self.in_sync = true;
            self.inherited();
            self.drop_barrier();
            return;
        }
        if self.ignores_notices() {
            self.disinherit();
            return;
        }
        // Published in the step that gave the lease to another recorder. Two recorders that preempt each other take
        // turns of a tick.
        if self.active().is_some() {
            self.state = State::Standby;
            self.acquire_due = self.preemption.is_none();
        }
        let Some(appends) = appends else {
            if arrived.ends_with(INHERITED) {
                self.drop_barrier();
            }
            return;
        };
        if let Some((missed, received_at)) = self.missed_by(arrived) {
            // A library that does not count appends sends no number. Then nothing counts as recorded.
            let appends = appends.trim_end_matches(INHERITED);
            let appends = appends.parse().unwrap_or_default();
            self.acquire_due |= self.preemption.is_none();
            let preemption = self.preemption.get_or_insert(Preemption {
                missed,
                received_at,
                appends,
            });
            preemption.missed = preemption.missed.max(missed);
            preemption.received_at = preemption.received_at.max(received_at);
        }
        // The holder may have missed this recorder's barrier, and records messages from after it first.
        self.drop_barrier();
    }

    /// A recorder has stepped down. Everything that was published before has arrived, also the fence of an out-of-sync
    /// successor.
    pub(super) fn stepped_down(&mut self, notice: &str) {
        let own = notice.strip_prefix(&*self.name);
        let number = own.and_then(|rest| rest.strip_prefix('-')?.parse::<u64>().ok());
        if number.is_some_and(|number| number > self.step_down_from) {
            if self.active().is_some() {
                self.state = State::Standby;
            }
            self.step_down = match self.preemption {
                Some(_) => StepDown::Due,
                None => StepDown::Done,
            };
        }
    }

    pub(super) fn drop_barrier(&mut self) {
        self.barrier = None;
    }
}
