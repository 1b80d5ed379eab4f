//! `Executor`: carries out one effect of a machine: the calls about the lease, appends and relays.

use std::time::SystemTime;

use hub::Channel;

use super::{
    machine::{Content, Effect, Outcome, Pending, Reply},
    relay::relay,
};
use crate::{
    AppendedEvent, Error,
    call::{Call, Function},
    entry,
    node::{Connection, Node},
    throttled,
    times::LEASE,
};

/// Carries out one effect.
pub(super) struct Executor {
    node: Node,
    connection: Connection,
    partition: u16,
    /// When the newest of the messages was received that were dropped while Redis took no writes.
    dropped: Option<SystemTime>,
}

/// The answer to an effect.
#[derive(Clone, Copy)]
pub(super) struct Performed {
    pub(super) partition: u16,
    pub(super) reply: Reply,
    /// The effect may have dropped messages: when the newest of them was received.
    pub(super) dropped: Option<SystemTime>,
}

impl Executor {
    pub(super) fn new(node: Node, connection: Connection, partition: u16) -> Self {
        Self {
            node,
            connection,
            partition,
            dropped: None,
        }
    }

    pub(super) async fn perform(mut self, effect: Effect) -> Performed {
        let reply = match effect {
            Effect::Acquire {
                token,
                in_sync,
                preemption,
            } => self.acquire(&token, in_sync, preemption).await,
            Effect::Renew { token } => Reply::Renew(self.renew(&token).await),
            Effect::Append {
                token,
                number,
                batch,
            } => Reply::Append(self.append(&token, number, &batch).await),
            Effect::StepDown { notice } => self.step_down(&notice).await,
            Effect::PublishBarrier { notice } => {
                let deployment = self.node.deployment().clone();
                let ttl = LEASE.as_millis().to_string();
                let call = deployment.new_call(Function::Listen, self.partition);
                let call = call.arg(deployment.replica()).arg(&notice).arg(&ttl);
                Reply::PublishBarrier(match self.lease(&call).await {
                    Ok(_) => Outcome::Done,
                    Err(outcome) => outcome,
                })
            }
        };
        Performed {
            partition: self.partition,
            reply,
            dropped: self.dropped,
        }
    }

    /// Asks for the lease. The answer to an out-of-sync recorder may also be that the recording was interrupted.
    async fn acquire(&mut self, token: &str, in_sync: bool, preemption: Option<u64>) -> Reply {
        let deployment = self.node.deployment().clone();
        let ttl = LEASE.as_millis().to_string();
        let in_sync: &[u8] = if in_sync { b"1" } else { b"0" };
        let preemption = preemption.map_or_else(String::new, |appends| appends.to_string());
        let call = deployment.new_call(Function::Acquire, self.partition);
        let call = call.arg(deployment.replica()).arg(token).arg(&ttl);
        Reply::Acquire(
            match self.lease(&call.arg(in_sync).arg(&preemption)).await {
                Ok(0) => Outcome::Denied,
                Ok(1) => Outcome::Done,
                Ok(3) => {
                    throttled!(
                        warn,
                        partition = self.partition,
                        "another replica began to record without raw messages that this one had received: clients receive a gap"
                    );
                    return Reply::Late;
                }
                Ok(_) => {
                    self.node.metrics().interruptions.inc();
                    tracing::warn!(
                        partition = self.partition,
                        "recording was interrupted: no replica was subscribed throughout; \
                     where raw messages were recorded before, clients receive a gap"
                    );
                    Outcome::Done
                }
                Err(outcome) => outcome,
            },
        )
    }

    async fn renew(&mut self, token: &str) -> Outcome {
        let deployment = self.node.deployment().clone();
        let ttl = LEASE.as_millis().to_string();
        let call = deployment.new_call(Function::Renew, self.partition);
        let call = call.arg(deployment.replica()).arg(token).arg(&ttl);
        match self.lease(&call).await {
            Ok(0) => Outcome::Denied,
            Ok(_) => Outcome::Done,
            Err(outcome) => outcome,
        }
    }

    async fn step_down(&mut self, notice: &str) -> Reply {
        let deployment = self.node.deployment().clone();
        let call = deployment.new_call(Function::StepDown, self.partition);
        let call = call.arg(deployment.replica()).arg(notice);
        match self.node.call_on(&mut self.connection, &call).await {
            Ok(0) => Reply::StepDown(Outcome::Denied),
            Ok(1) => Reply::StepDown(Outcome::Done),
            Ok(_) => Reply::Alone,
            Err(Error::Refused(error)) => {
                tracing::debug!(partition = self.partition, %error, "the lease stays as it is");
                Reply::StepDown(Outcome::Refused)
            }
            Err(error) => {
                throttled!(warn, partition = self.partition, %error, "the lease cannot be given back");
                Reply::StepDown(Outcome::Unknown)
            }
        }
    }

