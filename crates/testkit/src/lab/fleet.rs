//! Many clients that are cut, reconnect, and are checked.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{Gateway, PATIENCE, eventually};
use crate::{Answer, Checker, Client, End, Event, Goal, Ledger, Received, Violation};

/// Longest wait of a client before it reconnects. A server's `retry` may be shorter.
const MAX_RETRY: Duration = Duration::from_millis(300);
/// A client gives up an attempt to connect after this time and tries another replica.
const CONNECT: Duration = Duration::from_secs(3);
/// Wait for possible repetitions after all messages have arrived.
const LINGER: Duration = Duration::from_millis(300);

/// The addresses that clients may connect to. They change when replicas do.
#[derive(Clone, Debug, Default)]
pub struct Replicas(Arc<Mutex<Vec<SocketAddr>>>);

impl Replicas {
    /// The public addresses of these gateways.
    pub fn of<'a>(gateways: impl IntoIterator<Item = &'a Gateway>) -> Self {
        let replicas = Self::default();
        replicas.set(gateways);
        replicas
    }

    /// Replaces the addresses by those of these gateways.
    pub fn set<'a>(&self, gateways: impl IntoIterator<Item = &'a Gateway>) {
        self.set_addresses(gateways.into_iter().map(|gateway| gateway.public).collect());
    }

    /// Replaces the addresses.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *lock(&self.0) = addresses;
    }

    /// All addresses.
    pub fn all(&self) -> Vec<SocketAddr> {
        lock(&self.0).clone()
    }

    /// The address for `turn`.
    pub fn at(&self, turn: usize) -> SocketAddr {
        let addresses = lock(&self.0);
        addresses[turn % addresses.len()]
    }
}

/// The channels of one client, and its start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The channels with numbered messages of every publisher.
    pub channels: Vec<String>,
    /// The channels whose messages have no numbers.
    pub others: Vec<String>,
    /// The first replica that it connects to.
    pub replica: usize,
    /// Its first `Last-Event-ID`. Empty for none.
    pub resume_from: String,
    /// Whether it keeps the latency of each message.
    pub timed: bool,
    /// At times it stops reading for at most this long. Zero: it always reads.
    pub stall: Duration,
    /// Clients with an equal seed and an equal place in the plans make equal random choices.
    pub seed: u64,
}

impl Plan {
    /// A client that starts without an id and always reads.
    pub fn new(channels: &[String], replica: usize) -> Self {
        Self {
            channels: channels.to_vec(),
            others: Vec::new(),
            replica,
            resume_from: String::new(),
            timed: false,
            stall: Duration::ZERO,
            seed: 0,
        }
    }
}

/// The clients.
#[derive(Debug)]
pub struct Fleet {
    orders: watch::Sender<Order>,
    members: Vec<(Arc<Shared>, JoinHandle<Report>)>,
    ledger: Arc<Ledger>,
    /// Number of publishers.
    publishers: usize,
}

/// The orders for all clients.
#[derive(Clone, Debug)]
struct Order {
    /// All cuts so far, each with the time within which clients reconnect, at different moments. A busy client follows
    /// the next cut later.
    cuts: Vec<(Cut, Duration)>,
    /// The messages that have to be received by the end. `None` while publishing continues.
    goal: Option<Arc<Goal>>,
    stop: bool,
}

/// The clients that are cut, and where they reconnect.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// All clients. Each reconnects to the replica this many places further.
    All(usize),
    /// This share of the clients. Each reconnects to any replica.
    Some(f64),
}

/// The visible state of a running client.
#[derive(Debug)]
struct Shared {
    /// The number of cuts after which it is connected and has received its position.
    round: AtomicUsize,
    connected: AtomicBool,
    reached: AtomicBool,
    /// The events it received, including `gateway.*`.
    events: AtomicU64,
    /// Connections that ended without an order.
    cuts: AtomicU64,
    /// The end of the last of them, until it is taken.
    end: Mutex<Option<End>>,
    /// Cuts by order.
    ordered: AtomicU64,
    /// The send time of the newest message received from each publisher on each channel, in microseconds since the
    /// epoch. First all publishers of the first channel, then those of the next.
    newest: Vec<AtomicU64>,
    /// The longest time between two events, in microseconds, until it is taken.
    silence: AtomicU64,
    /// The longest time that a connection received no bytes, until it is taken.
    quiet: AtomicU64,
    /// Whether it stops reading at times.
    stalls: bool,
    checker: Mutex<Checker>,
}

/// The result of a client.
#[derive(Debug)]
pub struct Report {
    /// Its checker.
    pub checker: Checker,
    /// Connections that ended without an order.
    pub cuts: u64,
    /// The latency of each message, and when it arrived. Empty unless the plan asks for it.
    pub latencies: Vec<(Instant, Duration)>,
}

