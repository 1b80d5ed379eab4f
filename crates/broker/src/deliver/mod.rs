//! From Redis to the hubs: live events over subscriptions, and pages of history.
//!
//! An *attach* is SUBSCRIBE, its confirmation, then one function call. Redis sends the answer of the call over the
//! pub/sub connection itself: after every message that it already contains, and before every later one. So a reader
//! that starts at the answer misses nothing. The first reader of a channel, a new connection, and a `prev` that does
//! not fit all cause an attach.
//!
//! A probe is an attach of no channel. Its answer shows up to which id its partition is complete, and that the
//! connection delivers at all. A connection that only looks alive is given up.
//!
//! [`Session`] has the connection to one node. [`channels::Channels`] decides, without I/O.

mod attaches;
mod channels;
mod completeness;
mod history;
mod ready;
mod session;

use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio::sync::mpsc;

use self::session::Session;
pub use self::{history::History, ready::Ready};
pub(crate) use self::{
    history::HistoryRequest,
    session::{HubCommand, Worker},
};
use crate::{Config, Error, topology::Topology};

/// Channels of one SUBSCRIBE, and of one attach.
const CHUNK: usize = 64;
/// A connection is not read while this many batches wait for a hub.
pub(crate) const QUEUE: usize = 64;

/// Subscribes to the channels that the hubs want: one connection to each node, for all hubs of this process.
pub struct Subscriber {
    sessions: Vec<Session>,
}

/// Passes the commands of the hubs to the sessions.
#[derive(Clone)]
pub(crate) struct Commands {
    topology: Topology,
    /// One for each node.
    sessions: Arc<[mpsc::UnboundedSender<HubCommand>]>,
}

impl Commands {
    /// The command is dropped if the session is gone, because the process is ending then.
    pub(crate) fn send(&self, command: HubCommand) {
        let node = self.topology.index(command.channel().partition());
        let _ending = self.sessions[node].send(command);
    }
}

impl Subscriber {
    /// Does not connect yet. `workers` have the hubs.
    pub(crate) fn new(
        config: &Config,
        topology: &Topology,
        workers: &[Worker],
    ) -> (Self, Commands, Ready) {
        let (mut sessions, mut senders, mut ready) = (Vec::new(), Vec::new(), Ready::default());
        for node in topology.nodes() {
            // Unbounded, because a hub must never wait. A stream has at most one command per channel under way.
            let (sender, commands) = mpsc::unbounded_channel();
            let node = node.clone();
            let session = Session::new(config, node, commands, workers.to_vec(), ready.add());
            sessions.push(session);
            senders.push(sender);
        }
        let commands = Commands {
            topology: topology.clone(),
            sessions: senders.into(),
        };
        (Self { sessions }, commands, ready)
    }

    /// Receives messages until all hubs are gone. Connects again whenever a connection ends.
    ///
    /// # Errors
    /// When trying again is pointless.
    pub async fn run(self) -> Result<(), Error> {
        let sessions = self.sessions.into_iter().map(Session::run);
        try_join_all(sessions).await?;
        Ok(())
    }
}
