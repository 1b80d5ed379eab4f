//! Subscriptions against a plain log: each reader receives every later event of its channels, in order and once, or a
//! gap in its place.
//!
//! The upstream is a log in memory that trims, loses its connection, and answers at any time.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers included"
)]

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use hub::{
    Batch, Channel, Config, Control, EventId, Frame, Gap, Hub, Item, Kind, LastEventId, Metrics,
    Next, Page, Partitions, Reason, Start, Subscription, Update, Upstream,
};
use proptest::prelude::*;
use tokio::sync::oneshot;

/// One event as it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recorded {
    channel: usize,
    id: EventId,
}

/// The state of the log, shared between the test and the hub's upstream.
#[derive(Default)]
struct Log {
    events: Vec<Recorded>,
    /// Per channel: everything up to here was trimmed.
    trimmed: BTreeMap<usize, EventId>,
    /// Channels that had no event up to their id in `trimmed`.
    unborn: BTreeSet<usize>,
    clock: u64,
    /// Channels that the hub wants, with the generation to answer.
    wanted: BTreeMap<usize, u64>,
    /// Which of them are attached.
    attached: BTreeMap<usize, bool>,
    pages: VecDeque<(usize, EventId, oneshot::Sender<Arc<Page>>)>,
    newest: VecDeque<(usize, u32, oneshot::Sender<Vec<EventId>>)>,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const PAGE: usize = 3;

fn partitions() -> Partitions {
    Partitions::new(2).unwrap()
}

fn channel(index: usize) -> Channel {
    partitions().channel(NAMES[index]).unwrap()
}

fn index(channel: &Channel) -> usize {
    NAMES
        .iter()
        .position(|name| *name == channel.as_str())
        .unwrap()
}

fn frame(event: Recorded) -> Frame {
    let data = format!("{} {}", NAMES[event.channel], event.id);
    let event_ref = sse::Event {
        data: &data,
        ..sse::Event::default()
    };
    Frame::encode(Some(event.id), &event_ref, false)
}

impl Log {
    fn now(&self) -> EventId {
        EventId {
            ms: self.clock,
            seq: 0,
        }
    }

    /// The events of a channel that are still there.
    fn kept(&self, channel: usize) -> Vec<Recorded> {
        let trimmed = self.trimmed.get(&channel).copied().unwrap_or_default();
        let of_channel = self.events.iter().filter(|event| event.channel == channel);
        of_channel
            .filter(|event| event.id > trimmed)
            .copied()
            .collect()
    }

    fn page(&self, channel: usize, after: EventId, events: &[Recorded], to: EventId) -> Page {
        let mut items = Vec::new();
        let trimmed = self.trimmed.get(&channel).copied().unwrap_or_default();
        if trimmed > after {
            items.push(Item {
                at: trimmed.into(),
                kind: Kind::Gap(Gap {
                    after,
                    reason: Reason::Trimmed,
                    is_beginning: self.unborn.contains(&channel),
                }),
            });
        }
        items.extend(events.iter().map(|event| Item {
            at: event.id.into(),
            kind: Kind::Frame(frame(*event)),
        }));
        Page { after, to, items }
    }

    fn page_after(&self, channel: usize, after: EventId) -> Page {
        let kept = self.kept(channel);
        let mut events: Vec<_> = kept.into_iter().filter(|event| event.id > after).collect();
        let more = events.len() > PAGE;
        events.truncate(PAGE);
        let to = if more {
            events[PAGE - 1].id
        } else {
            self.now()
        };
        self.page(channel, after, &events, to)
    }

