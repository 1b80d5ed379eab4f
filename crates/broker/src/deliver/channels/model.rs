//! [`Channels`] against a model of a Redis connection: properties that hold after any order of commands, publications,
//! failed calls and lost connections.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hub::Partitions;
use proptest::prelude::*;

use super::*;
use crate::deliver::attaches::{MAX_CALLS, UNANSWERED};

const CHANNELS: [&str; 5] = ["a", "b", "c", "d", "e"];
const WORKERS: usize = 2;
const PARTITIONS: u16 = 2;
/// Probes that may stay unanswered. The model answers none while it is not asked to, so none is too many.
const MAX_UNANSWERED: u32 = u32::MAX - 1;

fn partitions() -> Partitions {
    Partitions::new(PARTITIONS).unwrap()
}

fn channel(index: usize) -> Channel {
    partitions().channel(CHANNELS[index]).unwrap()
}

fn id(ms: u64) -> EventId {
    EventId { ms, seq: 0 }
}

#[derive(Clone, Debug)]
enum Step {
    /// A hub wants a channel, or wants it no more.
    Attach(usize, usize),
    Detach(usize, usize),
    Publish(usize),
    /// Redis loses the history of all channels.
    Forget,
    /// Redis carries out the next command or call that was sent.
    CarryOut,
    /// The next call fails, or its answer is too large.
    Fail,
    Oversized,
    /// The next message arrives, or is too large.
    Arrive,
    TooLarge,
    /// Time passes until unanswered calls are given up.
    Wait,
    Disconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..WORKERS, 0..CHANNELS.len()).prop_map(|(worker, index)| Step::Attach(worker, index)),
        2 => (0..WORKERS, 0..CHANNELS.len()).prop_map(|(worker, index)| Step::Detach(worker, index)),
        6 => (0..CHANNELS.len()).prop_map(Step::Publish),
        1 => Just(Step::Forget),
        8 => Just(Step::CarryOut),
        1 => Just(Step::Fail),
        1 => Just(Step::Oversized),
        16 => Just(Step::Arrive),
        1 => Just(Step::TooLarge),
        1 => Just(Step::Wait),
        1 => Just(Step::Disconnect),
    ];
    prop::collection::vec(step, 0..300)
}

/// A command of the session that Redis has not carried out yet.
#[derive(Debug)]
enum Sent {
    Subscribe(usize),
    Unsubscribe(usize),
    Attach(AttachCall),
}

/// A message over the subscription that has not arrived yet.
#[derive(Debug)]
enum Message {
    Subscribed(usize),
    Unsubscribed(usize),
    Live(usize, String),
    Answer(usize, String),
    OversizedAnswer(u16),
    End(u16, PartitionState),
}

/// The view of one hub.
#[derive(Default)]
struct Hub {
    /// Wanted channels, with the generation.
    wanted: BTreeMap<usize, u64>,
    /// Channels that are live, with the newest event that the hub has.
    live: BTreeMap<usize, EventId>,
}

