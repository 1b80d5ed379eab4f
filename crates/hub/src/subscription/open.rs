//! Opens a subscription: turns the client's request into a cursor per partition.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use super::{Batch, Subscription};
use crate::{Control, EventId, LastEventId, Reason};

/// The start that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    Live,
    /// After the last id it received.
    After(LastEventId),
    /// After an id that is not one of ours. The client receives a gap, and then live events.
    Malformed,
    /// With the first event of this time or later, in milliseconds since the Unix epoch.
    Time(u64),
    /// With the oldest event in history.
    Oldest,
    /// With this many newest events over all channels.
    Newest(u32),
}

impl Start {
    /// Whether the client requests the existing events, not the events that it missed. Zero is the cursor of a client
    /// that has seen no event of a partition yet.
    pub(super) fn is_from_beginning(&self, partition: u16) -> bool {
        match self {
            Self::Oldest | Self::Newest(_) | Self::Time(_) => true,
            Self::After(id) => id.in_partition(partition) == EventId::ZERO,
            Self::Live | Self::Malformed => false,
        }
    }
}

/// A subscription that is not open yet.
pub(super) struct Opening {
    start: Start,
    /// For [`Start::Newest`], one per channel.
    replies: Option<Vec<oneshot::Receiver<Vec<EventId>>>>,
    /// The newest of the ids that have arrived, newest first.
    newest: Vec<EventId>,
}

impl Opening {
    pub(super) fn new(start: Start) -> Self {
        Self {
            start,
            replies: None,
            newest: Vec::new(),
        }
    }
}

impl Subscription {
    /// Ready once all channels are live and the cursors are set. The batch then holds [`Control::Open`].
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<()> {
        let members = || self.groups.iter().flat_map(|group| &group.members);
        if members().any(|member| !member.entry.live.get()) {
            return Poll::Pending;
        }
        let opening = self.opening.as_mut().expect("polled until open only");
        if let Start::Newest(count) = opening.start {
            let upstream = &self.hub.0.upstream;
            let replies = opening.replies.get_or_insert_with(|| {
                let ask = |member: &super::cursor::ChannelCursor| {
                    let (sender, receiver) = oneshot::channel();
                    upstream.newest(&member.entry.channel, count, sender);
                    receiver
                };
                members().map(ask).collect()
            });
            // Each reply is merged when it arrives, so that the ids held stay within `count`.
            let newest = &mut opening.newest;
            replies.retain_mut(|reply| {
                let Poll::Ready(ids) = Pin::new(reply).poll(cx) else {
                    return true;
                };
                newest.extend(ids.unwrap_or_default());
                newest.sort_by(|a, b| b.cmp(a));
                newest.truncate(count as usize);
                false
            });
            if !replies.is_empty() {
                return Poll::Pending;
            }
        }
        let opening = self.opening.take().expect("polled until open only");
        let Opening { start, newest, .. } = *opening;
        self.place_cursors(&start, &newest);
        let known = matches!(start, Start::Live | Start::After(_));
        self.greet(known, batch);
        if start == Start::Malformed {
            for index in 0..self.groups.len() {
                self.tell(index, None, Reason::Malformed, batch);
            }
        }
        Poll::Ready(())
    }

    fn place_cursors(&mut self, start: &Start, newest: &[EventId]) {
        for group in &mut self.groups {
            let position = self.hub.0.position(group.partition);
            group.opened_at = position;
            group.cursor = match start {
                Start::Live => position,
                Start::After(id) => {
                    group.resumed = true;
                    let id = id.in_partition(group.partition);
                    group.unverified = id > position.id;
                    // At the position itself the frames without an id have been missed, not seen.
                    if id == position.id {
                        position
                    } else {
                        id.into()
                    }
                }
                Start::Malformed => position,
                Start::Time(ms) => {
                    let first = EventId { ms: *ms, seq: 0 };
                    position.min(first.predecessor().into())
                }
                Start::Oldest => EventId::ZERO.into(),
                // The channels have fewer events. The client gets all of them, and a gap if older ones are gone.
                Start::Newest(count) if newest.len() < *count as usize => EventId::ZERO.into(),
                Start::Newest(_) => newest
                    .last()
                    .map_or(position, |oldest| position.min(oldest.predecessor().into())),
            };
        }
    }

    fn greet(&self, known: bool, batch: &mut Batch) {
        let members = self.groups.iter().flat_map(|group| &group.members);
        batch.push_control(Control::Open {
            channels: members.map(|member| member.entry.channel.clone()).collect(),
            position: known.then(|| self.cursor()),
        });
    }
}
