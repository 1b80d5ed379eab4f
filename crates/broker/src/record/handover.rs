//! Leaving a partition that moves to another node of the cluster to the recorder of this replica there.

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};

use super::{
    Recorder,
    carried::Carried,
    carriers::Carriers,
    executor::Executor,
    machine::{Carrier, Handover},
    raw_subscription::{Done, RawSubscription, new_name},
    unrecorded::{Lost, Other, Unrecorded},
};
use crate::{node::Node, throttled, times::TICK};

impl Recorder {
    /// The partition has moved away. If this recorder is active there, it continues to record. Otherwise the recorder
    /// that is active does, if there is one.
    pub(super) fn carry(
        subscription: &mut RawSubscription,
        unrecorded: &mut Unrecorded,
        partition: u16,
    ) {
        let Some(mut machine) = subscription.machines.remove(&partition) else {
            return;
        };
        if machine.carry() {
            tracing::info!(
                partition,
                "recording from the node that the partition has left"
            );
            let carrier = Carrier::new(machine, Instant::now());
            subscription
                .carried
                .insert(partition, Carried::new(carrier));
            return;
        }
        // Another recorder may carry it, unless this one has held the lease.
        let other = match machine.active() {
            None if machine.held() == 0 => Other::Carrier,
            _ => Other::None,
        };
        if let Some(received_at) = machine.newest_received() {
            unrecorded.owe(partition, Lost { received_at, other });
        }
    }

    /// Starts the effects that carriers ask for, and leaves partitions to their successors.
    pub(super) fn act_for_carried(
        &self,
        subscription: &mut RawSubscription,
        unrecorded: &mut Unrecorded,
    ) {
        let under_way = &subscription.under_way;
        let (entries, mut over) = (&mut subscription.entries, Vec::new());
        for (partition, carried) in &mut subscription.carried {
            if carried.carrier.has_failed() {
                throttled!(
                    warn,
                    partition,
                    "recording is interrupted while the partition moves to another node"
                );
                let newest = carried.newest_received();
                unrecorded.lose(newest.map(|received_at| (*partition, received_at)));
                over.push(*partition);
                continue;
            }
            if carried.successor.is_some()
                && let Some(handover) = carried.carrier.handover()
            {
                if let Some(successor) = carried.successor.take() {
                    // If the successor is gone, the lease expires, and clients receive a gap.
                    let _gone = successor.send(handover);
                }
                over.push(*partition);
                continue;
            }
            match &carried.at {
                Some((node, connection)) => {
                    while let Some(effect) = carried.carrier.machine.next() {
                        let executor = Executor::new(node.clone(), connection.clone(), *partition);
                        under_way.push(executor.perform(effect).map(Done::Performed).boxed());
                    }
                }
                None if !carried.locating => {
                    carried.locating = true;
                    let (topology, partition) = (self.topology.clone(), *partition);
                    let locate = async move {
                        let locate = async {
                            let node = topology.node(partition)?;
                            let connection = node.connect().await?;
                            Ok((node, connection))
                        };
                        let at = locate.await;
                        if at.is_err() {
                            sleep(TICK).await;
                        }
                        Done::Located { partition, at }
                    };
                    under_way.push(locate.boxed());
                }
                None => {}
            }
        }
        for partition in over {
            subscription.carried.remove(&partition);
            entries.set(partition, false);
        }
    }

    /// Asks for the partitions that this recorder is to take over.
    pub(super) fn ask_for_carried(&self, subscription: &mut RawSubscription) {
        let now = Instant::now();
        let mut given_up = Vec::new();
        for (partition, waiting) in &mut subscription.successors {
            if waiting.asking {
                continue;
            }
            if !self.carriers.has(*partition) {
                given_up.push(*partition);
            } else if waiting.successor.asks(now)
                && let Some(handover) = self.carriers.ask(*partition)
            {
                waiting.asking = true;
                let partition = *partition;
                let left = handover.map(move |handover| Done::Left(partition, handover.ok()));
                subscription.under_way.push(left.boxed());
            }
        }
        for partition in given_up {
            subscription.successors.remove(&partition);
            let machine = self.machine(&new_name(&self.node));
            subscription.machines.insert(partition, machine);
        }
    }

    /// The recorder that has carried a partition has left it to this one, or not yet.
    pub(super) fn take_over(
        &self,
        subscription: &mut RawSubscription,
        partition: u16,
        handover: Option<Handover>,
    ) {
        let Some(mut waiting) = subscription.successors.remove(&partition) else {
            return;
        };
        waiting.asking = false;
        let Some(handover) = handover else {
            subscription.successors.insert(partition, waiting);
            return;
        };
        let name = new_name(&self.node);
        let mut machine = waiting.successor.inherit(&name, handover);
        if subscription.stops_at.is_some() {
            machine.step_down();
        }
        subscription.machines.insert(partition, machine);
    }
}

/// Notes which partitions a subscription records.
pub(super) fn announce(subscription: &mut RawSubscription) {
    let entries = &mut subscription.entries;
    for (partition, machine) in &subscription.machines {
        entries.set(*partition, machine.active().is_some());
    }
}

/// Whether this replica carries a partition of the node.
pub(super) fn carries(carriers: &Carriers, node: &Node) -> bool {
    node.partitions().iter().any(|it| carriers.has(*it))
}
