//! Recording: gives each raw message one id, however many replicas are subscribed.
//!
//! A few replicas have a *recorder*, which receives every raw message of a node. [`machine::Machine`] is the protocol by
//! which one of them records. The other files are its input and output.

mod bus_links;
mod candidacy;
mod carried;
mod carriers;
mod deliveries;
mod divert;
mod drain;
mod ear;
mod executor;
mod gauges;
mod handover;
mod intake;
mod listen;
mod machine;
mod overhear;
mod pulse;
mod raw_subscription;
mod refusal;
mod relay;
mod republish;
mod silence;
mod unrecorded;

use std::{future::Future, sync::Arc};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::time::sleep;

use self::{
    candidacy::Candidacy, carriers::Carriers, deliveries::Deliveries, ear::AllDeliveries,
    handover::carries, machine::Machine, raw_subscription::RawSubscription, refusal::Refusal,
    unrecorded::Unrecorded,
};
pub(crate) use self::{
    divert::{Diversion, Diverted},
    machine::Pending,
};
use crate::{
    Config,
    backoff::Backoff,
    node::Node,
    throttled,
    times::{CANDIDACY, CLAIM, RAW_RETRY},
    topology::{Layout, Topology},
};

/// The recorders of this replica, one for each node.
pub struct Recorders {
    config: Config,
    topology: Topology,
    diversion: Option<Diversion>,
}

/// Claims a candidacy, and records while it is a candidate.
struct Recorder {
    topology: Topology,
    node: Node,
    /// Of all nodes.
    carriers: Carriers,
    deliveries: AllDeliveries,
    prefix: String,
    recorders: u32,
    max_payload: usize,
    max_pending: usize,
    diversion: Option<Diversion>,
}

impl Recorders {
    pub(crate) fn new(config: &Config, topology: &Topology) -> Self {
        Self {
            config: config.clone(),
            topology: topology.clone(),
            diversion: None,
        }
    }

    /// They end when the diversion holds them.
    pub(crate) fn diverted_by(self, diversion: Diversion) -> Self {
        Self {
            diversion: Some(diversion),
            ..self
        }
    }

    /// Records until `stop` resolves. Then each recorder steps down and releases its candidacy. Until another recorder
    /// has received all messages that are not recorded, it continues, but for [`HANDOVER`](crate::HANDOVER) at most.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) {
        // The command that migrates always subscribes, and counts as no candidate.
        if self.config.recorders == 0 && self.diversion.is_none() {
            return stop.await;
        }
        let stop = stop.shared();
        let mut nodes = Vec::<Node>::new();
        let carriers = Carriers::default();
        let deliveries = Deliveries::new(self.config.max_pending);
        let deliveries = Arc::new(Mutex::new(deliveries));
        let start = |layout: &Layout| {
            nodes.retain(|node| layout.nodes().iter().any(|it| it.is(node)));
            let mut new = Vec::new();
            for node in layout.nodes() {
                if !nodes.iter().any(|it| it.is(node)) {
                    nodes.push(node.clone());
                    let recorder = Recorder {
                        topology: self.topology.clone(),
                        node: node.clone(),
                        carriers: carriers.clone(),
                        deliveries: Arc::clone(&deliveries),
                        prefix: self.config.prefix.clone(),
                        recorders: self.config.recorders,
                        max_payload: self.config.max_payload,
                        max_pending: self.config.max_pending,
                        diversion: self.diversion.clone(),
                    };
                    let run = recorder.run(stop.clone()).map(Ok);
                    new.push(run.boxed());
                }
            }
            new
        };
        // Recorders try again after any error.
        let _ended = self.topology.follow(start, stop.clone()).await;
    }
}

impl Recorder {
    /// A machine that has received nothing yet.
    fn machine(&self, subscription: &str) -> Machine {
        let machine = Machine::new(subscription).limited(self.max_pending);
        match self.node.address() {
            Some(_) => machine.in_cluster(),
            None => machine,
        }
    }

    async fn run(self, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        let mut backoff = Backoff::default();
        let mut unrecorded = Unrecorded::default();
        let mut refusal = Refusal::new(self.node.metrics());
        let mut partitions = self.node.watch_partitions();
        loop {
            if partitions.borrow_and_update().is_empty() {
                // The node has lost its partitions. Gaps for unrecorded messages are sent where these are now.
                while let Some(owed) = unrecorded.take_all() {
                    unrecorded.put_back(self.report(owed).await);
                    tokio::select! {
                        () = &mut stop => return,
                        () = sleep(backoff.next()) => {}
                    }
                }
                return;
            }
            // A replica without a candidacy reports its lost messages too.
            if self.node.has_left(unrecorded.run()) {
                unrecorded.moved();
            }
            if let Some(owed) = unrecorded.take() {
                unrecorded.put_back(self.report(owed).await);
            }
            // A replica that carries a partition of the node is to take it over, even if there are enough candidates.
            let has = match carries(&self.carriers, &self.node) {
                true => Candidacy::Granted,
                false => Candidacy::None,
            };
            let claim = self.claim(CANDIDACY, has);
            let pause = tokio::select! {
                () = &mut stop => return,
                claimed = claim => match claimed {
                    Ok(Candidacy::None) => Some(CLAIM),
                    Ok(Candidacy::Granted | Candidacy::Surplus) => None,
                    // The subscriber logs that Redis is away.
                    Err(_) => Some(backoff.next()),
                },
            };
            if pause.is_some() && self.is_needed() {
                let ended = tokio::select! {
                    () = &mut stop => return,
                    ended = self.overhear() => ended,
                };
                if let Some(id) = self.node.id() {
                    self.deliveries.lock().needs_no_longer(id);
                }
                if ended.is_ok() {
                    continue;
                }
            }
            if let Some(pause) = pause {
                tokio::select! {
                    () = &mut stop => return,
                    () = sleep(pause) => continue,
                }
            }
            let is_refused = tokio::select! {
                () = &mut stop => return self.give_up_candidacy().await,
                is_refused = refusal.ask(&self.node, &self.prefix) => is_refused,
            };
            if is_refused {
                // A recorder that is not subscribed would make ends wait for it.
                self.give_up_candidacy().await;
                tokio::select! {
                    () = &mut stop => return,
                    () = sleep(RAW_RETRY) => continue,
                }
            }
            let mut subscription = RawSubscription::new(&self);
            let listen = self.listen(
                &mut subscription,
                &mut unrecorded,
                &mut backoff,
                stop.as_mut(),
            );
            let ended = listen.await;
            if subscription.is_diverted {
                return;
            }
            self.drain(&mut subscription, &mut unrecorded).await;
            if !subscription.has_begun {
                refusal.forget();
            }
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
