//! Fan-out: many connections reading the recent past of a channel.
//!
//! Each channel has a [`Tail`], its last frames, encoded once for all readers. Each connection has a [`Subscription`]:
//! one cursor per partition into those tails. A cursor that a tail no longer covers reads a [`Page`] of history until
//! it is covered again. First connect with an id, reconnect, slow client and lost pub/sub are that one loop.
//!
//! Invariants:
//! - The hub never waits for a reader. Readers pull, and publishing appends to a ring.
//! - Frames reach a reader in id order per partition, each at most once per connection.
//! - A recorded event that cannot be delivered is reported as a gap, never skipped in silence. (A message that was
//!   relayed without an id has no history. It reaches only readers that are up to date.)
//!
//! A hub belongs to one thread. Nothing in it is locked or atomic, and two hubs share only the immutable bytes of
//! frames. It does not depend on Redis or HTTP: its owner implements [`Upstream`] and calls [`Hub::apply`]. Start
//! reading at [`Subscription::poll_next`].

mod channel;
mod control;
mod event_id;
mod frame;
mod gap;
mod hub;
mod joined;
mod last_event_id;
mod metrics;
mod page;
mod reader;
mod subscription;
mod tail;
mod upstream;

pub use channel::{BadChannel, Channel, Partitions};
pub use control::Control;
pub use event_id::{BadEventId, EventId};
pub use frame::Frame;
pub use gap::{Gap, Reason};
pub use hub::{Config, Hub};
pub use joined::Joined;
pub use last_event_id::LastEventId;
pub use metrics::Metrics;
pub use page::{Item, Kind, Page, Position};
pub use reader::{Occasion, Reader};
pub use subscription::{Batch, Next, Published, Start, Subscription};
pub use tail::Tail;
pub use upstream::{Update, Upstream};
