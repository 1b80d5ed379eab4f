//! Random traces of a cluster whose links and nodes stall and lose raw messages, to two recorders of a partition.
//!
//! Node X holds the partition, and recorders record in the order in which it publishes. The simulation of the machine
//! shows that each input in this order is recorded once. So here an input is recorded if the active recorder takes it for
//! a new message.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use hub::Partitions;

use super::*;
use crate::{record::pulse::Pulse, seeds::seeds};

/// The node of the partition; the others have the numbers after it.
const X: usize = 0;
const PEERS: usize = 3;
const RECORDERS: usize = 2;
/// In milliseconds.
const FAULTS_BEGIN: u64 = 16_000;
const FAULTS_END: u64 = 40_000;
/// Calls take less than this.
const YOUNG: u64 = 5_000;
const END: u64 = 95_000;

/// A part that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Missed messages are not published again.
    Repetition,
    /// A message is missed at once.
    Settle,
    /// A node that does not answer has nothing to deliver.
    Pulse,
    /// All that arrives over a new subscription was published since.
    Certain,
    /// A message that arrives after it was published again is new.
    Again,
    /// A message that is published again after it has arrived is new.
    Arrived,
    /// Two recorders may have the same message published again.
    Number,
}

#[derive(Clone, Debug)]
enum Push {
    Message(u32),
    Again(Digest, u64, u32),
    Pong,
}

#[derive(Clone, Debug)]
enum Event {
    Publish {
        at: usize,
        message: u32,
    },
    /// A node reads a message from the bus.
    Reads {
        node: usize,
        message: u32,
    },
    Delivers {
        node: usize,
        to: usize,
        place: usize,
        push: Push,
        session: u32,
    },
    Tick(usize),
    Ping(usize),
    /// Node X reads a ping.
    Pings(usize, u32),
    Calls {
        missed: Vec<(u32, Digest, u64)>,
    },
    /// Node X answers which messages it has published again.
    Answers {
        to: usize,
        again: Vec<(Digest, u64)>,
    },
    Connects {
        recorder: usize,
        node: usize,
    },
    Cuts {
        recorder: usize,
        node: usize,
    },
}

#[derive(Default)]
struct Recorder {
    pulse: Pulse,
    /// By place in the order of node X: whether it is taken for a new message.
    judged: HashMap<usize, bool>,
}

struct World {
    random: fastrand::Rng,
    without: Without,
    start: Instant,
    now: u64,
    count: u64,
    events: BTreeMap<(u64, u64), Event>,
    /// When the last message over a link or a subscription arrives.
    links: HashMap<(usize, usize), u64>,
    subscriptions: HashMap<(usize, usize), u64>,
    /// Until when a link stalls, loses everything, or a node stalls.
    stalled_links: HashMap<(usize, usize), (u64, u64)>,
    lossy_links: HashMap<(usize, usize), (u64, u64)>,
    stalled_nodes: HashMap<usize, (u64, u64)>,
    /// By recorder and node: the number of the subscription while there is one, and since when.
    sessions: HashMap<(usize, usize), (u32, u64)>,
    connected: u32,
    deliveries: Vec<Deliveries>,
    recorders: Vec<Recorder>,
    /// The order of node X: message, and the time.
    order: Vec<(u32, u64)>,
    /// How many times node X has published messages again, and when it did last.
    numbers: HashMap<Digest, (u64, u64)>,
    /// By message: the payload, and when a recorder that was subscribed for long received it from which node.
    payloads: Vec<String>,
    certain: HashMap<u32, u64>,
}

fn channel() -> Channel {
    let one = Partitions::new(1).and_then(|it| it.channel("a").ok());
    one.expect("it is a name")
}

