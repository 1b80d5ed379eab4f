//! `Reader`: whoever writes what a subscription has.

/// The hub calls its readers in the turn in which something happened, instead of waking a task for
/// each connection: most of what is ever delivered is written right there.
pub trait Reader {
    /// There may be something to do: tells the subscription the occasion, and polls it until there
    /// is nothing. Must not wait, subscribe, or drop a subscription.
    fn turn(&self, occasion: Occasion);
}

/// Why a reader is given a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Something has come, or may have.
    News,
    /// A heartbeat is due.
    Pulse,
    /// The subscription has to end.
    Close,
}
