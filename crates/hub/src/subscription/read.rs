//! Reads items of tails and pages into a batch, in order.

use std::{collections::vec_deque, iter::Peekable, slice};

use super::{Batch, Subscription, batch::Ids, cursor::ChannelCursor};
use crate::{Control, EventId, Gap, Item, Kind, Metrics, Position};

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
struct BatchWriter<'a> {
    batch: &'a mut Batch,
    ids: Ids,
    metrics: &'a Metrics,
    cursor: Position,
    /// The cursor before the items at the current position.
    before: EventId,
    opened_at: Position,
    caught_up: bool,
}

impl Subscription {
    /// Hands out, in order, the items of tails and pages after the cursor.
    pub(super) fn read(&mut self, index: usize, position: Position, batch: &mut Batch) {
        let max_bytes = self.hub.0.config.batch_bytes;
        let ids = Ids::new(&self.groups, index);
        let group = &mut self.groups[index];
        let mut upto = position;
        for page in group.pages() {
            upto = upto.min(page.to.into());
        }
        let mut out = BatchWriter {
            batch,
            ids,
            metrics: &self.hub.0.metrics,
            cursor: group.cursor,
            before: group.cursor.id,
            opened_at: group.opened_at,
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
}

impl BatchWriter<'_> {
    /// Hands out one item, and moves the cursor there. `rest` holds the items after it. With `more` items at this
    /// position, a gap does not move the client there. Otherwise a client that is cut between two gaps would miss the
    /// second.
    fn item<'a>(
        &mut self,
        item: &Item,
        member: &ChannelCursor,
        more: bool,
        rest: &(impl Iterator<Item = &'a Item> + Clone),
    ) {
        if item.at > self.cursor {
            self.before = self.cursor.id;
        }
        match &item.kind {
            Kind::Frame(frame) if !frame.has_id() => {
                if item.at > self.opened_at {
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
        member: &ChannelCursor,
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
        member: &ChannelCursor,
        rest: &(impl Iterator<Item = &'a Item> + Clone),
    ) {
        let is_no_gap = gap.is_beginning && member.from_beginning.get();
        if is_no_gap || member.reported_gap.get() >= end {
            return;
        }
        member.reported_gap.set(end);
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
