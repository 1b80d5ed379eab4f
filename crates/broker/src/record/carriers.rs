//! `Carriers`: which recorder of this replica is active in each partition, so that another one can take over from it when
//! the partition moves to another node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::machine::Handover;

/// The active recorders of a replica. A handle; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Carriers(Arc<Mutex<BTreeMap<u16, mpsc::UnboundedSender<Request>>>>);

/// A successor asks for a partition. The carrier drops the request if it cannot leave the partition now.
pub(super) struct Request {
    pub(super) partition: u16,
    pub(super) reply: oneshot::Sender<Handover>,
}

/// The entries of one subscription. They are removed with it.
pub(super) struct Entries {
    carriers: Carriers,
    own: BTreeSet<u16>,
    requests: mpsc::UnboundedSender<Request>,
}

impl Carriers {
    /// Whether a recorder of this replica is active, or carries the partition.
    pub(super) fn has(&self, partition: u16) -> bool {
        self.0.lock().contains_key(&partition)
    }

    /// Asks the recorder that carries the partition for it; none if there is none.
    pub(super) fn ask(&self, partition: u16) -> Option<oneshot::Receiver<Handover>> {
        let (reply, handover) = oneshot::channel();
        let recorders = self.0.lock();
        let recorder = recorders.get(&partition)?;
        recorder.send(Request { partition, reply }).ok()?;
        Some(handover)
    }

    /// The entries of a new subscription, and the requests that it will get.
    pub(super) fn entries(&self) -> (Entries, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let entries = Entries {
            carriers: self.clone(),
            own: BTreeSet::new(),
            requests,
        };
        (entries, receiver)
    }
}

impl Entries {
    /// Whether the recorder is active in this partition, or carries it.
    pub(super) fn set(&mut self, partition: u16, is_active: bool) {
        if is_active && self.own.insert(partition) {
            let mut recorders = self.carriers.0.lock();
            recorders.insert(partition, self.requests.clone());
        } else if !is_active && self.own.remove(&partition) {
            self.remove(partition);
        }
    }

    fn remove(&self, partition: u16) {
        let mut recorders = self.carriers.0.lock();
        // The successor may have taken its place.
        if let Some(recorder) = recorders.get(&partition)
            && recorder.same_channel(&self.requests)
        {
            recorders.remove(&partition);
        }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        for partition in &self.own {
            self.remove(*partition);
        }
    }
}
