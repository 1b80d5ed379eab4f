//! `Channels`: which channels a session is subscribed to, and up to which event each is complete. It does no I/O.
//!
//! The session passes on commands of the hubs and messages of Redis. It sends what [`Channels::next_command`] and
//! [`Channels::next_call`] return, and hands the updates to the hubs.

#[cfg(test)]
mod model;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use hub::{Channel, EventId, Partitions, Update};

use super::{
    CHUNK,
    attaches::{AttachCall, AttachMode, Attaches},
    completeness::Completeness,
};
use crate::{
    entry::{self, HistoryReply, Live, PartitionState},
    throttled,
};

/// Maximum channels whose SUBSCRIBE or UNSUBSCRIBE is not confirmed yet. The session does not read while it writes
/// these commands, and Redis continues to carry them out. Their confirmations, of up to 330 bytes each, fill the output
/// buffer, whose limits decide when Redis disconnects a subscriber.
const MAX_UNCONFIRMED: usize = 1024;

/// Commands about some channels, at most [`CHUNK`].
#[derive(Debug)]
pub(super) enum Command {
    Subscribe(Vec<Channel>),
    Unsubscribe(Vec<Channel>),
}

/// All channels of the partitions of a session.
pub(super) struct Channels {
    names: Partitions,
    channels: HashMap<Channel, Wanted>,
    partitions: Completeness,
    /// There is a connection.
    is_connected: bool,
    /// Channels that may have to be subscribed, attached or unsubscribed.
    changed: Vec<Channel>,
    /// Some of these, which are examined with the next tick.
    later: Vec<Channel>,
    /// Channels to be subscribed, and to be unsubscribed, as soon as few enough are unconfirmed.
    to_subscribe: VecDeque<Channel>,
    to_unsubscribe: VecDeque<Channel>,
    /// Confirmations that have not arrived yet.
    unconfirmed: usize,
    attaches: Attaches,
    /// Updates for each worker, since they were last taken.
    updates: Vec<Vec<Update>>,
}

/// A channel that some hub wants, or wanted until just now.
struct Wanted {
    channel: Channel,
    subscription: Subscription,
    attach: Attach,
    mode: AttachMode,
    /// The last answer could not be used. The attach is tried again with the next tick, not at once.
    is_unanswerable: bool,
    /// Every event up to this id has been received, while any hub is attached.
    complete: EventId,
    hubs: Vec<Interest>,
}

/// A channel's subscription on the present connection. Only one command at a time waits or is under way, so that a
/// confirmation cannot be taken for that of another command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subscription {
    None,
    /// It waits for a command.
    ToSubscribe,
    /// The command is not confirmed yet.
    Subscribing,
    Confirmed,
    ToUnsubscribe,
    Unsubscribing,
}

/// A channel's attach. Its answer also attaches the other hubs that want the channel until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attach {
    None,
    /// It waits for a call.
    Waiting,
    /// The answer to this call has not arrived yet. A call from before the channel was subscribed again is not waited
    /// for.
    Call(u64),
}

/// One hub that wants a channel.
struct Interest {
    worker: usize,
    generation: u64,
    attached: bool,
}

/// The channels of a partition that hubs want, on their way to another session.
pub(super) struct Wants(Vec<(Channel, Vec<(usize, u64)>)>);

impl Wants {
    pub(super) fn new(wants: impl IntoIterator<Item = (Channel, Vec<(usize, u64)>)>) -> Self {
        Self(wants.into_iter().collect())
    }
}

impl Wanted {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            subscription: Subscription::None,
            attach: Attach::None,
            mode: AttachMode::Batched,
            is_unanswerable: false,
            complete: EventId::ZERO,
            hubs: Vec::new(),
        }
    }

    /// Whether a command is not confirmed yet.
    fn is_unconfirmed(&self) -> bool {
        matches!(
            self.subscription,
            Subscription::Subscribing | Subscription::Unsubscribing
        )
    }

    /// Whether some hub waits for an attach that has not been called for.
    fn is_due(&self) -> bool {
        self.attach == Attach::None && self.hubs.iter().any(|interest| !interest.attached)
    }
}

