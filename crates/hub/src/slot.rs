//! `Slot`: where the hub finds a subscription, to wake it or to tell it something.

use std::{cell::Cell, task::Waker};

/// One per subscription, shared between it, its channels and the hub's list.
#[derive(Default)]
pub(crate) struct Slot {
    /// There while the subscription waits.
    waker: Cell<Option<Waker>>,
    /// A heartbeat is due.
    pulse: Cell<bool>,
    /// The subscription has to end, for this process does.
    drain: Cell<bool>,
}

impl Slot {
    pub(crate) fn park(&self, waker: &Waker) {
        let parked = self.waker.take();
        self.waker.set(Some(match parked {
            Some(parked) if parked.will_wake(waker) => parked,
            _ => waker.clone(),
        }));
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn pulse(&self) {
        self.pulse.set(true);
        self.wake();
    }

    pub(crate) fn take_pulse(&self) -> bool {
        self.pulse.take()
    }

    pub(crate) fn drain(&self) {
        self.drain.set(true);
        self.wake();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.get()
    }
}
