//! `Session`: the pub/sub connection to one node, for all hubs of this process.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, Update};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    attaches::{AttachCall, AttachMode},
    channels::{Channels, Command, Subscription, Wants},
    history::PAGE_ENTRIES,
    ready::Ready,
};
use crate::{
    Config, Error, MAX_SUBJECT,
    backoff::Backoff,
    call::Function,
    entry::{HistoryReply, PartitionState},
    names::{REVOKE, Subject, run_part},
    node::Node,
    throttled,
    times::{PROBE, PROBES_WITH_SENTINELS},
    wire::{Listener, Push, moved},
};

/// The session looks for another master once in this many probes.
const PROBES_PER_LOOK: u32 = 5;
/// Between two looks whether a migration has opened this Redis.
const FILLING: Duration = Duration::from_millis(250);
/// A connection is given up if it has brought no answer to more probes than this.
const WEDGED: u32 = 5;
/// Bytes of payload in the answer to one attach, shared among its channels. All answers under way have to fit into the
/// 8 MB that Redis holds for a subscriber for long, together with the messages published at the same time. Redis
/// disconnects a subscriber above that limit.
const ANSWER_BYTES: usize = 1 << 20;
/// Of these, one channel gets at most this many. Older events are read as pages.
const CHANNEL_BYTES: usize = 128 << 10;

/// A command to a session.
pub(super) enum SessionCommand {
    Hub(HubCommand),
    /// Another session will hand over the partition.
    Expect(u16),
    /// The partition is here from now on.
    Accept {
        partition: u16,
        wants: Wants,
    },
    /// The partition is handed over to another session.
    Release {
        partition: u16,
        to: mpsc::UnboundedSender<Self>,
    },
}

