//! Messages of a recorder's subscription: raw messages, notices, and messages that cannot be events.

use std::io;

use bytes::Bytes;
use hub::{Channel, EventId};
use tokio::time::Instant;

use super::{
    Recorder,
    carried::Waiting,
    deliveries::Arrival,
    ear::Ear,
    machine::{Digest, Pending, Successor},
    raw_subscription::{RawSubscription, new_name},
};
use crate::{
    metrics::BAD_CHANNEL,
    names::Subject,
    payload::Rejected,
    serializer::{self, Serializer},
    throttled,
    wire::Push,
};

/// The channels of a partition to which a recorder in a cluster subscribes.
const NOTICE_CHANNELS: usize = 3;
/// Bytes of a rejected payload that are logged.
const BEGINNING: usize = 8;

impl Recorder {
    pub(super) fn push(&self, subscription: &mut RawSubscription, push: Push) -> io::Result<()> {
        match push {
            Push::Message { channel, payload } => {
                match self.node.deployment().names().subject(&channel) {
                    // Messages before the raw subscription are no part of it.
                    Some(_) if !subscription.has_begun => Ok(()),
                    Some((partition, Subject::Ends)) => self.end(subscription, partition, &payload),
                    Some((_, Subject::Republished)) => self.republished(subscription, &payload),
                    Some((partition, Subject::Recorded)) => {
                        // A machine only acts on words that recorders publish. Any other text matches nothing.
                        if let Some(machine) = subscription.machines.get_mut(&partition)
                            && let Ok(notice) = std::str::from_utf8(&payload)
                        {
                            machine.notice(notice);
                        }
                        Ok(())
                    }
                    _ => self.raw(subscription, &channel, &payload),
                }
            }
            Push::Oversized { channel } => {
                self.reject(subscription, &channel, Rejected::TooLarge.as_str(), &[]);
                Ok(())
            }
            Push::Subscribed { channel } => {
                match self.node.deployment().names().subject(&channel) {
                    Some((partition, _)) => self.hears_notices(subscription, partition),
                    None => {
                        (subscription.listening, subscription.has_begun) = (true, true);
                        subscription.ear = Ear::new(&self.deliveries, &self.node);
                    }
                }
                Ok(())
            }
            Push::Unsubscribed { channel } => {
                match self.node.deployment().names().subject(&channel) {
                    // The partition has moved to another node of the cluster, and perhaps back.
                    Some((partition, _)) => {
                        subscription.ended.insert(partition);
                        self.node.look();
                    }
                    None => {
                        subscription.listening = false;
                        subscription.ear = None;
                    }
                }
                Ok(())
            }
            Push::Refused { error } => {
                let error = error.escape_ascii();
                tracing::debug!(%error, "a barrier or a subscription was refused");
                self.node.look();
                subscription.without_barriers();
                Ok(())
            }
            // Redis answers in order, so it has not carried out PSUBSCRIBE.
            Push::Pong if !subscription.has_begun => Err(io::Error::other(
                "the subscription to raw messages was refused",
            )),
            Push::Pong => {
                if let Some(ear) = &mut subscription.ear {
                    ear.pulse.pong(Instant::now());
                }
                Ok(())
            }
        }
    }

    /// Another notice channel of a partition is subscribed. With the last one a partition begins that the node has taken
    /// over. A raw message whose notice was missed would be recorded twice.
    fn hears_notices(&self, subscription: &mut RawSubscription, partition: u16) {
        let Some(confirmed) = subscription.arriving.get_mut(&partition) else {
            return;
        };
        *confirmed += 1;
        if *confirmed < NOTICE_CHANNELS {
            return;
        }
        subscription.arriving.remove(&partition);
        if self.carriers.has(partition) {
            let successor = Successor::new(self.max_pending, Instant::now());
            let waiting = Waiting::new(successor);
            subscription.successors.insert(partition, waiting);
        } else {
            let machine = self.machine(&new_name(&self.node));
            subscription.machines.insert(partition, machine);
        }
    }

    /// The end of a channel was announced: its name, a space, and the channel. Text that names no end stored in Redis
    /// has no effect there.
    fn end(
        &self,
        subscription: &mut RawSubscription,
        partition: u16,
        announcement: &[u8],
    ) -> io::Result<()> {
        let partitions = self.node.deployment().partitions();
        if let Ok(announcement) = std::str::from_utf8(announcement)
            && let Some((name, channel)) = announcement.split_once(' ')
            && let Ok(channel) = partitions.channel(channel)
            && channel.partition() == partition
            && name.parse::<EventId>().is_ok()
        {
            if let Some(machine) = subscription.machines.get_mut(&partition) {
                machine.end(channel, name);
            } else if let Some(waiting) = subscription.successors.get_mut(&partition) {
                waiting.end(channel, name);
            }
        }
        Ok(())
    }

