//! A load generator for servers of event streams, and a benchmark that compares them.
//!
//! A [`Swarm`] receives the messages of a [`Publisher`] in one epoll loop. It is cheap enough not to distort the
//! measurement. [`Session`] has the scenarios, [`Bench`] and [`Limits`] the standard sets, and [`mod@reference`] the
//! servers that others are compared with.

mod bench;
mod chart;
mod publisher;
pub mod reference;
mod scenario;
mod swarm;
mod usage;

pub use bench::{Bench, Contender, Limits, Part, Places, chart, table};
pub use chart::latency_chart;
pub use publisher::{Load, Publisher, Sent, Way};
pub use reference::Writes;
pub use scenario::{Opened, Outcome, Session, Setup, Slow};
pub use swarm::{Plan, Swarm, Tally};
pub use usage::Usage;
