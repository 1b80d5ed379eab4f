//! One client of a fleet: it follows orders, reconnects, and checks its events.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Plan, Report};
use crate::{
    Answer, Checker, Client, End, Event, Goal, Ledger, Received, Violation,
    lab::{Replicas, lock},
};

/// Longest wait of a client before it reconnects. A server's `retry` may be shorter.
const MAX_RETRY: Duration = Duration::from_millis(300);
/// A client gives up an attempt to connect after this time and tries another replica.
const CONNECT: Duration = Duration::from_secs(3);

/// The orders for all clients.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// All cuts so far, each with the time within which clients reconnect, at different moments. A busy client follows
    /// the next cut later.
    pub(super) cuts: Vec<(Cut, Duration)>,
    /// The messages that have to be received by the end. `None` while publishing continues.
    pub(super) goal: Option<Arc<Goal>>,
    pub(super) stop: bool,
}

/// The clients that are cut, and where they reconnect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// All clients. Each reconnects to the replica this many places further.
    All(usize),
    /// This share of the clients. Each reconnects to any replica.
    Some(f64),
}

/// The visible state of a running client.
#[derive(Debug)]
pub(super) struct Shared {
    /// The number of cuts after which it is connected and has received its position.
    pub(super) round: AtomicUsize,
    pub(super) connected: AtomicBool,
    pub(super) reached: AtomicBool,
    /// The events it received, including `gateway.*`.
    pub(super) events: AtomicU64,
    /// Connections that ended without an order.
    pub(super) cuts: AtomicU64,
    /// The end of the last of them, until it is taken.
    pub(super) end: Mutex<Option<End>>,
    /// Cuts by order.
    pub(super) ordered: AtomicU64,
    /// The send time of the newest message received from each publisher on each channel, in microseconds since the
    /// epoch. First all publishers of the first channel, then those of the next.
    pub(super) newest: Vec<AtomicU64>,
    /// The longest time between two events, in microseconds, until it is taken.
    pub(super) silence: AtomicU64,
    /// The longest time that a connection received no bytes, until it is taken.
    pub(super) quiet: AtomicU64,
    /// Whether it stops reading at times.
    pub(super) stalls: bool,
    pub(super) checker: Mutex<Checker>,
}

/// One client.
pub(super) struct Member {
    number: usize,
    client: Client,
    /// The replica that it uses.
    turn: usize,
    plan: Plan,
    replicas: Replicas,
    publishers: Arc<[String]>,
    order: watch::Receiver<Order>,
    pub(super) shared: Arc<Shared>,
    latencies: Vec<(Instant, Duration)>,
    /// When its last event arrived.
    last_event: Instant,
    /// It does not stall before this time.
    reads_until: Instant,
    random: Rng,
}

impl Member {
    pub(super) fn new(
        number: usize,
        plan: Plan,
        replicas: &Replicas,
        publishers: &Arc<[String]>,
        ledger: &Arc<Ledger>,
        order: watch::Receiver<Order>,
    ) -> Self {
        let mut checker = Checker::new(ledger);
        checker.asks_for(&plan.channels, &plan.others);
        for channel in &plan.channels {
            for publisher in &**publishers {
                checker.expect_from(channel, publisher, 0);
            }
        }
        let asked = [&plan.channels[..], &plan.others].concat();
        let target = format!("/events?channel={}", asked.join("&channel="));
        let mut client = Client::resuming(target, plan.resume_from.clone());
        if !plan.stall.is_zero() {
            // With a small buffer, the replica notices the stall soon.
            client.set_receive_buffer(4096);
        }
        let newest = plan.channels.len() * publishers.len();
        let shared = Shared {
            round: AtomicUsize::default(),
            connected: AtomicBool::default(),
            reached: AtomicBool::default(),
            events: AtomicU64::default(),
            cuts: AtomicU64::default(),
            end: Mutex::default(),
            ordered: AtomicU64::default(),
            newest: (0..newest).map(|_| AtomicU64::default()).collect(),
            silence: AtomicU64::default(),
            quiet: AtomicU64::default(),
            stalls: !plan.stall.is_zero(),
            checker: Mutex::new(checker),
        };
        Self {
            number,
            client,
            turn: plan.replica,
            random: Rng::with_seed(plan.seed + number as u64),
            plan,
            replicas: replicas.clone(),
            publishers: Arc::clone(publishers),
            order,
            shared: Arc::new(shared),
            latencies: Vec::new(),
            last_event: Instant::now(),
            reads_until: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) -> Report {
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
        let silence = now.duration_since(self.last_event).as_micros() as u64;
        self.last_event = now;
        self.shared.silence.fetch_max(silence, Ordering::AcqRel);
        let quiet = self.client.take_quiet().as_micros() as u64;
        self.shared.quiet.fetch_max(quiet, Ordering::AcqRel);
        self.shared.events.fetch_add(1, Ordering::AcqRel);
        self.look_at_goal();
    }

    /// A client that stalls does so at most a quarter of the time.
    async fn stall(&mut self) {
        let most = self.plan.stall;
        if most.is_zero() || self.last_event < self.reads_until {
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
