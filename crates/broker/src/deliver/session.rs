//! `Session`: the pub/sub connection to one node, for all hubs of this process.

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, Update};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    attaches::{AttachCall, AttachMode},
    channels::{Channels, Command, Subscription},
    history::PAGE_ENTRIES,
};
use crate::{
    Config, Error, MAX_SUBJECT,
    backoff::Backoff,
    call::Function,
    entry::{HistoryReply, PartitionState},
    names::{REVOKE, Subject},
    node::Node,
    throttled,
    times::{PROBE, PROBES_WITH_SENTINELS},
    wire::{Listener, Push, moved},
};

/// The session looks for another master once in this many probes.
const PROBES_PER_LOOK: u32 = 5;
/// A connection is given up if it has brought no answer to more probes than this.
const WEDGED: u32 = 5;
/// Bytes of payload in the answer to one attach, shared among its channels. All answers under way have to fit into the
/// 8 MB that Redis holds for a subscriber for long, together with the messages published at the same time. Redis
/// disconnects a subscriber above that limit.
const ANSWER_BYTES: usize = 1 << 20;
/// Of these, one channel gets at most this many. Older events are read as pages.
const CHANNEL_BYTES: usize = 128 << 10;

/// A request of a hub.
pub(crate) enum HubCommand {
    Attach {
        worker: usize,
        channel: Channel,
        generation: u64,
    },
    Detach {
        worker: usize,
        channel: Channel,
    },
}

impl HubCommand {
    pub(super) fn channel(&self) -> &Channel {
        let (Self::Attach { channel, .. } | Self::Detach { channel, .. }) = self;
        channel
    }
}

/// The queues through which one hub receives updates.
#[derive(Clone)]
pub(crate) struct Worker {
    updates: mpsc::Sender<Vec<Update>>,
    revoked: mpsc::Sender<Arc<str>>,
}

impl Worker {
    pub(crate) fn new(updates: mpsc::Sender<Vec<Update>>, revoked: mpsc::Sender<Arc<str>>) -> Self {
        Self { updates, revoked }
    }
}

/// Subscribes to the channels of a node's partitions.
pub(super) struct Session {
    node: Node,
    max_payload: usize,
    commands: mpsc::UnboundedReceiver<HubCommand>,
    workers: Vec<Worker>,
    channels: Channels,
    /// Subjects whose streams are to end.
    revoked: Vec<Arc<str>>,
    ready: watch::Sender<bool>,
}

/// Why a connection ended.
enum End {
    HubsGone,
    Fatal(Error),
    Lost(Box<dyn std::error::Error + Send + Sync>),
}

impl Session {
    pub(super) fn new(
        config: &Config,
        node: Node,
        commands: mpsc::UnboundedReceiver<HubCommand>,
        workers: Vec<Worker>,
        ready: watch::Sender<bool>,
    ) -> Self {
        Self {
            // An answer to an attach holds a page of payloads and then one more.
            max_payload: config.max_payload + (256 << 10),
            commands,
            channels: Channels::new(node.partitions(), workers.len()),
            node,
            workers,
            revoked: Vec::new(),
            ready,
        }
    }

