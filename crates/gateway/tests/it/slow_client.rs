//! A client that stops reading affects no other client, and recovers itself.

use std::{env, net::SocketAddr, time::Duration};

use testkit::{Checker, Client, Goal, Received};
use tokio::time::{Instant, sleep_until, timeout};

use crate::support::{
    Fleet, Gateway, Load, PATIENCE, Plan, Redis, Replicas, Report, Viewer, alone, assert_exact,
    recording,
};

const OTHERS: usize = 1000;
const CHANNELS: usize = 50;
const EVENTS_PER_SECOND: u32 = 500;
/// Two megabytes a second: no socket buffer hides ten seconds of that.
const EVENT_BYTES: usize = 4096;
/// How much a replica's memory may grow, in addition to its growth without the slow client.
const LEEWAY: u64 = 8 * 1024 * 1024;

/// Breaks when a client that does not read has a queue of its own, so that memory grows with the backlog. Breaks when
/// its write blocks others, so that their p99 grows. Breaks when it is dropped silently, so that a number is missing
/// without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_affects_no_other_and_loses_nothing_without_a_gap() {
    let _machine = alone().await;
    // The promised thirty seconds need SLOW_CLIENT_SECONDS=30. The default shows the same in less time.
    let seconds =
        env::var("SLOW_CLIENT_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let phase = Duration::from_secs(seconds);
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let channels: Vec<_> = (0..CHANNELS).map(|number| format!("ch{number}")).collect();
    let plans = (0..OTHERS).map(|client| {
        let channel = channels[client % CHANNELS].clone();
        Plan {
            timed: true,
            ..Plan::new(&[channel], 0)
        }
    });
    let fleet = Fleet::start(plans, &Replicas::of([&gateway]), 1, &["p"]);
    fleet.open().await;
    let query = format!("channel={}", channels.join("&channel="));
    let mut client = Client::new(format!("/events?{query}"));
    client.set_receive_buffer(16 * 1024);
    let slow = Viewer::over(gateway.public, client).await;

    // It reads while the replica's memory of recent events fills, and once more for comparison.
    let load = Load::publish(&redis, "p", &channels, EVENTS_PER_SECOND, EVENT_BYTES).await;
    let mut reading = Reading::new(slow, &channels);
    reading.until(Instant::now() + phase).await;
    let before = (Instant::now(), gateway.memory());
    reading.until(Instant::now() + phase).await;
    let stopped = (Instant::now(), gateway.memory());
    sleep_until(Instant::now() + phase).await;
    let after = (Instant::now(), gateway.memory());
    let goal = load.stop().await;
    reading.read_up_to(&goal, gateway.public).await;
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 0),
        "another client was cut"
    );

    let grown = stopped.1.saturating_sub(before.1);
    let grown_slow = after.1.saturating_sub(stopped.1);
    let backlog = u64::from(EVENTS_PER_SECOND) * EVENT_BYTES as u64 * seconds;
    let p99 = p99(&reports, before.0, stopped.0);
    let p99_slow = self::p99(&reports, stopped.0, after.0);
    println!(
        "p99 {p99:?}, with a slow client {p99_slow:?}; memory +{grown}, with a slow client \
         +{grown_slow} of {}, at a backlog of {backlog} bytes",
        after.1
    );
    assert!(backlog > 2 * LEEWAY, "a queue would not be noticed");
    assert!(
        grown_slow < grown + LEEWAY,
        "+{grown_slow} bytes, +{grown} without"
    );
    // Scheduling on a busy machine changes a p99 of a few milliseconds by the same amount.
    let bound = (2 * p99).max(p99 + Duration::from_millis(50));
    assert!(p99_slow < bound, "p99 {p99_slow:?}, {p99:?} without");

    let checker = reading.checker;
    let faults: Vec<_> = checker
        .violations()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        faults.is_empty(),
        "the slow client: {:?}",
        &faults[..faults.len().min(5)]
    );
}

/// The slow client, while it reads.
struct Reading {
    client: Client,
    checker: Checker,
}

impl Reading {
    fn new(viewer: Viewer, channels: &[String]) -> Self {
        let ledger = testkit::Ledger::new(1);
        let mut checker = Checker::new(&ledger);
        for channel in channels {
            checker.expect_from(channel, "p", 0);
        }
        checker.see(&viewer.open);
        Self {
            client: viewer.client,
            checker,
        }
    }

    async fn until(&mut self, deadline: Instant) {
        while let Ok(received) = tokio::time::timeout_at(deadline, self.client.next()).await {
            match received {
                Received::Event(event) => _ = self.checker.see(&event),
                Received::End(end) => panic!("the client was cut while it read: {end:?}"),
            }
        }
    }

    /// Continues to read. If the connection was closed in between, it reconnects, as a page does.
    async fn read_up_to(&mut self, goal: &Goal, address: SocketAddr) {
        let reading = async {
            while !self.checker.reached(goal) {
                match self.client.next().await {
                    Received::Event(event) => _ = self.checker.see(&event),
                    Received::End(_) => _ = self.client.connect(address).await,
                }
            }
        };
        // If it does not reach the goal, the checker reports the missing events.
        timeout(PATIENCE, reading).await.ok();
        self.checker.finish(goal);
    }
}

/// The 99th percentile of the latencies between two moments.
fn p99(reports: &[Report], from: Instant, to: Instant) -> Duration {
    let within = reports
        .iter()
        .flat_map(|report| &report.latencies)
        .filter(|(at, _)| (from..to).contains(at));
    let mut latencies: Vec<_> = within.map(|(_, latency)| *latency).collect();
    assert!(
        latencies.len() > 10_000,
        "{} latencies are too few",
        latencies.len()
    );
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

/// Breaks when a client that never reads keeps its place, and all events sent to it, without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_that_never_read_cost_almost_nothing() {
    let _machine = alone().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let channels = ["news".to_owned()];
    let mut witness = Viewer::open(&gateway, "channel=news").await;
    let mut deaf = Vec::new();
    for _ in 0..100 {
        let mut client = Client::new("/events?channel=news");
        client.set_receive_buffer(4 * 1024);
        client.connect(gateway.public).await.unwrap();
        deaf.push(client);
    }
    let start = gateway.memory();
    let load = Load::publish(&redis, "p", &channels, 1000, 16 * 1024).await;
    // 2,000 events of 16 KiB. If they were kept, that would be 32 MiB for each client, and 3 GiB for all.
    let mut checker = Checker::new(&testkit::Ledger::new(1));
    checker.expect_from("news", "p", 0);
    while checker.messages() < 2000 {
        checker.see(&witness.event().await);
    }
    load.stop().await;
    assert_eq!(checker.violations(), []);
    let grown = gateway.memory().saturating_sub(start);
    println!("memory +{grown} bytes");
    assert!(grown < 96 * 1024 * 1024, "+{grown} bytes");
    drop(deaf);
}
