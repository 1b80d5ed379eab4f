//! Many clients that are cut, reconnect, and are checked.

mod member;

use std::{
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use self::member::{Cut, Member, Order, Shared};
use super::{PATIENCE, Replicas, eventually, lock};
use crate::{Checker, End, Goal, Ledger};

/// Wait for possible repetitions after all messages have arrived.
const LINGER: Duration = Duration::from_millis(300);

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
            let member = Member::new(number, plan, replicas, &publishers, &ledger, order.clone());
            let shared = Arc::clone(&member.shared);
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