impl Fleet {
    /// Starts one client per plan. Each publisher's first message on each channel has number 0.
    pub fn start(
        plans: impl IntoIterator<Item = Plan>,
        replicas: &Replicas,
        partitions: u32,
        publishers: &[&str],
    ) -> Self {
        let ledger = Ledger::new(partitions);
        let order = Order {
            cuts: Vec::new(),
            goal: None,
            stop: false,
        };
        let (orders, order) = watch::channel(order);
        let publishers: Arc<[String]> = publishers.iter().map(|name| (*name).to_owned()).collect();
        let members = plans.into_iter().enumerate().map(|(number, plan)| {
            let mut checker = Checker::new(&ledger);
            let asked = [&plan.channels[..], &plan.others].concat();
            checker.asks_for(&plan.channels, &plan.others);
            for channel in &plan.channels {
                for publisher in &*publishers {
                    checker.expect_from(channel, publisher, 0);
                }
            }
            let shared = Arc::new(Shared {
                round: AtomicUsize::default(),
                connected: AtomicBool::default(),
                reached: AtomicBool::default(),
                events: AtomicU64::default(),
                cuts: AtomicU64::default(),
                end: Mutex::default(),
                ordered: AtomicU64::default(),
                newest: (0..plan.channels.len() * publishers.len())
                    .map(|_| AtomicU64::default())
                    .collect(),
                silence: AtomicU64::default(),
                quiet: AtomicU64::default(),
                stalls: !plan.stall.is_zero(),
                checker: Mutex::new(checker),
            });
            let target = format!("/events?channel={}", asked.join("&channel="));
            let mut client = Client::resuming(target, plan.resume_from.clone());
            if !plan.stall.is_zero() {
                // With a small buffer, the replica notices the stall soon.
                client.set_receive_buffer(4096);
            }
            let random = Rng::with_seed(plan.seed + number as u64);
            let member = Member {
                number,
                client,
                turn: plan.replica,
                plan,
                replicas: replicas.clone(),
                publishers: Arc::clone(&publishers),
                order: order.clone(),
                shared: Arc::clone(&shared),
                latencies: Vec::new(),
                heard: Instant::now(),
                reads_until: Instant::now(),
                random,
            };
            (shared, tokio::spawn(member.run()))
        });
        Self {
            members: members.collect(),
            orders,
            ledger,
            publishers: publishers.len(),
        }
    }

    /// Waits until every client is connected and has received its position.
    pub async fn open(&self) {
        let round = self.orders.borrow().cuts.len();
        let arrived = |shared: &Shared| {
            shared.round.load(Ordering::Acquire) >= round
                && shared.connected.load(Ordering::Acquire)
        };
        self.all("connected", 2 * PATIENCE, arrived).await;
    }

    /// Cuts every client. Each reconnects to the replica `step` places further, within `spread`.
    pub fn cut(&self, step: usize, spread: Duration) {
        self.order_cut(Cut::All(step), spread);
    }

    /// Cuts this share of the clients. Each reconnects to any replica, within `spread`.
    pub fn cut_some(&self, share: f64, spread: Duration) {
        self.order_cut(Cut::Some(share), spread);
    }

    fn order_cut(&self, cut: Cut, spread: Duration) {
        self.orders
            .send_modify(|order| order.cuts.push((cut, spread)));
    }

    /// Waits until every client has received the messages of `goal` that are on its channels.
    pub async fn reach(&self, goal: &Goal, limit: Duration) {
        let goal = Arc::new(goal.clone());
        self.orders.send_modify(|order| order.goal = Some(goal));
        let reached = |shared: &Shared| shared.reached.load(Ordering::Acquire);
        self.all("at the goal", limit, reached).await;
    }

    /// Like [`reach`](Self::reach), but the reports of clients that fail list the missing messages.
    ///
    /// # Panics
    ///
    /// If a client panicked.
    pub async fn finish(self, goal: &Goal, limit: Duration) -> Vec<Report> {
        let goal = Arc::new(goal.clone());
        self.orders.send_modify(|order| order.goal = Some(goal));
        let deadline = Instant::now() + limit;
        let reached = |(shared, _): &(Arc<Shared>, _)| shared.reached.load(Ordering::Acquire);
        while !self.members.iter().all(reached) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(LINGER).await;
        self.orders.send_modify(|order| order.stop = true);
        let mut reports = Vec::new();
        for (_, task) in self.members {
            reports.push(task.await.expect("a client does not fail"));
        }
        reports
    }

    /// Number of events that the client with this place in the plans has received.
    pub fn events(&self, number: usize) -> u64 {
        self.members[number].0.events.load(Ordering::Acquire)
    }

