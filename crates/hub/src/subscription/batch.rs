//! `Batch`: the bytes of one write, and the ids in it.

use std::rc::Rc;

use bytes::Bytes;

use super::Group;
use crate::{EventId, Joined, LastEventId};

/// Encoded events for one client, ready to be written in one go. Reused from write to write.
///
/// It holds blocks of its own, or a piece that is shared with other clients, never both.
#[derive(Debug, Default)]
pub struct Batch {
    chunks: Vec<Bytes>,
    joined: Option<Rc<Joined>>,
    bytes: usize,
    events: u64,
    has_gap: bool,
    published: Option<Published>,
}

/// A live event in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Ids are unique within a partition.
    pub partition: u16,
    /// Its milliseconds are the time of the append, by the clock of Redis.
    pub id: EventId,
}

impl Batch {
    /// The encoded blocks, in order. Empty if there is a shared piece.
    #[must_use]
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// The piece that is shared with other clients.
    #[must_use]
    pub fn joined(&self) -> Option<&Rc<Joined>> {
        self.joined.as_ref()
    }

    /// Sum of the blocks' bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of the blocks are published events. The others are the gateway's own.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether it contains a gap.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        self.has_gap
    }

    /// The oldest live event in it. None if all events are replayed.
    #[must_use]
    pub fn oldest(&self) -> Option<Published> {
        self.published
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.joined.is_none()
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.joined = None;
        self.bytes = 0;
        self.events = 0;
        self.has_gap = false;
        self.published = None;
    }

    /// Takes the joined events, which are all that the client needs now.
    pub(super) fn share(&mut self, partition: u16, joined: Rc<Joined>) {
        self.bytes += joined.bytes().len();
        self.events += joined.events;
        self.published = joined.published.map(|id| Published { partition, id });
        self.joined = Some(joined);
    }

    /// A published event.
    pub(super) fn push(&mut self, block: Bytes) {
        self.events += 1;
        self.push_own(block);
    }

    /// A published event with an end of its own.
    pub(super) fn push_parts(&mut self, fields: Bytes, end: Bytes) {
        self.push(fields);
        self.push_own(end);
    }

    /// A gap.
    pub(super) fn push_gap(&mut self, block: Bytes) {
        self.has_gap = true;
        self.push_own(block);
    }

    /// An event of the gateway's own, or part of an event.
    pub(super) fn push_own(&mut self, block: Bytes) {
        self.bytes += block.len();
        self.chunks.push(block);
    }

    pub(super) fn published(&mut self, partition: u16, id: EventId) {
        self.published.get_or_insert(Published { partition, id });
    }
}

/// How an id of one partition is written for a client, given its cursors in the others.
pub(super) struct Ids {
    /// One per partition touched. Empty if there is only one.
    cursors: Vec<(u16, EventId)>,
    index: usize,
}

impl Ids {
    pub(super) fn new(groups: &[Group], index: usize) -> Self {
        let cursors = match groups {
            [_] => Vec::new(),
            groups => groups
                .iter()
                .map(|group| (group.partition, group.cursor.id))
                .collect(),
        };
        Self { cursors, index }
    }

    /// The client's cursor after it has received `id`.
    pub(super) fn at(&self, id: EventId) -> LastEventId {
        if self.cursors.is_empty() {
            return LastEventId::One(id);
        }
        let mut cursors = self.cursors.clone();
        cursors[self.index].1 = id;
        LastEventId::Many(cursors)
    }

    /// The end of a block with this id. None if the frame's own end is right already.
    pub(super) fn end(&mut self, id: EventId) -> Option<Bytes> {
        if self.cursors.is_empty() {
            return None;
        }
        let mut end = Vec::with_capacity(24 * self.cursors.len());
        sse::encode_end(Some(self.at(id)), &mut end);
        Some(end.into())
    }
}