    fn newest_page(&self, channel: usize) -> Page {
        let kept = self.kept(channel);
        match kept.len().checked_sub(PAGE) {
            None | Some(0) => self.page(channel, EventId::ZERO, &kept, self.now()),
            Some(from) => self.page(channel, kept[from - 1].id, &kept[from..], self.now()),
        }
    }
}

/// Here the steps of the test poll the readers, not the hub.
struct Nobody;

impl hub::Reader for Nobody {
    fn turn(&self, _: hub::Occasion) {}
}

fn nobody() -> Weak<dyn hub::Reader> {
    Weak::<Nobody>::new()
}

/// Counts its heartbeats.
#[derive(Default)]
struct Beats(Cell<usize>);

impl hub::Reader for Beats {
    fn turn(&self, occasion: hub::Occasion) {
        if occasion == hub::Occasion::Pulse {
            self.0.set(self.0.get() + 1);
        }
    }
}

struct InMemory(Rc<RefCell<Log>>);

impl Upstream for InMemory {
    fn attach(&self, channel: &Channel, generation: u64) {
        let mut log = self.0.borrow_mut();
        log.wanted.insert(index(channel), generation);
        log.attached.insert(index(channel), false);
    }

    fn detach(&self, channel: &Channel) {
        let mut log = self.0.borrow_mut();
        log.wanted.remove(&index(channel));
        log.attached.remove(&index(channel));
    }

    fn page(
        &self,
        channel: &Channel,
        after: EventId,
        _share: usize,
        reply: oneshot::Sender<Arc<Page>>,
    ) {
        let mut log = self.0.borrow_mut();
        log.pages.push_back((index(channel), after, reply));
    }

