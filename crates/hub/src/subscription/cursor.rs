//! `PartitionCursor`: a subscription's cursor in one partition, shared by its channels there.

use std::{
    cell::Cell,
    future::Future as _,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{EventId, Page, Position, Upstream, hub::Entry};

/// The channels of one partition share a cursor.
pub(super) struct PartitionCursor {
    pub(super) partition: u16,
    /// The client has everything up to here.
    pub(super) cursor: Position,
    /// The partition's position when the subscription opened. Earlier frames without an id are not delivered, because
    /// they have no replay.
    pub(super) opened_at: Position,
    /// The client sent the cursor, and it is newer than this process's position.
    pub(super) unverified: bool,
    /// The client sent the cursor, and nothing was read for it yet.
    pub(super) resumed: bool,
    /// The cursor had reached the position at the last check.
    pub(super) caught_up: bool,
    pub(super) members: SmallVec<[ChannelCursor; 1]>,
    /// There while history is read.
    pub(super) catch_up: Option<Box<CatchUp>>,
}

pub(super) struct ChannelCursor {
    pub(super) entry: Rc<Entry>,
    pub(super) key: usize,
    /// The client asked for the existing events, without an id. The time before a channel's first event is no gap for
    /// it.
    pub(super) from_beginning: Cell<bool>,
    /// The end of the last gap that was sent to the client. The cursor may be inside that gap.
    pub(super) reported_gap: Cell<EventId>,
}

/// Pages of history, one slot per member of the group.
pub(super) struct CatchUp {
    pub(super) pages: Vec<Option<Arc<Page>>>,
    reply: Option<(usize, oneshot::Receiver<Arc<Page>>)>,
}

impl PartitionCursor {
    pub(super) fn new(partition: u16) -> Self {
        Self {
            partition,
            cursor: Position::default(),
            opened_at: Position::default(),
            unverified: false,
            resumed: false,
            caught_up: false,
            members: SmallVec::new(),
            catch_up: None,
        }
    }

    /// Whether the tails alone cannot serve the cursor.
    pub(super) fn behind(&self) -> bool {
        (0..self.members.len()).any(|member| self.needs_page(member))
    }

    pub(super) fn needs_page(&self, member: usize) -> bool {
        // One channel's page is enough to learn the clock of the partition.
        (self.unverified && member == 0)
            || !self.members[member]
                .entry
                .tail
                .borrow()
                .covers(self.cursor.id)
    }

    /// Ready when every channel that needs a page has one.
    pub(super) fn poll_pages(&mut self, upstream: &dyn Upstream, cx: &mut Context<'_>) -> Poll<()> {
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

    pub(super) fn pages(&self) -> impl Iterator<Item = &Page> {
        let pages = self.catch_up.iter().flat_map(|catch_up| &catch_up.pages);
        pages.filter_map(|page| page.as_deref())
    }

    /// Whether the cursor is newer than the clock of the partition.
    pub(super) fn is_future(&self) -> bool {
        self.unverified && self.pages().any(|page| page.to < self.cursor.id)
    }

    /// Drops the pages that have nothing more for the cursor. Also drops a pending page request, because a tail has
    /// moved the cursor instead.
    pub(super) fn drop_pages(&mut self) {
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