    /// Waits until the first client has received `count` more events.
    pub async fn progress(&self, count: u64) {
        let goal = self.events(0) + count;
        let what = format!("{count} more events at the first client");
        eventually(&what, PATIENCE, async || match self.events(0) {
            enough if enough >= goal => Ok(()),
            some => Err(format!("{} are missing", goal - some)),
        })
        .await;
    }

    /// The messages that all clients saw.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many clients lack, on any of their channels, a message of this publisher that was sent at `micros` or later.
    /// Clients that stall on purpose count only if `all`.
    pub fn stale(&self, publisher: usize, micros: u64, all: bool) -> usize {
        let publishers = self.publishers;
        let stale = |(shared, _): &&(Arc<Shared>, _)| {
            let mut newest = shared.newest.iter().skip(publisher).step_by(publishers);
            (all || !shared.stalls) && newest.any(|at| at.load(Ordering::Acquire) < micros)
        };
        self.members.iter().filter(stale).count()
    }

    /// Over all clients: received events, connections that ended without an order, and ordered cuts.
    pub fn counts(&self) -> [u64; 3] {
        let mut sums = [0; 3];
        for (shared, _) in &self.members {
            for (sum, count) in sums
                .iter_mut()
                .zip([&shared.events, &shared.cuts, &shared.ordered])
            {
                *sum += count.load(Ordering::Acquire);
            }
        }
        sums
    }

    /// The end of each client's last connection that ended without an order since the last call, with the client's
    /// number. Clients that stall on purpose do not count, because a gateway may give them up.
    pub fn take_ends(&self) -> Vec<(usize, End)> {
        let members = self.members.iter().enumerate();
        let ends = members.filter_map(|(number, (shared, _))| {
            let end = lock(&shared.end).take()?;
            (!shared.stalls).then_some((number, end))
        });
        ends.collect()
    }

    /// Since the last call: the longest time between two events of a client, and the longest time that a connection
    /// received no bytes, not even a heartbeat. Clients that stall on purpose do not count.
    pub fn take_silence(&self) -> [Duration; 2] {
        let mut longest = [0; 2];
        for (shared, _) in self.members.iter().filter(|(shared, _)| !shared.stalls) {
            for (longest, time) in longest.iter_mut().zip([&shared.silence, &shared.quiet]) {
                *longest = time.swap(0, Ordering::AcqRel).max(*longest);
            }
        }
        longest.map(Duration::from_micros)
    }

    /// Each client's checker, in the order of the plans.
    pub fn checkers(&self) -> impl Iterator<Item = MutexGuard<'_, Checker>> {
        self.members.iter().map(|(shared, _)| lock(&shared.checker))
    }

    async fn all(&self, what: &str, limit: Duration, done: impl Fn(&Shared) -> bool) {
        let total = self.members.len();
        eventually(
            &format!("all {total} clients are {what}"),
            limit,
            async || {
                let done = self.members.iter().filter(|(shared, _)| done(shared));
                match done.count() {
                    all if all == total => Ok(()),
                    some => Err(format!("{some} are")),
                }
            },
        )
        .await;
    }
}

/// One client.
struct Member {
    number: usize,
    client: Client,
    /// The replica that it uses.
    turn: usize,
    plan: Plan,
    replicas: Replicas,
    publishers: Arc<[String]>,
    order: watch::Receiver<Order>,
    shared: Arc<Shared>,
    latencies: Vec<(Instant, Duration)>,
    /// When its last event arrived.
    heard: Instant,
    /// It does not stall before this time.
    reads_until: Instant,
    random: Rng,
}

impl Member {
    async fn run(mut self) -> Report {
        let mut round = self.order.borrow_and_update().cuts.len();
        self.connect().await;
        loop {
            tokio::select! {
                changed = self.order.changed() => {
                    if changed.is_err() || self.order.borrow_and_update().stop {
                        break;
                    }
                    while let Some((cut, spread)) = self.ordered(round) {
                        round += 1;
                        self.obey(cut, spread, round).await;
                    }
                    self.look_at_goal();
                }
                received = self.client.next() => match received {
                    Received::Event(event) => {
                        self.see(&event, round);
                        self.stall().await;
                    }
                    Received::End(end) => {
                        *lock(&self.shared.end) = Some(end);
                        self.shared.connected.store(false, Ordering::Release);
                        self.shared.cuts.fetch_add(1, Ordering::AcqRel);
                        self.turn = self.anywhere();
                        let wait = self.client.retry().unwrap_or(MAX_RETRY).min(MAX_RETRY);
                        sleep(self.share_of(wait)).await;
                        self.connect().await;
                    }
                },
            }
        }
        let goal = self.goal();
        let mut checker = Checker::new(&Ledger::new(1));
        std::mem::swap(&mut checker, &mut lock(&self.shared.checker));
        if let Some(goal) = goal {
            checker.finish(&goal);
        }
        Report {
            checker,
            cuts: self.shared.cuts.load(Ordering::Acquire),
            latencies: self.latencies,
        }
    }

