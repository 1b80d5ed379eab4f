//! `Copies`: answers requests when copies of Redis have their events.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Appended, NotAppended, QUEUE};
use crate::{
    Error,
    node::{Connection, Node},
    throttled,
};

/// Most copies that a request can wait for.
pub const MAX_COPIES: u8 = 5;
/// Longest wait. It is shorter than the time limit of a connection's answers.
const WAIT: Duration = Duration::from_secs(1);

/// A request whose events are appended.
pub(super) struct Copying {
    /// In which they were appended.
    pub(super) generation: u64,
    pub(super) results: Vec<Appended>,
    pub(super) reply: oneshot::Sender<Vec<Appended>>,
}

impl Copying {
    pub(super) fn answer(mut self, is_copied: bool) {
        if !is_copied {
            for result in &mut self.results {
                *result = result.and_then(|id| Err(NotAppended::NotCopied(id)));
            }
        }
        // The caller may not wait any more.
        let _gone = self.reply.send(self.results);
    }
}

/// Waits for a number of copies, for all requests at once that want as many.
///
/// WAIT blocks its connection. So there is one for each number, and requests for more copies than there are delay no
/// others.
pub(super) struct Copies {
    node: Node,
    count: u8,
    requests: mpsc::Receiver<Copying>,
    connection: Option<Connection>,
}

impl Copies {
    /// One for each number of copies, from 1 to [`MAX_COPIES`].
    pub(super) fn all(node: &Node) -> (Vec<mpsc::Sender<Copying>>, Vec<Self>) {
        let counts = 1..=MAX_COPIES;
        counts
            .map(|count| {
                let (sender, requests) = mpsc::channel(QUEUE);
                let copies = Self {
                    node: node.clone(),
                    count,
                    requests,
                    connection: None,
                };
                (sender, copies)
            })
            .unzip()
    }

    /// Answers until the appender is gone.
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::new();
        while self.requests.recv_many(&mut waiting, QUEUE).await > 0 {
            let reached = self.wait().await.unwrap_or_else(|error| {
                let copies = self.count;
                throttled!(warn, copies, %error, "it is not known whether copies of redis have an event");
                self.connection = None;
                None
            });
            for request in waiting.drain(..) {
                // Another server may lack what its predecessor had.
                let is_copied = reached == Some(request.generation);
                request.answer(is_copied);
            }
        }
    }

    /// Waits until enough copies have all that was written before this call. Returns the generation of the server if
    /// they do in time.
    async fn wait(&mut self) -> Result<Option<u64>, Error> {
        let generation = self.node.generation();
        let connection = match self.connection.take() {
            Some(connection) if connection.generation() == generation => connection,
            _ => self.node.connect().await?,
        };
        let connection = self.connection.insert(connection);
        let copies = self.node.wait(connection, self.count, WAIT).await?;
        // The connection may be to a new server process at the same address. The handshake with that began another
        // generation.
        let is_same = self.node.generation() == generation;
        Ok((is_same && copies >= self.count.into()).then_some(generation))
    }
}
