//! `Aside`: work that belongs to the main thread's runtime, asked for by a worker.
//!
//! Connections belong to the runtime that opened them. Those to Redis and to the backends that are
//! asked who may do what are few and shared, so they live with the main thread.

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

    /// The work's result; none if the process is ending, or the work has panicked. It is given up
    /// when nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let task: JoinHandle<T> = self.0.spawn(work);
        let _abort = Abort(task.abort_handle());
        task.await.ok()
    }

    /// Work that nobody waits for.
    pub(crate) fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.spawn(work));
    }
}

/// Gives up a task, unless it is done.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
