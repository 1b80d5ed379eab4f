//! Many clients that are cut, come back, and are checked.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use loadtest::{Answer, Checker, Client, Event, Goal, Ledger, Received};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{Gateway, PATIENCE, eventually};

/// A cut client waits at most this long; a server's `retry` may ask for less.
const MAX_RETRY: Duration = Duration::from_millis(300);
/// After everything has come: repetitions that may follow are waited for.
const LINGER: Duration = Duration::from_millis(300);

/// Where clients may connect; changes as replicas come and go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replicas(Arc<Mutex<Vec<SocketAddr>>>);

impl Replicas {
    pub(crate) fn of<'a>(gateways: impl IntoIterator<Item = &'a Gateway>) -> Self {
        let replicas = Self::default();
        replicas.set(gateways);
        replicas
    }

    pub(crate) fn set<'a>(&self, gateways: impl IntoIterator<Item = &'a Gateway>) {
        let addresses = gateways.into_iter().map(|gateway| gateway.public).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// The one that `turn` falls on.
    fn at(&self, turn: usize) -> SocketAddr {
        let addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses[turn % addresses.len()]
    }
}

/// What one client follows, and where it starts.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) channels: Vec<String>,
    /// The replica it connects to first.
    pub(crate) replica: usize,
    /// The id it comes with; none if empty.
    pub(crate) resume_from: String,
}

impl Plan {
    pub(crate) fn new(channels: &[String], replica: usize) -> Self {
        Self {
            channels: channels.to_vec(),
            replica,
            resume_from: String::new(),
        }
    }
}

/// The clients.
#[derive(Debug)]
pub(crate) struct Fleet {
    orders: watch::Sender<Order>,
    members: Vec<(Arc<Shared>, JoinHandle<Report>)>,
    ledger: Arc<Ledger>,
}

/// What all clients are told.
#[derive(Clone, Debug)]
struct Order {
    /// Counts the cuts ordered.
    round: u64,
    /// Each client comes back at a moment of its own within this time.
    spread: Duration,
    /// How many replicas further on.
    step: usize,
    /// What must have come in the end; absent while publishing goes on.
    goal: Option<Arc<Goal>>,
    stop: bool,
}

/// What a client shows while it runs.
#[derive(Debug, Default)]
struct Shared {
    /// The last round after which it is connected and has its position.
    round: AtomicU64,
    connected: AtomicBool,
    reached: AtomicBool,
    /// The events it received, `gateway.*` included.
    events: AtomicU64,
}

/// What a client has to say in the end.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) checker: Checker,
    /// Connections that ended without an order.
    pub(crate) cuts: u64,
    /// How long each message took, and when it came.
    pub(crate) latencies: Vec<(Instant, Duration)>,
}

impl Fleet {
    /// Starts one client per plan. The first message of `publishers` on each channel is number 0.
    pub(crate) fn start(
        plans: impl IntoIterator<Item = Plan>,
        replicas: &Replicas,
        partitions: u32,
        publishers: &[&str],
    ) -> Self {
        let ledger = Ledger::new(partitions);
        let order = Order {
            round: 1,
            spread: Duration::ZERO,
            step: 0,
            goal: None,
            stop: false,
        };
        let (orders, order) = watch::channel(order);
        let members = plans.into_iter().enumerate().map(|(number, plan)| {
            let shared = Arc::new(Shared::default());
            let mut checker = Checker::new(&ledger);
            for channel in &plan.channels {
                for publisher in publishers {
                    checker.expect_from(channel, publisher, 0);
                }
            }
            let target = format!("/events?channel={}", plan.channels.join("&channel="));
            let member = Member {
                number,
                client: Client::resuming(target, plan.resume_from.clone()),
                turn: plan.replica,
                plan,
                replicas: replicas.clone(),
                order: order.clone(),
                shared: Arc::clone(&shared),
                report: Report {
                    checker,
                    cuts: 0,
                    latencies: Vec::new(),
                },
            };
            (shared, tokio::spawn(member.run()))
        });
        Self {
            members: members.collect(),
            orders,
            ledger,
        }
    }

    /// Waits until every client is connected and has received its position.
    pub(crate) async fn open(&self) {
        let round = self.orders.borrow().round;
        let arrived = |shared: &Shared| {
            shared.round.load(Ordering::Acquire) >= round
                && shared.connected.load(Ordering::Acquire)
        };
        self.all("connected", 2 * PATIENCE, arrived).await;
    }

