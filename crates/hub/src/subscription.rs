//! `Subscription`: one connection's view of its channels, one cursor per partition.

mod batch;
mod cursor;
mod open;
mod read;

use std::{
    cell::Cell,
    rc::Weak,
    task::{Context, Poll, ready},
};

use smallvec::SmallVec;

use self::{
    batch::Ids,
    cursor::{ChannelCursor, PartitionCursor},
    open::Opening,
};
pub use self::{
    batch::{Batch, Published},
    open::Start,
};
use crate::{Channel, Control, EventId, Hub, LastEventId, Occasion, Position, Reader, Reason};

/// One in this many heartbeats sends the position instead.
const HEARTBEATS_PER_POSITION: u32 = 4;

/// The next step of a connection. The bytes to write are in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The first step: the channels are live, and the batch holds [`Control::Open`].
    Open,
    /// The batch holds events.
    Events,
    /// A heartbeat is due. The batch holds [`Control::Position`], or nothing. Then the connection writes any comment.
    Heartbeat,
    /// Every channel is complete and was read to its end. Nothing will follow.
    Ended,
    /// The subscription has to end, and the client may reconnect. Nothing will follow.
    Close,
}

/// A reader of some channels.
pub struct Subscription {
    hub: Hub,
    key: usize,
    /// A heartbeat is due.
    pulse: bool,
    /// It has to end.
    close: bool,
    /// There until the channels are live and the cursors are known.
    opening: Option<Box<Opening>>,
    /// In the order of the partitions. Most subscriptions have one channel. Its group is stored inline, because each
    /// delivery fetches all of this from memory again.
    groups: SmallVec<[PartitionCursor; 1]>,
    heartbeats: u32,
    /// The newest position that was sent to the client in a heartbeat.
    reported: Position,
}

impl Hub {
    /// A new subscription to some channels. A channel named twice counts once. The reader gets a turn whenever there
    /// may be something to read.
    #[must_use]
    pub fn subscribe(
        &self,
        mut channels: Vec<Channel>,
        start: Start,
        reader: &Weak<dyn Reader>,
    ) -> Subscription {
        channels.sort_by(|a, b| (a.partition(), a.as_str()).cmp(&(b.partition(), b.as_str())));
        channels.dedup();
        Subscription::new(self, channels, start, reader)
    }
}

impl Subscription {
    fn new(hub: &Hub, channels: Vec<Channel>, start: Start, reader: &Weak<dyn Reader>) -> Self {
        let key = hub.0.register(reader);
        let mut groups: SmallVec<[PartitionCursor; 1]> = SmallVec::new();
        for channel in channels {
            let partition = channel.partition();
            let (entry, key) = hub.0.open(channel, reader);
            if groups
                .last()
                .is_none_or(|group| group.partition != partition)
            {
                groups.push(PartitionCursor::new(partition));
            }
            let group = groups.last_mut().expect("one was pushed above");
            group.members.push(ChannelCursor {
                entry,
                key,
                from_beginning: Cell::new(start.is_from_beginning(partition)),
                reported_gap: Cell::default(),
            });
        }
        Self {
            hub: hub.clone(),
            key,
            pulse: false,
            close: hub.0.closed.get(),
            opening: Some(Box::new(Opening::new(start))),
            groups,
            heartbeats: 0,
            reported: Position::default(),
        }
    }

    /// The key for [`Hub::close`].
    #[must_use]
    pub fn key(&self) -> usize {
        self.key
    }

