//! `Subscription`: one connection's view of its channels, one cursor per partition.

mod batch;
mod open;

use std::{
    cell::Cell,
    collections::vec_deque,
    future::Future as _,
    iter::Peekable,
    pin::Pin,
    rc::{Rc, Weak},
    slice,
    sync::Arc,
    task::{Context, Poll, ready},
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use self::{batch::Ids, open::Opening};
pub use self::{
    batch::{Batch, Published},
    open::Start,
};
use crate::{
    Channel, Control, EventId, Gap, Hub, Item, Kind, LastEventId, Occasion, Page, Position, Reader,
    Reason, hub::Entry,
};

/// One in this many heartbeats sends the position instead.
const HEARTBEATS_PER_POSITION: u32 = 4;

/// The next step of a connection. The bytes to write are in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The first step: the channels are live, and the batch holds [`Control::Open`].
    Open,
    /// The batch holds events.
    Events,
    /// A heartbeat is due. The batch holds [`Control::Position`]. If it is empty, the connection writes any
    /// comment.
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
    groups: SmallVec<[Group; 1]>,
    heartbeats: u32,
    /// The newest position that was sent to the client in a heartbeat.
    told: Position,
}

/// The channels of one partition share a cursor.
struct Group {
    partition: u16,
    /// The client has everything up to here.
    cursor: Position,
    /// The partition's position when the subscription opened. Earlier frames without an id are not delivered, because
    /// they have no replay.
    joined: Position,
    /// The client sent the cursor, and it is newer than this process's position.
    unverified: bool,
    /// The client sent the cursor, and nothing was read for it yet.
    resumed: bool,
    /// The cursor had reached the position at the last check.
    caught_up: bool,
    members: SmallVec<[Member; 1]>,
    /// There while history is read.
    catch_up: Option<Box<CatchUp>>,
}

struct Member {
    entry: Rc<Entry>,
    key: usize,
    /// The client asked for the existing events, without an id. The time before a channel's first event is no gap for
    /// it.
    from_beginning: Cell<bool>,
    /// The end of the last gap that was sent to the client. The cursor may be inside that gap.
    told: Cell<EventId>,
}

/// Pages of history, one slot per member of the group.
struct CatchUp {
    pages: Vec<Option<Arc<Page>>>,
    reply: Option<(usize, oneshot::Receiver<Arc<Page>>)>,
}

