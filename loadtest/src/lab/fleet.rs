//! Many clients that are cut, come back, and are checked.

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

/// A cut client waits at most this long; a server's `retry` may ask for less.
const MAX_RETRY: Duration = Duration::from_millis(300);
/// A client gives up an attempt to connect after this time, and tries elsewhere.
const CONNECT: Duration = Duration::from_secs(3);
/// After everything has come: repetitions that may follow are waited for.
const LINGER: Duration = Duration::from_millis(300);

/// Where clients may connect; changes as replicas come and go.
#[derive(Clone, Debug, Default)]
pub struct Replicas(Arc<Mutex<Vec<SocketAddr>>>);

impl Replicas {
    /// The public addresses of these.
    pub fn of<'a>(gateways: impl IntoIterator<Item = &'a Gateway>) -> Self {
        let replicas = Self::default();
        replicas.set(gateways);
        replicas
    }

    /// These from now on.
    pub fn set<'a>(&self, gateways: impl IntoIterator<Item = &'a Gateway>) {
        self.set_addresses(gateways.into_iter().map(|gateway| gateway.public).collect());
    }

    /// These from now on.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *lock(&self.0) = addresses;
    }

    /// All of them.
    pub fn all(&self) -> Vec<SocketAddr> {
        lock(&self.0).clone()
    }

    /// The one that `turn` falls on.
    pub fn at(&self, turn: usize) -> SocketAddr {
        let addresses = lock(&self.0);
        addresses[turn % addresses.len()]
    }
}

/// What one client follows, and where it starts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The channels it asks for, with numbered messages of every publisher.
    pub channels: Vec<String>,
    /// More channels that it asks for, whose messages have no numbers.
    pub others: Vec<String>,
    /// The replica it connects to first.
    pub replica: usize,
    /// The id it comes with; none if empty.
    pub resume_from: String,
    /// Whether it keeps how long each message took.
    pub timed: bool,
    /// Now and then it does not read, for so long at most; always reads if zero.
    pub stall: Duration,
    /// What is random about it is the same for the same seed and place in the plans.
    pub seed: u64,
}

impl Plan {
    /// One that comes without an id and reads at once whatever there is.
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
    /// How many publishers there are.
    publishers: usize,
}

/// What all clients are told.
#[derive(Clone, Debug)]
struct Order {
    /// All cuts so far: who is cut, and within what time each of them comes back, at a moment of its own. One that is
    /// busy obeys the next when it can.
    cuts: Vec<(Cut, Duration)>,
    /// What must have come in the end; absent while publishing goes on.
    goal: Option<Arc<Goal>>,
    stop: bool,
}

/// Who is cut, and where it comes back.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Everybody, to the replica so many further on.
    All(usize),
    /// This share of them, to any replica.
    Some(f64),
}

/// What a client shows while it runs.
#[derive(Debug)]
struct Shared {
    /// The number of cuts after which it is connected and has its position.
    round: AtomicUsize,
    connected: AtomicBool,
    reached: AtomicBool,
    /// The events it received, `gateway.*` included.
    events: AtomicU64,
    /// Connections that ended without an order.
    cuts: AtomicU64,
    /// How the last of them did, until it is asked for.
    end: Mutex<Option<End>>,
    /// Cuts that were ordered.
    ordered: AtomicU64,
    /// When the newest message was sent that came on each channel of each publisher, in microseconds
    /// since the epoch: all publishers of the first channel, then of the next.
    newest: Vec<AtomicU64>,
    /// The longest time between two events, in microseconds, since it was asked last.
    silence: AtomicU64,
    /// The longest time that a connection brought nothing at all, likewise.
    quiet: AtomicU64,
    /// Whether it is one that does not always read.
    stalls: bool,
    checker: Mutex<Checker>,
}

/// What a client has to say in the end.
#[derive(Debug)]
pub struct Report {
    /// What it saw.
    pub checker: Checker,
    /// Connections that ended without an order.
    pub cuts: u64,
    /// How long each message took, and when it came; nothing unless its plan says so.
    pub latencies: Vec<(Instant, Duration)>,
}