    /// Cuts every client, which comes back to the replica `step` further within `spread`.
    pub(crate) fn cut(&self, step: usize, spread: Duration) {
        self.orders.send_modify(|order| {
            order.round += 1;
            order.spread = spread;
            order.step = step;
        });
    }

    /// Waits until every client has everything of `goal` that is on its channels.
    pub(crate) async fn reach(&self, goal: &Goal, limit: Duration) {
        let goal = Arc::new(goal.clone());
        self.orders.send_modify(|order| order.goal = Some(goal));
        let reached = |shared: &Shared| shared.reached.load(Ordering::Acquire);
        self.all("at the goal", limit, reached).await;
    }

    /// Like [`reach`](Self::reach), but those that do not get there say what they miss.
    pub(crate) async fn finish(self, goal: &Goal, limit: Duration) -> Vec<Report> {
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
    pub(crate) fn events(&self, number: usize) -> u64 {
        self.members[number].0.events.load(Ordering::Acquire)
    }

    /// Waits until the first client has received `count` more events.
    pub(crate) async fn progress(&self, count: u64) {
        let goal = self.events(0) + count;
        let what = format!("{count} more events at the first client");
        eventually(&what, PATIENCE, async || match self.events(0) {
            enough if enough >= goal => Ok(()),
            some => Err(format!("{} are missing", goal - some)),
        })
        .await;
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
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
    order: watch::Receiver<Order>,
    shared: Arc<Shared>,
    report: Report,
}

impl Member {
    async fn run(mut self) -> Report {
        let mut round = self.order.borrow_and_update().round;
        self.connect().await;
        loop {
            tokio::select! {
                changed = self.order.changed() => {
                    let order = self.order.borrow_and_update().clone();
                    if changed.is_err() || order.stop {
                        break;
                    }
                    if order.round != round {
                        round = order.round;
                        self.shared.connected.store(false, Ordering::Release);
                        self.client.cut();
                        self.turn += order.step;
                        sleep(self.share_of(order.spread)).await;
                        self.connect().await;
                    }
                    self.look_at_goal();
                }
                received = self.client.next() => match received {
                    Received::Event(event) => self.see(&event, round),
                    Received::End(_) => {
                        self.shared.connected.store(false, Ordering::Release);
                        self.report.cuts += 1;
                        self.turn += 1;
                        let wait = self.client.retry().unwrap_or(MAX_RETRY).min(MAX_RETRY);
                        sleep(self.share_of(wait)).await;
                        self.connect().await;
                    }
                },
            }
        }
        if let Some(goal) = self.goal() {
            self.report.checker.finish(&goal);
        }
        self.report
    }

    /// Tries the replicas in turn until one answers, or the fleet stops.
    async fn connect(&mut self) {
        while !self.order.borrow().stop {
            match self.client.connect(self.replicas.at(self.turn)).await {
                Ok(Answer::Stream) => return,
                Ok(other) => panic!("{:?} was answered {other:?}", self.client),
                Err(_) => {
                    self.turn += 1;
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn see(&mut self, event: &Event, round: u64) {
        if let Some(message) = self.report.checker.see(event) {
            self.report.latencies.push((Instant::now(), message.age()));
        }
        if event.event == "gateway.open" {
            self.shared.connected.store(true, Ordering::Release);
            self.shared.round.store(round, Ordering::Release);
        }
        self.shared.events.fetch_add(1, Ordering::AcqRel);
        self.look_at_goal();
    }

    fn look_at_goal(&mut self) {
        if let Some(goal) = self.goal() {
            let reached = self.report.checker.reached(&goal);
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
pub(crate) fn assert_exact(reports: &[Report]) {
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
    let faults = faults(reports);
    assert!(
        faults.is_empty(),
        "{} faults, the first:\n{}",
        faults.len(),
        faults[..faults.len().min(10)].join("\n")
    );
}

/// All faults, with the number of the client.
pub(crate) fn faults(reports: &[Report]) -> Vec<String> {
    let of = |(number, report): (usize, &Report)| {
        let faults = report.checker.faults().iter();
        let faults = faults.map(move |fault| format!("client {number}: {fault}"));
        faults.collect::<Vec<_>>()
    };
    reports.iter().enumerate().flat_map(of).collect()
}