    /// The node of the partition has published a raw message again: how many times it has, a space, the channel, a line
    /// feed, and the payload. Recorders publish only messages that can be events.
    fn republished(&self, subscription: &mut RawSubscription, text: &[u8]) -> io::Result<()> {
        let partitions = self.node.deployment().partitions();
        let Some((repetitions, channel, payload)) = parse_republished(text) else {
            return Ok(());
        };
        let Ok(channel) = partitions.channel(channel) else {
            return Ok(());
        };
        let digest = Digest::of(&channel, payload);
        let arrival = match &subscription.ear {
            Some(ear) => ear.republished(digest, repetitions),
            None => Arrival::New,
        };
        receive(subscription, channel, payload, digest, arrival)
    }

    /// A raw message has arrived. A payload that cannot be an event never becomes pending, at any recorder.
    fn raw(
        &self,
        subscription: &mut RawSubscription,
        raw: &[u8],
        payload: &[u8],
    ) -> io::Result<()> {
        let Some(name) = raw.strip_prefix(self.prefix.as_bytes()) else {
            return Ok(());
        };
        let Ok(channel) = self.node.deployment().partitions().channel_from_bytes(name) else {
            self.reject(subscription, raw, BAD_CHANNEL, &[]);
            return Ok(());
        };
        match serializer::examine(payload, self.max_payload) {
            Ok(None) => {}
            Ok(Some(serializer)) => self.suspect(subscription, raw, serializer),
            Err(reason) => {
                self.reject(subscription, raw, reason.as_str(), payload);
                return Ok(());
            }
        }
        let digest = Digest::of(&channel, payload);
        let arrival = match &subscription.ear {
            Some(ear) => ear.arrived(&channel, payload, digest),
            None => Arrival::New,
        };
        receive(subscription, channel, payload, digest, arrival)
    }

    /// Counted and logged once in the deployment, by the active recorder.
    fn reject(&self, subscription: &RawSubscription, channel: &[u8], reason: &str, payload: &[u8]) {
        if !subscription.records() {
            return;
        }
        self.node.metrics().rejected(reason);
        let serializer = Serializer::of(payload);
        serializer.inspect(|serializer| self.node.metrics().serialized(*serializer));
        let beginning = &payload[..payload.len().min(BEGINNING)];
        throttled!(
            warn,
            channel = %channel.escape_ascii(),
            reason,
            begins = %beginning.escape_ascii(),
            advice = serializer.map(Serializer::advice),
            "a raw message was rejected"
        );
    }

    /// The message is recorded, but is most likely not what its publisher meant. Counted and logged like a rejected
    /// message.
    fn suspect(&self, subscription: &RawSubscription, channel: &[u8], serializer: Serializer) {
        if subscription.records() {
            self.node.metrics().serialized(serializer);
            throttled!(
                warn,
                channel = %channel.escape_ascii(),
                advice = serializer.advice(),
                "a raw message looks serialized, and is recorded as it is"
            );
        }
    }
}

/// Gives a message to the recorder of its partition. Every node receives every raw message, and a subscription is for the
/// partitions of one.
fn receive(
    subscription: &mut RawSubscription,
    channel: Channel,
    payload: &[u8],
    digest: Digest,
    arrival: Arrival,
) -> io::Result<()> {
    let partition = channel.partition();
    // Copied, because otherwise a few bytes would keep alive everything that was read with them.
    let copy = || Bytes::copy_from_slice(payload);
    if let Some(machine) = subscription.machines.get_mut(&partition) {
        if arrival == Arrival::Recorded {
            machine.recorded_before(digest);
            return Ok(());
        }
        // Messages that the holder of the lease cannot record are counted when it drains. On other recorders they are not
        // lost, because the holder has them as well.
        let message = Pending::with_digest(channel, copy(), digest);
        return machine.message(message).map_err(io::Error::other);
    }
    // Both, if the partition has moved away and back.
    if let Some(waiting) = subscription.successors.get_mut(&partition) {
        waiting.raw(channel.clone(), copy());
    }
    if let Some(carried) = subscription.carried.get_mut(&partition) {
        carried.raw(channel, copy()).map_err(io::Error::other)?;
    }
    Ok(())
}

fn parse_republished(text: &[u8]) -> Option<(u64, &str, &[u8])> {
    let line = text.iter().position(|byte| *byte == b'\n')?;
    let (head, payload) = (&text[..line], &text[line + 1..]);
    let (repetitions, channel) = std::str::from_utf8(head).ok()?.split_once(' ')?;
    Some((repetitions.parse().ok()?, channel, payload))
}
