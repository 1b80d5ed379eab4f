//! The tools of the tests of a gateway: a client of event streams, a checker of the events it receives, and real servers
//! to experiment with.
//!
//! Publishers number their messages ([`Message`]). A [`Client`] receives them, is cut, and reconnects with its last id
//! as a browser's `EventSource` does. Its [`Checker`] finds messages that are missing, repeated, out of order, or have
//! another id than at other clients. Both know only the protocol of the gateway. Start reading at [`Checker`].
//!
//! A client is one socket and one buffer without a task of its own, so thousands of clients fit into one runtime.
//!
//! [`lab`] starts Redis, sentinels and gateways as processes, and puts a faulty network between them.

mod check;
mod client;
mod gap;
mod http;
pub mod lab;
mod message;
mod output;
mod position;

pub use check::{Checker, Goal, Ledger, Violation};
pub use client::{Answer, Client, End, Event, Received};
pub use gap::Gap;
pub use http::{Framing, Head, Response, request};
pub use message::{Message, micros_since_epoch};
pub use output::{print, report_progress};
pub use position::{Id, Position, channel_of_each, hash_tag, partition_of};
