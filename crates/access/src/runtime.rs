//! `MainRuntime`: lets other threads run work in the main thread's runtime.
//!
//! Connections belong to the runtime that opened them. The connections to the store of tickets and to authorizing
//! backends are few and shared, so they belong to the main thread.

use std::future::Future;

use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinHandle},
};

/// A handle; cheap to clone.
#[derive(Clone, Debug)]
pub struct MainRuntime(Handle);

impl MainRuntime {
    /// For the runtime that this is called in.
    pub fn current() -> Self {
        Self(Handle::current())
    }

    /// The work's result. None if the process is ending or the work has panicked. The work is cancelled when its caller
    /// stops waiting.
    pub async fn run<T: Send + 'static>(
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