    /// Whether all available events were handed out.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.opening.is_none() && self.groups.iter().all(|group| group.caught_up)
    }

    /// Notes why the reader got a turn.
    pub fn note(&mut self, occasion: Occasion) {
        match occasion {
            Occasion::News => {}
            Occasion::Pulse => self.pulse = true,
            Occasion::Close => self.close = true,
        }
    }

    /// Returns the next step, and puts the bytes to write into the empty batch.
    ///
    /// When this is pending, the reader gets a turn as soon as an update reaches the hub. The waker is woken when
    /// history was read, because that happens elsewhere.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Next> {
        if self.close {
            return Poll::Ready(Next::Close);
        }
        if self.opening.is_some() {
            if self.poll_open(cx, batch).is_ready() {
                return Poll::Ready(Next::Open);
            }
        } else {
            for index in 0..self.groups.len() {
                while self.step(index, cx, batch).is_ready() && !self.is_full(batch) {}
            }
            if !batch.is_empty() {
                self.hub.0.delivered(batch.events(), batch.bytes() as u64);
                return Poll::Ready(Next::Events);
            }
            if self.ended() {
                batch.push_control(Control::End(self.cursor()));
                return Poll::Ready(Next::Ended);
            }
        }
        if std::mem::take(&mut self.pulse) {
            self.heartbeat(batch);
            return Poll::Ready(Next::Heartbeat);
        }
        Poll::Pending
    }

    fn is_full(&self, batch: &Batch) -> bool {
        batch.joined().is_some() || batch.size() >= self.hub.0.config.batch_bytes
    }

    /// Moves one partition's cursor as far as its tails or one page per channel go. Ready when
    /// there may be more.
    fn step(&mut self, index: usize, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<()> {
        if self.groups[index]
            .members
            .iter()
            .any(|member| !member.entry.live.get())
        {
            return Poll::Pending;
        }
        let position = self.hub.0.position(self.groups[index].partition);
        let group = &mut self.groups[index];
        if !group.behind() && group.cursor >= position {
            group.caught_up = true;
            // It has missed nothing.
            group.resumed = false;
            return Poll::Pending;
        }
        if self.groups.len() == 1 && self.read_joined(position, batch) {
            return Poll::Ready(());
        }
        let hub = &self.hub.0;
        let group = &mut self.groups[index];
        if std::mem::take(&mut group.resumed) {
            let source = if group.behind() {
                &hub.metrics.replays_redis
            } else {
                &hub.metrics.replays_tail
            };
            source.inc();
        }
        ready!(group.poll_pages(hub.upstream.as_ref(), cx));
        if group.is_future() {
            self.tell_future(index, batch);
            return Poll::Ready(());
        }
        self.read(index, position, batch);
        Poll::Ready(())
    }

    /// The usual case: a reader of one channel that was up to date gets the same bytes as all others at its position.
    /// Returns whether this case applies.
    fn read_joined(&mut self, position: Position, batch: &mut Batch) -> bool {
        let [group] = &mut self.groups[..] else {
            return false;
        };
        let [member] = &group.members[..] else {
            return false;
        };
        if !group.caught_up || !batch.is_empty() || group.behind() {
            return false;
        }
        let max_bytes = self.hub.0.config.batch_bytes;
        let Some(joined) = member.entry.joined(group.cursor, position, max_bytes) else {
            return false;
        };
        member.from_beginning.set(false);
        group.cursor = joined.to;
        batch.share(group.partition, joined);
        true
    }

    /// The cursor is newer than the partition's clock. Reports a gap and continues from the position at which the
    /// stream was opened.
    fn tell_future(&mut self, index: usize, batch: &mut Batch) {
        let group = &mut self.groups[index];
        let claimed = group.cursor.id;
        group.cursor = group.opened_at;
        group.unverified = false;
        group.catch_up = None;
        self.tell(index, Some(claimed), Reason::Future, batch);
    }

    /// One gap per channel of a partition, at its cursor. Only the last has an id. A client that is cut before it
    /// resumes from its previous id, and receives all of them again.
    fn tell(&self, index: usize, after: Option<EventId>, reason: Reason, batch: &mut Batch) {
        let ids = Ids::new(&self.groups, index);
        let group = &self.groups[index];
        // A malformed id concerns all partitions.
        let is_last_group = reason != Reason::Malformed || index + 1 == self.groups.len();
        for (number, member) in group.members.iter().enumerate() {
            let is_last = is_last_group && number + 1 == group.members.len();
            self.hub.0.metrics.gap(reason);
            batch.push_control(Control::Gap {
                channel: member.entry.channel.clone(),
                after,
                oldest: None,
                reason,
                id: is_last.then(|| ids.at(group.cursor.id)),
            });
        }
    }

    /// Whether every channel is complete and was read to its end.
    fn ended(&self) -> bool {
        self.groups.iter().all(|group| {
            !group.unverified
                && group.members.iter().all(|member| {
                    let ended = member.entry.tail.borrow().ended();
                    member.entry.live.get() && ended.is_some_and(|id| group.cursor.id >= id)
                })
        })
    }

    fn heartbeat(&mut self, batch: &mut Batch) {
        self.heartbeats = self.heartbeats.wrapping_add(1);
        let cursor = self.groups.iter().map(|group| group.cursor).max();
        let moved = cursor.filter(|cursor| *cursor > self.reported);
        let Some(moved) = moved.filter(|_| {
            self.opening.is_none() && self.heartbeats.is_multiple_of(HEARTBEATS_PER_POSITION)
        }) else {
            return;
        };
        self.reported = moved;
        batch.push_control(Control::Position(self.cursor()));
    }

    /// The client's cursor in its wire format. The client resumes from it.
    #[must_use]
    pub fn cursor(&self) -> LastEventId {
        let group = &self.groups[0];
        Ids::new(&self.groups, 0).at(group.cursor.id)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.0.leave(self.key);
        for member in self.groups.iter().flat_map(|group| &group.members) {
            self.hub.0.close(&member.entry, member.key);
        }
    }
}
