//! `Gap`: missing events, at their position.

use crate::EventId;

crate::words! {
    /// Why events are missing. The words appear in gap events and in the metric's label.
    pub enum Reason {
        ALL {
            /// Retention, a delete or an expiry removed them; or they were dropped before they were recorded.
            Trimmed = "trimmed",
            /// Redis lost its memory or its newest writes. So events after older cursors may be missing.
            Forgotten = "forgotten",
            /// The cursor is newer than every id in Redis.
            Future = "future",
            /// The cursor is not one of ours.
            Malformed = "malformed",
        }
    }
}

/// Missing events of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// No event of the channel up to here is missing.
    pub after: EventId,
    /// Why.
    pub reason: Reason,
    /// The channel is not known to have had any event up to here. So this is no gap for a reader that asked for the
    /// existing events.
    pub is_beginning: bool,
}
