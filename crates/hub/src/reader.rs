//! `Reader`: the connection that writes the events of a subscription.

/// The hub calls its readers in the turn in which an update arrives, instead of waking a task for each connection. Most
/// events are written right there.
pub trait Reader {
    /// Passes the occasion to the subscription, and polls it until it has nothing more. Must not wait, subscribe, or
    /// drop a subscription.
    fn turn(&self, occasion: Occasion);
}

/// Why a reader is given a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// New events may have arrived.
    News,
    /// A heartbeat is due.
    Pulse,
    /// The subscription has to end.
    Close,
}