impl SessionCommand {
    fn partition(&self) -> u16 {
        match self {
            Self::Hub(command) => command.channel().partition(),
            Self::Expect(partition)
            | Self::Accept { partition, .. }
            | Self::Release { partition, .. } => *partition,
        }
    }
}

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
    commands: mpsc::UnboundedReceiver<SessionCommand>,
    workers: Vec<Worker>,
    channels: Channels,
    /// Partitions that are expected, and the commands about them.
    expected: BTreeMap<u16, Vec<SessionCommand>>,
    /// Partitions that are handed over with the next flush, so that hubs receive all updates of this session first.
    leaving: Vec<(mpsc::UnboundedSender<SessionCommand>, SessionCommand)>,
    /// The server process of this connection.
    run: String,
    /// A subscription was refused on this connection.
    is_refused: bool,
    /// Partitions that were accepted and not subscribed to yet on this connection.
    arrived: Vec<u16>,
    /// Partitions whose answers Redis has ended the subscription to. With the next probes they are subscribed again.
    ended: Vec<u16>,
    /// Subjects whose streams are to end.
    revoked: Vec<Arc<str>>,
    ready: Ready,
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
        commands: mpsc::UnboundedReceiver<SessionCommand>,
        workers: Vec<Worker>,
        ready: Ready,
    ) -> Self {
        Self {
            // An answer to an attach holds a page of payloads and then one more.
            max_payload: config.max_payload + (256 << 10),
            commands,
            channels: Channels::new(config.partitions, workers.len()),
            expected: BTreeMap::new(),
            leaving: Vec::new(),
            run: String::new(),
            is_refused: false,
            arrived: Vec::new(),
            ended: Vec::new(),
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
            for partition in &*self.channels.partitions() {
                self.ready.set(*partition, false);
            }
            self.node.metrics().subscriber_reconnects.inc();
            self.channels.disconnected();
            self.flush().await;
            // A migration waits for gateways, and its clients wait for this one.
            let pause = match self.ready.waits_for_migration() {
                true => FILLING,
                false => backoff.next(),
            };
            let pause = sleep(pause);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = self.commands.recv() => match command {
                        Some(command) => {
                            self.command(command);
                            self.flush().await;
                        }
                        None => return Ok(()),
                    },
                }
            }
        }
    }

    /// Runs one connection, from its beginning to its end.
    async fn connection(&mut self, backoff: &mut Backoff) -> End {
        let node = self.node.clone();
        let connect = connect(&node, self.max_payload);
        tokio::pin!(connect);
        let connected = loop {
            tokio::select! {
                connected = &mut connect => break connected,
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.command(command);
                        self.flush().await;
                    }
                    None => return End::HubsGone,
                },
            }
        };
        let waits = matches!(connected, Err(Error::Migrating));
        self.ready.set_filled(waits);
        let (mut listener, run) = match connected {
            Ok(connected) => connected,
            Err(error) if error.is_fatal() => return End::Fatal(error),
            Err(error) => return End::Lost(error.into()),
        };
        self.run.clone_from(&run);
        self.channels.connected();
        self.arrived = self.channels.partitions().to_vec();
        self.ended.clear();
        let mut attaches: FuturesUnordered<BoxFuture<'static, Option<u16>>> =
            FuturesUnordered::new();
        let faster = match self.node.is_watched() {
            true => PROBES_WITH_SENTINELS,
            false => 1,
        };
        let mut probe = interval(PROBE / faster);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let node = self.node.clone();
        let watch = async move {
            node.watch_sentinels().await;
            None
        };
        attaches.push(watch.boxed());
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
                    let partitions = || self.channels.partitions();
                    if !self.node.is_current(partitions).await || !self.node.uses(&run) {
                        return End::Lost(moved().into());
                    }
                    for push in pushes.drain(..) {
                        self.push(push);
                    }
                    self.flush().await;
                    if std::mem::take(&mut self.is_refused) {
                        return End::Lost(io::Error::other("a partition is on another node").into());
                    }
                    if self.hubs_are_gone() {
                        return End::HubsGone;
                    }
                    if self.are_ready() {
                        backoff.reset();
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
                    if !self.leaving.is_empty() {
                        self.flush().await;
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
                            None
                        };
                        attaches.push(look.boxed());
                    }
                    let ended = std::mem::take(&mut self.ended).into_iter();
                    self.arrived.extend(ended.filter(|it| self.channels.has(*it)));
                    for partition in &*self.channels.partitions() {
                        attaches.push(attach(self.node.clone(), &self.run, AttachCall::probe(*partition)).boxed());
                    }
                }
                Some(elsewhere) = attaches.next() => {
                    if let Some(partition) = elsewhere {
                        self.channels.refused(partition);
                        self.ready.set(partition, false);
                    }
                    continue;
                }
            }
            for partition in std::mem::take(&mut self.arrived) {
                let deployment = self.node.deployment();
                let answers =
                    deployment
                        .names()
                        .answers(partition, deployment.replica(), &self.run);
                if let Err(error) = listener.subscribe([&*answers]).await {
                    return End::Lost(error.into());
                }
                attaches.push(
                    attach(self.node.clone(), &self.run, AttachCall::probe(partition)).boxed(),
                );
            }
            if let Err(error) = self.send_commands(&mut listener).await {
                return End::Lost(error.into());
            }
            while let Some(call) = self.channels.next_call(Instant::now()) {
                attaches.push(attach(self.node.clone(), &self.run, call).boxed());
            }
        }
    }

    /// Notes which partitions are ready. Returns whether all are.
    fn are_ready(&self) -> bool {
        if !self.channels.are_requested() {
            return false;
        }
        let partitions = self.channels.partitions();
        let answered = partitions
            .iter()
            .filter(|it| self.channels.has_answered(**it));
        let mut count = 0;
        for partition in answered {
            count += 1;
            if self.ready.set(*partition, true) {
                tracing::info!(partition, "subscribed");
            }
        }
        count == partitions.len()
    }

    fn command(&mut self, command: SessionCommand) {
        if let Some(waiting) = self.expected.get_mut(&command.partition())
            && !matches!(command, SessionCommand::Accept { .. })
        {
            waiting.push(command);
            return;
        }
        match command {
            SessionCommand::Hub(HubCommand::Attach {
                worker,
                channel,
                generation,
            }) => self.channels.attach(worker, channel, generation),
            SessionCommand::Hub(HubCommand::Detach { worker, channel }) => {
                self.channels.detach(worker, channel);
            }
            SessionCommand::Expect(partition) => {
                self.expected.insert(partition, Vec::new());
            }
            SessionCommand::Accept { partition, wants } => {
                self.channels.accept(partition, wants);
                self.arrived.push(partition);
                let waiting = self.expected.remove(&partition).unwrap_or_default();
                waiting
                    .into_iter()
                    .for_each(|command| self.command(command));
            }
            SessionCommand::Release { partition, to } => {
                let wants = self.channels.release(partition);
                self.arrived.retain(|it| *it != partition);
                self.ready.set(partition, false);
                self.leaving
                    .push((to, SessionCommand::Accept { partition, wants }));
            }
        }
    }

    async fn send_commands(&mut self, listener: &mut Listener) -> io::Result<()> {
        while let Some(mut command) = self.channels.next_command() {
            let subscribes = matches!(command, Command::Subscribe(_));
            let (Command::Subscribe(channels) | Command::Unsubscribe(channels)) = &mut command;
            channels.sort_unstable_by_key(Channel::partition);
            let names = self.node.deployment().names();
            // A Redis Cluster takes names of one partition at a time.
            for channels in channels.chunk_by(|one, next| one.partition() == next.partition()) {
                let names: Vec<_> = channels
                    .iter()
                    .map(|it| names.live(it, &self.run))
                    .collect();
                let names = names.iter().map(String::as_str);
                match subscribes {
                    true => listener.subscribe(names).await?,
                    false => listener.unsubscribe(names).await?,
                }
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
                // Redis ends subscriptions itself when the partition has moved to another node. The partition is about
                // to be released, unless it has moved back since.
                let is_ended = match names.subject(&channel) {
                    Some((_, Subject::Live(name))) => {
                        self.channels.confirmed(name, Subscription::None)
                    }
                    Some((partition, _)) => {
                        self.ended.push(partition);
                        true
                    }
                    None => false,
                };
                if is_ended {
                    self.node.look();
                }
            }
            Push::Pong => {}
            Push::Refused { error } => {
                tracing::debug!(error = %error.escape_ascii(), "a subscription was refused");
                self.is_refused = true;
                self.node.look();
            }
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
                    if state.has_moved {
                        self.ready.set_moved();
                    }
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
        for (to, accept) in self.leaving.drain(..) {
            // If that session is gone, the hubs are.
            let _gone = to.send(accept);
        }
    }

    fn hubs_are_gone(&self) -> bool {
        let mut updates = self.workers.iter().map(|worker| &worker.updates);
        updates.all(mpsc::Sender::is_closed)
    }
}