impl Channels {
    /// For the hubs of that many workers. `names` are the partitions of the deployment.
    pub(super) fn new(names: Partitions, workers: usize) -> Self {
        Self {
            names,
            channels: HashMap::new(),
            partitions: Completeness::default(),
            is_connected: false,
            changed: Vec::new(),
            later: Vec::new(),
            to_subscribe: VecDeque::new(),
            to_unsubscribe: VecDeque::new(),
            unconfirmed: 0,
            attaches: Attaches::default(),
            updates: vec![Vec::new(); workers],
        }
    }

    /// Takes a partition over, with the channels that hubs want.
    pub(super) fn accept(&mut self, partition: u16, wants: Wants) {
        self.partitions.add(partition);
        for (channel, hubs) in wants.0 {
            for (worker, generation) in hubs {
                self.attach(worker, channel.clone(), generation);
            }
        }
    }

    /// Gives a partition away. Hubs learn that its channels are not attached any more.
    pub(super) fn release(&mut self, partition: u16) -> Wants {
        self.partitions.remove(partition);
        let is_other = |channel: &Channel| channel.partition() != partition;
        self.changed.retain(is_other);
        self.later.retain(is_other);
        self.to_subscribe.retain(is_other);
        self.to_unsubscribe.retain(is_other);
        self.attaches.remove(partition);
        // Their confirmations will not count.
        let mut unconfirmed = 0;
        let channels = self.channels.extract_if(|channel, _| !is_other(channel));
        let wants = channels.map(|(channel, wanted)| {
            unconfirmed += usize::from(wanted.is_unconfirmed());
            let hubs = wanted.hubs.iter().map(|it| (it.worker, it.generation));
            (channel, hubs.collect())
        });
        let wants = Wants(wants.collect());
        self.unconfirmed -= unconfirmed;
        for updates in &mut self.updates {
            let partitions = Arc::new([partition]);
            updates.push(Update::Lost { partitions });
        }
        wants
    }

    /// The partitions of the session.
    pub(super) fn partitions(&self) -> Arc<[u16]> {
        self.partitions.all()
    }

    /// Whether the session has this partition.
    pub(super) fn has(&self, partition: u16) -> bool {
        self.partitions.has(partition)
    }

    /// Whether live events of a partition arrive.
    pub(super) fn has_answered(&self, partition: u16) -> bool {
        self.partitions.has_answered(partition)
    }

    /// A probe was refused, because the partition is on its way to another node.
    pub(super) fn refused(&mut self, partition: u16) {
        self.partitions.refused(partition);
    }

    /// A hub wants a channel.
    pub(super) fn attach(&mut self, worker: usize, channel: Channel, generation: u64) {
        let wanted = self.channels.entry(channel.clone());
        let wanted = wanted.or_insert_with(|| Wanted::new(channel.clone()));
        wanted.hubs.retain(|interest| interest.worker != worker);
        wanted.hubs.push(Interest {
            worker,
            generation,
            attached: false,
        });
        self.change(channel);
    }

    /// A hub does not want a channel any more.
    pub(super) fn detach(&mut self, worker: usize, channel: Channel) {
        let Some(wanted) = self.channels.get_mut(&channel) else {
            return;
        };
        wanted.hubs.retain(|interest| interest.worker != worker);
        if wanted.hubs.is_empty() && wanted.subscription == Subscription::None {
            self.channels.remove(&channel);
        } else {
            self.change(channel);
        }
    }

    /// There is a new connection, without subscriptions.
    pub(super) fn connected(&mut self) {
        self.is_connected = true;
        self.changed.extend(self.channels.keys().cloned());
    }

    /// The connection has ended, so no channel is known to be complete any more.
    pub(super) fn disconnected(&mut self) {
        self.is_connected = false;
        for wanted in self.channels.values_mut() {
            wanted.subscription = Subscription::None;
            wanted.attach = Attach::None;
            wanted.complete = EventId::ZERO;
            for interest in &mut wanted.hubs {
                interest.attached = false;
            }
        }
        self.changed.clear();
        self.later.clear();
        self.to_subscribe.clear();
        self.to_unsubscribe.clear();
        self.unconfirmed = 0;
        self.attaches.clear();
        self.partitions.clear();
        let partitions = self.partitions.all();
        for updates in &mut self.updates {
            *updates = vec![Update::Lost {
                partitions: Arc::clone(&partitions),
            }];
        }
    }

