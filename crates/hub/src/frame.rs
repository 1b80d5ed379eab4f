//! `Frame`: one event, encoded once and shared by every connection of every worker.

use bytes::Bytes;

use crate::EventId;

/// An encoded event. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The whole block; begins with the id line when there is an id.
    bytes: Bytes,
    /// Length of that id line, so that a subscription over several partitions can put its own
    /// there; zero without an id.
    id_line: u32,
    /// The channel is complete with this event.
    end: bool,
}

impl Frame {
    /// Encodes an event; `id` is none for what is relayed without being recorded.
    #[must_use]
    pub fn encode(id: Option<EventId>, event: &sse::Event<'_>, end: bool) -> Self {
        let mut out = Vec::with_capacity(event.data.len() + 64);
        if let Some(id) = id {
            write_id_line(&mut out, format_args!("{id}"));
        }
        let id_line = u32::try_from(out.len()).expect("an id line has less than 60 bytes");
        sse::encode(event, &mut out);
        Self {
            bytes: out.into(),
            id_line,
            end,
        }
    }

    /// The block as sent to a subscription that lies in one partition.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The block behind its id line.
    #[must_use]
    pub fn without_id(&self) -> Bytes {
        self.bytes.slice(self.id_line as usize..)
    }

    /// Whether the event has an id, that is, was recorded.
    #[must_use]
    pub fn has_id(&self) -> bool {
        self.id_line > 0
    }

    /// Whether the channel is complete with this event.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.end
    }
}

/// Appends `id: <id>` and its line end.
pub(crate) fn write_id_line(out: &mut Vec<u8>, id: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    writeln!(out, "id: {id}").expect("writing to a Vec cannot fail");
}
