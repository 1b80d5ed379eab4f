//! The requests of a machine, and the answers.

use super::queue::Pending;

/// The next step of a machine, which the caller carries out.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Acquire the lease. With a preemption also from another recorder that holds it, unless more appends than that
    /// number have recorded raw messages. The answer is [`Reply::Acquire`], or [`Reply::Late`].
    Acquire {
        token: String,
        in_sync: bool,
        preemption: Option<u64>,
    },
    /// Keep the lease. The answer is [`Reply::Renew`].
    Renew { token: String },
    /// Record these, in order. The answer is [`Reply::Append`]. An append with the same token and number is the same
    /// append, and is carried out once.
    Append {
        token: String,
        number: u64,
        batch: Vec<Pending>,
    },
    /// Publish this as a notice. The answer is [`Reply::PublishBarrier`].
    PublishBarrier { notice: String },
    /// Step down: give up the lease and the in-sync mark if another recorder is in sync. Redis then publishes this
    /// notice. The answer is [`Reply::StepDown`], or [`Reply::Alone`].
    StepDown { notice: String },
}

/// The result of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Success.
    Done,
    /// Not granted: another recorder holds the lease.
    Denied,
    /// Redis takes no writes: nothing has changed.
    Refused,
    /// The partition is on another node, or on its way there: nothing has changed.
    Elsewhere,
    /// It is not known whether Redis carried it out.
    Unknown,
}

/// The answer to an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Acquire(Outcome),
    /// The preemption came too late: raw messages have been recorded since.
    Late,
    Renew(Outcome),
    Append(Outcome),
    PublishBarrier(Outcome),
    StepDown(Outcome),
    /// There is no successor, and no other replica that could become one.
    Alone,
}

impl Reply {
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Alone | Self::Late => Outcome::Denied,
            Self::Acquire(outcome)
            | Self::Renew(outcome)
            | Self::Append(outcome)
            | Self::PublishBarrier(outcome)
            | Self::StepDown(outcome) => outcome,
        }
    }
}

/// Too much is pending, and nothing is left that can be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} raw messages are waiting to be recorded, and that is too many")]
pub(crate) struct Overflow(pub(crate) usize);
