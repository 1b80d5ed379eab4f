//! `Subscriber`: one pub/sub connection for all hubs of this process, and the attach procedure.
//!
//! An *attach* is SUBSCRIBE, its confirmation, then one function call. Redis sends the answer of the call over the
//! pub/sub connection itself: after every message that it already contains, and before every later one. So a reader
//! that starts at the answer misses nothing. The first reader of a channel, a new connection, and a `prev` that does
//! not fit all cause an attach.
//!
//! A probe is an attach of no channel. Its answer shows up to which id every partition is complete, and that the
//! connection delivers at all. A connection that only looks alive is given up.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, EventId, Partitions, Update};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    Config, Error, MAX_SUBJECT,
    backoff::Backoff,
    call::Function,
    connection::Redis,
    entry::{self, Excerpt, Live, Stand},
    history::PAGE_ENTRIES,
    metrics::Metrics,
    names::{self, Subject},
    seldom,
    seldom::Seldom,
    times::{PROBE, PROBES_WITH_SENTINELS},
    wire::{Listener, Push, moved},
};

/// The subscriber looks for another master once in this many probes.
const PROBES_PER_LOOK: u32 = 5;
/// An attach without an answer within this time is called for again.
const UNANSWERED: Duration = Duration::from_secs(2);
/// A connection is given up if it has brought no answer to this many probes.
const WEDGED: u32 = 5;
/// Channels of one SUBSCRIBE, and of one attach.
const CHUNK: usize = 64;
/// Maximum channels whose SUBSCRIBE or UNSUBSCRIBE is not confirmed yet. The subscriber does not read while it writes
/// these commands, and Redis continues to carry them out. Their confirmations, of up to 330 bytes each, fill the output
/// buffer, whose limits decide when Redis disconnects a subscriber.
const MAX_UNCONFIRMED: usize = 1024;
/// Attaches under way at once.
const MAX_CALLS: usize = 4;
/// Bytes of payload in the answer to one attach, shared among its channels. All answers under way have to fit into the
/// 8 MB that Redis holds for a subscriber for long, together with the messages published at the same time. Redis
/// disconnects a subscriber above that limit.
const ANSWER_BYTES: usize = 1 << 20;
/// Of these, one channel gets at most this many. Older events are read as pages.
const CHANNEL_BYTES: usize = 128 << 10;
/// The connection is not read while this many batches wait for a hub.
pub(crate) const QUEUE: usize = 64;

/// A request of a hub.
pub(crate) enum Command {
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

/// Subscribes to the channels that the hubs want.
pub struct Subscriber {
    redis: Redis,
    max_payload: usize,
    partitions: Partitions,
    metrics: Metrics,
    commands: mpsc::UnboundedReceiver<Command>,
    workers: Vec<Worker>,
    channels: HashMap<Channel, Wanted>,
    /// Channels that may have to be subscribed, attached or unsubscribed.
    dirty: Vec<Channel>,
    /// Some of these, which the next probe examines.
    later: Vec<Channel>,
    /// Channels to be subscribed, and to be unsubscribed, as soon as few enough are unconfirmed.
    enter: VecDeque<Channel>,
    leave: VecDeque<Channel>,
    /// Confirmations that have not arrived yet.
    unconfirmed: usize,
    /// Channels that wait for a call, by partition; never an empty queue.
    due: BTreeMap<u16, VecDeque<Channel>>,
    calls: Vec<Call>,
    /// The number of the last call. A probe has the number zero.
    last_call: u64,
    stands: Vec<Position>,
    /// Subjects whose streams are to end.
    revoked: Vec<Arc<str>>,
    ready: watch::Sender<bool>,
}

/// The queues through which one hub receives updates.
pub(crate) struct Worker {
    updates: mpsc::Sender<Vec<Update>>,
    revoked: mpsc::Sender<Arc<str>>,
    /// Updates for it from the messages that were read last.
    batch: Vec<Update>,
}

impl Worker {
    pub(crate) fn new(updates: mpsc::Sender<Vec<Update>>, revoked: mpsc::Sender<Arc<str>>) -> Self {
        Self {
            updates,
            revoked,
            batch: Vec::new(),
        }
    }
}

/// A channel that some hub wants, or wanted until just now.
struct Wanted {
    channel: Channel,
    subscription: Subscription,
    /// An attach is due, or its answer has not arrived yet. That answer also attaches the other hubs that want the
    /// channel until then.
    attaching: bool,
    newest: Newest,
    /// The last answer could not be used. The attach is tried again with the next probe, not at once.
    is_unanswerable: bool,
    /// Every event up to this id has been received, while any hub is attached.
    complete: EventId,
    hubs: Vec<Interest>,
}

/// A channel's subscription on the present connection. Only one command at a time waits or is under way, so that a
/// confirmation cannot be taken for that of another command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subscription {
    None,
    Asked,
    Confirmed,
    Leaving,
}