    /// The cut with this number.
    fn ordered(&self, round: usize) -> Option<(Cut, Duration)> {
        self.order.borrow().cuts.get(round).copied()
    }

    async fn obey(&mut self, cut: Cut, spread: Duration, round: usize) {
        match cut {
            Cut::All(step) => self.turn += step,
            Cut::Some(share) if self.random.f64() < share => self.turn = self.anywhere(),
            Cut::Some(_) => return self.shared.round.store(round, Ordering::Release),
        }
        self.shared.connected.store(false, Ordering::Release);
        self.shared.ordered.fetch_add(1, Ordering::AcqRel);
        self.client.cut();
        sleep(self.share_of(spread)).await;
        self.connect().await;
    }

    /// Tries replicas until one answers or the fleet stops.
    async fn connect(&mut self) {
        while !self.order.borrow().stop {
            let attempt = self.client.connect(self.replicas.at(self.turn));
            match timeout(CONNECT, attempt).await {
                Ok(Ok(Answer::Stream)) => return,
                Ok(Ok(other)) => lock(&self.shared.checker).blame(Violation::Refused {
                    answer: format!("{other:?}"),
                }),
                Ok(Err(_)) | Err(_) => {}
            }
            self.turn = self.anywhere();
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn anywhere(&mut self) -> usize {
        self.random.usize(..1 << 16)
    }

    fn see(&mut self, event: &Event, round: usize) {
        if let Some(message) = lock(&self.shared.checker).see(event) {
            if self.plan.timed {
                self.latencies.push((Instant::now(), message.age()));
            }
            let at = |names: &[String], name: &str| names.iter().position(|other| other == name);
            let publisher = at(&self.publishers, message.publisher);
            let channel = at(&self.plan.channels, message.channel);
            if let (Some(publisher), Some(channel)) = (publisher, channel) {
                let newest = &self.shared.newest[channel * self.publishers.len() + publisher];
                newest.fetch_max(message.sent_micros, Ordering::AcqRel);
            }
        }
        if event.event == "gateway.open" {
            self.shared.connected.store(true, Ordering::Release);
            self.shared.round.store(round, Ordering::Release);
        }
        let now = Instant::now();
        let silence = now.duration_since(self.heard).as_micros() as u64;
        self.heard = now;
        self.shared.silence.fetch_max(silence, Ordering::AcqRel);
        let quiet = self.client.take_quiet().as_micros() as u64;
        self.shared.quiet.fetch_max(quiet, Ordering::AcqRel);
        self.shared.events.fetch_add(1, Ordering::AcqRel);
        self.look_at_goal();
    }

    /// A client that stalls does so at most a quarter of the time.
    async fn stall(&mut self) {
        let most = self.plan.stall;
        if most.is_zero() || self.heard < self.reads_until {
            return;
        }
        sleep(most.mul_f64(self.random.f64())).await;
        self.reads_until = Instant::now() + 3 * most;
    }

    fn look_at_goal(&mut self) {
        if let Some(goal) = self.goal() {
            let reached = lock(&self.shared.checker).reached(&goal);
            self.shared.reached.store(reached, Ordering::Release);
        }
    }

    /// The part of the goal that is on its channels.
    fn goal(&self) -> Option<Goal> {
        let goal = self.order.borrow().goal.clone()?;
        let mine = goal
            .iter()
            .filter(|((channel, _), _)| self.plan.channels.contains(channel));
        Some(mine.map(|(key, last)| (key.clone(), *last)).collect())
    }

    /// A share of `time` that differs between clients and is equal in each run.
    fn share_of(&self, time: Duration) -> Duration {
        let thousandth = (self.number * 389) % 1000;
        time * u32::try_from(thousandth).expect("below 1000") / 1000
    }
}

/// Checks that each client received each number once, in order, under one id, and without a gap.
///
/// # Panics
///
/// If that is not so.
pub fn assert_exact(reports: &[Report]) {
    let gaps: Vec<_> = reports
        .iter()
        .flat_map(|report| report.checker.gaps())
        .collect();
    assert!(
        gaps.is_empty(),
        "{} gaps, the first: {:?}",
        gaps.len(),
        gaps[0]
    );
    let violations: Vec<_> = reports
        .iter()
        .enumerate()
        .flat_map(|(number, report)| {
            let violations = report.checker.violations().iter();
            violations.map(move |violation| format!("client {number}: {violation}"))
        })
        .collect();
    assert!(
        violations.is_empty(),
        "{} violations, the first:\n{}",
        violations.len(),
        violations[..violations.len().min(10)].join("\n")
    );
}

/// A panic elsewhere fails its own test. The data is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
