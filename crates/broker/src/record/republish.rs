//! Publishing raw messages again that the node of their partition has missed.

use std::time::SystemTime;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::{
    Recorder,
    deliveries::Missed,
    ear::Republished,
    raw_subscription::{Done, RawSubscription},
    unrecorded::Unrecorded,
};
use crate::{call::Function, node::Node, throttled, times::SETTLE};

impl Recorder {
    /// Has the node publish messages again that it has missed.
    pub(super) fn republish_missed(
        &self,
        subscription: &mut RawSubscription,
        unrecorded: &mut Unrecorded,
    ) {
        let Some(ear) = &mut subscription.ear else {
            return;
        };
        let now = Instant::now();
        let partitions: Vec<_> = subscription.machines.keys().copied().collect();
        let mut deliveries = ear.deliveries.lock();
        deliveries.tick(now);
        for partition in deliveries.own(ear.source, &partitions, now) {
            ear.calling.insert(partition);
            let call = republish(self.node.clone(), partition, Vec::new());
            let call = call.map(Done::Republished).boxed();
            subscription.under_way.push(call);
        }
        let compared = deliveries.compared(ear.source, now);
        subscription.gauges.compare(compared);
        let Some(alive) = ear.pulse.alive() else {
            return;
        };
        for (partition, machine) in &subscription.machines {
            // If the active recorder does not notice it, a standby does a little later.
            let patience = match machine.active() {
                Some(_) => SETTLE,
                None => SETTLE * 2,
            };
            if deliveries.take_dropped(*partition, alive) {
                throttled!(
                    warn,
                    partition,
                    "raw messages that other nodes have delivered may not have reached the node of their partition, and more than --max-pending waited"
                );
                unrecorded.lose(Some((*partition, SystemTime::now())));
            }
            if !machine.is_in_sync() || ear.calling.contains(partition) {
                continue;
            }
            let missed = deliveries.missed(*partition, alive, patience, now);
            if !missed.is_empty() {
                ear.calling.insert(*partition);
                let call = republish(self.node.clone(), *partition, missed);
                let call = call.map(Done::Republished).boxed();
                subscription.under_way.push(call);
            }
        }
    }

    /// A call has published messages again, or has answered which were.
    pub(super) fn have_republished(
        &self,
        subscription: &mut RawSubscription,
        republished: Republished,
    ) {
        let Some(ear) = &mut subscription.ear else {
            return;
        };
        let partition = republished.partition;
        ear.calling.remove(&partition);
        let answers = match republished.answers {
            Ok(answers) => answers,
            Err(error) => {
                throttled!(warn, partition, %error, "raw messages that the node of their partition has missed are not recorded yet");
                return;
            }
        };
        let mut deliveries = ear.deliveries.lock();
        let mut own = 0;
        for (digest, now, before) in answers {
            match before {
                Some(before) if now == before + 1 => own += 1,
                _ => deliveries.was_again(digest, now, Instant::now()),
            }
        }
        if own > 0 {
            self.node.metrics().republished.inc_by(own);
            throttled!(
                warn,
                partition,
                messages = own,
                "raw messages that other nodes have delivered did not reach the node of their partition: they are recorded late"
            );
        }
    }
}

/// Has the node publish messages again. Without messages it asks which may still arrive themselves.
async fn republish(node: Node, partition: u16, missed: Vec<Missed>) -> Republished {
    let deployment = node.deployment();
    let texts = missed
        .iter()
        .map(|it| (it.digest.to_string(), it.repetitions.to_string()));
    let texts: Vec<_> = texts.collect();
    let mut call = deployment.new_call(Function::Republish, partition);
    for (message, (digest, repetitions)) in missed.iter().zip(&texts) {
        call = call.arg(message.channel.as_str()).arg(&message.payload);
        call = call.arg(digest).arg(repetitions);
    }
    let answers = node.call::<Vec<String>>(&call).await;
    let number = |text: &String| text.parse().unwrap_or_default();
    let answers = answers.map(|answers| match missed.is_empty() {
        true => (answers.chunks_exact(2))
            .filter_map(|pair| Some((pair[0].parse().ok()?, number(&pair[1]), None)))
            .collect(),
        false => (missed.iter().zip(&answers))
            .map(|(it, answer)| (it.digest, number(answer), Some(it.repetitions)))
            .collect(),
    });
    Republished { partition, answers }
}
