//! `Joined`: what piled up in a tail since a position, as one piece of bytes for everybody there.

use std::cell::OnceCell;

use bytes::{Bytes, BytesMut};

use crate::{EventId, Kind, Position, Tail};

/// Some events of one channel that follow each other, joined once and shared by all of a hub's
/// subscriptions that stand right before the first and follow that channel alone.
#[derive(Debug)]
pub struct Joined {
    /// The event before the first; cursors from there on have the first as their next.
    before: Position,
    first: Position,
    pub(crate) to: Position,
    pub(crate) events: u64,
    /// The oldest that was recorded.
    pub(crate) published: Option<EventId>,
    bytes: Bytes,
    framed: OnceCell<Bytes>,
}

impl Joined {
    /// What lies in a tail behind `from`, up to `to` or `max_bytes`; none if there is a gap, which
    /// each reader is told in its own words.
    pub(crate) fn new(tail: &Tail, from: Position, to: Position, max_bytes: usize) -> Option<Self> {
        let first = tail.items_after(from).next()?.at;
        let mut frames = Vec::new();
        let (mut bytes, mut published, mut reached) = (0, None, to);
        for item in tail.items_after(from).take_while(|item| item.at <= to) {
            let Kind::Frame(frame) = &item.kind else {
                return None;
            };
            if bytes >= max_bytes {
                break;
            }
            if frame.has_id() {
                published.get_or_insert(item.at.id);
            }
            bytes += frame.bytes().len();
            frames.push(frame.bytes());
            reached = item.at;
        }
        let complete = tail
            .items_after(reached)
            .next()
            .is_none_or(|item| item.at > to);
        let joined = match &frames[..] {
            [] => return None,
            [one] => (*one).clone(),
            many => {
                let mut joined = BytesMut::with_capacity(bytes);
                many.iter()
                    .for_each(|frame| joined.extend_from_slice(frame));
                joined.freeze()
            }
        };
        Some(Self {
            before: tail.newest_at(from).unwrap_or_default(),
            first,
            to: if complete { to } else { reached },
            events: frames.len() as u64,
            published,
            bytes: joined,
            framed: OnceCell::new(),
        })
    }

    /// Whether these are the next events for a cursor that the tail covers, and none is newer than
    /// `to`. Cursors differ where nothing happened between them.
    pub(crate) fn serves(&self, cursor: Position, to: Position) -> bool {
        self.before <= cursor && cursor < self.first && self.to <= to
    }

    /// The encoded events.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The encoded events as the transport frames them: made by whoever asks first.
    pub fn framed(&self, frame: impl FnOnce(&Bytes) -> Bytes) -> &Bytes {
        self.framed.get_or_init(|| frame(&self.bytes))
    }
}
