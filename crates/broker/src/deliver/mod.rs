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

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hub::Channel;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use self::{
    channels::Wants,
    session::{Session, SessionCommand},
};
pub use self::{history::History, ready::Ready};
pub(crate) use self::{
    history::HistoryRequest,
    session::{HubCommand, Worker},
};
use crate::{
    Config, Error,
    node::Node,
    topology::{Layout, Topology},
};

/// Channels of one SUBSCRIBE, and of one attach.
const CHUNK: usize = 64;
/// A connection is not read while this many batches wait for a hub.
pub(crate) const QUEUE: usize = 64;

/// Subscribes to the channels that the hubs want: one connection to each node, for all hubs of this process.
pub struct Subscriber {
    topology: Topology,
    config: Config,
    workers: Vec<Worker>,
    ready: Ready,
    /// Gone with the hubs.
    routes: Weak<Routes>,
    hubs: watch::Receiver<()>,
}

/// Passes the commands of the hubs to the sessions.
#[derive(Clone)]
pub(crate) struct Commands(Arc<Routes>);

struct Routes {
    /// By partition: where commands go.
    partitions: RwLock<Vec<Route>>,
    /// Closed with the hubs.
    _hubs: watch::Sender<()>,
}

/// Unbounded, because a hub must never wait. A stream has at most one command per channel under way.
type Sender = mpsc::UnboundedSender<SessionCommand>;

enum Route {
    /// No node is known yet. Which hub wants which channel, and the generation of its wish.
    Nowhere(HashMap<(usize, Channel), u64>),
    To(Sender),
}

impl Commands {
    /// The command is dropped if the session is gone, because the process is ending then.
    pub(crate) fn send(&self, command: HubCommand) {
        let partition = usize::from(command.channel().partition());
        if let Route::To(session) = &self.0.partitions.read()[partition] {
            let _ending = session.send(SessionCommand::Hub(command));
            return;
        }
        match (&mut self.0.partitions.write()[partition], command) {
            (Route::To(session), command) => {
                let _ending = session.send(SessionCommand::Hub(command));
            }
            (
                Route::Nowhere(wants),
                HubCommand::Attach {
                    worker,
                    channel,
                    generation,
                },
            ) => {
                wants.insert((worker, channel), generation);
            }
            (Route::Nowhere(wants), HubCommand::Detach { worker, channel }) => {
                wants.remove(&(worker, channel));
            }
        }
    }
}

impl Subscriber {
    /// Does not connect yet. `workers` have the hubs.
    pub(crate) fn new(
        config: &Config,
        topology: &Topology,
        workers: &[Worker],
    ) -> (Self, Commands, Ready) {
        let metrics = topology.deployment().metrics().clone();
        let ready = Ready::new(config.partitions.count(), metrics);
        let routes = config
            .partitions
            .all()
            .map(|_| Route::Nowhere(HashMap::new()));
        let (alive, hubs) = watch::channel(());
        let routes = Arc::new(Routes {
            partitions: RwLock::new(routes.collect()),
            _hubs: alive,
        });
        let subscriber = Self {
            topology: topology.clone(),
            config: config.clone(),
            workers: workers.to_vec(),
            ready: ready.clone(),
            routes: Arc::downgrade(&routes),
            hubs,
        };
        (subscriber, Commands(routes), ready)
    }

    /// Receives messages until all hubs are gone. Connects again whenever a connection ends.
    ///
    /// # Errors
    /// When trying again is pointless.
    pub async fn run(self) -> Result<(), Error> {
        let mut sessions = Vec::<(Node, mpsc::WeakUnboundedSender<SessionCommand>)>::new();
        let start = |layout: &Layout| match self.routes.upgrade() {
            Some(routes) => self.route(layout, &routes, &mut sessions),
            None => Vec::new(),
        };
        let mut hubs = self.hubs.clone();
        let sessions = self.topology.follow(start, async move {
            let _gone = hubs.changed().await;
        });
        tokio::select! {
            ended = sessions => ended,
            Err(error) = self.topology.watch() => Err(error),
        }
    }

    /// Lets each partition go to the session of its node. Returns new sessions.
    fn route(
        &self,
        layout: &Layout,
        routes: &Routes,
        sessions: &mut Vec<(Node, mpsc::WeakUnboundedSender<SessionCommand>)>,
    ) -> Vec<BoxFuture<'static, Result<(), Error>>> {
        let mut new = Vec::new();
        // A node without partitions does not come back.
        sessions.retain(|(node, _)| layout.nodes().iter().any(|it| it.is(node)));
        // A session ends when no partition leads to it. The new sessions have none yet.
        let mut senders: Vec<Sender> = Vec::new();
        for node in layout.nodes() {
            if sessions.iter().any(|(it, _)| it.is(node)) {
                continue;
            }
            let (sender, commands) = mpsc::unbounded_channel();
            let (node, workers) = (node.clone(), self.workers.clone());
            sessions.push((node.clone(), sender.downgrade()));
            let session = Session::new(&self.config, node, commands, workers, self.ready.clone());
            new.push(session.run().boxed());
            senders.push(sender);
        }
        let mut routes = routes.partitions.write();
        for (route, partition) in routes.iter_mut().zip(0_u16..) {
            let session = layout.node(partition).and_then(|node| {
                let session = sessions.iter().find(|(it, _)| it.is(node));
                session.and_then(|(_, session)| session.upgrade())
            });
            let Some(session) = session else {
                continue;
            };
            // If a session does not receive any more, all hubs have ended.
            let _ending = match route {
                Route::To(before) if before.same_channel(&session) => continue,
                Route::To(before) => {
                    let _ending = session.send(SessionCommand::Expect(partition));
                    let to = session.clone();
                    before.send(SessionCommand::Release { partition, to })
                }
                Route::Nowhere(wants) => {
                    let wants = std::mem::take(wants).into_iter();
                    let wants = wants.map(|((worker, channel), generation)| {
                        (channel, vec![(worker, generation)])
                    });
                    let wants = Wants::new(wants);
                    session.send(SessionCommand::Accept { partition, wants })
                }
            };
            *route = Route::To(session);
        }
        new
    }
}
