//! `Frame`: one event, encoded once and shared by every connection of every worker.

use bytes::Bytes;

use crate::EventId;

/// An encoded event. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The whole block. Its last field is the id, if there is one.
    bytes: Bytes,
    /// Offset of the line of the id, or zero without an id. A subscription over several partitions ends the block with
    /// its own id there.
    id_at: u32,
    /// The channel is complete with this event.
    end: bool,
}

impl Frame {
    /// Encodes an event. `id` is none for a message that is relayed without being recorded.
    #[must_use]
    pub fn encode(id: Option<EventId>, event: &sse::Event<'_>, end: bool) -> Self {
        let mut out = Vec::new();
        sse::encode_fields(event, &mut out);
        let id_at = id.map_or(0, |_| out.len());
        sse::encode_end(id, &mut out);
        Self {
            bytes: out.into(),
            id_at: u32::try_from(id_at).expect("payloads are bounded"),
            end,
        }
    }

    /// The block as sent to a subscription with one partition.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The fields of a block with an id, before the id.
    #[must_use]
    pub fn without_id(&self) -> Bytes {
        self.bytes.slice(..self.id_at as usize)
    }

    /// Whether the event has an id, that is, was recorded.
    #[must_use]
    pub fn has_id(&self) -> bool {
        self.id_at > 0
    }

    /// Whether the channel is complete with this event.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.end
    }
}
