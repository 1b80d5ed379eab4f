//! `Relay`: raw messages that are published at the Redis that the deployment leaves are recorded at the target.
//!
//! A reader for each node of the source takes over the subscription of a recorder, with the messages that it had not
//! recorded. The messages of a partition of the target are sent in their order, one call at a time, and each call has a
//! number. So a call whose answer was lost is repeated, and carried out once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::Arc,
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered,
};
use hub::Channel;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::site::{Site, patiently};
use crate::{
    Error,
    backoff::Backoff,
    call::Function,
    node::Node,
    record::{Diverted, Pending},
    serializer, throttled,
    times::PING,
    topology::Topology,
    wire::{Listener, Push},
};

/// Maximum messages and payload bytes of a call.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Bytes that a waiting message costs besides its payload.
const OVERHEAD: usize = 160;
/// A subscription that brings not even answers to pings for this long is dead.
const SILENCE: Duration = Duration::from_secs(5);
/// After a failure that is not the target's silence, a call is tried again after this time.
const AGAIN: Duration = Duration::from_millis(500);

/// A message on its way.
struct Message {
    /// The channel, as the library's `relay_all` takes it.
    name: String,
    payload: Vec<u8>,
    /// Its share of the memory.
    _room: Option<OwnedSemaphorePermit>,
}

/// An item from a reader.
enum Brought {
    Message(u16, Message),
    /// A subscription was cut, so messages may be missing.
    Cut,
    /// A reader has ended in order.
    Ended,
}

/// An entry of the queue to a partition.
enum Entry {
    Message(Message),
    /// Messages may be missing here.
    Lost,
    /// The session ends.
    End,
}

/// Receives raw messages at the source.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) prefix: Arc<str>,
    pub(super) max_payload: usize,
    /// Of the source.
    pub(super) names: Topology,
    /// Of the target.
    pub(super) partitions: hub::Partitions,
    /// Bytes of messages that may wait.
    pub(super) max_pending: usize,
    /// The part of these bytes that is free.
    pub(super) room: Arc<Semaphore>,
    pub(super) stop: watch::Receiver<bool>,
}

/// How far the relay has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Relayed {
    /// Messages that the target has.
    pub(super) messages: u64,
    /// When the last one arrived.
    pub(super) last: Option<Instant>,
    pub(super) interruptions: u64,
}

/// Sends the messages to the target.
pub(super) struct Relay {
    target: Topology,
    session: String,
    queues: BTreeMap<u16, VecDeque<Entry>>,
    numbers: BTreeMap<u16, u64>,
    busy: BTreeSet<u16>,
    under_way: FuturesUnordered<LocalBoxFuture<'static, Result<(u16, u64), Error>>>,
    brought: mpsc::Receiver<Brought>,
    brings: mpsc::Sender<Brought>,
    readers: JoinSet<()>,
    running: usize,
    /// Raw messages are used, so one may be missing after a cut.
    is_raw: bool,
    progress: watch::Sender<Relayed>,
}

impl Relay {
    pub(super) fn new(target: &Site, session: &str, is_raw: bool) -> Self {
        let (brings, brought) = mpsc::channel(1024);
        Self {
            target: target.topology.clone(),
            session: session.to_owned(),
            queues: target
                .partitions()
                .map(|it| (it, VecDeque::new()))
                .collect(),
            numbers: target.partitions().map(|it| (it, 0)).collect(),
            busy: BTreeSet::new(),
            under_way: FuturesUnordered::new(),
            brought,
            brings,
            readers: JoinSet::new(),
            running: 0,
            is_raw,
            progress: watch::Sender::default(),
        }
    }

    pub(super) fn progress(&self) -> watch::Receiver<Relayed> {
        self.progress.subscribe()
    }

    /// Takes over the subscription of a recorder. Its messages wait until [`Relay::run`].
    pub(super) fn take_over(&mut self, reader: &Reader, node: Node, diverted: Diverted) {
        let own: BTreeSet<_> = diverted.pending.keys().copied().collect();
        for pending in diverted.pending.into_values().flatten() {
            if let Some((to, message)) = reader.pending(&pending) {
                self.push(to, Entry::Message(message));
            }
        }
        let (reader, brings) = (reader.clone(), self.brings.clone());
        self.running += 1;
        self.readers
            .spawn(async move { reader.run(node, diverted.listener, own, &brings).await });
    }

    fn push(&mut self, partition: u16, entry: Entry) {
        if matches!(entry, Entry::Message(_)) {
            self.is_raw = true;
            self.progress
                .send_modify(|progress| progress.last = Some(Instant::now()));
        }
        self.queues.entry(partition).or_default().push_back(entry);
    }

