//! `Gap`: missing events, at their position.

use strum::{IntoStaticStr, VariantArray};

use crate::EventId;

/// Why events are missing. The words appear in gap events and in the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// Retention, a delete or an expiry removed them; or they were dropped before they were recorded.
    Trimmed,
    /// Redis lost its memory or its newest writes. So events after older cursors may be missing.
    Forgotten,
    /// The cursor is newer than every id in Redis.
    Future,
    /// The cursor is not one of ours.
    Malformed,
}

impl Reason {
    /// The word in metrics and answers. It is stable, even if the name in the code changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
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
