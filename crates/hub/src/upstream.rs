//! `Upstream`: what the hub needs from whoever knows Redis, and what it is told by them.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{Channel, EventId, Frame, Page};

/// Where a hub's channels come from. No call may block; answers come later.
pub trait Upstream {
    /// Makes the channel live for this hub: [`Update::Attached`] follows with the same generation,
    /// then every later event, until [`Upstream::detach`]. After an [`Update::Unconfirmed`] or
    /// [`Update::Lost`] the upstream attaches again by itself.
    fn attach(&self, channel: &Channel, generation: u64);

    /// The hub no longer wants the channel. Updates that are already under way may still come.
    fn detach(&self, channel: &Channel);

    /// Reads the history of a channel behind `after`. The upstream retries for as long as the
    /// receiver lives; it may answer several readers with one page that serves all of them. A
    /// reader that merges `share` channels wants so much smaller pages.
    fn page(
        &self,
        channel: &Channel,
        after: EventId,
        share: usize,
        reply: oneshot::Sender<Arc<Page>>,
    );

    /// The ids of the newest events of a channel, newest first, at most `count`.
    fn newest(&self, channel: &Channel, count: u32, reply: oneshot::Sender<Vec<EventId>>);
}

/// What happened upstream. Updates of one partition come in the order of its ids.
#[derive(Clone, Debug)]
pub enum Update {
    /// The channel is live from here on; the page is its newest past and reaches up to here.
    Attached {
        /// Which channel.
        channel: Channel,
        /// As given to [`Upstream::attach`].
        generation: u64,
        /// Its newest past.
        page: Arc<Page>,
    },
    /// A new event of an attached channel.
    Event {
        /// Which channel.
        channel: Channel,
        /// Its id; none for what is relayed without being recorded.
        id: Option<EventId>,
        /// The encoded event.
        frame: Frame,
    },
    /// Everything up to this id has come by, in all attached channels of the partition.
    Position {
        /// Which partition.
        partition: u16,
        /// Complete up to here.
        id: EventId,
    },
    /// Events of this channel may be missing from here on; it will be attached anew.
    Unconfirmed {
        /// Which channel.
        channel: Channel,
    },
    /// Events of any channel may be missing from here on; all will be attached anew.
    Lost,
}
