//! `Current`: a value that a reload replaces. Code that uses the one before keeps it until it is done.

use std::sync::Arc;

use parking_lot::RwLock;

/// Locked for the time of a copy only.
#[derive(Debug)]
pub(crate) struct Current<T>(RwLock<Arc<T>>);

impl<T> Current<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read())
    }

    pub(crate) fn set(&self, value: T) {
        let value = Arc::new(value);
        *self.0.write() = value;
    }
}
