//! A partition that moves between two nodes while raw messages are published, as a deterministic simulation.
//!
//! Replica A records at node X. Both nodes deliver all messages, each in an order of its own and late now and then. The partition moves to node Y: at first no node carries out its calls, then Y does. Replica A carries the
//! partition, and its own recorder at Y takes over. Replica B subscribes to Y, and waits. At last A dies or stops, and B
//! records. Everything has to be recorded once, and in the order of each publisher. If A dies while it carries the
//! partition, recording is interrupted, but nothing is recorded twice.
//!
//! The test has to fail without any one part.

use std::collections::{BTreeMap, HashMap};

use hub::Partitions;

use super::*;
use crate::{
    record::machine::{Effect, Reply},
    seeds::seeds,
};

/// A part of the protocol to be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// Messages that are recorded and have not arrived are not expected.
    Expected,
    /// No notice is recorded of them.
    Recorded,
    /// The successor does not wait.
    Settle,
    /// The successor acts on notices of the carrier's appends.
    Fence,
    /// The successor takes nothing over.
    Pending,
    /// The lease does not move with the partition.
    Lease,
    /// A call that was refused is taken for one in doubt.
    Elsewhere,
    /// A recorder that is out of sync does not expect messages whose notices have arrived.
    Early,
    /// A recorder does not learn that a carrier held the lease.
    Late,
    /// A recorder takes the first equal message for the same, and not the nearest.
    Nearest,
}

/// A recorder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Who {
    /// Replica A at X.
    Carrier,
    /// Replica A at Y.
    Successor,
    /// Replica B at Y.
    Standby,
}

#[derive(Clone, Debug)]
enum Push {
    Raw(String),
    Notice(String),
}

enum Event {
    /// A message reaches a node.
    Arrives {
        at_y: bool,
        payload: String,
    },
    /// A node delivers to a subscriber.
    Delivers {
        to: Who,
        push: Push,
    },
    /// Redis carries out a call.
    Calls {
        by: Who,
        effect: Effect,
    },
    Answers {
        to: Who,
        reply: Reply,
    },
    Ticks,
    /// The source refuses all calls from now on.
    Leaves,
    /// The target carries them out from now on.
    Moved,
    /// A recorder notices that.
    Notices(Who),
    /// Replica A dies, or stops.
    Ends,
    /// Replica A dies while it carries the partition.
    Dies,
}

enum Node {
    X,
    Neither,
    Y,
}

struct World {
    random: fastrand::Rng,
    without: Without,
    start: Instant,
    /// Milliseconds.
    now: u64,
    count: u64,
    events: BTreeMap<(u64, u64), Event>,
    /// The time of the last push to each subscriber, because pushes keep their order.
    pushed: BTreeMap<Who, u64>,
    node: Node,
    lease: Option<(String, u64)>,
    in_sync: BTreeMap<String, u64>,
    log: Vec<String>,
    carrier: Option<Carrier>,
    machine: Option<Machine>,
    successor: Option<Successor>,
    heir: Option<Machine>,
    standby: Option<Machine>,
    interrupted: bool,
}

const LEASE_MS: u64 = crate::times::LEASE.as_millis() as u64;
const TICK_MS: u64 = crate::times::TICK.as_millis() as u64;
/// Longest delay of a message on its way to a node.
const DELAY: u64 = 1_400;
const END: u64 = 40_000;

impl World {
    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.insert((time, self.count), event);
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    /// Publishes what three publishers do in all the time, and decides when it reaches each node.
    fn publish(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for publisher in 0..3 {
            let mut last = [0, 0];
            let (mut time, mut same) = (0, 0);
            // A link is slow for a while.
            let slow = [0, 1].map(|_| self.random.u64(0..12_000));
            for number in 0.. {
                time += self.random.u64(5..400);
                if time > 25_000 {
                    break;
                }
                // Equal messages come in pairs, which are so far apart that the nearest is of the same pair.
                let is_pair = publisher == 0 && time > same + 3 * DELAY;
                let payloads = match is_pair {
                    true => vec!["same".to_owned(); 2],
                    false => vec![format!("{publisher}:{number}")],
                };
                if is_pair {
                    same = time;
                }
                let slow = slow.map(|from| (from..from + 3000).contains(&time));
                for payload in payloads {
                    for (at_y, (last, is_slow)) in
                        [false, true].into_iter().zip(last.iter_mut().zip(slow))
                    {
                        let delay = self.random.u64(0..if is_slow { DELAY } else { 5 });
                        *last = (*last).max(time + delay);
                        let payload = payload.clone();
                        self.at(*last, Event::Arrives { at_y, payload });
                    }
                    all.push(payload);
                }
            }
        }
        all
    }