/// How an attach brings the newest event of a channel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Newest {
    /// Together with other channels.
    Small,
    /// In an answer of its own.
    Large,
    /// Not at all, because it is larger than any message that is accepted here. Readers get it as a page.
    Huge,
}

struct Interest {
    worker: usize,
    generation: u64,
    attached: bool,
}

impl Wanted {
    /// Whether some hub waits for an attach that has not been called for.
    fn is_due(&self) -> bool {
        !self.attaching && self.hubs.iter().any(|interest| !interest.attached)
    }
}

/// An attach whose answer is not complete yet.
struct Call {
    number: u64,
    partition: u16,
    channels: Vec<Channel>,
    since: Instant,
}

/// How far a partition is complete, by the messages on the present connection.
#[derive(Clone, Copy, Default)]
struct Position {
    complete: EventId,
    /// From the last answer; none before the first.
    horizon: Option<EventId>,
    /// Probes since the last answer.
    unanswered: u32,
}

impl Subscriber {
    pub(crate) fn new(
        config: &Config,
        redis: Redis,
        metrics: Metrics,
        commands: mpsc::UnboundedReceiver<Command>,
        workers: Vec<Worker>,
        ready: watch::Sender<bool>,
    ) -> Self {
        Self {
            redis,
            // An answer to an attach holds a page of payloads and then one more.
            max_payload: config.max_payload + (256 << 10),
            partitions: config.partitions,
            metrics,
            commands,
            workers,
            revoked: Vec::new(),
            channels: HashMap::new(),
            dirty: Vec::new(),
            later: Vec::new(),
            enter: VecDeque::new(),
            leave: VecDeque::new(),
            unconfirmed: 0,
            due: BTreeMap::new(),
            calls: Vec::new(),
            last_call: 0,
            stands: vec![Position::default(); usize::from(config.partitions.count())],
            ready,
        }
    }