impl Fleet {
    /// Starts one client per plan. The first message of `publishers` on each channel is number 0.
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
                // So that the replica feels it soon.
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

    /// Cuts every client, which comes back to the replica `step` further within `spread`.
    pub fn cut(&self, step: usize, spread: Duration) {
        self.order_cut(Cut::All(step), spread);
    }

    /// Cuts this share of the clients, which come back to any replica within `spread`.
    pub fn cut_some(&self, share: f64, spread: Duration) {
        self.order_cut(Cut::Some(share), spread);
    }

    fn order_cut(&self, cut: Cut, spread: Duration) {
        self.orders
            .send_modify(|order| order.cuts.push((cut, spread)));
    }

    /// Waits until every client has everything of `goal` that is on its channels.
    pub async fn reach(&self, goal: &Goal, limit: Duration) {
        let goal = Arc::new(goal.clone());
        self.orders.send_modify(|order| order.goal = Some(goal));
        let reached = |shared: &Shared| shared.reached.load(Ordering::Acquire);
        self.all("at the goal", limit, reached).await;
    }

    /// Like [`reach`](Self::reach), but those that do not get there say what they miss.
    ///
    /// # Panics
    ///
    /// When a client did.
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

    /// How many events the client received that came `number`-th in the plans.
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

    /// What all of them saw.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// How many clients there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many clients have not on each of their channels a message of this publisher that was
    /// sent at `micros` or later; those that stall on purpose count if `all` do.
    pub fn stale(&self, publisher: usize, micros: u64, all: bool) -> usize {
        let publishers = self.publishers;
        let stale = |(shared, _): &&(Arc<Shared>, _)| {
            let mut newest = shared.newest.iter().skip(publisher).step_by(publishers);
            (all || !shared.stalls) && newest.any(|at| at.load(Ordering::Acquire) < micros)
        };
        self.members.iter().filter(stale).count()
    }

    /// The events all clients received, the cuts they suffered, and those that were ordered.
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

    /// How each client's last connection ended of those that ended without an order, since this was asked
    /// last; with the client's number. Those that stall on purpose do not count: they may be given up.
    pub fn take_ends(&self) -> Vec<(usize, End)> {
        let members = self.members.iter().enumerate();
        let ends = members.filter_map(|(number, (shared, _))| {
            let end = lock(&shared.end).take()?;
            (!shared.stalls).then_some((number, end))
        });
        ends.collect()
    }

    /// The longest time between two events that a client had, and the longest that a connection brought nothing at
    /// all, not even a heartbeat, since this was asked last. Those that stall on purpose do not count.
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
    /// Which of the replicas it uses.
    turn: usize,
    plan: Plan,
    replicas: Replicas,
    publishers: Arc<[String]>,
    order: watch::Receiver<Order>,
    shared: Arc<Shared>,
    latencies: Vec<(Instant, Duration)>,
    /// When its last event came.
    heard: Instant,
    /// A client that stalls does not before.
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

    /// The cut that comes after so many.
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

    /// Tries the replicas until one answers, or the fleet stops.
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

    /// A client that stalls does so a quarter of the time, at most.
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

    /// The part of the goal that lies on its channels.
    fn goal(&self) -> Option<Goal> {
        let goal = self.order.borrow().goal.clone()?;
        let mine = goal
            .iter()
            .filter(|((channel, _), _)| self.plan.channels.contains(channel));
        Some(mine.map(|(key, last)| (key.clone(), *last)).collect())
    }

    /// A share of `time` that is different for different clients, and the same in each run.
    fn share_of(&self, time: Duration) -> Duration {
        let thousandth = (self.number * 389) % 1000;
        time * u32::try_from(thousandth).expect("below 1000") / 1000
    }
}

/// Every number once, in order, under one id, and no gap.
///
/// # Panics
///
/// When it is not so.
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

/// A panic elsewhere fails its own test; what it left is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
