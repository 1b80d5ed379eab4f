//! `AppendObserver`: receives each event that this process appends.

use std::time::SystemTime;

use hub::{Channel, EventId};

/// An event that has just been appended.
#[derive(Clone, Copy, Debug)]
pub struct AppendedEvent<'a> {
    /// The channel of the event.
    pub channel: &'a Channel,
    /// Its place in history.
    pub id: EventId,
    /// When the raw message was received, or when a publisher asked for the append.
    pub asked: SystemTime,
    /// When it was sent to Redis.
    pub sent: SystemTime,
}

/// Receives every event that this process appends, on the task that appends, so it must not wait.
pub trait AppendObserver: std::fmt::Debug + Send + Sync {
    /// Redis has stored the event.
    fn appended(&self, event: &AppendedEvent<'_>);
}