    /// Receives messages until all hubs are gone. Connects again whenever the connection ends.
    ///
    /// # Errors
    /// When trying again is pointless.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            match self.session(&mut backoff).await {
                End::HubsGone => return Ok(()),
                End::Fatal(error) => return Err(error),
                End::Lost(error) => {
                    seldom!(warn, %error, "the subscription connection is down");
                }
            }
            self.ready.send_replace(false);
            self.metrics.subscribed.set(0);
            self.metrics.subscriber_reconnects.inc();
            self.lose_all().await;
            let pause = sleep(backoff.next());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = self.commands.recv() => match command {
                        // The next session looks at every channel anyway.
                        Some(command) => {
                            self.note(command);
                            self.dirty.clear();
                        }
                        None => return Ok(()),
                    },
                }
            }
        }
    }

    /// Runs one connection, from its beginning to its end.
    async fn session(&mut self, backoff: &mut Backoff) -> End {
        let (mut listener, run) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) if error.is_fatal() => return End::Fatal(error),
            Err(error) => return End::Lost(error.into()),
        };
        let mut attaches: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let faster = if self.redis.has_sentinels() {
            PROBES_WITH_SENTINELS
        } else {
            1
        };
        let mut probe = interval(PROBE / faster);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let redis = self.redis.clone();
        attaches.push(async move { redis.watch_sentinels().await }.boxed());
        let redis = self.redis.clone();
        let has_moved = redis.has_moved();
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
                    if !self.redis.is_current().await || !self.redis.is_at(&run) {
                        return End::Lost(moved().into());
                    }
                    for push in pushes.drain(..) {
                        self.push(push);
                    }
                    self.flush().await;
                    if self.hubs_are_gone() {
                        return End::HubsGone;
                    }
                    if self.is_up() && !*self.ready.borrow() {
                        self.ready.send_replace(true);
                        self.metrics.subscribed.set(1);
                        backoff.reset();
                        tracing::info!("subscribed");
                    }
                }
                command = self.commands.recv() => {
                    let Some(command) = command else {
                        return End::HubsGone;
                    };
                    self.note(command);
                    while let Ok(command) = self.commands.try_recv() {
                        self.note(command);
                    }
                }
                _ = probe.tick() => {
                    if self.is_wedged(WEDGED * faster) {
                        return End::Lost(io::Error::other("no answer to probes").into());
                    }
                    if !self.redis.is_at(&run) {
                        return End::Lost(moved().into());
                    }
                    probes += 1;
                    if probes.is_multiple_of(PROBES_PER_LOOK * faster) {
                        let redis = self.redis.clone();
                        attaches.push(async move { redis.look_for_master().await }.boxed());
                    }
                    for partition in self.partitions.all() {
                        attaches.push(self.attach(partition, 0, &[], 0));
                        self.stands[usize::from(partition)].unanswered += 1;
                    }
                    self.give_up_calls();
                    self.dirty.append(&mut self.later);
                    self.shrink();
                }
                Some(()) = attaches.next() => continue,
            }
            if let Err(error) = self.settle(&mut listener).await {
                return End::Lost(error.into());
            }
            while let Some(attach) = self.next_call() {
                attaches.push(attach);
            }
        }
    }

    async fn connect(&mut self) -> Result<(Listener, String), Error> {
        let (mut listener, run) = self.redis.listen(self.max_payload).await?;
        self.redis.prepare().await?;
        let (names, replica) = (self.redis.names(), self.redis.replica());
        let fences: Vec<_> = self
            .partitions
            .all()
            .map(|partition| names.fence(partition, replica))
            .collect();
        let names = fences.iter().map(String::as_str).chain([names::REVOKE]);
        listener
            .subscribe(names)
            .await
            .map_err(redis::RedisError::from)?;
        self.dirty.extend(self.channels.keys().cloned());
        Ok((listener, run))
    }

    fn note(&mut self, command: Command) {
        match command {
            Command::Attach {
                worker,
                channel,
                generation,
            } => {
                let wanted = self
                    .channels
                    .entry(channel.clone())
                    .or_insert_with(|| Wanted {
                        channel: channel.clone(),
                        subscription: Subscription::None,
                        attaching: false,
                        newest: Newest::Small,
                        is_unanswerable: false,
                        complete: EventId::ZERO,
                        hubs: Vec::new(),
                    });
                wanted.hubs.retain(|interest| interest.worker != worker);
                wanted.hubs.push(Interest {
                    worker,
                    generation,
                    attached: false,
                });
                self.dirty.push(channel);
            }
            Command::Detach { worker, channel } => {
                let Some(wanted) = self.channels.get_mut(&channel) else {
                    return;
                };
                wanted.hubs.retain(|interest| interest.worker != worker);
                if wanted.hubs.is_empty() && wanted.subscription == Subscription::None {
                    self.channels.remove(&channel);
                } else {
                    self.dirty.push(channel);
                }
            }
        }
    }

    /// Subscribes to wanted channels, unsubscribes from others, and queues channels for an attach.
    async fn settle(&mut self, listener: &mut Listener) -> io::Result<()> {
        for channel in self.dirty.drain(..) {
            let Some(wanted) = self.channels.get_mut(&channel) else {
                continue;
            };
            match wanted.subscription {
                Subscription::None if wanted.hubs.is_empty() => {
                    self.channels.remove(&channel);
                }
                Subscription::None => {
                    wanted.subscription = Subscription::Asked;
                    self.enter.push_back(channel);
                }
                Subscription::Confirmed if wanted.hubs.is_empty() => {
                    wanted.subscription = Subscription::Leaving;
                    self.leave.push_back(channel);
                }
                Subscription::Confirmed if wanted.is_due() => {
                    wanted.attaching = true;
                    let queue = self.due.entry(channel.partition()).or_default();
                    queue.push_back(channel);
                }
                Subscription::Confirmed | Subscription::Asked | Subscription::Leaving => {}
            }
        }
        self.ask(listener).await
    }

    /// Sends as many commands as are allowed now. Confirmations allow more.
    async fn ask(&mut self, listener: &mut Listener) -> io::Result<()> {
        loop {
            let room = MAX_UNCONFIRMED.saturating_sub(self.unconfirmed);
            let enters = !self.enter.is_empty();
            let most = room.min(CHUNK);
            let names: Vec<_> = if enters {
                self.next_enters(most)
            } else {
                let count = self.leave.len().min(most);
                let next = self.leave.drain(..count);
                next.map(|channel| self.redis.names().live(&channel))
                    .collect()
            };
            if names.is_empty() {
                if enters && self.enter.is_empty() {
                    continue;
                }
                return Ok(());
            }
            self.unconfirmed += names.len();
            let names = names.iter().map(String::as_str);
            if enters {
                listener.subscribe(names).await?;
            } else {
                listener.unsubscribe(names).await?;
            }
        }
    }

    /// The channels to subscribe to next. A channel whose clients have left is skipped, so that others do not wait for
    /// it.
    fn next_enters(&mut self, most: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < most
            && let Some(channel) = self.enter.pop_front()
        {
            match self.channels.get(&channel) {
                Some(wanted) if wanted.hubs.is_empty() => drop(self.channels.remove(&channel)),
                Some(_) => names.push(self.redis.names().live(&channel)),
                None => {}
            }
        }
        names
    }

    /// Removes channels whose clients have left from the front of the queues of those to be attached.
    fn skip_unwanted(&mut self) {
        self.due.retain(|_, queue| {
            while let Some(channel) = queue.front() {
                let wanted = self.channels.get_mut(channel);
                if let Some(wanted) = wanted {
                    if !wanted.hubs.is_empty() {
                        break;
                    }
                    wanted.attaching = false;
                    self.dirty.push(channel.clone());
                }
                queue.pop_front();
            }
            !queue.is_empty()
        });
    }

    /// Makes the next call for an attach, if one is due and not too many are under way.
    fn next_call(&mut self) -> Option<BoxFuture<'static, ()>> {
        // A large event has an answer of its own, and no other answer at the same time.
        self.skip_unwanted();
        let is_large = |channel: &Channel| {
            let wanted = self.channels.get(channel);
            wanted.is_some_and(|wanted| wanted.newest != Newest::Small)
        };
        let mut under_way = self.calls.iter().flat_map(|call| &call.channels);
        if self.calls.len() >= MAX_CALLS || under_way.any(is_large) {
            return None;
        }
        let (partition, queue) = self.due.iter().next()?;
        let (partition, is_alone) = (*partition, queue.front().is_some_and(is_large));
        if is_alone && !self.calls.is_empty() {
            return None;
        }
        let small = queue
            .iter()
            .take(CHUNK)
            .take_while(|channel| !is_large(channel));
        let count = small.count().max(1);
        let queue = self.due.get_mut(&partition)?;
        let channels: Vec<_> = queue.drain(..count).collect();
        if queue.is_empty() {
            self.due.remove(&partition);
        }
        self.last_call += 1;
        let is_huge = |channel: &Channel| {
            let wanted = self.channels.get(channel);
            wanted.is_some_and(|wanted| wanted.newest == Newest::Huge)
        };
        let at_least = u8::from(is_alone && !channels.iter().any(is_huge));
        let call = self.attach(partition, self.last_call, &channels, at_least);
        self.calls.push(Call {
            number: self.last_call,
            partition,
            channels,
            since: Instant::now(),
        });
        Some(call)
    }

    /// Calls that were not answered in time are made again.
    fn give_up_calls(&mut self) {
        let late = |call: &mut Call| call.since.elapsed() > UNANSWERED;
        let late: Vec<_> = self.calls.extract_if(.., late).collect();
        for call in late {
            self.end_call(call);
        }
    }

    /// Channels that this call has not attached are due again.
    fn end_call(&mut self, call: Call) {
        for channel in call.channels {
            if let Some(wanted) = self.channels.get_mut(&channel) {
                wanted.attaching = false;
                let again = match std::mem::take(&mut wanted.is_unanswerable) {
                    true => &mut self.later,
                    false => &mut self.dirty,
                };
                again.push(channel);
            }
        }
    }

    /// An attach, or a probe if there are no channels. Redis sends the answer over the pub/sub connection.
    fn attach(
        &self,
        partition: u16,
        number: u64,
        channels: &[Channel],
        at_least: u8,
    ) -> BoxFuture<'static, ()> {
        let redis = self.redis.clone();
        let channels = channels.to_vec();
        async move {
            let watermark = redis.watermark(partition).to_string();
            let number = number.to_string();
            let share = CHANNEL_BYTES.min(ANSWER_BYTES / channels.len().max(1));
            let share = share.to_string();
            let at_least = at_least.to_string();
            let call = redis.new_call(Function::Attach, partition);
            let call = call.of_channels(channels.iter().map(Channel::as_str));
            let call = call.arg(redis.replica()).arg(&watermark).arg(&number);
            let call = call.arg(&at_least).arg(PAGE_ENTRIES).arg(&share);
            let names = channels.iter().map(Channel::as_str);
            let call = names.fold(call, |call, name| call.arg(name));
            if let Err(error) = redis.read::<String>(&call).await {
                seldom!(warn, partition, channels = channels.len(), %error, "attach failed");
            }
        }
        .boxed()
    }

    fn push(&mut self, push: Push) {
        match push {
            Push::Message { channel, payload } if channel == names::REVOKE.as_bytes() => {
                match std::str::from_utf8(&payload) {
                    Ok(subject) if (1..=MAX_SUBJECT).contains(&subject.len()) => {
                        self.revoked.push(subject.into());
                    }
                    _ => no_subject(payload.len()),
                }
            }
            Push::Oversized { channel } if channel == names::REVOKE.as_bytes() => {
                no_subject(self.max_payload);
            }
            Push::Message { channel, payload } => match self.redis.names().subject(&channel) {
                Some((_, Subject::Live(name))) => self.live(name, &payload),
                Some((partition, Subject::Fence)) => self.fence(partition, &payload),
                _ => {}
            },
            Push::Subscribed { channel } => self.confirmed(&channel, Subscription::Confirmed),
            Push::Unsubscribed { channel } => self.confirmed(&channel, Subscription::None),
            Push::Pong | Push::Refused { .. } => {}
            Push::Oversized { channel } => {
                static SELDOM: Seldom = Seldom::new();
                if let Some(suppressed) = SELDOM.pass() {
                    tracing::error!(
                        from = %channel.escape_ascii(),
                        suppressed,
                        "a message larger than --max-payload allows: set it alike on all replicas"
                    );
                }
                match self.redis.names().subject(&channel) {
                    Some((_, Subject::Live(name))) => self.doubt(name),
                    Some((partition, Subject::Fence)) => self.oversized_answer(partition),
                    _ => {}
                }
            }
        }
    }

    /// An answer was too large and was skipped unread. It is not known to which call it belongs, so all channels of
    /// these calls are tried again. The next answer to a call of one channel would be as large, so it leaves the event
    /// out.
    fn oversized_answer(&mut self, partition: u16) {
        let calls = self.calls.iter().filter(|call| call.partition == partition);
        for call in calls {
            for channel in &call.channels {
                if let Some(wanted) = self.channels.get_mut(channel) {
                    wanted.is_unanswerable = true;
                    if call.channels.len() == 1 {
                        wanted.newest = Newest::Huge;
                    }
                }
            }
        }
    }

    /// A channel was subscribed or unsubscribed.
    fn confirmed(&mut self, channel: &[u8], now: Subscription) {
        let Some((_, Subject::Live(name))) = self.redis.names().subject(channel) else {
            return;
        };
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
        if let Some(wanted) = find(&mut self.channels, name) {
            wanted.subscription = now;
            self.dirty.push(wanted.channel.clone());
        }
    }

    /// An event of a channel has arrived.
    fn live(&mut self, name: &[u8], message: &[u8]) {
        let Some(wanted) = find(&mut self.channels, name) else {
            return;
        };
        if !wanted.hubs.iter().any(|interest| interest.attached) {
            // The answer to the attach will contain it.
            return;
        }
        if let Some(lost) = entry::lost(message) {
            let stand = self.stands[usize::from(wanted.channel.partition())];
            if lost > wanted.complete.max(stand.complete) {
                self.doubt(name);
            }
            return;
        }
        let Ok(Live { ids, frame }) = Live::parse(message) else {
            static SELDOM: Seldom = Seldom::new();
            if let Some(suppressed) = SELDOM.pass() {
                tracing::warn!(channel = %wanted.channel, suppressed, "a live message that is not in our format");
            }
            return;
        };
        let partition = wanted.channel.partition();
        if let Some((id, prev)) = ids {
            let stand = &mut self.stands[usize::from(partition)];
            if id <= wanted.complete {
                return;
            }
            if prev > wanted.complete.max(stand.complete) {
                seldom!(warn, channel = %wanted.channel, %prev, complete = %wanted.complete, "events are missing");
                self.doubt(name);
                return;
            }
            wanted.complete = id;
            stand.complete = stand.complete.max(id);
            self.redis.saw(partition, id);
        }
        for interest in wanted.hubs.iter().filter(|interest| interest.attached) {
            self.workers[interest.worker].batch.push(Update::Event {
                channel: wanted.channel.clone(),
                id: ids.map(|(id, _)| id),
                frame: frame.clone(),
            });
        }
    }

    /// The answer to an attach or a probe has arrived.
    fn fence(&mut self, partition: u16, message: &Bytes) {
        let Some(end) = message.iter().position(|byte| *byte == b'\n') else {
            return;
        };
        let (name, rest) = (&message[..end], message.slice(end + 1..));
        if name.is_empty() {
            match Stand::parse(&rest) {
                Ok(stand) => self.stand(partition, &stand),
                Err(error) => seldom!(warn, partition, %error, "invalid answer to a probe"),
            }
            return;
        }
        let Some(wanted) = find(&mut self.channels, name) else {
            return;
        };
        // An answer from before the subscription was confirmed does not cover the events in between.
        if wanted.subscription != Subscription::Confirmed {
            return;
        }
        let excerpt = match Excerpt::parse(&rest) {
            Ok(excerpt) => excerpt,
            Err(error) => {
                seldom!(warn, channel = %wanted.channel, %error, "the answer to an attach");
                wanted.is_unanswerable = true;
                return;
            }
        };
        if excerpt.is_cut_short() && wanted.newest != Newest::Huge {
            // The hub has to see the newest event, because it may end the channel.
            wanted.newest = Newest::Large;
            return;
        }
        self.notice_horizon(partition, excerpt.horizon());
        let page = Arc::new(excerpt.newest_page());
        let Some(wanted) = find(&mut self.channels, name) else {
            return;
        };
        wanted.newest = Newest::Small;
        wanted.is_unanswerable = false;
        self.metrics.attaches.inc();
        self.redis.saw(partition, page.to);
        wanted.complete = wanted.complete.max(page.to);
        for interest in wanted.hubs.iter_mut().filter(|interest| !interest.attached) {
            interest.attached = true;
            self.workers[interest.worker].batch.push(Update::Attached {
                channel: wanted.channel.clone(),
                generation: interest.generation,
                page: Arc::clone(&page),
            });
        }
    }

    /// The end of an answer: the clock and the horizon of the partition.
    fn stand(&mut self, partition: u16, stand: &Stand) {
        if let Some(index) = self.calls.iter().position(|call| call.number == stand.call) {
            let call = self.calls.swap_remove(index);
            self.end_call(call);
        }
        let moved = self.notice_horizon(partition, stand.horizon);
        let known = &mut self.stands[usize::from(partition)];
        known.complete = known.complete.max(stand.clock);
        known.unanswered = 0;
        self.redis.saw(partition, stand.clock);
        if !moved {
            for worker in &mut self.workers {
                worker.batch.push(Update::Position {
                    partition,
                    id: stand.clock,
                });
            }
        }
    }

    /// The horizon moves if Redis lost events while this process was subscribed. Then every channel is attached again
    /// before any reader moves past the horizon, and readers learn of the gap from that attach. Returns whether the
    /// horizon moved.
    fn notice_horizon(&mut self, partition: u16, horizon: EventId) -> bool {
        let known = self.stands[usize::from(partition)].horizon.replace(horizon);
        if known.is_none_or(|known| known == horizon) {
            return false;
        }
        seldom!(warn, partition, %horizon, "redis has forgotten events");
        let channels = self.channels.keys();
        let names: Vec<_> = channels
            .filter(|channel| channel.partition() == partition)
            .map(|channel| channel.as_str().to_owned())
            .collect();
        for name in names {
            self.doubt(name.as_bytes());
        }
        true
    }

    /// Events of this channel may be missing, so it is attached again.
    fn doubt(&mut self, name: &[u8]) {
        let Some(wanted) = find(&mut self.channels, name) else {
            return;
        };
        self.dirty.push(wanted.channel.clone());
        for interest in wanted.hubs.iter_mut().filter(|interest| interest.attached) {
            interest.attached = false;
            self.workers[interest.worker]
                .batch
                .push(Update::Unconfirmed {
                    channel: wanted.channel.clone(),
                });
        }
    }

    /// The connection has ended, so no channel is known to be complete any more.
    async fn lose_all(&mut self) {
        for wanted in self.channels.values_mut() {
            wanted.subscription = Subscription::None;
            wanted.attaching = false;
            wanted.complete = EventId::ZERO;
            for interest in &mut wanted.hubs {
                interest.attached = false;
            }
        }
        self.enter.clear();
        self.leave.clear();
        self.unconfirmed = 0;
        self.due.clear();
        self.calls.clear();
        self.stands.fill(Position::default());
        for worker in &mut self.workers {
            worker.batch = vec![Update::Lost];
        }
        self.flush().await;
    }

    /// Sends the updates to the hubs. A hub that is far behind slows down the connection. A hub that has ended, for
    /// example while the process stops, does not block the others.
    async fn flush(&mut self) {
        for worker in &mut self.workers {
            if !worker.batch.is_empty() {
                let batch = std::mem::take(&mut worker.batch);
                let _gone = worker.updates.send(batch).await;
            }
        }
        for subject in self.revoked.drain(..) {
            for worker in &self.workers {
                let _gone = worker.revoked.send(Arc::clone(&subject)).await;
            }
        }
    }

    /// Frees the memory of many channels that are not wanted any more.
    fn shrink(&mut self) {
        if self.channels.capacity() > CHUNK.max(4 * self.channels.len()) {
            self.channels.shrink_to_fit();
        }
        self.dirty.shrink_to(CHUNK);
        self.later.shrink_to(CHUNK);
        self.enter.shrink_to(CHUNK);
        self.leave.shrink_to(CHUNK);
    }

    fn hubs_are_gone(&self) -> bool {
        let mut updates = self.workers.iter().map(|worker| &worker.updates);
        updates.all(mpsc::Sender::is_closed)
    }

    /// Whether all wanted channels have been asked for, and all partitions have answered a probe.
    fn is_up(&self) -> bool {
        self.enter.is_empty() && self.stands.iter().all(|stand| stand.horizon.is_some())
    }

    /// Probes are counted, not timed: a process that was paused has read nothing either.
    fn is_wedged(&self, most: u32) -> bool {
        self.stands.iter().any(|stand| stand.unanswered > most)
    }
}

/// Why a session ended.
enum End {
    HubsGone,
    Fatal(Error),
    Lost(Box<dyn std::error::Error + Send + Sync>),
}

/// Logs that a message of `ssegw:revoke` ended no stream.
fn no_subject(bytes: usize) {
    static SELDOM: Seldom = Seldom::new();
    if let Some(suppressed) = SELDOM.pass() {
        tracing::warn!(
            bytes,
            suppressed,
            "a message of ssegw:revoke is no subject and ended no stream: a subject is 1 to {MAX_SUBJECT} bytes of UTF-8"
        );
    }
}

fn find<'a>(channels: &'a mut HashMap<Channel, Wanted>, name: &[u8]) -> Option<&'a mut Wanted> {
    channels.get_mut(std::str::from_utf8(name).ok()?)
}