    fn push(&mut self, to: Who, push: Push) {
        let last = self.pushed.entry(to).or_default();
        *last = (*last).max(self.now + self.random.u64(0..200));
        let time = *last;
        self.at(time, Event::Delivers { to, push });
    }

    fn notice(&mut self, notice: &str) {
        let to: &[Who] = match self.node {
            Node::Y => &[Who::Successor, Who::Standby],
            _ => &[Who::Carrier],
        };
        for who in to {
            self.push(*who, Push::Notice(notice.to_owned()));
        }
    }

    fn machine(&mut self, who: Who) -> Option<&mut Machine> {
        match who {
            Who::Carrier => match &mut self.carrier {
                Some(carrier) => Some(&mut carrier.machine),
                None => self.machine.as_mut(),
            },
            Who::Successor => self.heir.as_mut(),
            Who::Standby => self.standby.as_mut(),
        }
    }

    fn call(&mut self, effect: &Effect) -> Reply {
        let elsewhere = match self.without {
            Without::Elsewhere => Outcome::Unknown,
            _ => Outcome::Elsewhere,
        };
        let outcome = |outcome| match effect {
            Effect::Acquire { .. } => Reply::Acquire(outcome),
            Effect::Renew { .. } => Reply::Renew(outcome),
            Effect::Append { .. } => Reply::Append(outcome),
            Effect::PublishBarrier { .. } => Reply::PublishBarrier(outcome),
            Effect::StepDown { .. } => Reply::StepDown(outcome),
        };
        if matches!(self.node, Node::Neither) {
            return outcome(elsewhere);
        }
        let now = self.now;
        self.lease.take_if(|(_, until)| *until < now);
        self.in_sync.retain(|_, until| *until >= now);
        let replica = |token: &str| token.split(':').next().unwrap_or_default().to_owned();
        let holds = |world: &Self, token: &String| {
            world.lease.as_ref().is_some_and(|(held, _)| held == token)
        };
        match effect {
            Effect::Acquire { token, in_sync, .. } => {
                let own = replica(token);
                if *in_sync {
                    self.in_sync.insert(own.clone(), now + 2 * LEASE_MS);
                }
                let held = self.lease.as_ref();
                if held.is_some_and(|(held, _)| replica(held) != own) {
                    return outcome(Outcome::Denied);
                }
                if !*in_sync {
                    if self.in_sync.keys().any(|it| *it != own) {
                        return outcome(Outcome::Denied);
                    }
                    self.interrupted = true;
                }
                self.lease = Some((token.clone(), now + LEASE_MS));
                let appends = match (*in_sync, self.without) {
                    (true, _) => "",
                    (false, Without::Late) => "0",
                    (false, _) => "0>",
                };
                self.notice(&format!("#{token}{appends}"));
            }
            Effect::Renew { token } => {
                if !holds(self, token) {
                    return outcome(Outcome::Denied);
                }
                self.lease = Some((token.clone(), now + LEASE_MS));
                self.in_sync.insert(replica(token), now + 2 * LEASE_MS);
            }
            Effect::Append { token, batch, .. } => {
                if !holds(self, token) {
                    return outcome(Outcome::Denied);
                }
                for pending in batch {
                    if let Content::Message(_) = pending.content {
                        let payload = std::str::from_utf8(&pending.payload);
                        self.log.push(payload.expect("it is text").to_owned());
                    }
                }
                let digests: Vec<_> = batch.iter().map(|pending| &*pending.digest).collect();
                self.notice(&digests.join(" "));
            }
            Effect::PublishBarrier { notice } => {
                self.notice(notice);
            }
            Effect::StepDown { notice } => {
                let own = replica(&notice[1..]);
                if !self.in_sync.keys().any(|it| *it != own) {
                    return outcome(Outcome::Denied);
                }
                self.in_sync.remove(&own);
                self.lease.take_if(|(held, _)| replica(held) == own);
                self.notice("~");
                self.notice(notice);
            }
        }
        outcome(Outcome::Done)
    }

    fn deliver(&mut self, to: Who, push: Push) {
        let now = self.instant();
        match push {
            Push::Notice(notice) => {
                let carries = to == Who::Carrier && self.carrier.is_some();
                if let Some(machine) = self.machine(to).filter(|_| !carries) {
                    machine.notice(&notice);
                }
            }
            Push::Raw(payload) => {
                let channel = Partitions::new(1).and_then(|it| it.channel("a").ok());
                let channel = channel.expect("it is a name");
                let payload = Bytes::from(payload);
                match (to, &mut self.carrier, &mut self.successor) {
                    (Who::Carrier, Some(carrier), _) => carrier.raw(channel, payload, now),
                    (Who::Successor, _, Some(successor)) => {
                        successor.raw(channel, payload, now);
                        Ok(())
                    }
                    _ => match self.machine(to) {
                        Some(machine) => machine.raw(channel, payload),
                        None => Ok(()),
                    },
                }
                .expect("there is room");
                if self.without == Without::Recorded
                    && let Some(heir) = &mut self.heir
                {
                    let kept = heir.pending.iter();
                    let kept: Vec<_> = kept
                        .filter(|it| it.content != Content::Recorded)
                        .cloned()
                        .collect();
                    let mut queue = Queue::default();
                    kept.into_iter().for_each(|it| queue.push(it));
                    heir.pending = queue;
                }
            }
        }
    }