/// Connects to the node, makes it ready, and subscribes to revocations.
async fn connect(node: &Node, max_payload: usize) -> Result<(Listener, String), Error> {
    let (mut listener, run) = node.listen(max_payload).await?;
    node.prepare().await?;
    let subscribed = listener.subscribe_public(REVOKE).await;
    subscribed.map_err(redis::RedisError::from)?;
    Ok((listener, run))
}

/// Makes the call. Redis sends the answer over the pub/sub connection. Returns the partition if it is on its way to
/// another node.
fn attach(
    node: Node,
    run: &str,
    call: AttachCall,
) -> impl Future<Output = Option<u16>> + Send + use<> {
    let run = run_part(run);
    async move { call_for(&node, &run, call).await }
}

async fn call_for(node: &Node, run: &str, call: AttachCall) -> Option<u16> {
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
    let call = call.arg(deployment.replica()).arg(&watermark);
    let call = call.arg(run).arg(&number);
    let call = call.arg(at_least).arg(PAGE_ENTRIES).arg(&share);
    let names = channels.iter().map(Channel::as_str);
    let call = names.fold(call, |call, name| call.arg(name));
    let error = node.read::<String>(&call).await.err()?;
    let is_elsewhere = error.is_elsewhere();
    throttled!(warn, partition, channels = channels.len(), %error, "attach failed");
    is_elsewhere.then_some(partition)
}

/// Logs that a message of `ssegw:revoke` ended no stream.
fn no_subject(bytes: usize) {
    throttled!(
        warn,
        bytes,
        "a message of ssegw:revoke is no subject and ended no stream: a subject is 1 to {MAX_SUBJECT} bytes of UTF-8"
    );
}
