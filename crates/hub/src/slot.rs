//! `Slot`: where the hub finds a subscription, to give its reader a turn or to tell it something.

use std::{cell::Cell, rc::Weak};

/// Whoever writes what a subscription has.
///
/// The hub calls it in the turn in which something happened, instead of waking a task for each
/// connection: most of what is ever delivered is written right there.
pub trait Reader {
    /// There may be something to do: [`Subscription::poll_next`](crate::Subscription::poll_next)
    /// until there is not. Must not wait, subscribe, or drop a subscription.
    fn turn(&self);
}

/// One per subscription, shared between it, its channels and the hub's list.
pub(crate) struct Slot {
    reader: Weak<dyn Reader>,
    /// A heartbeat is due.
    pulse: Cell<bool>,
    /// The subscription has to end, for this process does.
    drain: Cell<bool>,
}

impl Slot {
    pub(crate) fn new(reader: Weak<dyn Reader>) -> Self {
        Self {
            reader,
            pulse: Cell::new(false),
            drain: Cell::new(false),
        }
    }

    pub(crate) fn turn(&self) {
        if let Some(reader) = self.reader.upgrade() {
            reader.turn();
        }
    }

    pub(crate) fn pulse(&self) {
        self.pulse.set(true);
        self.turn();
    }

    pub(crate) fn take_pulse(&self) -> bool {
        self.pulse.take()
    }

    pub(crate) fn drain(&self) {
        self.drain.set(true);
        self.turn();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.get()
    }
}
