//! `Page`: a contiguous piece of one channel's past, as history reads and attaches bring it.

use crate::{EventId, Frame, Gap};

/// Where an item lies: an id, and a counter for what is relayed without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Everything recorded up to this id lies before.
    pub id: EventId,
    /// Counts the frames without an id that came after it; local to one hub.
    pub sub: u32,
}

impl From<EventId> for Position {
    fn from(id: EventId) -> Self {
        Self { id, sub: 0 }
    }
}

/// One thing a reader is told.
#[derive(Clone, Debug)]
pub struct Item {
    /// A reader at or past this position has it behind itself.
    pub at: Position,
    /// What it is.
    pub kind: Kind,
}

/// An event, or the place where events are missing.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An event.
    Frame(Frame),
    /// What lies between a cursor before this item and the item itself cannot be had.
    Gap(Gap),
}

/// All items of one channel in `(after, to]`, in order.
#[derive(Clone, Debug)]
pub struct Page {
    /// A cursor from here on is served by this page.
    pub after: EventId,
    /// Complete up to here. Below the cursor it was read for: that cursor is newer than the
    /// clock of the partition.
    pub to: EventId,
    /// The items; their positions strictly increase.
    pub items: Vec<Item>,
}

impl Page {
    /// Whether a reader at `cursor` gets something out of this page.
    #[must_use]
    pub fn serves(&self, cursor: EventId) -> bool {
        self.after <= cursor && cursor < self.to
    }

    /// The items behind a cursor.
    #[must_use]
    pub fn items_after(&self, cursor: Position) -> &[Item] {
        &self.items[self.items.partition_point(|item| item.at <= cursor)..]
    }
}