    fn newest(&self, channel: &Channel, count: u32, reply: oneshot::Sender<Vec<EventId>>) {
        let mut log = self.0.borrow_mut();
        log.newest.push_back((index(channel), count, reply));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish { channel: usize },
    Trim { channel: usize, keep: usize },
    Attach { channel: usize },
    Unconfirm { channel: usize },
    Lose,
    Position,
    AnswerPage,
    Subscribe { channels: u8, back: u64 },
    Read { reader: usize, times: usize },
    Leave { reader: usize },
    Pulse,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let channel = 0..NAMES.len();
    let step = prop_oneof![
        8 => channel.clone().prop_map(|channel| Step::Publish { channel }),
        1 => (channel.clone(), 0..4_usize).prop_map(|(channel, keep)| Step::Trim { channel, keep }),
        4 => channel.clone().prop_map(|channel| Step::Attach { channel }),
        1 => channel.prop_map(|channel| Step::Unconfirm { channel }),
        1 => Just(Step::Lose),
        1 => Just(Step::Position),
        3 => Just(Step::AnswerPage),
        1 => (1..16_u8, 0..30_u64).prop_map(|(channels, back)| Step::Subscribe { channels, back }),
        6 => (0..8_usize, 1..3_usize).prop_map(|(reader, times)| Step::Read { reader, times }),
        1 => (0..8_usize).prop_map(|reader| Step::Leave { reader }),
        1 => Just(Step::Pulse),
    ];
    prop::collection::vec(step, 0..150)
}

struct World {
    log: Rc<RefCell<Log>>,
    hub: Hub,
    readers: Vec<Reader>,
}

struct Reader {
    subscription: Subscription,
    channels: Vec<usize>,
    /// The cursor that it resumed with.
    from: u64,
    /// The events and gaps that it received, in order. A gap has its channel and the position after it.
    told: Vec<Told>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Event(Recorded),
    Gap {
        channel: usize,
        after: EventId,
        oldest: Option<EventId>,
        to: EventId,
    },
}

impl World {
    fn new() -> Self {
        let log = Rc::new(RefCell::new(Log {
            clock: 1000,
            ..Log::default()
        }));
        let config = Config {
            tail_items: 5,
            tail_bytes: 500,
            batch_bytes: 60,
            linger_rounds: 1,
            lingering: 1,
            lingering_brief: 1,
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let hub = Hub::new(config, metrics, Box::new(InMemory(Rc::clone(&log))));
        Self {
            log,
            hub,
            readers: Vec::new(),
        }
    }

    /// Takes the steps, waits until nothing changes, and checks the events and gaps of each reader.
    fn run(steps: &[Step]) {
        let mut world = Self::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        for reader in &world.readers {
            reader.check(&world.log.borrow());
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish { channel: index } => {
                let update = {
                    let mut log = self.log.borrow_mut();
                    log.clock += 1;
                    let event = Recorded {
                        channel: index,
                        id: log.now(),
                    };
                    log.events.push(event);
                    log.attached
                        .get(&index)
                        .copied()
                        .unwrap_or(false)
                        .then(|| Update::Event {
                            channel: channel(index),
                            id: Some(event.id),
                            frame: frame(event),
                        })
                };
                self.hub.apply(update);
            }
            Step::Trim { channel, keep } => {
                let mut log = self.log.borrow_mut();
                let kept = log.kept(channel);
                if let Some(last) = kept.len().checked_sub(keep + 1) {
                    log.trimmed.insert(channel, kept[last].id);
                }
            }
            Step::Attach { channel } => self.attach(channel),
            Step::Unconfirm { channel: index } => {
                let attached = self
                    .log
                    .borrow_mut()
                    .attached
                    .get_mut(&index)
                    .map(std::mem::take);
                if attached == Some(true) {
                    self.hub.apply([Update::Unconfirmed {
                        channel: channel(index),
                    }]);
                }
            }
            Step::Lose => {
                self.log
                    .borrow_mut()
                    .attached
                    .values_mut()
                    .for_each(|attached| *attached = false);
                let partitions = (0..2).collect();
                self.hub.apply([Update::Lost { partitions }]);
            }
            Step::Position => {
                let id = {
                    let mut log = self.log.borrow_mut();
                    log.clock += 1;
                    log.now()
                };
                self.hub
                    .apply((0..2).map(|partition| Update::Position { partition, id }));
            }
            Step::AnswerPage => self.answer(),
            Step::Subscribe { channels, back } => self.subscribe(channels, back),
            Step::Read { reader, times } => {
                if !self.readers.is_empty() {
                    let reader = reader % self.readers.len();
                    for _ in 0..times {
                        self.readers[reader].read();
                    }
                }
            }
            Step::Leave { reader } => {
                if !self.readers.is_empty() {
                    let reader = reader % self.readers.len();
                    self.readers.swap_remove(reader);
                }
            }
            Step::Pulse => {
                for _ in 0..Hub::PULSES_PER_ROUND / 16 {
                    self.hub.pulse();
                }
            }
        }
    }

    fn attach(&self, index: usize) {
        let update = {
            let mut log = self.log.borrow_mut();
            let Some(generation) = log.wanted.get(&index).copied() else {
                return;
            };
            if log.attached.insert(index, true) == Some(true) {
                return;
            }
            Update::Attached {
                channel: channel(index),
                generation,
                page: Arc::new(log.newest_page(index)),
            }
        };
        self.hub.apply([update]);
    }

    fn answer(&self) {
        let mut log = self.log.borrow_mut();
        if let Some((channel, after, reply)) = log.pages.pop_front() {
            let page = Arc::new(log.page_after(channel, after));
            let _left = reply.send(page);
        }
    }

    fn answer_newest(&self) {
        let mut log = self.log.borrow_mut();
        while let Some((channel, count, reply)) = log.newest.pop_front() {
            let kept = log.kept(channel);
            let newest = kept.iter().rev().take(count as usize);
            reply.send(newest.map(|event| event.id).collect()).unwrap();
        }
    }

    fn subscribe(&mut self, channels: u8, back: u64) {
        let from = self.log.borrow().clock.saturating_sub(back);
        let chosen: Vec<_> = (0..NAMES.len())
            .filter(|index| channels & (1 << index) != 0)
            .collect();
        let start = Start::After(LastEventId::One(EventId { ms: from, seq: 0 }));
        let channels = chosen.iter().map(|index| channel(*index)).collect();
        let subscription = self.hub.subscribe(channels, start, &nobody());
        self.readers.push(Reader {
            subscription,
            channels: chosen,
            from,
            told: Vec::new(),
        });
    }

    /// Lets all pending updates arrive.
    fn settle(&mut self) {
        for _ in 0..500 {
            (0..NAMES.len()).for_each(|index| self.attach(index));
            while !self.log.borrow().pages.is_empty() {
                self.answer();
            }
            let id = self.log.borrow().now();
            self.hub
                .apply((0..2).map(|partition| Update::Position { partition, id }));
            let mut moved = false;
            for reader in &mut self.readers {
                while reader.read() {
                    moved = true;
                }
            }
            if !moved && self.log.borrow().pages.is_empty() {
                return;
            }
        }
        panic!("readers never settle");
    }
}

/// Control events in a format of these tests. Only gaps have a name.
fn encode(control: &Control) -> Bytes {
    let Control::Gap {
        channel,
        after,
        oldest,
        id,
        ..
    } = control
    else {
        return Bytes::new();
    };
    let data = serde_json::json!({
        "channel": channel.as_str(),
        "after": after.map(|id| id.to_string()),
        "oldest": oldest.map(|id| id.to_string()),
    });
    let id = id
        .as_ref()
        .map_or_else(String::new, |id| format!("id: {id}\n"));
    format!("event: gap\ndata: {data}\n{id}\n").into()
}

impl Reader {
    /// Takes one batch. Returns whether there was one.
    fn read(&mut self) -> bool {
        let mut batch = Batch::default();
        let mut cx = Context::from_waker(Waker::noop());
        match self.subscription.poll_next(&mut cx, &mut batch) {
            Poll::Pending => return false,
            Poll::Ready(Next::Open | Next::Events | Next::Heartbeat) => {}
            Poll::Ready(next) => panic!("{next:?}"),
        }
        let mut parser = sse::Parser::new(10_000);
        let told = &mut self.told;
        let on = |event: sse::Parsed<'_>| match event.event {
            "message" => {
                let (name, id) = event.data.split_once(' ').unwrap();
                let id = id.parse().unwrap();
                let channel = NAMES.iter().position(|known| *known == name).unwrap();
                let partition = partitions().channel(name).unwrap().partition();
                let cursor: LastEventId = event.id.parse().unwrap();
                assert_eq!(
                    cursor.in_partition(partition),
                    id,
                    "the id line is the event's own"
                );
                told.push(Told::Event(Recorded { channel, id }));
            }
            "gap" => {
                let data: serde_json::Value = serde_json::from_str(event.data).unwrap();
                let name = data["channel"].as_str().unwrap();
                let channel = NAMES.iter().position(|known| *known == name).unwrap();
                let partition = partitions().channel(name).unwrap().partition();
                let cursor: LastEventId = event.id.parse().unwrap();
                told.push(Told::Gap {
                    channel,
                    after: data["after"].as_str().unwrap().parse().unwrap(),
                    oldest: data["oldest"].as_str().map(|id| id.parse().unwrap()),
                    to: cursor.in_partition(partition),
                });
            }
            _ => {}
        };
        let bytes = match batch.joined() {
            Some(joined) => joined.bytes().to_vec(),
            None => {
                batch.encode(encode);
                batch.chunks().concat()
            }
        };
        parser.push(&bytes, on).unwrap();
        true
    }

