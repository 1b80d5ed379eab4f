//! `UnderWay`: which requests of a connection are not answered yet.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Waker},
};

/// A request, for as long as it or its answer is under way on a connection.
#[derive(Clone)]
pub(super) struct UnderWay(Rc<Requests>);

/// The requests of a connection.
struct Requests {
    /// The waker of the connection's task.
    waker: RefCell<Waker>,
}

impl UnderWay {
    /// Held by the connection itself. It does not count as a request.
    pub(super) fn of_connection() -> Self {
        Self(Rc::new(Requests {
            waker: RefCell::new(Waker::noop().clone()),
        }))
    }

    /// Whether there is no request. The task is woken when that may have changed.
    pub(super) fn is_idle(&self, cx: &Context<'_>) -> bool {
        self.0.waker.borrow_mut().clone_from(cx.waker());
        Rc::strong_count(&self.0) == 1
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.waker.borrow().wake_by_ref();
    }
}