    /// Receives messages until all hubs are gone. Connects again whenever the connection ends.
    ///
    /// # Errors
    /// When trying again is pointless.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            match self.connection(&mut backoff).await {
                End::HubsGone => return Ok(()),
                End::Fatal(error) => return Err(error),
                End::Lost(error) => {
                    throttled!(warn, %error, "the subscription connection is down");
                }
            }
            if self.ready.send_replace(false) {
                self.node.metrics().subscribed.dec();
            }
            self.node.metrics().subscriber_reconnects.inc();
            self.channels.disconnected();
            self.flush().await;
            let pause = sleep(backoff.next());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = self.commands.recv() => match command {
                        Some(command) => self.command(command),
                        None => return Ok(()),
                    },
                }
            }
        }
    }

    /// Runs one connection, from its beginning to its end.
    async fn connection(&mut self, backoff: &mut Backoff) -> End {
        let (mut listener, run) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) if error.is_fatal() => return End::Fatal(error),
            Err(error) => return End::Lost(error.into()),
        };
        let mut attaches: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let faster = match self.node.has_sentinels() {
            true => PROBES_WITH_SENTINELS,
            false => 1,
        };
        let mut probe = interval(PROBE / faster);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let node = self.node.clone();
        attaches.push(async move { node.watch_sentinels().await }.boxed());
        let node = self.node.clone();
        let has_moved = node.has_moved();
        tokio::pin!(has_moved);
        let mut pushes = Vec::new();
        let mut probes = 0_u32;
        loop {
            tokio::select! {
                () = &mut has_moved => return End::Lost(moved().into()),
                read = listener.read(&mut pushes) => {
                    if let Err(error) = read {
                        return End::Lost(error.into());
                    }
                    if !self.node.is_current().await || !self.node.uses(&run) {
                        return End::Lost(moved().into());
                    }
                    for push in pushes.drain(..) {
                        self.push(push);
                    }
                    self.flush().await;
                    if self.hubs_are_gone() {
                        return End::HubsGone;
                    }
                    if self.channels.is_up() && !*self.ready.borrow() {
                        self.ready.send_replace(true);
                        self.node.metrics().subscribed.inc();
                        backoff.reset();
                        tracing::info!("subscribed");
                    }
                }
                command = self.commands.recv() => {
                    let Some(command) = command else {
                        return End::HubsGone;
                    };
                    self.command(command);
                    while let Ok(command) = self.commands.try_recv() {
                        self.command(command);
                    }
                }
                _ = probe.tick() => {
                    if self.channels.tick(Instant::now(), WEDGED * faster) {
                        return End::Lost(io::Error::other("no answer to probes").into());
                    }
                    if !self.node.uses(&run) {
                        return End::Lost(moved().into());
                    }
                    probes += 1;
                    if probes.is_multiple_of(PROBES_PER_LOOK * faster) {
                        let node = self.node.clone();
                        let look = async move {
                            node.look_for_master().await;
                            node.keep_partitions().await;
                        };
                        attaches.push(look.boxed());
                    }
                    for partition in self.node.partitions() {
                        attaches.push(attach(self.node.clone(), AttachCall::probe(partition)).boxed());
                    }
                }
                Some(()) = attaches.next() => continue,
            }
            if let Err(error) = self.send_commands(&mut listener).await {
                return End::Lost(error.into());
            }
            while let Some(call) = self.channels.next_call(Instant::now()) {
                attaches.push(attach(self.node.clone(), call).boxed());
            }
        }
    }

    async fn connect(&mut self) -> Result<(Listener, String), Error> {
        let (mut listener, run) = self.node.listen(self.max_payload).await?;
        self.node.prepare().await?;
        let deployment = self.node.deployment();
        let (names, replica) = (deployment.names(), deployment.replica());
        let partitions = self.node.partitions();
        let answers: Vec<_> = partitions.map(|it| names.answers(it, replica)).collect();
        let names = answers.iter().map(String::as_str).chain([REVOKE]);
        let subscribed = listener.subscribe(names).await;
        subscribed.map_err(redis::RedisError::from)?;
        self.channels.connected();
        Ok((listener, run))
    }

    fn command(&mut self, command: HubCommand) {
        match command {
            HubCommand::Attach {
                worker,
                channel,
                generation,
            } => self.channels.attach(worker, channel, generation),
            HubCommand::Detach { worker, channel } => self.channels.detach(worker, channel),
        }
    }

    async fn send_commands(&mut self, listener: &mut Listener) -> io::Result<()> {
        while let Some(command) = self.channels.next_command() {
            let (Command::Subscribe(channels) | Command::Unsubscribe(channels)) = &command;
            let names = self.node.deployment().names();
            let names: Vec<_> = channels.iter().map(|it| names.live(it)).collect();
            let names = names.iter().map(String::as_str);
            match command {
                Command::Subscribe(_) => listener.subscribe(names).await?,
                Command::Unsubscribe(_) => listener.unsubscribe(names).await?,
            }
        }
        Ok(())
    }

    fn push(&mut self, push: Push) {
        let names = self.node.deployment().names();
        match push {
            Push::Message { channel, payload } if channel == REVOKE.as_bytes() => {
                match std::str::from_utf8(&payload) {
                    Ok(subject) if (1..=MAX_SUBJECT).contains(&subject.len()) => {
                        self.revoked.push(subject.into());
                    }
                    _ => no_subject(payload.len()),
                }
            }
            Push::Oversized { channel } if channel == REVOKE.as_bytes() => {
                no_subject(self.max_payload);
            }
            Push::Message { channel, payload } => match names.subject(&channel) {
                Some((_, Subject::Live(name))) => {
                    if let Some((partition, id)) = self.channels.live(name, &payload) {
                        self.node.deployment().saw(partition, id);
                    }
                }
                Some((partition, Subject::Answer)) => self.answer(partition, &payload),
                _ => {}
            },
            Push::Subscribed { channel } => {
                if let Some((_, Subject::Live(name))) = names.subject(&channel) {
                    self.channels.confirmed(name, Subscription::Confirmed);
                }
            }
            Push::Unsubscribed { channel } => {
                if let Some((_, Subject::Live(name))) = names.subject(&channel) {
                    self.channels.confirmed(name, Subscription::None);
                }
            }
            Push::Pong | Push::Refused { .. } => {}
            Push::Oversized { channel } => {
                throttled!(
                    error,
                    from = %channel.escape_ascii(),
                    "a message larger than --max-payload allows: set it alike on all replicas"
                );
                match names.subject(&channel) {
                    Some((_, Subject::Live(name))) => self.channels.invalidate(name),
                    Some((partition, Subject::Answer)) => self.channels.oversized_answer(partition),
                    _ => {}
                }
            }
        }
    }

    /// A part of the answer to an attach or a probe has arrived: the events of one channel, or the end.
    fn answer(&mut self, partition: u16, message: &Bytes) {
        let Some(end) = message.iter().position(|byte| *byte == b'\n') else {
            return;
        };
        let (name, rest) = (&message[..end], message.slice(end + 1..));
        let deployment = self.node.deployment();
        if name.is_empty() {
            match PartitionState::parse(&rest) {
                Ok(state) => {
                    self.channels.answered(partition, &state);
                    deployment.saw(partition, state.clock);
                }
                Err(error) => throttled!(warn, partition, %error, "invalid answer to a probe"),
            }
            return;
        }
        match HistoryReply::parse(&rest) {
            Ok(reply) => {
                if let Some((partition, complete)) = self.channels.attached(name, reply) {
                    deployment.metrics().attaches.inc();
                    deployment.saw(partition, complete);
                }
            }
            Err(error) => {
                throttled!(warn, channel = %name.escape_ascii(), %error, "invalid answer to an attach");
                self.channels.unreadable(name);
            }
        }
    }

    /// Sends the updates to the hubs. A hub that is far behind slows down the connection. A hub that has ended, for
    /// example while the process stops, does not block the others.
    async fn flush(&mut self) {
        for (worker, queues) in self.workers.iter().enumerate() {
            let batch = self.channels.take_updates(worker);
            if !batch.is_empty() {
                let _gone = queues.updates.send(batch).await;
            }
        }
        for subject in self.revoked.drain(..) {
            for worker in &self.workers {
                let _gone = worker.revoked.send(Arc::clone(&subject)).await;
            }
        }
    }

    fn hubs_are_gone(&self) -> bool {
        let mut updates = self.workers.iter().map(|worker| &worker.updates);
        updates.all(mpsc::Sender::is_closed)
    }
}