impl World {
    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.insert((time, self.count), event);
    }

    /// When a node that has something to read at that time reads it.
    fn awake(&mut self, node: usize, time: u64) -> u64 {
        match self.stalled_nodes.get(&node).copied() {
            // In any order.
            Some((from, until)) if (from..until).contains(&time) => until + self.random.u64(0..100),
            _ => time,
        }
    }

    fn digest(&self, message: u32) -> Digest {
        Digest::of(&channel(), self.payloads[message as usize].as_bytes())
    }

    /// A node publishes to its subscribers.
    fn push(&mut self, node: usize, push: &Push) {
        let mut place = 0;
        if node == X
            && let Push::Message(message) | Push::Again(_, _, message) = *push
        {
            place = self.order.len();
            self.order.push((message, self.now));
        }
        for to in 0..RECORDERS {
            self.push_to(node, to, place, push);
        }
    }

    fn push_to(&mut self, node: usize, to: usize, place: usize, push: &Push) {
        let Some((session, _)) = self.sessions.get(&(to, node)).copied() else {
            return;
        };
        let delay = self.random.u64(1..30);
        let last = self.subscriptions.entry((node, to)).or_default();
        *last = (self.now + delay).max(*last);
        let time = *last;
        self.at(
            time,
            Event::Delivers {
                node,
                to,
                place,
                push: push.clone(),
                session,
            },
        );
    }

    fn handle(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Publish { at, message } => {
                let awake = self.awake(at, self.now);
                if awake > self.now {
                    self.at(awake, Event::Publish { at, message });
                    return;
                }
                let certain = (0..RECORDERS).all(|recorder| {
                    [X, at].iter().all(|node| {
                        let session = self.sessions.get(&(recorder, *node));
                        session.is_some_and(|(_, since)| since + 16_000 < self.now)
                    })
                });
                if certain {
                    self.certain.insert(message, self.now);
                }
                self.push(at, &Push::Message(message));
                for node in (0..PEERS).filter(|node| *node != at) {
                    let within = |it: Option<&(u64, u64)>| {
                        it.copied()
                            .filter(|(from, until)| (*from..*until).contains(&self.now))
                    };
                    if within(self.lossy_links.get(&(at, node))).is_some() {
                        continue;
                    }
                    let sent = within(self.stalled_links.get(&(at, node)))
                        .map_or(self.now, |(_, until)| until);
                    let delay = self.random.u64(1..50);
                    let last = self.links.entry((at, node)).or_default();
                    *last = (sent + delay).max(*last);
                    let time = *last;
                    self.at(time, Event::Reads { node, message });
                }
            }
            Event::Reads { node, message } => {
                let awake = self.awake(node, self.now);
                match awake > self.now {
                    true => self.at(awake, Event::Reads { node, message }),
                    false => self.push(node, &Push::Message(message)),
                }
            }
            Event::Delivers {
                node,
                to,
                place,
                push,
                session,
            } => {
                if self
                    .sessions
                    .get(&(to, node))
                    .is_none_or(|it| it.0 != session)
                {
                    return;
                }
                let source = Source(node as u8);
                let without = self.without;
                let judged = match push {
                    Push::Message(message) => {
                        let digest = self.digest(message);
                        let payload = self.payloads[message as usize].clone();
                        let copy = || (channel(), Bytes::from(payload));
                        let arrival = self.deliveries[to].arrived(source, digest, 0, now, copy);
                        arrival == Arrival::New || without == Without::Again
                    }
                    Push::Again(digest, number, _) => {
                        let arrival = self.deliveries[to].republished(digest, number, now);
                        arrival == Arrival::New || without == Without::Arrived
                    }
                    Push::Pong => {
                        self.recorders[to].pulse.pong(now);
                        return;
                    }
                };
                // A recorder that has just subscribed is not active.
                let since = self.sessions.get(&(to, X)).map(|it| it.1);
                if node == X && since.is_some_and(|since| since + YOUNG < self.now) {
                    self.recorders[to].judged.insert(place, judged);
                }
            }
            Event::Tick(recorder) => {
                self.at(self.now + 200, Event::Tick(recorder));
                self.deliveries[recorder].tick(now);
                if !self.sessions.contains_key(&(recorder, X)) {
                    return;
                }
                let alive = match self.without {
                    Without::Pulse => Some(now),
                    _ => self.recorders[recorder].pulse.alive(),
                };
                let patience = match self.without {
                    Without::Settle => Duration::ZERO,
                    // Both at once, so that they compete.
                    _ => SETTLE,
                };
                let Some(alive) = alive.filter(|_| self.without != Without::Repetition) else {
                    return;
                };
                let missed = self.deliveries[recorder].missed(0, alive, patience, now);
                if missed.is_empty() {
                    return;
                }
                let number_of = |missed: &Missed| {
                    let payload = std::str::from_utf8(&missed.payload).expect("it is text");
                    let place = self.payloads.iter().position(|it| it == payload);
                    place.expect("it was published") as u32
                };
                let missed = missed
                    .iter()
                    .map(|it| (number_of(it), it.digest, it.repetitions));
                let missed = missed.collect();
                // Some calls take long.
                let delay = match self.random.u8(0..4) {
                    0 => self.random.u64(30..4_000),
                    _ => self.random.u64(1..30),
                };
                self.at(self.now + delay, Event::Calls { missed });
            }
            Event::Calls { missed } => {
                let awake = self.awake(X, self.now);
                if awake > self.now {
                    self.at(awake, Event::Calls { missed });
                    return;
                }
                for (message, digest, number) in missed {
                    let (known, last) = self.numbers.entry(digest).or_default();
                    *last = self.now;
                    if *known != number && self.without != Without::Number {
                        for deliveries in &mut self.deliveries {
                            // As if it were the answer of either's call.
                            deliveries.was_again(digest, *known, now);
                        }
                        continue;
                    }
                    *known += 1;
                    let number = *known;
                    self.push(X, &Push::Again(digest, number, message));
                }
            }
            Event::Answers { to, again } => {
                for (digest, number) in again {
                    self.deliveries[to].was_again(digest, number, now);
                }
            }
            Event::Ping(recorder) => {
                self.at(self.now + 1_000, Event::Ping(recorder));
                if let Some((session, _)) = self.sessions.get(&(recorder, X)).copied() {
                    self.recorders[recorder].pulse.ping(now);
                    let delay = self.random.u64(1..30);
                    self.at(self.now + delay, Event::Pings(recorder, session));
                }
            }
            Event::Pings(recorder, session) => {
                let awake = self.awake(X, self.now);
                if awake > self.now {
                    self.at(awake, Event::Pings(recorder, session));
                } else if self
                    .sessions
                    .get(&(recorder, X))
                    .is_some_and(|it| it.0 == session)
                {
                    self.push_to(X, recorder, 0, &Push::Pong);
                }
            }
            Event::Connects { recorder, node } => {
                self.connected += 1;
                self.sessions
                    .insert((recorder, node), (self.connected, self.now));
                let since = match self.without {
                    Without::Certain => now.checked_sub(LATEST * 2).expect("it is later"),
                    _ => now,
                };
                let id = Arc::from(node.to_string());
                let deliveries = &mut self.deliveries[recorder];
                let source = deliveries.begin(&id, since).expect("there is room");
                assert_eq!(source, Source(node as u8));
                if node == X {
                    self.recorders[recorder].pulse = Pulse::default();
                    deliveries.own(source, &[0], since);
                    let again = self.numbers.iter();
                    let again = again.filter(|(_, (_, time))| time + 15_000 > self.now);
                    let again = again.map(|(digest, (number, _))| (*digest, *number));
                    let again = again.collect();
                    let delay = self.random.u64(1..60);
                    let answers = Event::Answers {
                        to: recorder,
                        again,
                    };
                    self.at(self.now + delay, answers);
                }
            }
            Event::Cuts { recorder, node } => {
                self.sessions.remove(&(recorder, node));
                self.deliveries[recorder].end(Source(node as u8), now);
                let time = self.now + self.random.u64(50..5_000);
                self.at(time, Event::Connects { recorder, node });
            }
        }
    }

    /// Makes random faults. No message is later than [`LATEST`] because of them.
    fn break_something(&mut self) {
        for _ in 0..self.random.u8(1..5) {
            let from = self.random.u64(FAULTS_BEGIN..FAULTS_END);
            let (a, b) = (self.random.usize(0..PEERS), self.random.usize(0..PEERS));
            match self.random.u8(0..5) {
                0 => {
                    let until = from + self.random.u64(100..4_000);
                    self.lossy_links.insert((a, X), (from, until));
                }
                1 => {
                    let until = from + self.random.u64(100..10_000);
                    self.stalled_links.insert((a, b), (from, until));
                }
                2 => {
                    let until = from + self.random.u64(100..4_000);
                    self.stalled_nodes.insert(a, (from, until));
                }
                3 => {
                    let until = from + self.random.u64(100..6_000);
                    for a in 0..PEERS {
                        self.lossy_links.insert((a, b), (from, until));
                        self.lossy_links.insert((b, a), (from, until));
                    }
                }
                _ => {
                    // Of one recorder, so that the other one is subscribed.
                    self.at(
                        from,
                        Event::Cuts {
                            recorder: 1,
                            node: a,
                        },
                    );
                }
            }
        }
    }
}

