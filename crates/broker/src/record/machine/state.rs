//! The state of a machine.

use std::time::SystemTime;

use super::queue::Queue;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Standby,
    /// The recorder has asked for the lease under this token, and its fence has not arrived.
    Fencing {
        token: String,
        /// It was asked for with a preemption.
        preempts: bool,
        ticks: u32,
    },
    /// The append under way carries the first `sent` of the pending messages under this token. The first `old` were
    /// pending when its fence arrived.
    Active {
        token: String,
        sent: usize,
        old: usize,
        ticks: u32,
    },
    /// The partition has moved to another node. Raw messages still arrive from the node before, and are appended at the
    /// new one. Notices do not arrive, so replies show what is recorded.
    Carrying {
        token: String,
        /// How many of the pending messages the append under way carries.
        sent: usize,
        ticks: u32,
    },
    /// The subscription was cut, and the lease is still held.
    Draining {
        token: String,
        /// How many of the pending messages the append under way carries.
        sent: usize,
    },
    /// The subscription was cut, and the lease is not held any more.
    Cut {
        /// It was held until then.
        held: bool,
        /// It was asked for under this token, and may still be granted.
        asked: Option<String>,
    },
}

/// A barrier that has not been recorded yet.
pub(super) struct Barrier {
    pub(super) digest: String,
    pub(super) ticks: u32,
    /// The messages received after the barrier; none until the barrier itself has arrived. They are kept apart, because
    /// a notice before the barrier's own may be of an equal message that this recorder never received.
    pub(super) behind: Option<Queue>,
}

/// An out-of-sync recorder that may have missed some of the pending messages has acquired the lease. The preemption
/// ends when this recorder has itself recorded all that was pending when it took the lease, or when nothing is pending.
/// Records of other recorders are not enough, because equal messages cannot be distinguished.
pub(super) struct Preemption {
    /// How many of the first pending messages it may have missed.
    pub(super) missed: usize,
    /// When the newest of them was received.
    pub(super) received_at: SystemTime,
    /// How many appends had recorded raw messages when that recorder acquired the lease.
    pub(super) appends: u64,
}

/// How far a recorder has stepped down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StepDown {
    /// It is not to stop.
    No,
    Due,
    Asked,
    /// There is no successor, and no other replica that could become one. It is asked again with the next tick.
    Alone,
    /// It has stepped down, and does nothing any more.
    Done,
}