struct World {
    channels: Channels,
    now: Instant,
    generation: u64,
    hubs: Vec<Hub>,
    // Redis:
    clock: u64,
    horizon: EventId,
    horizons: Vec<EventId>,
    /// The ids of each channel's events.
    logs: Vec<Vec<EventId>>,
    subscribed: BTreeSet<usize>,
    sent: VecDeque<Sent>,
    messages: VecDeque<Message>,
    /// Channels with a command that is not confirmed.
    unconfirmed: BTreeSet<usize>,
    calls: BTreeMap<u64, AttachCall>,
    last_call: u64,
    /// For each channel, the last call before its present subscription.
    subscriptions: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let mut channels = of_all(WORKERS);
        channels.connected();
        Self {
            channels,
            now: Instant::now(),
            generation: 0,
            hubs: (0..WORKERS).map(|_| Hub::default()).collect(),
            clock: 0,
            horizon: EventId::ZERO,
            horizons: Vec::new(),
            logs: vec![Vec::new(); CHANNELS.len()],
            subscribed: BTreeSet::new(),
            sent: VecDeque::new(),
            messages: VecDeque::new(),
            unconfirmed: BTreeSet::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            subscriptions: vec![0; CHANNELS.len()],
        }
    }

    fn index(channel: &Channel) -> usize {
        let mut names = CHANNELS.iter();
        names.position(|name| *name == channel.as_str()).unwrap()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Attach(worker, index) => {
                self.generation += 1;
                let hub = &mut self.hubs[worker];
                hub.wanted.insert(index, self.generation);
                hub.live.remove(&index);
                self.channels
                    .attach(worker, channel(index), self.generation);
            }
            Step::Detach(worker, index) => {
                let hub = &mut self.hubs[worker];
                hub.live.remove(&index);
                if hub.wanted.remove(&index).is_some() {
                    self.channels.detach(worker, channel(index));
                }
            }
            Step::Publish(index) => {
                self.clock += 1;
                let id = id(self.clock);
                let prev = self.logs[index].last().copied().unwrap_or(self.horizon);
                self.logs[index].push(id);
                if self.subscribed.contains(&index) {
                    let message = Message::Live(index, format!("{id} {prev}\n{{}}"));
                    self.messages.push_back(message);
                }
            }
            Step::Forget => {
                self.clock += 1;
                self.horizon = id(self.clock);
                self.horizons.push(self.horizon);
                self.logs.iter_mut().for_each(Vec::clear);
            }
            Step::CarryOut => match self.sent.pop_front() {
                Some(sent) => self.carry_out(sent),
                None => return,
            },
            Step::Fail | Step::Oversized => {
                let mut sent = self.sent.iter();
                let Some(call) = sent.position(|it| matches!(it, Sent::Attach(_))) else {
                    return;
                };
                if let Some(Sent::Attach(call)) = self.sent.remove(call)
                    && matches!(step, Step::Oversized)
                {
                    self.messages
                        .push_back(Message::OversizedAnswer(call.partition));
                }
            }
            Step::Arrive => match self.messages.pop_front() {
                Some(message) => self.arrive(message),
                None => return,
            },
            Step::TooLarge => {
                if let Some(Message::Live(index, _)) = self.messages.front() {
                    self.channels.invalidate(CHANNELS[*index].as_bytes());
                    self.messages.pop_front();
                }
            }
            Step::Wait => {
                self.now += UNANSWERED + Duration::from_millis(1);
                self.tick();
            }
            Step::Disconnect => {
                self.sent.clear();
                self.messages.clear();
                self.subscribed.clear();
                self.unconfirmed.clear();
                self.calls.clear();
                self.channels.disconnected();
                self.updates();
                self.channels.connected();
            }
        }
        self.collect();
        self.updates();
    }

    fn tick(&mut self) {
        let (now, is_late) = (self.now, |_: &u64, _: &mut AttachCall| true);
        let _given_up: Vec<_> = self.calls.extract_if(.., is_late).collect();
        assert!(!self.channels.tick(now, MAX_UNANSWERED));
    }

    /// Takes what the session sends now.
    fn collect(&mut self) {
        while let Some(command) = self.channels.next_command() {
            let (channels, is_subscribe) = match command {
                Command::Subscribe(channels) => (channels, true),
                Command::Unsubscribe(channels) => (channels, false),
            };
            for channel in channels {
                let index = Self::index(&channel);
                let is_only = self.unconfirmed.insert(index);
                assert!(is_only, "two commands at once for {channel:?}");
                self.sent.push_back(match is_subscribe {
                    true => Sent::Subscribe(index),
                    false => Sent::Unsubscribe(index),
                });
            }
        }
        while let Some(call) = self.channels.next_call(self.now) {
            assert!(!call.channels.is_empty());
            self.last_call = call.number;
            self.calls.insert(call.number, call.clone());
            self.sent.push_back(Sent::Attach(call));
        }
        assert!(self.calls.len() <= MAX_CALLS, "{:?}", self.calls);
        let is_alone = |call: &AttachCall| call.mode != AttachMode::Batched;
        assert!(
            self.calls.len() <= 1 || !self.calls.values().any(is_alone),
            "a large answer beside another: {:?}",
            self.calls
        );
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            let calls = self.calls.values();
            let own = calls.filter(|call| call.number > *subscription);
            let calls = own.filter(|call| call.channels.contains(&channel(index)));
            assert!(calls.count() <= 1, "{} in two calls", CHANNELS[index]);
        }
    }

    fn carry_out(&mut self, sent: Sent) {
        match sent {
            Sent::Subscribe(index) => {
                self.subscribed.insert(index);
                self.messages.push_back(Message::Subscribed(index));
            }
            Sent::Unsubscribe(index) => {
                self.subscribed.remove(&index);
                self.messages.push_back(Message::Unsubscribed(index));
            }
            Sent::Attach(call) => {
                for channel in &call.channels {
                    let index = Self::index(channel);
                    let message = Message::Answer(index, self.page(index, call.mode));
                    self.messages.push_back(message);
                }
                let state = PartitionState {
                    call: call.number,
                    clock: id(self.clock),
                    horizon: self.horizon,
                    has_moved: false,
                };
                self.messages.push_back(Message::End(call.partition, state));
            }
        }
    }

    /// A page of the newest event. Every third event is so large that only a call of its own brings it.
    fn page(&self, index: usize, mode: AttachMode) -> String {
        let (clock, horizon) = (id(self.clock), self.horizon);
        let Some((newest, earlier)) = self.logs[index].split_last() else {
            return format!("{} {clock} {horizon} - 1000 0 - 0\n", self.clock);
        };
        let prev = earlier.last().copied().unwrap_or(horizon);
        let facts = format!("{} {clock} {horizon} {newest} 1000", self.clock);
        if newest.ms.is_multiple_of(3) && mode != AttachMode::Alone {
            return format!("{facts} 1 - 0\n");
        }
        let more = u8::from(!earlier.is_empty());
        format!("{facts} {more} - 1\n{newest} {prev} 2\n{{}}")
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Subscribed(index) => {
                self.unconfirmed.remove(&index);
                self.subscriptions[index] = self.last_call;
                let name = CHANNELS[index].as_bytes();
                self.channels.confirmed(name, Subscription::Confirmed);
            }
            Message::Unsubscribed(index) => {
                self.unconfirmed.remove(&index);
                let name = CHANNELS[index].as_bytes();
                self.channels.confirmed(name, Subscription::None);
            }
            Message::Live(index, text) => {
                self.channels
                    .live(CHANNELS[index].as_bytes(), text.as_bytes());
            }
            Message::Answer(index, text) => {
                let reply = HistoryReply::parse(&Bytes::from(text)).unwrap();
                self.channels.attached(CHANNELS[index].as_bytes(), reply);
            }
            Message::OversizedAnswer(partition) => self.channels.oversized_answer(partition),
            Message::End(partition, state) => {
                self.calls.remove(&state.call);
                self.channels.answered(partition, &state);
            }
        }
    }

    /// The hubs apply their updates. A live channel has every event, in order.
    fn updates(&mut self) {
        for worker in 0..WORKERS {
            for update in self.channels.take_updates(worker) {
                let hub = &mut self.hubs[worker];
                match update {
                    Update::Attached {
                        channel,
                        generation,
                        page,
                    } => {
                        let index = Self::index(&channel);
                        if hub.wanted.get(&index) == Some(&generation) {
                            hub.live.insert(index, page.to);
                        }
                    }
                    Update::Event { channel, id, .. } => {
                        let (index, id) = (Self::index(&channel), id.unwrap());
                        let Some(newest) = hub.live.get_mut(&index) else {
                            continue;
                        };
                        let log = &self.logs[index];
                        let missing = log.iter().find(|it| **it > *newest && **it < id);
                        assert_eq!(missing, None, "a hole before {id} in {channel:?}");
                        assert!(id > *newest, "{id} after {newest} in {channel:?}");
                        let mut horizons = self.horizons.iter();
                        let crossed = horizons.find(|it| **it > *newest && **it < id);
                        assert_eq!(crossed, None, "{channel:?} goes on after a loss");
                        *newest = id;
                    }
                    Update::Unconfirmed { channel } => {
                        hub.live.remove(&Self::index(&channel));
                    }
                    Update::Lost { partitions } => {
                        hub.live.retain(|index, _| {
                            let partition = channel(*index).partition();
                            partitions.binary_search(&partition).is_err()
                        });
                    }
                    // Complete up to here: a live channel lacks no event before it.
                    Update::Position { partition, id } => {
                        for (index, newest) in &hub.live {
                            if channel(*index).partition() == partition {
                                let log = &self.logs[*index];
                                let missing = log.iter().find(|it| **it > *newest && **it <= id);
                                assert_eq!(missing, None, "{id} is not complete");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Everything that was sent is carried out and arrives, and nothing fails any more.
    fn come_to_rest(&mut self) {
        for _ in 0..20 {
            while !self.sent.is_empty() || !self.messages.is_empty() {
                self.step(&Step::CarryOut);
                self.step(&Step::Arrive);
            }
            for partition in partitions().all() {
                let state = PartitionState {
                    call: 0,
                    clock: id(self.clock),
                    horizon: self.horizon,
                    has_moved: false,
                };
                self.arrive(Message::End(partition, state));
            }
            self.step(&Step::Wait);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Breaks when an event is missing, repeated or out of order at a hub whose channel is live; when a channel stays
    /// live although Redis has lost events; when a channel has two
    /// commands under way, or is in two calls; and when, in the end, a wanted channel is not live, or an unwanted one is
    /// kept.
    #[test]
    fn every_wanted_channel_becomes_live_and_no_event_is_missing(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.come_to_rest();
        let mut wanted = BTreeSet::new();
        for hub in &world.hubs {
            let live: Vec<_> = hub.live.keys().collect();
            prop_assert_eq!(live, hub.wanted.keys().collect::<Vec<_>>());
            wanted.extend(hub.wanted.keys().copied());
        }
        prop_assert_eq!(&world.subscribed, &wanted);
        prop_assert_eq!(world.channels.channels.len(), wanted.len(), "unwanted channels are kept");
        prop_assert!(world.channels.are_requested());
        let mut all = partitions().all();
        prop_assert!(all.all(|partition| world.channels.has_answered(partition)));
    }
}

/// Channels of a session that has all partitions.
fn of_all(workers: usize) -> Channels {
    let mut channels = Channels::new(partitions(), workers);
    for partition in partitions().all() {
        channels.accept(partition, Wants::new([]));
    }
    channels
}

/// Breaks when an entry that no answer brings, because another program wrote it, is called for again without a pause.
#[test]
fn an_entry_that_no_answer_brings_is_left_out() {
    let channel = channel(0);
    let (name, partition) = (channel.as_str().as_bytes(), channel.partition());
    let mut channels = of_all(WORKERS);
    let mut now = Instant::now();
    channels.connected();
    channels.attach(0, channel.clone(), 1);
    assert!(channels.next_command().is_some());
    channels.confirmed(name, Subscription::Confirmed);
    assert!(channels.next_command().is_none());
    let cut_short = || HistoryReply::parse(&Bytes::from("9 9-0 0-0 9-0 1000 1 - 0\n")).unwrap();
    for mode in [
        AttachMode::Batched,
        AttachMode::Alone,
        AttachMode::WithoutEntry,
    ] {
        let call = channels.next_call(now).expect("an attach is due");
        assert_eq!(call.mode, mode);
        channels.attached(name, cut_short());
        let state = PartitionState {
            call: call.number,
            clock: id(9),
            horizon: EventId::ZERO,
            has_moved: false,
        };
        channels.answered(partition, &state);
        assert!(channels.next_command().is_none());
        if mode == AttachMode::Alone {
            assert!(channels.next_call(now).is_none(), "there is no pause");
            now += UNANSWERED;
            assert!(!channels.tick(now, MAX_UNANSWERED));
            assert!(channels.next_command().is_none());
        }
    }
    let updates = channels.take_updates(0);
    assert!(
        updates
            .iter()
            .any(|update| matches!(update, Update::Attached { .. }))
    );
}

/// Breaks when a subscription that Redis has ended itself, or a partition that is released, is counted twice. Then the
/// session would stop to subscribe.
#[test]
fn a_confirmation_is_counted_once() {
    let channel = channel(0);
    let (name, partition) = (channel.as_str().as_bytes(), channel.partition());
    let mut channels = of_all(WORKERS);
    channels.connected();
    channels.attach(0, channel.clone(), 1);
    assert!(channels.next_command().is_some());
    channels.confirmed(name, Subscription::Confirmed);
    // Redis ends the subscription while the command for that waits.
    channels.detach(0, channel.clone());
    assert!(channels.next_command().is_some());
    channels.confirmed(name, Subscription::None);
    channels.confirmed(name, Subscription::None);
    assert_eq!(channels.unconfirmed, 0);
    channels.attach(0, channel.clone(), 2);
    assert!(channels.next_command().is_some());
    assert_eq!(channels.unconfirmed, 1);
    let wants = channels.release(partition);
    assert_eq!(channels.unconfirmed, 0);
    channels.accept(partition, wants);
    assert!(channels.next_command().is_some());
    channels.confirmed(name, Subscription::Confirmed);
    assert_eq!(channels.unconfirmed, 0);
}
