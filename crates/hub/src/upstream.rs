//! `Upstream`: the hub's requests to its source of events, and the updates from it.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{Channel, EventId, Frame, Page};

/// The source of a hub's channels. No call may block, and answers arrive later.
pub trait Upstream {
    /// Makes the channel live for this hub: [`Update::Attached`] follows with the same generation,
    /// then every later event, until [`Upstream::detach`]. After an [`Update::Unconfirmed`] or
    /// [`Update::Lost`] the upstream attaches again by itself.
    fn attach(&self, channel: &Channel, generation: u64);

    /// The hub no longer wants the channel. Updates that are already under way may still arrive.
    fn detach(&self, channel: &Channel);

    /// Reads the history of a channel after `after`. The upstream retries as long as the receiver lives. It may answer
    /// several readers with one page that serves all of them. A reader that merges `share` channels needs pages that
    /// are smaller by this factor.
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

/// An update from upstream. Updates of one partition arrive in the order of its ids.
#[derive(Clone, Debug)]
pub enum Update {
    /// The channel is live from here on. The page holds its newest events up to here.
    Attached {
        /// Which channel.
        channel: Channel,
        /// As given to [`Upstream::attach`].
        generation: u64,
        /// Its newest events.
        page: Arc<Page>,
    },
    /// A new event of an attached channel.
    Event {
        /// Which channel.
        channel: Channel,
        /// Its id. None for a message that is relayed without being recorded.
        id: Option<EventId>,
        /// The encoded event.
        frame: Frame,
    },
    /// Every event up to this id has arrived, in all attached channels of the partition.
    Position {
        /// Which partition.
        partition: u16,
        /// Complete up to here.
        id: EventId,
    },
    /// Events of this channel may be missing from here on. It will be attached again.
    Unconfirmed {
        /// Which channel.
        channel: Channel,
    },
    /// Events of any channel of these partitions may be missing from here on. All will be attached again.
    Lost {
        /// In order.
        partitions: Arc<[u16]>,
    },
}
