//! Failovers as a deterministic simulation: three replicas, three sentinels, a master and the copy that replaces it.
//!
//! Numbers are posted through replicas, each again with its key until a replica answers that it is stored. At each
//! replica a client is connected all the time. The master is replaced by order, or after a stall from which it
//! continues. During the failover one replica may not reach the sentinels, and one sentinel may learn of it late. In
//! the end every client must have every stored number once, or a gap after the number was stored. Ids must only have
//! risen. A number may arrive again after a gap if it arrived first before any sentinel knew of the failover: the old
//! master alone had it then, and its publisher was not answered.
//!
//! The model covers the calls, answers and messages among servers, replicas and sentinels, with times in milliseconds.
//! The choice among the sentinels' answers and the decision whether a server is believed are the real ones. The
//! simulation has to fail without any one part of the protocol, or it would prove nothing.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use super::{Known, Place, confirm, newest};
use crate::node::trust::Trust;
use crate::seeds::seeds;
use crate::server::url::parse;

/// Between two probes of a subscription.
const PROBE: u64 = 333;
/// A call without an answer is given up.
const TIMEOUT: u64 = 2000;
/// Between two attempts to retire a master that does not answer.
const RETIRE_PAUSE: u64 = 250;
/// The library lets ids of a new master continue so far ahead: other replicas may still show events of the old one.
const LATENCY: u64 = 2000;
/// Publishing ends, and everything.
const PUBLISHED: u64 = 14_000;
const END: u64 = 40_000;

/// A part of the protocol to be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// Replicas do not retire the old master.
    Retire,
    /// An answer, or a message of a subscription, is believed after any silence.
    Stale,
    /// An answer of a master that the replica has left is believed.
    Replaced,
    /// The new master does not move its horizon, although it may have lost something.
    Horizon,
}

/// A call to a server.
#[derive(Clone, Copy)]
enum Call {
    Append {
        gateway: usize,
        number: u64,
        sent: u64,
    },
    Retire {
        gateway: usize,
        epoch: u64,
    },
}

#[derive(Clone, Copy)]
struct Entry {
    id: u64,
    number: u64,
    prev: u64,
}

#[derive(Clone, Copy)]
enum Event {
    Publish,
    Attempt {
        number: u64,
    },
    Live {
        gateway: usize,
        session: u64,
        entry: Entry,
    },
    Probe {
        gateway: usize,
    },
    /// A replica asks the sentinels where the master is.
    Look {
        gateway: usize,
    },
    Retire {
        gateway: usize,
        server: usize,
        epoch: u64,
    },
    Stall,
    Wake,
    /// The copy becomes the master. Only the sentinel that promotes it knows.
    Promote,
    Learn {
        sentinel: usize,
    },
    Demote,
    /// The replica that could not reach the sentinels reaches them again.
    Reach,
}

#[derive(Default)]
struct Server {
    is_master: bool,
    is_stalled: bool,
    log: Vec<Entry>,
    horizon: u64,
    clock: u64,
    ids: BTreeMap<u64, u64>,
    retired: Option<u64>,
    handshaken: BTreeSet<usize>,
    /// Some replica has completed a handshake since it became the master.
    is_met: bool,
    sockets: VecDeque<Call>,
}

#[derive(Clone, Copy)]
enum Shown {
    Number { number: u64, id: u64, at: u64 },
    Gap { at: u64 },
}

struct Gateway {
    at: usize,
    epoch: u64,
    /// Servers that have confirmed to this replica that they are retired.
    retired: BTreeSet<usize>,
    /// Another replica has retired the server that it uses.
    is_replaced: bool,
    session: u64,
    is_subscribed: bool,
    trust: Trust,
    hears_sentinels: bool,
    /// The client's position, and all that it has seen.
    position: u64,
    shown: Vec<Shown>,
}

