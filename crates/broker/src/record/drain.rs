//! The end of a subscription: the messages that were received are recorded, or reported as lost.

use std::future::Future;

use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::{
    Recorder,
    machine::Machine,
    raw_subscription::{Done, RawSubscription},
    unrecorded::{Lost, Other, Owed, Unrecorded},
};
use crate::{call::Function, throttled, times::LEASE};

impl Recorder {
    /// The subscription was lost. Records the messages that were received, as long as the lease is held.
    pub(super) async fn drain(
        &self,
        subscription: &mut RawSubscription,
        unrecorded: &mut Unrecorded,
    ) {
        subscription.machines.values_mut().for_each(Machine::cut);
        subscription.ear = None;
        // Without this subscription no message of the carried partitions arrives.
        for (partition, carried) in std::mem::take(&mut subscription.carried) {
            unrecorded.lose(carried.newest_received().map(|at| (partition, at)));
        }
        let is_draining = |subscription: &RawSubscription| {
            subscription.machines.values().any(Machine::is_draining)
        };
        let drain = async {
            while is_draining(subscription) {
                self.act(subscription);
                match subscription.under_way.next().await {
                    Some(Done::Performed(performed)) => {
                        unrecorded.lose(subscription.performed(performed));
                    }
                    Some(Done::Reported(rest)) => unrecorded.put_back(rest),
                    Some(Done::Connected(connection)) => {
                        subscription.connecting = false;
                        subscription.connection = connection.ok();
                    }
                    Some(Done::Located { .. } | Done::Left(..) | Done::Republished(_)) => {}
                    Some(Done::Candidacy(_) | Done::CandidacyReleased) => {}
                    Some(Done::Alive(_) | Done::BusLinks(_)) => {}
                    None => break,
                }
            }
        };
        // The lease is not renewed any more.
        let _late = timeout(LEASE, drain).await;
        let machines = || subscription.machines.iter();
        if !subscription.run.is_empty() {
            let pending = machines()
                .filter_map(|(partition, machine)| Some((*partition, machine.newest_received()?)));
            unrecorded.ended(&subscription.run, pending);
        }
        // Another recorder that has received these messages records them.
        let held = machines().filter(|(_, machine)| machine.held() > 0);
        for (partition, machine) in held {
            let messages = machine.held();
            self.node.metrics().dropped.inc_by(messages as u64);
            throttled!(
                warn,
                partition,
                messages,
                "the subscription was cut, and the lease was lost before all raw messages were recorded"
            );
            if let Some(received_at) = machine.newest_received() {
                let other = Other::InSync;
                unrecorded.owe(*partition, Lost { received_at, other });
            }
        }
    }

    /// Sends clients gaps for lost messages. Returns the messages for which that failed, or has to wait.
    pub(super) fn report(&self, mut owed: Owed) -> impl Future<Output = Owed> + Send + use<> {
        let topology = self.topology.clone();
        async move {
            let mut waiting = Owed::new();
            while let Some((&partition, lost)) = owed.first_key_value() {
                // If the clock was set back, they may be new, so their age is taken to be zero.
                let age = lost.received_at.elapsed().unwrap_or_default();
                let age = age.as_millis().to_string();
                let other = (lost.other as u8).to_string();
                let call = topology.deployment().new_call(Function::Forsake, partition);
                match topology.call(&call.arg(&age).arg(&other)).await {
                    Ok(0) => {}
                    Ok(2) => {
                        waiting.insert(partition, *lost);
                    }
                    Ok(_) => {
                        topology.deployment().metrics().interruptions.inc();
                        throttled!(
                            warn,
                            partition,
                            "raw messages that were received cannot be recorded any more: clients receive a gap"
                        );
                    }
                    Err(error) => {
                        tracing::debug!(partition, %error, "failed to send a gap for lost messages; trying again");
                        break;
                    }
                }
                owed.pop_first();
            }
            owed.append(&mut waiting);
            owed
        }
    }
}
