//! A partition on its way from one node of a cluster to another: its recorder at each of them.

use std::time::SystemTime;

use bytes::Bytes;
use hub::Channel;
use tokio::{sync::oneshot, time::Instant};

use super::machine::{Carrier, Handover, Machine, Outcome, Overflow, Successor};
use crate::node::{Connection, Node};

/// A partition that has moved to another node. This recorder continues to append its messages there.
pub(super) struct Carried {
    pub(super) carrier: Carrier,
    /// Where the partition is now.
    pub(super) at: Option<(Node, Connection)>,
    pub(super) locating: bool,
    pub(super) successor: Option<oneshot::Sender<Handover>>,
}

/// A partition that another recorder of this replica carries.
pub(super) struct Waiting {
    pub(super) successor: Successor,
    pub(super) asking: bool,
}

impl Carried {
    pub(super) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            at: None,
            locating: false,
            successor: None,
        }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.carrier.machine
    }

    pub(super) fn tick(&mut self) {
        self.carrier.machine.tick();
    }

    pub(super) fn raw(&mut self, channel: Channel, payload: Bytes) -> Result<(), Overflow> {
        self.carrier.raw(channel, payload, Instant::now())
    }

    /// The machine, which an effect was performed for.
    pub(super) fn performed(&mut self, outcome: Outcome) -> &mut Machine {
        if outcome != Outcome::Done {
            self.at = None;
        }
        &mut self.carrier.machine
    }

    pub(super) fn located(&mut self, at: Option<(Node, Connection)>) {
        (self.at, self.locating) = (at, false);
    }

    /// A successor asks for the partition. Without an answer it asks again.
    pub(super) fn ask(&mut self, successor: oneshot::Sender<Handover>) {
        if self.carrier.leave(Instant::now()) {
            self.successor = Some(successor);
        }
    }

    /// When the newest message was received that is not recorded.
    pub(super) fn newest_received(&self) -> Option<SystemTime> {
        self.carrier.machine.newest_received()
    }
}

impl Waiting {
    pub(super) fn new(successor: Successor) -> Self {
        Self {
            successor,
            asking: false,
        }
    }

    pub(super) fn raw(&mut self, channel: Channel, payload: Bytes) {
        self.successor.raw(channel, payload, Instant::now());
    }

    pub(super) fn end(&mut self, channel: Channel, name: &str) {
        self.successor.end(channel, name, Instant::now());
    }
}