/// Returns what is wrong at the end.
fn run(seed: u64, without: Without) -> Result<(), String> {
    let mut world = World {
        random: fastrand::Rng::with_seed(seed),
        without,
        start: Instant::now() + LATEST * 4,
        now: 0,
        count: 0,
        events: BTreeMap::new(),
        links: HashMap::new(),
        subscriptions: HashMap::new(),
        stalled_links: HashMap::new(),
        lossy_links: HashMap::new(),
        stalled_nodes: HashMap::new(),
        sessions: HashMap::new(),
        connected: 0,
        deliveries: (0..RECORDERS)
            .map(|_| Deliveries::new(usize::MAX))
            .collect(),
        recorders: (0..RECORDERS).map(|_| Recorder::default()).collect(),
        order: Vec::new(),
        numbers: HashMap::new(),
        payloads: Vec::new(),
        certain: HashMap::new(),
    };
    for recorder in 0..RECORDERS {
        for node in 0..PEERS {
            world.at(0, Event::Connects { recorder, node });
        }
        world.at(0, Event::Tick(recorder));
        let first = world.random.u64(0..1_000);
        world.at(first, Event::Ping(recorder));
    }
    let mut time = 0;
    while time < FAULTS_END + 5_000 {
        time += world.random.u64(1..200);
        let message = world.payloads.len() as u32;
        world.payloads.push(match world.random.u8(0..20) {
            0 => "same".to_owned(),
            _ => message.to_string(),
        });
        let at = world.random.usize(0..PEERS);
        world.at(time, Event::Publish { at, message });
    }
    world.break_something();
    while let Some(((time, _), event)) = world.events.pop_first() {
        if time > END {
            break;
        }
        world.now = time;
        world.handle(event);
    }
    // The recorders take turns.
    let turn = world.random.u64(3_000..30_000);
    let mut recorded = HashMap::<&str, usize>::new();
    for (place, (message, time)) in world.order.iter().enumerate() {
        if *time < YOUNG {
            *recorded
                .entry(&world.payloads[*message as usize])
                .or_default() += 1;
            continue;
        }
        let active = (time / turn) as usize % RECORDERS;
        let judged = |recorder: usize| world.recorders[recorder].judged.get(&place);
        let judged = judged(active).or_else(|| judged(RECORDERS - 1 - active));
        if *judged.ok_or("nobody has received it")? {
            *recorded
                .entry(&world.payloads[*message as usize])
                .or_default() += 1;
        }
    }
    for (message, payload) in world.payloads.iter().enumerate() {
        let count = recorded.get(payload.as_str()).copied().unwrap_or_default();
        if payload == "same" {
            continue;
        }
        if count > 1 {
            return Err(format!("{payload} is recorded {count} times"));
        }
        if count == 0 && world.certain.contains_key(&(message as u32)) {
            return Err(format!("{payload} is lost"));
        }
    }
    let published = world.payloads.iter().filter(|it| *it == "same").count();
    if recorded.get("same").copied().unwrap_or_default() > published {
        return Err("of equal messages, too many are recorded".to_owned());
    }
    for deliveries in &world.deliveries {
        let left = deliveries.messages.len() + deliveries.order.len() + deliveries.bytes;
        if left > 0 {
            return Err(format!("{left} are left in memory"));
        }
    }
    Ok(())
}

#[test]
fn messages_that_a_node_has_missed_are_recorded_once() {
    for seed in 0..seeds(200).min(20_000) {
        if let Err(error) = run(seed, Without::Nothing) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn missed_messages_need_every_part() {
    for without in [
        Without::Repetition,
        Without::Settle,
        Without::Pulse,
        Without::Certain,
        Without::Again,
        Without::Arrived,
        Without::Number,
    ] {
        let fails = (0..1000).any(|seed| run(seed, without).is_err());
        assert!(fails, "nothing fails without {without:?}");
    }
}
