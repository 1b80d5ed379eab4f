//! `Revoked`: whose streams were ended just now, for those that were about to begin.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Longer than it takes to decide on a request.
const KEPT: Duration = Duration::from_secs(60);
/// Subjects that are known at most.
const MAX_SUBJECTS: usize = 10_000;

/// Shared by all workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Revoked(Arc<Mutex<HashMap<Arc<str>, Instant>>>);

impl Revoked {
    pub(crate) fn note(&self, subject: Arc<str>) {
        let mut subjects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if subjects.len() >= MAX_SUBJECTS {
            subjects.retain(|_, at| at.elapsed() < KEPT);
            if subjects.len() >= MAX_SUBJECTS {
                // More in a minute than anybody revokes one by one: the oldest have had their time.
                subjects.clear();
            }
        }
        subjects.insert(subject, Instant::now());
    }

    /// Whether a subject was revoked since a request of it came.
    pub(crate) fn since(&self, subject: &str, came: Instant) -> bool {
        let subjects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.get(subject).is_some_and(|at| *at >= came)
    }
}