impl Subscription {
    pub(crate) fn new(
        hub: &Hub,
        channels: Vec<Channel>,
        start: Start,
        reader: &Weak<dyn Reader>,
    ) -> Self {
        let key = hub.0.join(reader);
        let mut groups: SmallVec<[Group; 1]> = SmallVec::new();
        for channel in channels {
            let partition = channel.partition();
            let (entry, key) = hub.0.open(channel, reader);
            if groups
                .last()
                .is_none_or(|group| group.partition != partition)
            {
                groups.push(Group::new(partition));
            }
            let group = groups.last_mut().expect("one was pushed above");
            group.members.push(Member {
                entry,
                key,
                from_beginning: Cell::new(start.is_from_beginning(partition)),
                told: Cell::default(),
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
            told: Position::default(),
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

    /// Hands out, in order, the items of tails and pages after the cursor.
    fn read(&mut self, index: usize, position: Position, batch: &mut Batch) {
        let max_bytes = self.hub.0.config.batch_bytes;
        let ids = Ids::new(&self.groups, index);
        let group = &mut self.groups[index];
        let mut upto = position;
        for page in group.pages() {
            upto = upto.min(page.to.into());
        }
        let mut out = Out {
            batch,
            ids,
            metrics: &self.hub.0.metrics,
            cursor: group.cursor,
            before: group.cursor.id,
            joined: group.joined,
            caught_up: group.caught_up,
        };
        let mut full = false;
        let pages = group.catch_up.as_ref().map(|catch_up| &catch_up.pages);
        let page_of = |member: usize| pages.and_then(|pages| pages[member].as_deref());
        if let [member] = &group.members[..] {
            let tail = member.entry.tail.borrow();
            let source = match page_of(0) {
                Some(page) => Source::Page(page.items_after(out.cursor).iter()),
                None => Source::Tail(tail.items_after(out.cursor)),
            };
            let mut source = source.peekable();
            while let Some(item) = source.next_if(|item| item.at <= upto) {
                if out.batch.size() >= max_bytes {
                    full = true;
                    break;
                }
                out.item(item, member, false, &source);
            }
            if !full && upto > out.cursor {
                out.gap_ahead(&mut source, member);
            }
        } else {
            let tails: Vec<_> = group
                .members
                .iter()
                .map(|member| member.entry.tail.borrow())
                .collect();
            let mut sources: Vec<_> = tails
                .iter()
                .enumerate()
                .map(|(member, tail)| match page_of(member) {
                    Some(page) => Source::Page(page.items_after(out.cursor).iter()),
                    None => Source::Tail(tail.items_after(out.cursor)),
                })
                .map(Iterator::peekable)
                .collect();
            loop {
                let next = sources
                    .iter_mut()
                    .enumerate()
                    .filter_map(|(member, source)| Some((source.peek()?.at, member)))
                    .min();
                let Some((at, chosen)) = next.filter(|(at, _)| *at <= upto) else {
                    break;
                };
                // Two channels may have a gap at one position. A cut between them would lose the second.
                if out.batch.size() >= max_bytes && at > out.cursor {
                    full = true;
                    break;
                }
                let item = sources[chosen].next().expect("peeked above");
                let mut more = false;
                let others = sources.iter_mut().zip(&group.members).enumerate();
                for (_, (source, member)) in others.filter(|(other, _)| *other != chosen) {
                    if source.peek().is_some_and(|item| item.at == at) {
                        more = true;
                    } else {
                        out.gap_ahead(source, member);
                    }
                }
                out.item(item, &group.members[chosen], more, &sources[chosen]);
            }
            if !full && upto > out.cursor {
                for (source, member) in sources.iter_mut().zip(&group.members) {
                    out.gap_ahead(source, member);
                }
            }
        }
        let reached = out.cursor;
        group.cursor = if full {
            reached
        } else {
            group.cursor.max(upto).max(reached)
        };
        group.unverified = false;
        group.caught_up = false;
        group.drop_pages();
    }

    /// The cursor is newer than the partition's clock. Reports a gap and continues from the position at which the
    /// stream was opened.
    fn tell_future(&mut self, index: usize, batch: &mut Batch) {
        let group = &mut self.groups[index];
        let claimed = group.cursor.id;
        group.cursor = group.joined;
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
        let moved = cursor.filter(|cursor| *cursor > self.told);
        let Some(moved) = moved.filter(|_| {
            self.opening.is_none() && self.heartbeats.is_multiple_of(HEARTBEATS_PER_POSITION)
        }) else {
            return;
        };
        self.told = moved;
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

impl Group {
    fn new(partition: u16) -> Self {
        Self {
            partition,
            cursor: Position::default(),
            joined: Position::default(),
            unverified: false,
            resumed: false,
            caught_up: false,
            members: SmallVec::new(),
            catch_up: None,
        }
    }

    /// Whether the tails alone cannot serve the cursor.
    fn behind(&self) -> bool {
        (0..self.members.len()).any(|member| self.needs_page(member))
    }

    fn needs_page(&self, member: usize) -> bool {
        // One channel's page is enough to learn the clock of the partition.
        (self.unverified && member == 0)
            || !self.members[member]
                .entry
                .tail
                .borrow()
                .covers(self.cursor.id)
    }

    /// Ready when every channel that needs a page has one.
    fn poll_pages(&mut self, upstream: &dyn crate::Upstream, cx: &mut Context<'_>) -> Poll<()> {
        for member in 0..self.members.len() {
            if !self.needs_page(member) {
                continue;
            }
            let members = self.members.len();
            let catch_up = self.catch_up.get_or_insert_with(|| {
                Box::new(CatchUp {
                    pages: vec![None; members],
                    reply: None,
                })
            });
            while catch_up.pages[member].is_none() {
                let (asked, reply) = catch_up.reply.get_or_insert_with(|| {
                    let (sender, receiver) = oneshot::channel();
                    let channel = &self.members[member].entry.channel;
                    upstream.page(channel, self.cursor.id, members, sender);
                    (member, receiver)
                });
                // A dropped reply means that the upstream has ended, and this reader ends soon.
                let page = ready!(Pin::new(reply).poll(cx)).ok();
                let asked = *asked;
                catch_up.reply = None;
                match page {
                    Some(page) => catch_up.pages[asked] = Some(page),
                    None => return Poll::Pending,
                }
            }
        }
        Poll::Ready(())
    }

    fn pages(&self) -> impl Iterator<Item = &Page> {
        let pages = self.catch_up.iter().flat_map(|catch_up| &catch_up.pages);
        pages.filter_map(|page| page.as_deref())
    }

    /// Whether the cursor is newer than the clock of the partition.
    fn is_future(&self) -> bool {
        self.unverified && self.pages().any(|page| page.to < self.cursor.id)
    }

    /// Drops the pages that have nothing more for the cursor. Also drops a pending page request, because a tail has
    /// moved the cursor instead.
    fn drop_pages(&mut self) {
        let Some(catch_up) = &mut self.catch_up else {
            return;
        };
        catch_up.reply = None;
        for page in &mut catch_up.pages {
            if page
                .as_ref()
                .is_some_and(|page| !page.serves(self.cursor.id))
            {
                *page = None;
            }
        }
        if catch_up.pages.iter().all(Option::is_none) {
            self.catch_up = None;
        }
    }
}

/// The source of a member's items.
#[derive(Clone)]
enum Source<'a> {
    Tail(vec_deque::Iter<'a, Item>),
    Page(slice::Iter<'a, Item>),
}

impl<'a> Iterator for Source<'a> {
    type Item = &'a Item;

    fn next(&mut self) -> Option<&'a Item> {
        match self {
            Self::Tail(items) => items.next(),
            Self::Page(items) => items.next(),
        }
    }
}

/// The id of the first recorded event among these items.
fn oldest<'a>(items: impl Iterator<Item = &'a Item>) -> Option<EventId> {
    let mut frames =
        items.filter(|item| matches!(&item.kind, Kind::Frame(frame) if frame.has_id()));
    frames.next().map(|item| item.at.id)
}

/// One read on its way into the batch.
struct Out<'a> {
    batch: &'a mut Batch,
    ids: Ids,
    metrics: &'a crate::Metrics,
    cursor: Position,
    /// The cursor before the items at the current position.
    before: EventId,
    joined: Position,
    caught_up: bool,
}

impl Out<'_> {
    /// Hands out one item, and moves the cursor there. `rest` holds the items after it. With `more` items at this
    /// position, a gap does not move the client there. Otherwise a client that is cut between two gaps would miss the
    /// second.
    fn item<'a>(
        &mut self,
        item: &Item,
        member: &Member,
        more: bool,
        rest: &(impl Iterator<Item = &'a Item> + Clone),
    ) {
        if item.at > self.cursor {
            self.before = self.cursor.id;
        }
        match &item.kind {
            Kind::Frame(frame) if !frame.has_id() => {
                if item.at > self.joined {
                    self.batch.push(frame.bytes().clone());
                }
            }
            Kind::Frame(frame) => {
                member.from_beginning.set(false);
                if self.caught_up {
                    let partition = member.entry.channel.partition();
                    self.batch.published(partition, item.at.id);
                }
                match self.ids.end(item.at.id) {
                    None => self.batch.push(frame.bytes().clone()),
                    Some(end) => self.batch.push_parts(frame.without_id(), end),
                }
            }
            Kind::Gap(gap) => {
                let end = item.at.id;
                let to = if more { self.before } else { end };
                self.gap(gap, [self.before, end, to], member, rest);
            }
        }
        self.cursor = item.at;
    }

    /// Sends a gap before the cursor moves into it to an item of another channel. Otherwise a client that is cut there
    /// would resume inside the gap, and its cursor would not show the events missing before it.
    fn gap_ahead<'a>(
        &mut self,
        source: &mut Peekable<impl Iterator<Item = &'a Item> + Clone>,
        member: &Member,
    ) {
        if let Some(&item) = source.peek()
            && let Kind::Gap(gap) = &item.kind
        {
            let cursor = self.cursor.id;
            self.gap(gap, [cursor, item.at.id, cursor], member, source);
        }
    }

    /// Sends a gap between `start` and `end` once. `to` is one of the two, and becomes the client's cursor.
    fn gap<'a>(
        &mut self,
        gap: &Gap,
        [start, end, to]: [EventId; 3],
        member: &Member,
        rest: &(impl Iterator<Item = &'a Item> + Clone),
    ) {
        let is_no_gap = gap.is_beginning && member.from_beginning.get();
        if is_no_gap || member.told.get() >= end {
            return;
        }
        member.told.set(end);
        self.metrics.gap(gap.reason);
        self.batch.push_control(Control::Gap {
            channel: member.entry.channel.clone(),
            after: Some(gap.after.max(start)),
            oldest: oldest(rest.clone()),
            reason: gap.reason,
            id: Some(self.ids.at(to)),
        });
    }
}