    fn tick(&mut self) {
        let now = self.instant();
        for who in [Who::Carrier, Who::Successor, Who::Standby] {
            if let Some(machine) = self.machine(who) {
                machine.tick();
            }
        }
        if self.without == Without::Settle {
            if let Some(carrier) = &mut self.carrier {
                carrier.since = self.start;
            }
            if let Some(successor) = &mut self.successor {
                successor.since = self.start;
            }
        }
        if let Some(successor) = &mut self.successor
            && successor.asks(now)
            && let Some(carrier) = &mut self.carrier
        {
            carrier.leave(now);
        }
    }

    /// Passes the effects of all recorders on, after each event.
    fn act(&mut self) {
        if self.carrier.as_ref().is_some_and(Carrier::has_failed) {
            self.interrupted = true;
        }
        if let Some(handover) = self.carrier.as_mut().and_then(Carrier::handover)
            && let Some(successor) = self.successor.take()
        {
            self.carrier = None;
            let mut handover = handover;
            if self.without == Without::Nearest {
                // The oldest equal message is taken.
                for (at, _) in &mut handover.received.0 {
                    *at = self.start;
                }
            }
            let mut heir = successor.inherit("a:2", handover);
            match self.without {
                Without::Expected => {
                    heir.inheritance = heir.inheritance.map(|it| Inheritance {
                        expected: HashMap::new(),
                        ..it
                    })
                }
                Without::Fence => heir.inherited(),
                Without::Pending => heir.pending = Queue::default(),
                _ => {}
            }
            self.heir = Some(heir);
        }
        for who in [Who::Carrier, Who::Successor, Who::Standby] {
            let mut effects = Vec::new();
            if let Some(machine) = self.machine(who) {
                while let Some(effect) = machine.next() {
                    effects.push(effect);
                }
            }
            for effect in effects {
                let time = self.now + self.random.u64(1..40);
                self.at(time, Event::Calls { by: who, effect });
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrives {
                at_y: false,
                payload,
            } => self.push(Who::Carrier, Push::Raw(payload)),
            Event::Arrives {
                at_y: true,
                payload,
            } => {
                for to in [Who::Successor, Who::Standby] {
                    self.push(to, Push::Raw(payload.clone()));
                }
            }
            Event::Delivers { to, push } => self.deliver(to, push),
            Event::Calls { by, effect } => {
                let reply = self.call(&effect);
                let time = self.now + self.random.u64(1..40);
                self.at(time, Event::Answers { to: by, reply });
            }
            Event::Answers { to, reply } => {
                if let Some(machine) = self.machine(to) {
                    machine.reply(reply);
                }
            }
            Event::Ticks => {
                self.tick();
                self.at(self.now + TICK_MS, Event::Ticks);
            }
            Event::Leaves => self.node = Node::Neither,
            Event::Moved => {
                self.node = Node::Y;
                self.in_sync.clear();
                match self.without {
                    Without::Lease => self.lease = None,
                    _ => {
                        let holder = self
                            .lease
                            .take()
                            .map_or_else(|| "a:1-2".to_owned(), |(it, _)| it);
                        self.lease = Some((holder, self.now + LEASE_MS));
                    }
                }
            }
            Event::Notices(Who::Carrier) => {
                if let Some(mut machine) = self.machine.take() {
                    self.interrupted |= !machine.carry();
                    self.carrier = Some(Carrier::new(machine, self.instant()));
                }
            }
            Event::Notices(Who::Successor) => {
                self.successor = Some(Successor::new(usize::MAX, self.instant()));
            }
            Event::Notices(Who::Standby) => {
                let machine = Machine::new("b:1");
                self.standby = Some(match self.without {
                    Without::Early => machine,
                    _ => machine.in_cluster(),
                });
            }
            Event::Ends => {
                let is_in_sync = self.standby.as_ref().is_some_and(Machine::is_in_sync);
                match &mut self.heir {
                    Some(_) if is_in_sync && self.random.bool() => self.heir = None,
                    Some(heir) => heir.step_down(),
                    None => self.interrupted = true,
                }
            }
            Event::Dies => {
                (self.machine, self.carrier) = (None, None);
                (self.successor, self.heir) = (None, None);
            }
        }
        self.act();
    }
}

/// Returns what is wrong at the end.
fn run(seed: u64, without: Without) -> Result<(), String> {
    let mut world = World {
        random: fastrand::Rng::with_seed(seed),
        without,
        start: Instant::now(),
        now: 0,
        count: 0,
        events: BTreeMap::new(),
        pushed: BTreeMap::new(),
        node: Node::X,
        lease: None,
        in_sync: BTreeMap::new(),
        log: Vec::new(),
        carrier: None,
        machine: Some(Machine {
            in_sync: true,
            barrier_due: false,
            acquire_due: true,
            ..Machine::new("a:1")
        }),
        successor: None,
        heir: None,
        standby: None,
        interrupted: false,
    };
    let published = world.publish();
    world.at(0, Event::Ticks);
    let leaves = world.random.u64(500..12_000);
    // A large slot takes long, longer than a lease.
    let moved = leaves
        + world
            .random
            .u64(1..if seed.is_multiple_of(4) { 6_000 } else { 500 });
    world.at(leaves, Event::Leaves);
    world.at(moved, Event::Moved);
    for who in [Who::Carrier, Who::Successor, Who::Standby] {
        let notices = moved + world.random.u64(0..400);
        world.at(notices, Event::Notices(who));
    }
    let dies = seed % 3 == 1;
    if dies {
        let dies = moved + world.random.u64(400..4_000);
        world.at(dies, Event::Dies);
    } else {
        let ends = moved + 7_000 + world.random.u64(0..5_000);
        world.at(ends, Event::Ends);
    }
    while let Some(((time, _), event)) = world.events.pop_first() {
        if time > END {
            break;
        }
        world.now = time;
        world.handle(event);
    }
    if world.interrupted && !dies {
        return Err("recording was interrupted".to_owned());
    }
    let sorted = |messages: &[String]| {
        let mut sorted = messages.to_vec();
        sorted.sort_unstable();
        sorted
    };
    let (expected, recorded) = (sorted(&published), sorted(&world.log));
    if expected != recorded {
        let count = |all: &[String], one: &String| all.iter().filter(|it| *it == one).count();
        let differs = |it: &&String| {
            let (expected, recorded) = (count(&expected, it), count(&recorded, it));
            match dies {
                // Equal messages are not counted: a notice may be of either.
                true => expected < recorded && *it != "same",
                false => expected != recorded,
            }
        };
        let Some(one) = expected.iter().find(differs) else {
            return Ok(());
        };
        let (published, recorded) = (count(&expected, one), count(&recorded, one));
        return Err(format!(
            "{one}: published {published} times, recorded {recorded} times"
        ));
    }
    let mut last = [0; 3];
    for message in &world.log {
        if let Some((publisher, number)) = message.split_once(':')
            && let (Ok(publisher), Ok(number)) = (publisher.parse::<usize>(), number.parse::<u64>())
        {
            if number < last[publisher] {
                return Err(format!("{message} is out of order"));
            }
            last[publisher] = number;
        }
    }
    Ok(())
}

/// Breaks when a flood during a move takes more room than it may, or interrupts the recording of other partitions.
#[test]
fn a_successor_starts_again_if_too_much_arrives() {
    let channel = Partitions::new(1).and_then(|it| it.channel("a").ok());
    let channel = channel.expect("it is a name");
    let start = Instant::now();
    let mut successor = Successor::new(1000, start);
    let flood = |successor: &mut Successor, now| {
        for number in 0..10_u8 {
            let payload = Bytes::from(vec![number; 100]);
            successor.raw(channel.clone(), payload, now);
            assert!(successor.bytes <= 1000);
        }
    };
    let later = start + SETTLE_TWICE;
    flood(&mut successor, later);
    assert!(!successor.asks(later));
    assert!(successor.asks(later + SETTLE_TWICE));
    // It cannot start again now, so messages are lost.
    flood(&mut successor, later + SETTLE_TWICE);
    let received = Received::default();
    let until = later + SETTLE_TWICE;
    let mut machine = successor.inherit("a:2", Handover { received, until });
    assert!(!machine.is_in_sync());
    assert!(machine.take_lost().is_some());
}

#[test]
fn a_partition_moves_and_everything_is_recorded_once() {
    for seed in 0..seeds(500).min(20_000) {
        if let Err(error) = run(seed, Without::Nothing) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn carrying_fails_without_any_one_part() {
    for without in [
        Without::Expected,
        Without::Recorded,
        Without::Settle,
        Without::Fence,
        Without::Pending,
        Without::Lease,
        Without::Elsewhere,
        Without::Early,
        Without::Late,
        Without::Nearest,
    ] {
        let fails = (0..1000).any(|seed| run(seed, without).is_err());
        assert!(fails, "nothing fails without {without:?}");
    }
}
