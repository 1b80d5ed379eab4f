//! `Joined`: what piled up in a tail since a position, as one piece of bytes for everybody there.

use std::cell::OnceCell;

use bytes::{Bytes, BytesMut};

use crate::{Kind, Position, Tail};

/// The events of one channel between two positions, joined once and shared by all of a hub's
/// subscriptions that stand at the first and follow that channel alone.
#[derive(Debug)]
pub struct Joined {
    pub(crate) from: Position,
    pub(crate) to: Position,
    pub(crate) events: u64,
    /// When the oldest was published.
    pub(crate) published: Option<u64>,
    bytes: Bytes,
    framed: OnceCell<Bytes>,
}

impl Joined {
    /// What lies in a tail behind `from`, up to `to` or `max_bytes`; none if there is a gap, which
    /// each reader is told in its own words.
    pub(crate) fn new(tail: &Tail, from: Position, to: Position, max_bytes: usize) -> Option<Self> {
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
                published.get_or_insert(item.at.id.ms);
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
            from,
            to: if complete { to } else { reached },
            events: frames.len() as u64,
            published,
            bytes: joined,
            framed: OnceCell::new(),
        })
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