    /// The session of a partition begins. If `is_lost`, messages since the session before may be missing there.
    pub(super) async fn begin(&self, partition: u16, is_lost: bool) -> Result<(), Error> {
        patiently(async || begin(&self.target, partition, &self.session, is_lost).await).await
    }

    /// Sends messages until all readers have ended, because they were stopped, and nothing waits.
    ///
    /// # Errors
    /// When another command relays.
    pub(super) async fn run(mut self) -> Result<Relayed, Error> {
        let mut is_ending = false;
        loop {
            self.send();
            if self.running == 0 && !is_ending {
                is_ending = true;
                let partitions: Vec<_> = self.queues.keys().copied().collect();
                for partition in partitions {
                    self.push(partition, Entry::End);
                }
                continue;
            }
            if is_ending && self.under_way.is_empty() {
                return Ok(*self.progress.borrow());
            }
            tokio::select! {
                Some(sent) = self.under_way.next() => {
                    let (partition, count) = sent?;
                    self.busy.remove(&partition);
                    self.progress.send_modify(|progress| progress.messages += count);
                }
                Some(brought) = self.brought.recv(), if self.running > 0 => match brought {
                    Brought::Message(to, message) => self.push(to, Entry::Message(message)),
                    Brought::Cut if self.is_raw => {
                        self.progress.send_modify(|progress| progress.interruptions += 1);
                        let partitions: Vec<_> = self.queues.keys().copied().collect();
                        for partition in partitions {
                            self.push(partition, Entry::Lost);
                        }
                    }
                    Brought::Cut => {}
                    Brought::Ended => self.running -= 1,
                },
            }
        }
    }

    /// Starts a call for each partition that has messages and no call under way.
    fn send(&mut self) {
        for (partition, queue) in &mut self.queues {
            if queue.is_empty() || !self.busy.insert(*partition) {
                continue;
            }
            let number = self.numbers.entry(*partition).or_default();
            let (target, session) = (self.target.clone(), self.session.clone());
            let partition = *partition;
            if matches!(queue.front(), Some(Entry::Lost)) {
                queue.pop_front();
                *number = 0;
                let begin = async move {
                    let lost = until_sent(async || begin(&target, partition, &session, true).await);
                    lost.await.map(|()| (partition, 0))
                };
                self.under_way.push(begin.boxed_local());
                continue;
            }
            let (mut batch, mut bytes, mut is_end) = (Vec::new(), 0, false);
            while batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
                match queue.pop_front() {
                    Some(Entry::Message(message)) => {
                        bytes += message.payload.len();
                        batch.push(message);
                    }
                    Some(Entry::End) if batch.is_empty() => {
                        is_end = true;
                        break;
                    }
                    Some(other) => {
                        queue.push_front(other);
                        break;
                    }
                    None => break,
                }
            }
            *number += 1;
            let number = *number;
            let send = async move {
                let send = until_sent(async || {
                    send(&target, partition, &session, number, &batch, is_end).await
                });
                send.await.map(|()| (partition, batch.len() as u64))
            };
            self.under_way.push(send.boxed_local());
        }
    }
}

