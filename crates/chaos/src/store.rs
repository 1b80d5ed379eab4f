//! `Store`: a Redis that faults happen to, and when they did.

use std::time::Duration;

use testkit::{
    lab::{Redis, Sentinels},
    micros_since_epoch,
};

/// How long most faults last.
pub(crate) const HOLD: Duration = Duration::from_secs(3);

/// A Redis, and the servers that may replace it.
pub(crate) struct Store {
    pub(crate) redis: Redis,
    /// Whether its clock is behind.
    pub(crate) behind: bool,
    /// The copy that is promoted next.
    pub(crate) standby: Option<Redis>,
    /// They promote a copy by themselves.
    pub(crate) sentinels: Option<Sentinels>,
}

/// When a fault began, and when it was over, in microseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) from: u64,
    pub(crate) over: u64,
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
