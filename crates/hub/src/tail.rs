//! `Tail`: the recent items of one channel. Older ones are read from history.

use std::collections::{VecDeque, vec_deque};

use crate::{EventId, Item, Kind, Page, Position};

/// A ring bounded by count and bytes. It serves every cursor at or past its start.
#[derive(Debug)]
pub struct Tail {
    /// Cursors from here on are served. Moves up as items fall out.
    start: EventId,
    items: VecDeque<Item>,
    /// Sum of the frames' bytes in `items`.
    bytes: usize,
    max_items: usize,
    max_bytes: usize,
}

impl Tail {
    /// An empty tail with these bounds: a number of items, and a number of bytes beyond the newest item.
    #[must_use]
    pub fn new(max_items: usize, max_bytes: usize) -> Self {
        Self {
            start: EventId::ZERO,
            items: VecDeque::new(),
            bytes: 0,
            max_items: max_items.max(1),
            max_bytes,
        }
    }

    /// Drops all items and starts again with the page of an attach.
    pub fn install(&mut self, page: &Page) {
        self.start = page.after;
        self.items.clear();
        self.bytes = 0;
        for item in &page.items {
            self.push(item.clone());
        }
    }

    /// Appends the newest item. An item that is not newer than all others is a repetition, and is ignored.
    pub fn push(&mut self, item: Item) {
        if self.items.back().is_some_and(|last| last.at >= item.at) {
            return;
        }
        self.bytes += size(&item);
        self.items.push_back(item);
        while self.items.len() > self.max_items
            || (self.bytes > self.max_bytes && self.items.len() > 1)
        {
            let Some(oldest) = self.items.pop_front() else {
                break;
            };
            self.bytes -= size(&oldest);
            self.start = self.start.max(oldest.at.id);
        }
    }

    /// Whether the tail still holds all items after this cursor.
    #[must_use]
    pub fn covers(&self, cursor: EventId) -> bool {
        cursor >= self.start
    }

    /// The items after a cursor, oldest first.
    pub fn items_after(&self, cursor: Position) -> vec_deque::Iter<'_, Item> {
        self.items.range(self.index_after(cursor)..)
    }

    /// The position of the newest item at or before a cursor, if the tail still holds it.
    pub(crate) fn newest_at(&self, cursor: Position) -> Option<Position> {
        let index = self.index_after(cursor).checked_sub(1)?;
        Some(self.items[index].at)
    }

    fn index_after(&self, cursor: Position) -> usize {
        // Almost every reader lacks only the last few items, so the search begins at the end.
        let mut from = self.items.len();
        while from > 0 && self.items[from - 1].at > cursor {
            if self.items.len() - from > 8 {
                return self.items.partition_point(|item| item.at <= cursor);
            }
            from -= 1;
        }
        from
    }

    /// The id with which the channel ended, if that is its newest item.
    #[must_use]
    pub fn ended(&self) -> Option<EventId> {
        let last = self.items.back()?;
        matches!(&last.kind, Kind::Frame(frame) if frame.is_end()).then_some(last.at.id)
    }
}

fn size(item: &Item) -> usize {
    match &item.kind {
        Kind::Frame(frame) => frame.bytes().len(),
        Kind::Gap(_) => 0,
    }
}
