//! `Store`: a Redis that faults happen to, and when they did.

use std::time::Duration;

use crate::{
    lab::{Redis, Sentinels},
    message::micros_since_epoch,
};

/// How long most faults last.
pub(super) const HOLD: Duration = Duration::from_secs(3);

/// A Redis, and the servers that may replace it.
pub(super) struct Store {
    pub(super) redis: Redis,
    /// Whether its clock is behind.
    pub(super) behind: bool,
    /// The copy that is promoted next.
    pub(super) standby: Option<Redis>,
    /// They promote a copy by themselves.
    pub(super) sentinels: Option<Sentinels>,
}

/// When a fault began, and when it was over, in microseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) from: u64,
    pub(super) over: u64,
}

/// The span of several faults at once.
impl FromIterator<Self> for Times {
    fn from_iter<I: IntoIterator<Item = Self>>(times: I) -> Self {
        let now = micros_since_epoch();
        let both = |all: Self, one: Self| Self {
            from: all.from.min(one.from),
            over: all.over.max(one.over),
        };
        times.into_iter().reduce(both).unwrap_or(Self {
            from: now,
            over: now,
        })
    }
}
