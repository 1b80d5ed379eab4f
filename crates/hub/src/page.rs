//! `Page`: a contiguous piece of one channel's past, as returned by history reads and attaches.

use crate::{EventId, Frame, Gap};

/// The position of an item: an id, and a counter for frames that are relayed without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Every event recorded up to this id is before the position.
    pub id: EventId,
    /// Counts the frames without an id after that event. Local to one hub.
    pub sub: u32,
}

impl From<EventId> for Position {
    fn from(id: EventId) -> Self {
        Self { id, sub: 0 }
    }
}

/// An event or a gap, for a reader.
#[derive(Clone, Debug)]
pub struct Item {
    /// A reader at or past this position has already received the item.
    pub at: Position,
    /// An event or a gap.
    pub kind: Kind,
}

/// An event, or the place where events are missing.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An event.
    Frame(Frame),
    /// Events between an earlier cursor and this item are missing.
    Gap(Gap),
}

/// All items of one channel in `(after, to]`, in order.
#[derive(Clone, Debug)]
pub struct Page {
    /// A cursor from here on is served by this page.
    pub after: EventId,
    /// Complete up to here. If this is less than the cursor it was read for, that cursor is newer than the partition's
    /// clock.
    pub to: EventId,
    /// The items. Their positions strictly increase.
    pub items: Vec<Item>,
}

impl Page {
    /// Whether this page has something for a reader at `cursor`.
    #[must_use]
    pub fn serves(&self, cursor: EventId) -> bool {
        self.after <= cursor && cursor < self.to
    }

    /// The items after a cursor.
    #[must_use]
    pub fn items_after(&self, cursor: Position) -> &[Item] {
        &self.items[self.items.partition_point(|item| item.at <= cursor)..]
    }
}