    /// The time for probes has come. Calls without an answer are given up, and failed attaches are made again. Returns
    /// whether some partition has not answered that many probes, so that the connection is given up. Probes are
    /// counted, not timed: a process that was paused has read nothing either.
    pub(super) fn tick(&mut self, now: Instant, max_unanswered: u32) -> bool {
        if self.partitions.probe(max_unanswered) {
            return true;
        }
        for call in self.attaches.give_up(now) {
            self.end_call(call);
        }
        self.changed.append(&mut self.later);
        self.shrink();
        false
    }

    /// Commands to send now. Confirmations allow more.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        self.reconcile();
        let room = MAX_UNCONFIRMED.saturating_sub(self.unconfirmed).min(CHUNK);
        let mut subscribe = Vec::new();
        while subscribe.len() < room
            && let Some(channel) = self.to_subscribe.pop_front()
        {
            let wanted = self.channels.get_mut(&channel);
            match wanted.filter(|it| it.subscription == Subscription::ToSubscribe) {
                // Its clients have left, and it does not delay others.
                Some(wanted) if wanted.hubs.is_empty() => drop(self.channels.remove(&channel)),
                Some(wanted) => {
                    wanted.subscription = Subscription::Subscribing;
                    subscribe.push(channel);
                }
                None => {}
            }
        }
        let mut unsubscribe = Vec::new();
        while subscribe.is_empty()
            && unsubscribe.len() < room
            && let Some(channel) = self.to_unsubscribe.pop_front()
        {
            let wanted = self.channels.get_mut(&channel);
            // Redis may have ended the subscription itself since.
            if let Some(wanted) = wanted.filter(|it| it.subscription == Subscription::ToUnsubscribe)
            {
                wanted.subscription = Subscription::Unsubscribing;
                unsubscribe.push(channel);
            }
        }
        let command = match (subscribe.is_empty(), unsubscribe.is_empty()) {
            (false, _) => Command::Subscribe(subscribe),
            (true, false) => Command::Unsubscribe(unsubscribe),
            (true, true) => return None,
        };
        let (Command::Subscribe(channels) | Command::Unsubscribe(channels)) = &command;
        self.unconfirmed += channels.len();
        Some(command)
    }

    /// A call to make now.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<AttachCall> {
        let Self {
            channels,
            attaches,
            changed,
            ..
        } = self;
        attaches.skip(|channel| {
            let wanted = channels.get_mut(channel);
            wanted.is_none_or(|wanted| {
                let is_unwanted = wanted.hubs.is_empty();
                if is_unwanted {
                    wanted.attach = Attach::None;
                    changed.push(channel.clone());
                }
                is_unwanted
            })
        });
        let mode = |channel: &Channel| {
            let wanted = channels.get(channel);
            wanted.map_or(AttachMode::Batched, |wanted| wanted.mode)
        };
        let call = attaches.next(mode, now)?;
        for channel in &call.channels {
            if let Some(wanted) = channels.get_mut(channel) {
                wanted.attach = Attach::Call(call.number);
            }
        }
        Some(call)
    }

    /// Whether all wanted channels have been requested.
    pub(super) fn are_requested(&self) -> bool {
        self.to_subscribe.is_empty()
    }

    /// The updates for the hub of a worker.
    pub(super) fn take_updates(&mut self, worker: usize) -> Vec<Update> {
        std::mem::take(&mut self.updates[worker])
    }

    /// A channel was subscribed or unsubscribed. Returns whether Redis has ended the subscription itself, because the
    /// partition has gone to another node.
    pub(super) fn confirmed(&mut self, name: &[u8], now: Subscription) -> bool {
        // A subscription that Redis has ended itself may have been taken for the end of a later one.
        if now == Subscription::Confirmed
            && find(&mut self.channels, name).is_none()
            && let Ok(channel) = self.names.channel_from_bytes(name)
            && self.partitions.has(channel.partition())
        {
            let stray = Wanted::new(channel.clone());
            self.channels.insert(channel, stray);
        }
        let Some(wanted) = find(&mut self.channels, name) else {
            return false;
        };
        let channel = wanted.channel.clone();
        let is_free = matches!(
            wanted.subscription,
            Subscription::None | Subscription::ToSubscribe
        );
        if now == Subscription::Confirmed && is_free {
            wanted.subscription = now;
            self.change(channel);
            return false;
        }
        if wanted.is_unconfirmed() {
            self.unconfirmed -= 1;
            wanted.subscription = now;
            self.change(channel);
            return false;
        }
        let is_subscribed = matches!(
            wanted.subscription,
            Subscription::Confirmed | Subscription::ToUnsubscribe
        );
        if now != Subscription::None || !is_subscribed {
            return false;
        }
        wanted.subscription = now;
        wanted.attach = Attach::None;
        self.unattach(name);
        // The partition is about to be released. If it is not, the channel is subscribed again.
        self.later.push(channel);
        true
    }

    /// A live message of a channel has arrived. Returns its id and partition, if the event is new here.
    pub(super) fn live(&mut self, name: &[u8], message: &[u8]) -> Option<(u16, EventId)> {
        let wanted = find(&mut self.channels, name)?;
        if !wanted.hubs.iter().any(|interest| interest.attached) {
            // The answer to the attach will contain it.
            return None;
        }
        let partition = wanted.channel.partition();
        let complete = wanted.complete.max(self.partitions.complete(partition));
        if let Some(lost) = entry::tombstone(message) {
            if lost > complete {
                self.invalidate(name);
            }
            return None;
        }
        let Ok(Live { ids, frame }) = Live::parse(message) else {
            throttled!(warn, channel = %wanted.channel, "a live message that is not in our format");
            return None;
        };
        if let Some((id, prev)) = ids {
            if id <= wanted.complete {
                return None;
            }
            if prev > complete {
                throttled!(warn, channel = %wanted.channel, %prev, complete = %wanted.complete, "events are missing");
                self.invalidate(name);
                return None;
            }
            wanted.complete = id;
            self.partitions.advance(partition, id);
        }
        let id = ids.map(|(id, _)| id);
        for interest in wanted.hubs.iter().filter(|interest| interest.attached) {
            self.updates[interest.worker].push(Update::Event {
                channel: wanted.channel.clone(),
                id,
                frame: frame.clone(),
            });
        }
        Some((partition, id?))
    }

    /// The answer to an attach has arrived for one channel. Returns up to which id the channel is complete, if it is
    /// attached now.
    pub(super) fn attached(&mut self, name: &[u8], reply: HistoryReply) -> Option<(u16, EventId)> {
        let wanted = find(&mut self.channels, name)?;
        // An answer from before the subscription was confirmed does not cover the events in between.
        if wanted.subscription != Subscription::Confirmed {
            return None;
        }
        if reply.is_cut_short() && wanted.mode != AttachMode::WithoutEntry {
            // The hub has to see the newest event, because it may end the channel.
            (wanted.mode, wanted.is_unanswerable) = match wanted.mode {
                AttachMode::Batched => (AttachMode::Alone, false),
                // It is no entry of the library, which never brings it.
                _ => (AttachMode::WithoutEntry, true),
            };
            return None;
        }
        let partition = wanted.channel.partition();
        self.meet_horizon(partition, reply.horizon());
        let wanted = find(&mut self.channels, name)?;
        let page = Arc::new(reply.newest_page());
        wanted.mode = AttachMode::Batched;
        wanted.is_unanswerable = false;
        wanted.complete = wanted.complete.max(page.to);
        for interest in wanted.hubs.iter_mut().filter(|interest| !interest.attached) {
            interest.attached = true;
            self.updates[interest.worker].push(Update::Attached {
                channel: wanted.channel.clone(),
                generation: interest.generation,
                page: Arc::clone(&page),
            });
        }
        Some((partition, page.to))
    }

    /// The answer to an attach cannot be read for this channel.
    pub(super) fn unreadable(&mut self, name: &[u8]) {
        if let Some(wanted) = find(&mut self.channels, name) {
            wanted.is_unanswerable = true;
        }
    }

    /// An answer was too large and was skipped unread. It is not known to which call it belongs, so all channels of
    /// these calls are tried again. The next answer to a call of one channel would be as large, so it leaves the event
    /// out.
    pub(super) fn oversized_answer(&mut self, partition: u16) {
        for call in self.attaches.under_way(partition) {
            for channel in &call.channels {
                if let Some(wanted) = self.channels.get_mut(channel) {
                    wanted.is_unanswerable = true;
                    if call.channels.len() == 1 {
                        wanted.mode = AttachMode::WithoutEntry;
                    }
                }
            }
        }
    }

    /// The end of an answer: the clock and the horizon of the partition.
    pub(super) fn answered(&mut self, partition: u16, state: &PartitionState) {
        if let Some(call) = self.attaches.end(state.call) {
            self.end_call(call);
        }
        let has_moved = self.meet_horizon(partition, state.horizon);
        self.partitions.answered(partition, state.clock);
        if !has_moved {
            for updates in &mut self.updates {
                updates.push(Update::Position {
                    partition,
                    id: state.clock,
                });
            }
        }
    }

    /// Events of this channel may be missing, so it is attached again.
    pub(super) fn invalidate(&mut self, name: &[u8]) {
        if let Some(channel) = self.unattach(name) {
            self.change(channel);
        }
    }

    /// Hubs learn that events of this channel may be missing.
    fn unattach(&mut self, name: &[u8]) -> Option<Channel> {
        let wanted = find(&mut self.channels, name)?;
        for interest in wanted.hubs.iter_mut().filter(|interest| interest.attached) {
            interest.attached = false;
            self.updates[interest.worker].push(Update::Unconfirmed {
                channel: wanted.channel.clone(),
            });
        }
        Some(wanted.channel.clone())
    }

    /// The horizon moves if Redis lost events while this process was subscribed. Then every channel is attached again
    /// before any reader moves past the horizon, and readers learn of the gap from that attach. Returns whether the
    /// horizon moved.
    fn meet_horizon(&mut self, partition: u16, horizon: EventId) -> bool {
        if !self.partitions.meet_horizon(partition, horizon) {
            return false;
        }
        throttled!(warn, partition, %horizon, "redis has forgotten events");
        let channels = self.channels.keys();
        let of_partition = channels.filter(|channel| channel.partition() == partition);
        let names: Vec<_> = of_partition.map(|it| it.as_str().to_owned()).collect();
        for name in names {
            self.invalidate(name.as_bytes());
        }
        true
    }

    /// Channels that this call has not attached are due again.
    fn end_call(&mut self, call: AttachCall) {
        for channel in call.channels {
            if let Some(wanted) = self.channels.get_mut(&channel)
                && wanted.attach == Attach::Call(call.number)
            {
                wanted.attach = Attach::None;
                match std::mem::take(&mut wanted.is_unanswerable) {
                    true => self.later.push(channel),
                    false => self.changed.push(channel),
                }
            }
        }
    }

    /// Examines the channel before the next command. A new connection examines all.
    fn change(&mut self, channel: Channel) {
        if self.is_connected {
            self.changed.push(channel);
        }
    }

    /// Decides about the channels that have changed.
    fn reconcile(&mut self) {
        for channel in self.changed.drain(..) {
            let Some(wanted) = self.channels.get_mut(&channel) else {
                continue;
            };
            match wanted.subscription {
                Subscription::None if wanted.hubs.is_empty() => {
                    self.channels.remove(&channel);
                }
                Subscription::None => {
                    wanted.subscription = Subscription::ToSubscribe;
                    self.to_subscribe.push_back(channel);
                }
                Subscription::Confirmed if wanted.hubs.is_empty() => {
                    wanted.subscription = Subscription::ToUnsubscribe;
                    self.to_unsubscribe.push_back(channel);
                }
                Subscription::Confirmed if wanted.is_due() => {
                    wanted.attach = Attach::Waiting;
                    self.attaches.add(channel);
                }
                _ => {}
            }
        }
    }

    /// Frees the memory of many channels that are not wanted any more.
    fn shrink(&mut self) {
        if self.channels.capacity() > CHUNK.max(4 * self.channels.len()) {
            self.channels.shrink_to_fit();
        }
        self.changed.shrink_to(CHUNK);
        self.later.shrink_to(CHUNK);
        self.to_subscribe.shrink_to(CHUNK);
        self.to_unsubscribe.shrink_to(CHUNK);
    }
}

fn find<'a>(channels: &'a mut HashMap<Channel, Wanted>, name: &[u8]) -> Option<&'a mut Wanted> {
    channels.get_mut(std::str::from_utf8(name).ok()?)
}
