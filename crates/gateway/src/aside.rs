//! `Aside`: lets a worker run work in the main thread's runtime.
//!
//! Connections belong to the runtime that opened them. The connections to Redis and to authorizing backends are few and
//! shared, so they belong to the main thread.

use std::future::Future;

use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinHandle},
};

/// A handle; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Aside(Handle);

impl Aside {
    /// For the runtime that this is called in.
    pub(crate) fn here() -> Self {
        Self(Handle::current())
    }

    /// The work's result. None if the process is ending or the work has panicked. The work is cancelled when its caller
    /// stops waiting.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let task: JoinHandle<T> = self.0.spawn(work);
        let _abort = Abort(task.abort_handle());
        task.await.ok()
    }
}

/// Cancels a task, unless it is done.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
