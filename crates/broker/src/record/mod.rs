//! Recording: gives each raw message one id, however many replicas are subscribed.
//!
//! A few replicas have a *recorder*, which receives every raw message of a node. [`machine::Machine`] is the protocol by
//! which one of them records. The other files are its input and output.

mod candidacy;
mod drain;
mod executor;
mod gauges;
mod intake;
mod listen;
mod machine;
mod raw_subscription;
mod relay;
mod silence;
mod unrecorded;

use std::future::Future;

use futures_util::{FutureExt as _, future::join_all};
use tokio::time::sleep;

use self::{candidacy::Candidacy, raw_subscription::RawSubscription, unrecorded::Unrecorded};
use crate::{
    Config,
    backoff::Backoff,
    node::Node,
    throttled,
    times::{CANDIDACY, CLAIM},
    topology::Topology,
};

/// The recorders of this replica, one for each node.
pub struct Recorders(Vec<Recorder>);

/// Claims a candidacy, and records while it is a candidate.
struct Recorder {
    node: Node,
    prefix: String,
    recorders: u32,
    max_payload: usize,
    max_pending: usize,
}

impl Recorders {
    pub(crate) fn new(config: &Config, topology: &Topology) -> Self {
        let nodes = topology.nodes().iter();
        Self(nodes.map(|node| Recorder::new(config, node)).collect())
    }

    /// Records until `stop` resolves. Then each recorder steps down and releases its candidacy. Until another recorder
    /// has received all messages that are not recorded, it continues, but for [`HANDOVER`](crate::HANDOVER) at most.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let stop = stop.shared();
        let recorders = self.0.into_iter();
        join_all(recorders.map(|recorder| recorder.run(stop.clone()))).await;
    }
}

impl Recorder {
    fn new(config: &Config, node: &Node) -> Self {
        Self {
            node: node.clone(),
            prefix: config.prefix.clone(),
            recorders: config.recorders,
            max_payload: config.max_payload,
            max_pending: config.max_pending,
        }
    }

    async fn run(self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut backoff = Backoff::default();
        let mut unrecorded = Unrecorded::default();
        loop {
            // A replica without a candidacy reports its lost messages too.
            if self.node.has_left(unrecorded.run()) {
                unrecorded.moved();
            }
            if let Some(owed) = unrecorded.take() {
                unrecorded.put_back(self.report(owed).await);
            }
            let claim = self.claim(CANDIDACY, Candidacy::None);
            let pause = tokio::select! {
                () = &mut stop => return,
                claimed = claim => match claimed {
                    Ok(Candidacy::None) => Some(CLAIM),
                    Ok(Candidacy::Granted | Candidacy::Surplus) => None,
                    // The subscriber logs that Redis is away.
                    Err(_) => Some(backoff.next()),
                },
            };
            if let Some(pause) = pause {
                tokio::select! {
                    () = &mut stop => return,
                    () = sleep(pause) => continue,
                }
            }
            let mut subscription = RawSubscription::new(&self.node, self.max_pending);
            let listen = self.listen(
                &mut subscription,
                &mut unrecorded,
                &mut backoff,
                stop.as_mut(),
            );
            let ended = listen.await;
            self.drain(&mut subscription, &mut unrecorded).await;
            let stopping = subscription.stops_at.is_some();
            // After a failure the candidacy is kept: the replica may be connected again soon.
            let candidacy = stopping || ended.is_ok();
            self.give_back(subscription, &mut unrecorded, candidacy)
                .await;
            match ended {
                _ if stopping => return,
                Ok(()) => tracing::info!("the candidacy went to another replica"),
                Err(error) => {
                    self.node.metrics().recorder_reconnects.inc();
                    throttled!(warn, %error, "the recorder's connection is down");
                    tokio::select! {
                        () = &mut stop => return,
                        () = sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }
}
