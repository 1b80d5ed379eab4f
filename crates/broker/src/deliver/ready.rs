//! `Ready`: whether live events arrive from every node.

use tokio::sync::watch;

/// True while the subscription connection to every node is up, and the node answers over it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Ready(Vec<watch::Receiver<bool>>);

impl Ready {
    /// Whether it is so now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|node| *node.borrow())
    }

    /// Another node has to be ready.
    pub(super) fn add(&mut self) -> watch::Sender<bool> {
        let (sender, receiver) = watch::channel(false);
        self.0.push(receiver);
        sender
    }
}