    async fn lease(&mut self, call: &Call<'_>) -> Result<u8, Outcome> {
        let called = self.node.call_on(&mut self.connection, call);
        called.await.map_err(|error| match error {
            // Nothing was written, so the lease has not changed.
            Error::Refused(error) => {
                tracing::debug!(partition = self.partition, %error, "the lease stays as it is");
                Outcome::Refused
            }
            error if self.is_elsewhere(&error) => {
                tracing::debug!(partition = self.partition, %error, "the partition is on its way");
                Outcome::Elsewhere
            }
            Error::Unreachable(error) if matches!(*error, Error::Migrating) => Outcome::Refused,
            error => {
                throttled!(warn, partition = self.partition, %error, "the lease is in doubt");
                Outcome::Unknown
            }
        })
    }

    async fn append(&mut self, token: &str, number: u64, batch: &[Pending]) -> Outcome {
        let deployment = self.node.deployment().clone();
        let watermark = deployment.watermark(self.partition).to_string();
        let names: Vec<_> = batch.iter().map(Pending::name).collect();
        let number = number.to_string();
        let channels = batch.iter().filter_map(Pending::channel);
        let mut call = deployment
            .new_call(Function::Record, self.partition)
            .of_channels(channels.map(Channel::as_str))
            .arg(deployment.replica())
            .arg(&watermark)
            .arg(token)
            .arg(&number);
        for (pending, name) in batch.iter().zip(&names) {
            call = call.arg(&**name).arg(&pending.payload).arg(&pending.digest);
        }
        let sent = SystemTime::now();
        let ids: Vec<String> = match self.node.call_on(&mut self.connection, &call).await {
            Ok(ids) => ids,
            Err(Error::Fenced) => return Outcome::Denied,
            Err(Error::Refused(error)) => return self.relay(token, batch, &error).await,
            Err(error) if self.is_elsewhere(&error) => return Outcome::Elsewhere,
            Err(error) => {
                throttled!(warn, partition = self.partition, %error, "an append is in doubt");
                return Outcome::Unknown;
            }
        };
        let events = batch
            .iter()
            .filter_map(|pending| Some((pending, pending.channel()?)));
        for (id, (pending, channel)) in ids.iter().zip(events) {
            if let Some(error) = id.strip_prefix('!') {
                let partition = self.partition;
                deployment
                    .metrics()
                    .unrecorded
                    .inc_by((!pending.is_tombstone()).into());
                throttled!(error, partition, error, "an event could not be recorded");
                continue;
            }
            match pending.content {
                Content::Tombstone(_) => self.lost(channel),
                Content::Message(_) => self.node.metrics().recorded.inc(),
                Content::End(_) | Content::Barrier | Content::Recorded => {}
            }
            let Ok(id) = id.parse() else {
                continue;
            };
            deployment.saw(self.partition, id);
            if pending.is_tombstone() {
                continue;
            }
            if let Some(observer) = deployment.observer() {
                let asked = pending.received_at;
                observer.appended(&AppendedEvent {
                    channel,
                    id,
                    asked,
                    sent,
                });
            }
        }
        Outcome::Done
    }

    /// Whether a call was not carried out, because the partition is on another node of the cluster, or on its way there.
    fn is_elsewhere(&self, error: &Error) -> bool {
        let is_retired =
            matches!(error, Error::Unreachable(error) if matches!(**error, Error::Replaced));
        error.is_elsewhere() || is_retired && self.node.address().is_some()
    }

    /// Counts and logs a message that was dropped. Clients of its channel receive a gap.
    fn lost(&self, channel: &Channel) {
        self.node.metrics().dropped.inc();
        throttled!(
            error,
            partition = self.partition,
            %channel,
            "dropped a raw message: more than --max-pending waited to be recorded. Clients receive a gap"
        );
    }

    /// Redis takes no writes: passes the messages on without ids.
    async fn relay(
        &mut self,
        token: &str,
        batch: &[Pending],
        refusal: &redis::RedisError,
    ) -> Outcome {
        // Ends stay in Redis, and are announced again.
        let (names, run) = (self.node.deployment().names(), self.connection.run());
        let channels = batch.iter().filter_map(|pending| match &pending.content {
            Content::Message(channel) => Some((
                names.live(channel, run),
                entry::unrecorded(&pending.payload),
            )),
            _ => None,
        });
        let mut messages: Vec<_> = channels.collect();
        let relayed = messages.len();
        let digests: Vec<_> = batch.iter().map(|pending| &*pending.digest).collect();
        messages.push((
            names.recorded(self.partition, run),
            digests.join(" ").into_bytes(),
        ));
        let relay = relay(
            &self.node,
            &mut self.connection,
            self.partition,
            token,
            refusal,
            &messages,
        );
        match relay.await {
            Ok(true) => {
                for pending in batch {
                    if let Content::Tombstone(channel) = &pending.content {
                        self.lost(channel);
                        self.dropped = Some(pending.received_at);
                    }
                }
            }
            Ok(false) => return Outcome::Denied,
            Err(error) => {
                throttled!(warn, partition = self.partition, %error, "a relay is in doubt");
                return Outcome::Unknown;
            }
        }
        self.node.metrics().unrecorded.inc_by(relayed as u64);
        let partition = self.partition;
        throttled!(error, partition, relayed, %refusal, "redis takes no writes: relayed without an id");
        Outcome::Done
    }
}
