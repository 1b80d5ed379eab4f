//! `Revoked`: remembers recent revocations, which streams that are about to begin check.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Longer than a decision on a request takes.
const KEPT: Duration = Duration::from_secs(60);
/// Maximum number of remembered subjects.
const MAX_SUBJECTS: usize = 10_000;

/// Recent revocations. Cheap to clone, and shared by all threads.
#[derive(Clone, Debug, Default)]
pub struct Revoked(Arc<Mutex<HashMap<Arc<str>, Instant>>>);

impl Revoked {
    /// Remembers that a subject is revoked now.
    pub fn note(&self, subject: Arc<str>) {
        let mut subjects = self.0.lock();
        if subjects.len() >= MAX_SUBJECTS {
            subjects.retain(|_, at| at.elapsed() < KEPT);
            if subjects.len() >= MAX_SUBJECTS {
                // No operator revokes so many subjects in a minute one by one. The oldest entries have been kept long
                // enough.
                subjects.clear();
            }
        }
        subjects.insert(subject, Instant::now());
    }

    /// Whether a subject was revoked after its request arrived.
    pub fn since(&self, subject: &str, received_at: Instant) -> bool {
        let subjects = self.0.lock();
        subjects.get(subject).is_some_and(|at| *at >= received_at)
    }
}
