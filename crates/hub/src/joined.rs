//! `Joined`: the events of a tail since a position, as one piece of bytes for all subscriptions at that position.

use std::cell::OnceCell;

use bytes::{Bytes, BytesMut};

use crate::{EventId, Kind, Position, Tail};

/// Consecutive events of one channel, joined once. A hub's subscriptions share them if their position is right before
/// the first event and they have no other channel.
#[derive(Debug)]
pub struct Joined {
    /// The event before the first. For a cursor from here on, the first event is the next one.
    before: Position,
    first: Position,
    pub(crate) to: Position,
    pub(crate) events: u64,
    /// The oldest recorded event in it.
    pub(crate) published: Option<EventId>,
    bytes: Bytes,
    framed: OnceCell<Bytes>,
}

impl Joined {
    /// The events of a tail after `from`, up to `to` or `max_bytes`. None if there is a gap, because each reader needs
    /// its own gap event.
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

    /// Whether these are the next events for a cursor that the tail covers, and none is newer than `to`. Cursors may
    /// differ if there is no event between them.
    pub(crate) fn serves(&self, cursor: Position, to: Position) -> bool {
        self.before <= cursor && cursor < self.first && self.to <= to
    }

    /// The encoded events.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The encoded events as the transport frames them. The first caller makes them.
    pub fn framed(&self, frame: impl FnOnce(&Bytes) -> Bytes) -> &Bytes {
        self.framed.get_or_init(|| frame(&self.bytes))
    }
}
