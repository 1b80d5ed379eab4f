//! `Diversion`: ends the recording at one Redis in order, and leaves its messages to the command that migrates.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{mpsc, watch};

use super::{
    machine::{Machine, Pending},
    raw_subscription::RawSubscription,
};
use crate::wire::Listener;

/// A handle to the recorders of this process; cheap to clone.
#[derive(Clone)]
pub(crate) struct Diversion(Arc<Shared>);

struct Shared {
    wish: watch::Sender<Wish>,
    /// Partitions whose recorder is in sync.
    in_sync: watch::Sender<BTreeSet<u16>>,
    diverted: mpsc::UnboundedSender<Diverted>,
}

#[derive(Default)]
struct Wish {
    /// Active recorders append nothing more, and are diverted when all of their node are active.
    holds: bool,
    /// Partitions that no one can record any more.
    closed: BTreeSet<u16>,
}

/// The subscription of a recorder that has ended, and its unrecorded messages.
pub(crate) struct Diverted {
    /// Still subscribed.
    pub(crate) listener: Listener,
    /// By partition: the raw messages that were received and are not recorded, in their order.
    pub(crate) pending: BTreeMap<u16, Vec<Pending>>,
}

impl Diversion {
    /// Partitions in `closed` have been closed earlier, so their recorders never become active.
    pub(crate) fn new(closed: BTreeSet<u16>) -> (Self, mpsc::UnboundedReceiver<Diverted>) {
        let (diverted, receiver) = mpsc::unbounded_channel();
        let shared = Shared {
            wish: watch::Sender::new(Wish {
                holds: false,
                closed,
            }),
            in_sync: watch::Sender::default(),
            diverted,
        };
        (Self(Arc::new(shared)), receiver)
    }

    /// The recorders are to end.
    pub(crate) fn hold(&self) {
        self.0.wish.send_modify(|wish| wish.holds = true);
    }

    /// Partitions whose recorder is in sync, and each change.
    pub(crate) fn in_sync(&self) -> watch::Receiver<BTreeSet<u16>> {
        self.0.in_sync.subscribe()
    }

    /// Resolves when the recorders are to end.
    pub(super) async fn is_due(&self) {
        let mut wish = self.0.wish.subscribe();
        let _due = wish.wait_for(|wish| wish.holds).await;
    }

    /// Whether this recorder appends nothing more.
    pub(super) fn holds(&self, partition: u16, machine: &Machine) -> bool {
        let wish = self.0.wish.borrow();
        wish.holds && (wish.closed.contains(&partition) || machine.can_divert())
    }

    /// Notes the state of the recorders of a node. If they are to end and can, takes their messages.
    pub(super) fn divert(
        &self,
        subscription: &mut RawSubscription,
    ) -> Option<BTreeMap<u16, Vec<Pending>>> {
        self.0.in_sync.send_if_modified(|in_sync| {
            let mut has_changed = false;
            for (partition, machine) in &subscription.machines {
                has_changed |= match machine.is_in_sync() {
                    true => in_sync.insert(*partition),
                    false => in_sync.remove(partition),
                };
            }
            has_changed
        });
        let may_end = subscription.listening
            && subscription.arriving.is_empty()
            && subscription.successors.is_empty()
            && subscription.carried.is_empty();
        let mut machines = subscription.machines.iter();
        if !may_end || !machines.all(|(partition, machine)| self.holds(*partition, machine)) {
            return None;
        }
        let machines = std::mem::take(&mut subscription.machines);
        let pending = machines.into_iter();
        Some(
            pending
                .map(|(partition, machine)| (partition, machine.divert()))
                .collect(),
        )
    }

    pub(super) fn give(&self, diverted: Diverted) {
        // The command has ended.
        let _nobody = self.0.diverted.send(diverted);
    }
}
