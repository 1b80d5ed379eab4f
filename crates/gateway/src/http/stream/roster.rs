//! `Roster`: the streams of a worker with their end times and subjects.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use hub::Hub;

/// Of one worker.
pub(crate) struct Roster {
    hub: Hub,
    start: Instant,
    /// By the second in which they end. Keys are those of subscriptions.
    ends: RefCell<BTreeSet<(u32, usize)>>,
    subjects: RefCell<HashMap<Arc<str>, BTreeSet<usize>>>,
}

/// The place of a stream in the roster.
pub(crate) struct Listing {
    key: usize,
    end: Option<u32>,
    subject: Option<Arc<str>>,
}

impl Listing {
    /// Of the subscription.
    pub(crate) fn key(&self) -> usize {
        self.key
    }
}

impl Roster {
    pub(crate) fn new(hub: Hub) -> Self {
        Self {
            hub,
            start: Instant::now(),
            ends: RefCell::default(),
            subjects: RefCell::default(),
        }
    }

    /// Enters a subscription. It stays until it is struck out.
    pub(crate) fn list(
        &self,
        key: usize,
        end: Option<Instant>,
        subject: Option<Arc<str>>,
    ) -> Listing {
        // Rounded up to a full second, so that no stream ends early. A century fits.
        let second = |end| u32::try_from(self.second(end) + 1).unwrap_or(u32::MAX);
        let end = end.map(second);
        if let Some(end) = end {
            self.ends.borrow_mut().insert((end, key));
        }
        if let Some(subject) = &subject {
            let mut subjects = self.subjects.borrow_mut();
            subjects.entry(Arc::clone(subject)).or_default().insert(key);
        }
        Listing { key, end, subject }
    }

    /// Removes a stream that has ended.
    pub(crate) fn strike(&self, listing: &Listing) {
        if let Some(end) = listing.end {
            self.ends.borrow_mut().remove(&(end, listing.key));
        }
        if let Some(subject) = &listing.subject {
            let mut subjects = self.subjects.borrow_mut();
            if let Some(keys) = subjects.get_mut(subject) {
                keys.remove(&listing.key);
                if keys.is_empty() {
                    subjects.remove(subject);
                }
            }
        }
    }

    /// Ends the streams whose end time has passed, to the second.
    pub(crate) fn expire(&self) {
        let now = u32::try_from(self.second(Instant::now())).unwrap_or(u32::MAX);
        let due: Vec<_> = {
            let ends = self.ends.borrow();
            let due = ends.range(..=(now, usize::MAX));
            due.copied().collect()
        };
        for (end, key) in due {
            // Once is enough, because a stream may take some time to end.
            self.ends.borrow_mut().remove(&(end, key));
            self.hub.close(key);
        }
    }

    /// Ends the streams of a subject.
    pub(crate) fn revoke(&self, subject: &str) {
        let keys: Vec<_> = {
            let subjects = self.subjects.borrow();
            subjects
                .get(subject)
                .into_iter()
                .flatten()
                .copied()
                .collect()
        };
        for key in keys {
            self.hub.close(key);
        }
    }

    fn second(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_secs()
    }
}