/// Repeats a call until the target has carried it out.
async fn until_sent(mut call: impl AsyncFnMut() -> Result<(), Error>) -> Result<(), Error> {
    loop {
        match patiently(&mut call).await {
            Err(error) if !matches!(error, Error::Fenced) && !error.is_fatal() => {
                throttled!(warn, %error, "raw messages of the earlier redis wait for the target");
                sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn begin(
    target: &Topology,
    partition: u16,
    session: &str,
    is_lost: bool,
) -> Result<(), Error> {
    let deployment = target.deployment();
    let watermark = deployment.watermark(partition).to_string();
    let call = deployment.new_call(Function::Relay, partition);
    let call = call.arg(deployment.replica()).arg(&watermark);
    let call = call.arg(session).arg("0");
    let call = call.arg(if is_lost { "1" } else { "0" });
    target.call::<u8>(&call).await.map(drop)
}

async fn send(
    target: &Topology,
    partition: u16,
    session: &str,
    number: u64,
    batch: &[Message],
    is_end: bool,
) -> Result<(), Error> {
    let deployment = target.deployment();
    let (watermark, number) = (
        deployment.watermark(partition).to_string(),
        number.to_string(),
    );
    let channels = batch
        .iter()
        .map(|message| message.name.trim_start_matches('\0'));
    let call = deployment.new_call(Function::Relay, partition);
    let call = call.of_channels(channels).arg(deployment.replica());
    let mut call = call.arg(&watermark).arg(session).arg(&number);
    for message in batch {
        call = call.arg(&message.name).arg(&message.payload);
    }
    if is_end {
        call = call.arg("-");
    }
    target.call::<u8>(&call).await.map(drop)
}

impl Reader {
    /// A message that a recorder had received.
    fn pending(&self, pending: &Pending) -> Option<(u16, Message)> {
        let channel = pending.channel()?;
        let message = Message {
            name: pending.name().into_owned(),
            payload: pending.payload.to_vec(),
            _room: None,
        };
        Some((self.partitions.of(channel.as_str()), message))
    }

    /// Reads until it is stopped. `own` are the partitions of the source whose messages it passes on.
    async fn run(
        mut self,
        node: Node,
        listener: Listener,
        own: BTreeSet<u16>,
        brings: &mpsc::Sender<Brought>,
    ) {
        let mut next = Some(listener);
        let mut backoff = Backoff::default();
        loop {
            let listener = match next.take() {
                Some(listener) => Ok(listener),
                None => self.subscribe(&node).await,
            };
            let ended = match listener {
                Ok(listener) => {
                    let read = self.read(listener, &own, brings).await;
                    if read.is_ok() {
                        break;
                    }
                    if brings.send(Brought::Cut).await.is_err() {
                        return;
                    }
                    backoff.reset();
                    read.err().map(|error| error.to_string())
                }
                Err(error) => Some(error.to_string()),
            };
            throttled!(
                warn,
                error = ended,
                "no raw messages are received from --from"
            );
            let mut stop = self.stop.clone();
            tokio::select! {
                () = is_due(&mut stop) => break,
                () = sleep(backoff.next()) => {}
            }
        }
        let _gone = brings.send(Brought::Ended).await;
    }

    async fn subscribe(&self, node: &Node) -> Result<Listener, Error> {
        let (mut listener, _) = node.listen(self.max_payload).await?;
        let subscribed = listener.subscribe_raw(&self.prefix).await;
        subscribed.map_err(redis::RedisError::from)?;
        Ok(listener)
    }

    /// Passes messages on until it is stopped, and has unsubscribed.
    async fn read(
        &mut self,
        mut listener: Listener,
        own: &BTreeSet<u16>,
        brings: &mpsc::Sender<Brought>,
    ) -> io::Result<()> {
        let mut stop = self.stop.clone();
        let (mut is_stopping, mut heard) = (false, Instant::now());
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pushes = Vec::new();
        loop {
            tokio::select! {
                read = listener.read(&mut pushes) => {
                    read?;
                    heard = Instant::now();
                    for push in pushes.drain(..) {
                        match push {
                            Push::Message { channel, payload } => {
                                if let Some((to, message)) = self.message(&channel, &payload, own).await
                                    && brings.send(Brought::Message(to, message)).await.is_err()
                                {
                                    return Ok(());
                                }
                            }
                            Push::Unsubscribed { .. } if is_stopping => return Ok(()),
                            _ => {}
                        }
                    }
                    // The target may have been slow, and not the source.
                    heard = heard.max(Instant::now());
                }
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(io::Error::other("no sign of life"));
                    }
                    listener.ping().await?;
                }
                () = is_due(&mut stop), if !is_stopping => {
                    is_stopping = true;
                    listener.unsubscribe_prefix(&self.prefix).await?;
                }
            }
        }
    }

    /// Takes what a recorder would take.
    async fn message(
        &self,
        raw: &[u8],
        payload: &[u8],
        own: &BTreeSet<u16>,
    ) -> Option<(u16, Message)> {
        let name = raw.strip_prefix(self.prefix.as_bytes())?;
        let channel: Channel = self.partitions.channel_from_bytes(name).ok()?;
        let from = self.names.deployment().partitions().of(channel.as_str());
        if !own.contains(&from) {
            return None;
        }
        if let Err(reason) = serializer::examine(payload, self.max_payload) {
            throttled!(warn, %channel, reason = reason.as_str(), "a raw message was rejected");
            return None;
        }
        let bytes = (payload.len() + OVERHEAD).min(self.max_pending);
        let bytes = u32::try_from(bytes).ok()?;
        let room = Arc::clone(&self.room).acquire_many_owned(bytes);
        let message = Message {
            name: channel.as_str().to_owned(),
            payload: payload.to_vec(),
            _room: room.await.ok(),
        };
        Some((channel.partition(), message))
    }
}

/// Resolves when the wish is there.
async fn is_due(wish: &mut watch::Receiver<bool>) {
    let _gone = wish.wait_for(|wish| *wish).await;
}