/// Makes the call. Redis sends the answer over the pub/sub connection.
async fn attach(node: Node, call: AttachCall) {
    let AttachCall {
        number,
        partition,
        channels,
        mode,
    } = call;
    let deployment = node.deployment();
    let watermark = deployment.watermark(partition).to_string();
    let share = CHANNEL_BYTES.min(ANSWER_BYTES / channels.len().max(1));
    // A call for one large entry brings it, however large it is.
    let at_least: &[u8] = if mode == AttachMode::Alone {
        b"1"
    } else {
        b"0"
    };
    let (number, share) = (number.to_string(), share.to_string());
    let call = deployment.new_call(Function::Attach, partition);
    let call = call.of_channels(channels.iter().map(Channel::as_str));
    let call = call.arg(deployment.replica()).arg(&watermark).arg(&number);
    let call = call.arg(at_least).arg(PAGE_ENTRIES).arg(&share);
    let names = channels.iter().map(Channel::as_str);
    let call = names.fold(call, |call, name| call.arg(name));
    if let Err(error) = node.read::<String>(&call).await {
        throttled!(warn, partition, channels = channels.len(), %error, "attach failed");
    }
}

/// Logs that a message of `ssegw:revoke` ended no stream.
fn no_subject(bytes: usize) {
    throttled!(
        warn,
        bytes,
        "a message of ssegw:revoke is no subject and ended no stream: a subject is 1 to {MAX_SUBJECT} bytes of UTF-8"
    );
}
