//! `Witness`: whoever wants to know of each event that this process appends.

use std::time::SystemTime;

use hub::{Channel, EventId};

/// An event that has just been appended.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// Where it went.
    pub channel: &'a Channel,
    /// Its place in history.
    pub id: EventId,
    /// When it was heard, or when somebody asked for it to be appended.
    pub asked: SystemTime,
    /// When it was sent to Redis.
    pub sent: SystemTime,
}

/// Is told of every event that this process appends, on the task that appends: it must not wait.
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// Redis has answered.
    fn recorded(&self, event: &Recorded<'_>);
}