struct World {
    random: fastrand::Rng,
    without: Without,
    start: Instant,
    now: u64,
    order: u64,
    events: BTreeMap<u64, Event>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    servers: [Server; 2],
    gateways: [Gateway; 3],
    /// The number of the last failover that each sentinel knows, and the master.
    sentinels: [(u64, usize); 3],
    /// When the first of them learned of the failover.
    learned: Option<u64>,
    published: u64,
    /// When the publisher of each number received the answer that it is stored.
    stored: BTreeMap<u64, u64>,
    is_stalled: bool,
    unheard: Option<usize>,
    late: Option<usize>,
}

impl Gateway {
    fn new(start: Instant) -> Self {
        Self {
            at: 0,
            epoch: 0,
            retired: BTreeSet::new(),
            is_replaced: false,
            session: 0,
            is_subscribed: false,
            trust: Trust::new(start),
            hears_sentinels: true,
            position: 0,
            shown: Vec::new(),
        }
    }
}

impl World {
    fn new(seed: u64, without: Without) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let mut servers = <[Server; 2]>::default();
        servers[0].is_master = true;
        let is_stalled = random.bool();
        let mut world = Self {
            without,
            start,
            now: 0,
            order: 0,
            events: BTreeMap::new(),
            queue: BinaryHeap::new(),
            servers,
            gateways: [(); 3].map(|()| Gateway::new(start)),
            sentinels: [(0, 0); 3],
            learned: None,
            published: 0,
            stored: BTreeMap::new(),
            is_stalled,
            unheard: random.bool().then(|| random.usize(..3)),
            late: random.bool().then(|| random.usize(..3)),
            random,
        };
        for gateway in 0..3 {
            let first = world.random.u64(..5000);
            world.after(first, Event::Look { gateway });
            world.after(1, Event::Probe { gateway });
        }
        world.after(10, Event::Publish);
        let begin = 3000 + world.random.u64(..2000);
        let promoted = begin
            + if is_stalled {
                1000 + world.random.u64(..2000)
            } else {
                0
            };
        if is_stalled {
            world.after(begin, Event::Stall);
        }
        world.after(promoted, Event::Promote);
        world
    }

    fn after(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.insert(self.order, event);
        self.queue.push(Reverse((self.now + time, self.order)));
    }

    fn run(mut self) -> Result<(), String> {
        while let Some(Reverse((time, order))) = self.queue.pop()
            && time < END
        {
            self.now = time;
            let event = self.events.remove(&order).expect("each once");
            self.happen(event);
        }
        self.judge()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish => {
                let number = self.published;
                self.published += 1;
                self.attempt(number);
                if self.now < PUBLISHED {
                    let pause = self.random.u64(1..40);
                    self.after(pause, Event::Publish);
                }
            }
            Event::Attempt { number } => self.attempt(number),
            Event::Live {
                gateway,
                session,
                entry,
            } => self.live(gateway, session, entry),
            Event::Probe { gateway } => {
                self.probe(gateway);
                self.after(PROBE, Event::Probe { gateway });
            }
            Event::Look { gateway } => {
                self.look(gateway);
                self.after(5000, Event::Look { gateway });
            }
            Event::Retire {
                gateway,
                server,
                epoch,
            } => self.retire(gateway, server, epoch),
            Event::Stall => self.servers[0].is_stalled = true,
            Event::Wake => {
                self.servers[0].is_stalled = false;
                for call in std::mem::take(&mut self.servers[0].sockets) {
                    self.carry_out(0, call);
                }
            }
            Event::Promote => self.promote(),
            Event::Learn { sentinel } => {
                self.sentinels[sentinel] = (1, 1);
                self.learned.get_or_insert(self.now);
                for gateway in 0..3 {
                    if self.gateways[gateway].hears_sentinels {
                        let delay = self.random.u64(1..50);
                        self.after(delay, Event::Look { gateway });
                    }
                }
            }
            Event::Demote if self.servers[0].is_stalled => self.after(1000, Event::Demote),
            Event::Demote => {
                let log = self.servers[1].log.clone();
                self.servers[0] = Server {
                    log,
                    ..Server::default()
                };
                for gateway in 0..3 {
                    if self.gateways[gateway].at == 0 {
                        self.cut(gateway);
                    }
                }
            }
            Event::Reach => {
                for gateway in &mut self.gateways {
                    gateway.hears_sentinels = true;
                }
            }
        }
    }

    fn promote(&mut self) {
        if let Some(gateway) = self.unheard {
            self.gateways[gateway].hears_sentinels = false;
            let mended = self.random.u64(1000..10_000);
            self.after(mended, Event::Reach);
        }
        // Replication is asynchronous.
        let lost = self.random.usize(..3);
        let log = self.servers[0].log.clone();
        let kept = log.len().saturating_sub(lost);
        let server = &mut self.servers[1];
        server.is_master = true;
        server.log = log[..kept].to_vec();
        server.ids = server
            .log
            .iter()
            .map(|entry| (entry.number, entry.id))
            .collect();
        server.clock = server.log.last().map_or(0, |entry| entry.id);
        let switch = self.random.u64(50..1000);
        for sentinel in 0..3 {
            let learns = switch + self.random.u64(..300);
            let late = if self.late == Some(sentinel) { 3000 } else { 0 };
            self.after(learns + late, Event::Learn { sentinel });
        }
        if self.is_stalled {
            let woken = switch + self.random.u64(100..6000);
            self.after(woken, Event::Wake);
        }
        let demoted = switch + self.random.u64(8000..12_000);
        self.after(demoted, Event::Demote);
    }

    /// A publisher posts a number, unless it was answered before.
    fn attempt(&mut self, number: u64) {
        if self.stored.contains_key(&number) {
            return;
        }
        let gateway = self.random.usize(..3);
        let sent = self.now;
        let call = Call::Append {
            gateway,
            number,
            sent,
        };
        if !self.may_ask(gateway) {
            return self.after(100, Event::Attempt { number });
        }
        self.send(self.gateways[gateway].at, call);
        // If it is not answered.
        self.after(TIMEOUT + 100, Event::Attempt { number });
    }

    /// Whether a replica sends a call to its server.
    fn may_ask(&self, gateway: usize) -> bool {
        let now = self.instant();
        let is_fresh = self.gateways[gateway].trust.is_fresh(now) || self.without == Without::Stale;
        is_fresh || confirm(self.answers(gateway, None), 3, &self.place(gateway)) == Some(true)
    }

    fn send(&mut self, server: usize, call: Call) {
        if self.servers[server].is_stalled {
            self.servers[server].sockets.push_back(call);
        } else {
            self.carry_out(server, call);
        }
    }

    fn carry_out(&mut self, server: usize, call: Call) {
        match call {
            Call::Retire { gateway, epoch } => {
                let old = &mut self.servers[server];
                if old.is_master && old.retired.is_none_or(|retired| retired < epoch) {
                    old.retired = Some(epoch);
                    old.handshaken.clear();
                }
                self.gateways[gateway].retired.insert(server);
            }
            Call::Append {
                gateway,
                number,
                sent,
            } => {
                if !self.is_served(server, gateway) {
                    return;
                }
                self.append(server, number);
                let own = &self.gateways[gateway];
                let is_believed = if own.at == server {
                    self.hears(gateway)
                } else {
                    own.retired.contains(&server) || self.without == Without::Replaced
                };
                if !is_believed || self.now - sent >= TIMEOUT {
                    return;
                }
                self.stored.entry(number).or_insert(self.now);
            }
        }
    }

    /// Whether a server takes calls of this replica, which completes the handshake with it if it has to.
    fn is_served(&mut self, server: usize, gateway: usize) -> bool {
        let (epoch, is_here) = (
            self.gateways[gateway].epoch,
            self.gateways[gateway].at == server,
        );
        let now = self.now;
        let own = &mut self.servers[server];
        if !own.is_master {
            self.look(gateway);
            return false;
        }
        if own.handshaken.contains(&gateway) {
            return true;
        }
        // A replica completes no handshake with a server that it has left.
        if !is_here || own.retired.is_some_and(|retired| epoch <= retired) {
            if is_here {
                self.gateways[gateway].is_replaced = true;
            }
            return false;
        }
        own.retired = None;
        own.handshaken.insert(gateway);
        self.gateways[gateway].is_replaced = false;
        if !std::mem::replace(&mut own.is_met, true)
            && server == 1
            && self.without != Without::Horizon
        {
            own.clock = own.clock.max((now + LATENCY) * 1000);
            own.horizon = own.clock;
        }
        true
    }

    fn append(&mut self, server: usize, number: u64) {
        let own = &mut self.servers[server];
        if own.ids.contains_key(&number) {
            return;
        }
        let prev = own.log.last().map_or(0, |entry| entry.id).max(own.horizon);
        own.clock = (own.clock + 1).max(self.now * 1000);
        let entry = Entry {
            id: own.clock,
            number,
            prev,
        };
        own.log.push(entry);
        own.ids.insert(number, entry.id);
        for gateway in 0..3 {
            let other = &self.gateways[gateway];
            if other.is_subscribed && other.at == server {
                let session = other.session;
                let delay = self.random.u64(1..20);
                self.after(
                    delay,
                    Event::Live {
                        gateway,
                        session,
                        entry,
                    },
                );
            }
        }
    }

    /// Whether sentinels say that a replica is at the master, or too few answer and it has answered for long.
    fn confirms(&mut self, gateway: usize) -> bool {
        let (place, now) = (self.place(gateway), self.instant());
        let confirmed = confirm(self.answers(gateway, None), 3, &place);
        let trust = &mut self.gateways[gateway].trust;
        match confirmed {
            Some(true) => {
                trust.confirmed(now);
                true
            }
            Some(false) => false,
            None => trust.outlasts(now),
        }
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn place(&self, gateway: usize) -> Place {
        let Gateway { at, epoch, .. } = self.gateways[gateway];
        let info = parse(&format!("redis://server{at}:6379")).expect("a URL");
        Place::new(info, epoch)
    }

    /// The answers of the sentinels to a replica, if it reaches them. The sentinel `away`, if any, does not answer.
    fn answers(&self, gateway: usize, away: Option<usize>) -> Vec<Known> {
        if !self.gateways[gateway].hears_sentinels {
            return Vec::new();
        }
        let answering = (0..3).filter(|sentinel| Some(*sentinel) != away);
        let answer = |sentinel: usize| {
            let (epoch, server) = self.sentinels[sentinel];
            Known {
                epoch,
                host: format!("server{server}"),
                port: 6379,
            }
        };
        answering.map(answer).collect()
    }

    /// Asks the sentinels, and moves if the master is another.
    fn look(&mut self, gateway: usize) {
        // Most are enough.
        let away = self.random.usize(..3);
        let place = self.place(gateway);
        let Some(known) = newest(self.answers(gateway, Some(away)), 3, Some(&place)) else {
            return;
        };
        let (old, new) = (
            self.gateways[gateway].at,
            usize::from(known.host == "server1"),
        );
        if old == new || place.is_later_than(&known) && self.servers[old].is_master {
            return;
        }
        self.gateways[gateway].retired.remove(&old);
        if self.without != Without::Retire {
            self.retire(gateway, old, known.epoch);
        }
        let now = self.instant();
        let own = &mut self.gateways[gateway];
        (own.at, own.epoch, own.is_replaced) = (new, known.epoch, false);
        own.trust = Trust::new(now);
        self.cut(gateway);
    }

    fn retire(&mut self, gateway: usize, server: usize, epoch: u64) {
        if self.servers[server].is_stalled {
            // The call of each attempt is taken back.
            self.after(
                RETIRE_PAUSE,
                Event::Retire {
                    gateway,
                    server,
                    epoch,
                },
            );
        } else {
            self.carry_out(server, Call::Retire { gateway, epoch });
        }
    }

    /// The subscription of a replica has ended, and another begins.
    fn cut(&mut self, gateway: usize) {
        self.gateways[gateway].session += 1;
        self.gateways[gateway].is_subscribed = false;
        self.attach(gateway);
    }

    /// Subscribes, and shows what the client has not seen.
    fn attach(&mut self, gateway: usize) {
        let server = self.gateways[gateway].at;
        if self.servers[server].is_stalled
            || !self.is_served(server, gateway)
            || !self.hears(gateway)
        {
            return;
        }
        let at = self.now;
        let (own, from) = (&mut self.gateways[gateway], &self.servers[server]);
        own.is_subscribed = true;
        if own.position < from.horizon {
            own.shown.push(Shown::Gap { at });
            own.position = from.horizon;
        }
        let after = own.position;
        for entry in from.log.iter().filter(|entry| entry.id > after) {
            let Entry { number, id, .. } = *entry;
            own.shown.push(Shown::Number { number, id, at });
            own.position = id;
        }
    }

    fn probe(&mut self, gateway: usize) {
        let server = self.gateways[gateway].at;
        if self.servers[server].is_stalled {
            return;
        }
        if !self.gateways[gateway].is_subscribed {
            return self.attach(gateway);
        }
        if !self.is_served(server, gateway) || !self.hears(gateway) {
            self.cut(gateway);
        }
    }

    /// Whether an answer or a message that this replica receives now counts as the master's.
    fn hears(&mut self, gateway: usize) -> bool {
        let now = self.instant();
        let own = &mut self.gateways[gateway];
        let is_fresh = own.trust.answered(now) || self.without == Without::Stale;
        !own.is_replaced && (is_fresh || self.confirms(gateway))
    }

    fn live(&mut self, gateway: usize, session: u64, entry: Entry) {
        if self.gateways[gateway].session != session {
            return;
        }
        if !self.hears(gateway) {
            self.look(gateway);
            return self.cut(gateway);
        }
        let at = self.now;
        let own = &mut self.gateways[gateway];
        if entry.id <= own.position {
            return;
        }
        if entry.prev > own.position {
            return self.attach(gateway);
        }
        let Entry { number, id, .. } = entry;
        own.shown.push(Shown::Number { number, id, at });
        own.position = id;
    }

    fn judge(&self) -> Result<(), String> {
        for (gateway, own) in self.gateways.iter().enumerate() {
            let (mut last, mut last_gap, mut seen) = (0, 0, BTreeMap::new());
            for shown in &own.shown {
                match *shown {
                    Shown::Gap { at } => last_gap = at,
                    Shown::Number { number, id, at } => {
                        if id <= last {
                            return Err(format!("{gateway}: {id} comes after {last}"));
                        }
                        if let Some(first) = seen.insert(number, at)
                            && !(last_gap > first && self.learned >= Some(first))
                        {
                            return Err(format!("{gateway}: {number} comes twice"));
                        }
                        last = id;
                    }
                }
            }
            if own.at != 1 {
                return Err(format!("{gateway} is not at the master"));
            }
            for (number, at) in &self.stored {
                if !seen.contains_key(number) && last_gap < *at {
                    return Err(format!("{gateway}: {number} is missing, stored at {at}"));
                }
            }
        }
        if self.stored.len() as u64 != self.published {
            return Err("a number was never stored".to_owned());
        }
        Ok(())
    }
}

#[test]
fn nothing_is_missing_in_silence_or_comes_twice_when_the_master_is_replaced() {
    for seed in 0..seeds(1_000) {
        let verdict = World::new(seed, Without::Nothing).run();
        assert_eq!(verdict, Ok(()), "seed {seed}");
    }
}

#[test]
fn without_any_one_part_a_failover_fails() {
    for without in [
        Without::Retire,
        Without::Stale,
        Without::Replaced,
        Without::Horizon,
    ] {
        let run = |seed: u64| World::new(seed, without).run();
        let failed = (0..5_000).find_map(|seed| Some((seed, run(seed).err()?)));
        println!("without {without:?}: {failed:?}");
        assert!(failed.is_some(), "without {without:?} nothing fails");
    }
}
