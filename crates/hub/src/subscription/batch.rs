//! `Batch`: the bytes of one write, and the ids in it.

use std::rc::Rc;

use bytes::Bytes;

use super::cursor::PartitionCursor;
use crate::{Control, EventId, Joined, LastEventId, Partitions};

/// Counts for a control event in the size of a batch.
const CONTROL_BYTES: usize = 256;

/// Events for one client, to be written in one go. Reused from write to write.
///
/// It holds blocks of its own, or a piece that is shared with other clients, never both. The front end
/// [encodes](Self::encode) the control events in it.
#[derive(Debug, Default)]
pub struct Batch {
    chunks: Vec<Bytes>,
    /// Each with its place in the blocks, which is empty until it is encoded.
    controls: Vec<(usize, Control)>,
    joined: Option<Rc<Joined>>,
    bytes: usize,
    events: u64,
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

    /// Encodes the control events, each as one block.
    pub fn encode(&mut self, encode: impl Fn(&Control) -> Bytes) {
        for (place, control) in &self.controls {
            self.chunks[*place] = encode(control);
        }
    }

    /// Sum of the bytes of published events.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// About as many bytes as the whole batch has.
    pub(super) fn size(&self) -> usize {
        self.bytes + CONTROL_BYTES * self.controls.len()
    }

    /// How many published events it has.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether it contains a gap.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        let mut controls = self.controls.iter();
        controls.any(|(_, control)| matches!(control, Control::Gap { .. }))
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
        self.controls.clear();
        self.joined = None;
        self.bytes = 0;
        self.events = 0;
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
        self.push_part(block);
    }

    /// A published event with an end of its own.
    pub(super) fn push_parts(&mut self, fields: Bytes, end: Bytes) {
        self.push(fields);
        self.push_part(end);
    }

    pub(super) fn push_control(&mut self, control: Control) {
        self.controls.push((self.chunks.len(), control));
        self.chunks.push(Bytes::new());
    }

    fn push_part(&mut self, block: Bytes) {
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
    /// All partitions of the deployment.
    partitions: Partitions,
}

impl Ids {
    pub(super) fn new(groups: &[PartitionCursor], index: usize) -> Self {
        let cursors = match groups {
            [_] => Vec::new(),
            groups => groups
                .iter()
                .map(|group| (group.partition, group.cursor.id))
                .collect(),
        };
        let partitions = groups[index].members[0].entry.channel.partitions();
        Self {
            cursors,
            index,
            partitions,
        }
    }

    /// The client's cursor after it has received `id`.
    pub(super) fn at(&self, id: EventId) -> LastEventId {
        if self.cursors.is_empty() {
            return LastEventId::One(id);
        }
        let mut cursors = self.cursors.clone();
        cursors[self.index].1 = id;
        LastEventId::Many(self.partitions, cursors)
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
