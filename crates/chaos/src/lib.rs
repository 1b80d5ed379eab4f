//! The fault suite: real gateways and a real Redis under every known fault, with independent clients that check each
//! message.
//!
//! Messages are published in every way. The suite first runs the faults one by one and reports each as a [`Row`]. Then
//! it runs them at random, up to two at once. `promises.rs` defines the promises that are judged for each [`Fault`]. A
//! [`Mutation`] shows that the judge would notice a broken one.
//!
//! Start reading at [`Chaos`]. The gateway's binary has to be beside the program that runs the suite.

mod book;
mod channels;
mod counters;
mod crowd;
mod fault;
mod findings;
mod inflict;
mod judge;
mod mutation;
mod promises;
mod publishers;
mod replica;
mod report;
mod row;
mod run;
mod site;
mod store;
mod watch;

use std::time::Duration;

pub use self::{
    fault::{Fault, Kind, kind_of, parse_faults},
    findings::{Findings, Soak},
    mutation::Mutation,
    report::markdown,
    row::Row,
};

/// The faults to run, and the load during them.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// Clients.
    pub clients: usize,
    /// Messages per second of each way to publish.
    pub rate: f64,
    /// Equal seeds give equal random choices.
    pub seed: u64,
    /// The faults that are run one by one, in this order. The faults of one entry run at once, each in a domain of its
    /// own.
    pub alone: Vec<Vec<Fault>>,
    /// How long faults are run at random.
    pub random: Duration,
}