    /// The reader received every later event of its channels once and in order, or a gap in its place. And each gap
    /// hides at least one event.
    fn check(&self, log: &Log) {
        let partition = |index: usize| channel(index).partition();
        for wanted in 0..2 {
            let mut last = EventId::ZERO;
            for told in &self.told {
                let (channel, at, strict) = match told {
                    Told::Event(event) => (event.channel, event.id, true),
                    Told::Gap { channel, to, .. } => (*channel, *to, false),
                };
                if partition(channel) == wanted {
                    assert!(
                        if strict { at > last } else { at >= last },
                        "{told:?} after {last}"
                    );
                    last = at;
                }
            }
        }
        for channel in &self.channels {
            let of_channel = log.events.iter().filter(|event| event.channel == *channel);
            let mut missing: VecDeque<_> =
                of_channel.filter(|event| event.id.ms > self.from).collect();
            for (number, told) in self.told.iter().enumerate() {
                match told {
                    Told::Event(event) if event.channel == *channel => {
                        assert_eq!(missing.pop_front(), Some(event), "received {:?}", self.told);
                    }
                    Told::Gap {
                        channel: of,
                        after,
                        oldest,
                        to,
                    } if of == channel => {
                        // A gap may not move the cursor to its end, because it contains events of other channels. Such
                        // a gap may reach as far as the next event.
                        let next = self.told[number..].iter().find_map(|told| match told {
                            Told::Event(event) if event.channel == *channel => Some(event.id),
                            _ => None,
                        });
                        let lies_in_it = |event: &&Recorded| {
                            event.id > *after
                                && oldest.or(next).is_none_or(|end| event.id < end)
                                && (to == after || event.id <= *to)
                        };
                        while missing.front().is_some_and(lies_in_it) {
                            missing.pop_front();
                        }
                        let mut hidden =
                            log.events.iter().filter(|event| event.channel == *channel);
                        assert!(
                            hidden.any(|event| lies_in_it(&event)),
                            "a gap that hides nothing: {:?}",
                            self.told
                        );
                    }
                    _ => {}
                }
                // A client that is cut here resumes from this position.
                let (of, at) = match told {
                    Told::Event(event) => (event.channel, event.id),
                    Told::Gap { channel, to, .. } => (*channel, *to),
                };
                if partition(of) == partition(*channel) {
                    let untold = missing.front().filter(|event| event.id <= at);
                    assert_eq!(untold, None, "at {told:?}, received {:?}", self.told);
                }
            }
            assert!(
                missing.is_empty(),
                "never received {missing:?}, but {:?}",
                self.told
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]
    #[test]
    fn every_reader_receives_each_event_once_or_a_gap(steps in steps()) {
        World::run(&steps);
    }
}

#[test]
fn a_page_that_arrives_too_late_is_not_used() {
    use Step::{AnswerPage, Attach, Lose, Position, Publish, Read, Subscribe, Trim};
    let publish = |channel| Publish { channel };
    let subscribe = |channels, back| Subscribe { channels, back };
    let read = |reader| Read { reader, times: 1 };
    let steps = [
        subscribe(1, 0),
        publish(1),
        publish(1),
        publish(3),
        publish(1),
        subscribe(8, 0),
        publish(3),
        Attach { channel: 3 },
        // Needs a page of one channel, and then, as the tail moves on, of the other.
        subscribe(10, 5),
        publish(3),
        publish(3),
        publish(1),
        subscribe(1, 0),
        Attach { channel: 1 },
        publish(3),
        read(0),
        read(2),
        publish(3),
        read(2),
        Position,
        AnswerPage,
        read(6),
        publish(1),
        publish(1),
        Lose,
        publish(1),
        AnswerPage,
        // The new tail of the other channel covers everything, with a gap.
        Trim {
            channel: 3,
            keep: 0,
        },
    ];
    World::run(&steps);
}

#[test]
fn a_tail_that_lost_its_beginning_is_completed_by_pages() {
    let publish = |channel| Step::Publish { channel };
    World::run(&[
        Step::Subscribe {
            channels: 4,
            back: 0,
        },
        publish(2),
        publish(2),
        Step::Attach { channel: 2 },
        publish(2),
        publish(2),
        publish(0),
        Step::Position,
        Step::Position,
        publish(2),
        publish(2),
        Step::Position,
    ]);
}

/// A client that is cut after the other channel's event has already received the gap of this channel.
#[test]
fn a_gap_is_sent_before_the_events_of_other_channels_inside_it() {
    let pair: Vec<_> = (0..NAMES.len())
        .filter(|index| channel(*index).partition() == channel(1).partition())
        .take(2)
        .collect();
    let [lossy, whole] = pair[..] else {
        panic!("channels of one partition");
    };
    let mut world = World::new();
    let id = |ms| EventId { ms, seq: 0 };
    for channel in [lossy, whole, lossy, lossy] {
        world.step(&Step::Publish { channel });
    }
    world.step(&Step::Trim {
        channel: lossy,
        keep: 1,
    });
    let channels = (1 << lossy) | (1 << whole);
    world.step(&Step::Subscribe { channels, back: 4 });
    world.settle();
    let event = |channel, ms| {
        Told::Event(Recorded {
            channel,
            id: id(ms),
        })
    };
    let gap = Told::Gap {
        channel: lossy,
        after: id(1000),
        oldest: Some(id(1004)),
        to: id(1000),
    };
    let expected = [gap, event(whole, 1002), event(lossy, 1004)];
    assert_eq!(world.readers[0].told, expected);
    world.readers[0].check(&world.log.borrow());
}

/// A client that is cut between two gaps at one position must receive the second after its reconnect.
#[test]
fn only_the_last_of_several_gaps_at_one_position_moves_the_cursor() {
    // Two channels of one partition, both trimmed up to the same id.
    let pair: Vec<_> = (0..NAMES.len())
        .filter(|index| channel(*index).partition() == channel(1).partition())
        .collect();
    let world = World::new();
    let from = world.log.borrow().now();
    world.log.borrow_mut().clock += 10;
    let gone = world.log.borrow().now();
    for channel in &pair {
        world.log.borrow_mut().trimmed.insert(*channel, gone);
    }
    world.log.borrow_mut().clock += 10;
    let channels = pair.iter().map(|index| channel(*index)).collect();
    let start = Start::After(LastEventId::One(from));
    let mut subscription = world.hub.subscribe(channels, start, &nobody());
    pair.iter().for_each(|channel| world.attach(*channel));
    let mut ids = Vec::new();
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    while subscription.poll_next(&mut cx, &mut batch).is_ready() {
        let mut parser = sse::Parser::new(10_000);
        let on = |event: sse::Parsed<'_>| {
            if event.event == "gap" {
                ids.push(event.id.parse::<EventId>().unwrap());
            }
        };
        batch.encode(encode);
        parser.push(&batch.chunks().concat(), on).unwrap();
        batch.clear();
    }
    let mut expected = vec![from; pair.len() - 1];
    expected.push(gone);
    assert!(pair.len() > 1);
    assert_eq!(ids, expected);
}

#[test]
fn a_cursor_from_the_future_receives_a_gap_and_continues_live() {
    let mut world = World::new();
    let future = Start::After(LastEventId::One(EventId { ms: 9999, seq: 0 }));
    let subscription = world.hub.subscribe(vec![channel(0)], future, &nobody());
    world.readers.push(Reader {
        subscription,
        channels: vec![0],
        from: 1000,
        told: Vec::new(),
    });
    world.settle();
    let now = world.log.borrow().now();
    assert_eq!(
        world.readers[0].told,
        [Told::Gap {
            channel: 0,
            after: EventId { ms: 9999, seq: 0 },
            oldest: None,
            to: now
        }]
    );
    world.step(&Step::Publish { channel: 0 });
    world.settle();
    assert_eq!(world.readers[0].told.len(), 2);
}

#[test]
fn a_cursor_that_is_only_ahead_of_this_process_is_no_gap() {
    let mut world = World::new();
    world.step(&Step::Subscribe {
        channels: 1,
        back: 0,
    });
    world.attach(0);
    // Another replica has delivered this event. Here it is still under way.
    let event = {
        let mut log = world.log.borrow_mut();
        log.clock += 5;
        let event = Recorded {
            channel: 0,
            id: log.now(),
        };
        log.events.push(event);
        event
    };
    world.step(&Step::Subscribe {
        channels: 1,
        back: 0,
    });
    while world.readers[1].read() {}
    world.answer();
    while world.readers[1].read() {}
    world.hub.apply([Update::Event {
        channel: channel(0),
        id: Some(event.id),
        frame: frame(event),
    }]);
    world.settle();
    assert_eq!(world.readers[1].told, []);
    assert_eq!(world.readers[0].told, [Told::Event(event)]);
}

/// Breaks when a reader without an id gets no gap although the beginning of a channel was trimmed. Breaks also when it
/// gets one in a channel that has just begun.
#[test]
fn a_start_without_an_id_receives_a_gap_only_for_trimmed_events() {
    let check = |start: Start, from: u64, first: usize, gap: bool| {
        let mut world = World::new();
        // The second channel had no events before its first one.
        world.log.borrow_mut().unborn.insert(1);
        let before = world.log.borrow().now();
        world.log.borrow_mut().trimmed.insert(1, before);
        for _ in 0..6 {
            world.step(&Step::Publish { channel: 0 });
            world.step(&Step::Publish { channel: 1 });
        }
        world.step(&Step::Trim {
            channel: 0,
            keep: 4,
        });
        let channels = vec![channel(0), channel(1)];
        let subscription = world.hub.subscribe(channels, start.clone(), &nobody());
        world.readers.push(Reader {
            subscription,
            channels: vec![0, 1],
            from,
            told: Vec::new(),
        });
        (0..2).for_each(|channel| world.attach(channel));
        world.readers[0].read();
        world.answer_newest();
        world.settle();
        let mut told = world.readers[0].told.clone();
        // The two channels lie in two partitions, between which there is no order.
        let events: Vec<_> = told
            .extract_if(.., |told| matches!(told, Told::Event(_)))
            .collect();
        let gaps: Vec<_> = told
            .iter()
            .map(|told| match told {
                Told::Gap { channel, .. } => *channel,
                Told::Event(_) => unreachable!("taken out above"),
            })
            .collect();
        let kept = world.log.borrow();
        let kept: Vec<_> = (0..2).flat_map(|channel| kept.kept(channel)).collect();
        let mut expected: Vec<_> = kept.iter().map(|event| event.id).collect();
        expected.sort_unstable();
        let mut ids: Vec<_> = events
            .iter()
            .map(|told| match told {
                Told::Event(event) => event.id,
                Told::Gap { to, .. } => *to,
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, expected[first..], "{start:?}");
        assert_eq!(gaps, vec![0; usize::from(gap)], "{start:?}");
    };
    let id = |ms| Start::After(LastEventId::One(EventId { ms, seq: 0 }));
    check(Start::Oldest, 0, 0, true);
    check(Start::Time(0), 0, 0, true);
    check(id(0), 0, 0, true);
    // There are ten events.
    check(Start::Newest(11), 0, 0, true);
    check(Start::Newest(3), 1009, 7, false);
}

/// Breaks when a stream gets no heartbeat or two in a round, or when thousands of them fall into one pulse. This holds
/// while streams open and close too.
#[test]
fn heartbeats_reach_each_stream_once_a_round_in_small_shares() {
    let log = Rc::<RefCell<Log>>::default();
    let hub = Hub::new(
        Config::default(),
        Metrics::register(&prometheus::Registry::new()).unwrap(),
        Box::new(InMemory(log)),
    );
    let open = || {
        let beats = Rc::new(Beats::default());
        let reader: Rc<dyn hub::Reader> = beats.clone();
        let subscription = hub.subscribe(vec![channel(0)], Start::Live, &Rc::downgrade(&reader));
        (beats, subscription)
    };
    let counts = |streams: &[(Rc<Beats>, Subscription)]| -> Vec<usize> {
        streams.iter().map(|(beats, _)| beats.0.take()).collect()
    };
    let mut streams: Vec<_> = (0..1000).map(|_| open()).collect();
    for _ in 0..2 {
        let mut most = 0;
        let mut before = 0;
        for _ in 0..Hub::PULSES_PER_ROUND {
            hub.pulse();
            let sum = streams.iter().map(|(beats, _)| beats.0.get()).sum();
            most = most.max(sum - before);
            before = sum;
        }
        assert!(most <= 10, "{most} in one pulse");
        assert!(counts(&streams).iter().all(|count| *count == 1));
    }
    // Many streams open in the middle of a round. No earlier stream misses its heartbeat.
    for pulse in 0..Hub::PULSES_PER_ROUND {
        if pulse == Hub::PULSES_PER_ROUND / 2 {
            streams.extend((0..4000).map(|_| open()));
        }
        hub.pulse();
    }
    assert!(counts(&streams)[..1000].iter().all(|count| *count == 1));
    // They close again, as do those in between. The keys of the others stay.
    streams.truncate(1000);
    let mut place = 0;
    streams.retain(|_| {
        place += 1;
        place % 100 == 0
    });
    for _ in 0..2 {
        for _ in 0..Hub::PULSES_PER_ROUND {
            hub.pulse();
        }
        assert_eq!(counts(&streams), [1; 10]);
    }
}

/// Breaks when the hub keeps any number of channels of a client that has left. Breaks also when it does not keep a
/// channel that was read for a while.
#[test]
fn channels_without_readers_are_kept_within_bounds() {
    let log = Rc::<RefCell<Log>>::default();
    let config = Config {
        linger_rounds: 2,
        lingering: 2,
        lingering_brief: 1,
        ..Config::default()
    };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let hub = Hub::new(config, metrics, Box::new(InMemory(Rc::clone(&log))));
    let open = |indices: &[usize], answered: bool| {
        let channels = indices.iter().map(|index| channel(*index)).collect();
        let subscription = hub.subscribe(channels, Start::Live, &nobody());
        for index in indices.iter().filter(|_| answered) {
            let generation = log.borrow().wanted[index];
            hub.apply([Update::Attached {
                channel: channel(*index),
                generation,
                page: Arc::new(log.borrow().newest_page(*index)),
            }]);
        }
        subscription
    };
    let round = || (0..Hub::PULSES_PER_ROUND).for_each(|_| hub.pulse());
    let kept = || log.borrow().wanted.keys().copied().collect::<Vec<_>>();
    // Before it is attached there is nothing to keep.
    drop(open(&[0, 1, 2], false));
    assert!(kept().is_empty());
    // Of the channels that were read only for a moment, the newest is kept for a reconnect.
    drop(open(&[0], true));
    drop(open(&[1], true));
    assert_eq!(kept(), [1]);
    let generation = log.borrow().wanted[&1];
    drop(open(&[1], false));
    assert_eq!((kept(), log.borrow().wanted[&1]), (vec![1], generation));
    // Channels that were read for a while have a bound of their own, and channels that were read for a moment do not
    // displace them.
    let read = [1, 2, 3].map(|index| open(&[index], true));
    round();
    assert_eq!(kept(), [1, 2, 3]);
    read.into_iter().for_each(drop);
    assert_eq!(kept(), [2, 3]);
    drop(open(&[0], true));
    drop(open(&[1], true));
    assert_eq!(kept(), [1, 2, 3]);
    // A channel that is read again does not count as kept.
    let again = open(&[2], false);
    let other = open(&[0], true);
    round();
    drop(other);
    assert_eq!(kept(), [0, 1, 2, 3]);
    for _ in 0..3 {
        round();
    }
    assert_eq!(kept(), [2]);
    drop(again);
    for _ in 0..3 {
        round();
    }
    assert!(kept().is_empty());
}
