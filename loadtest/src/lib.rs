//! A client of event streams that behaves like a browser's `EventSource`, and a checker of the events it receives.
//!
//! Publishers number their messages ([`Message`]). A [`Client`] receives them, is cut, and reconnects with its last id.
//! Its [`Checker`] finds messages that are missing, repeated, out of order, or have another id than at other clients.
//! Both know only the protocol of the gateway.
//!
//! A client is one socket and one buffer without a task of its own, so thousands of clients fit into one runtime. Start
//! reading at [`Checker`].
//!
//! For measurements, a [`Swarm`] receives the messages of a [`Publisher`] in one epoll loop. It is cheap enough not to
//! distort the measurement. [`Session`] has the scenarios, and [`mod@reference`] the servers that others are compared
//! with.

#[macro_use]
mod output;

mod bench;
mod chaos;
mod chart;
mod check;
mod client;
mod gap;
mod http;
pub mod lab;
mod message;
mod position;
mod publisher;
pub mod reference;
mod scenario;
mod swarm;
mod usage;

pub use bench::{Bench, Contender, Limits, Part, Places, chart, table};
pub use chaos::{Chaos, Fault, Findings, Row, Sabotage, Soak, markdown, parse_faults};
pub use chart::latency_chart;
pub use check::{Checker, Goal, Ledger, Violation};
pub use client::{Answer, Client, End, Event, Received};
pub use gap::Gap;
pub use http::{Head, Response, request};
pub use message::Message;
pub use output::{print, report_progress};
pub use position::{Id, Position, hash_tag, partition_of};
pub use publisher::{Load, Publisher, Sent, Way};
pub use reference::Writes;
pub use scenario::{Opened, Outcome, Session, Setup, Slow};
pub use swarm::{Plan, Swarm, Tally};
pub use usage::Usage;
