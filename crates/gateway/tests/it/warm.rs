//! A crowd that reconnects costs Redis nothing from a warm tail, and little from a cold replica.

use std::time::{Duration, Instant};

use testkit::{Goal, Message};

use crate::support::{
    Fleet, Gateway, KEEP_ALL, PATIENCE, Plan, Redis, Replicas, Reply, alone, assert_exact,
};

const CROWD: usize = 1000;

/// Breaks when each reconnect sends a command to Redis, or when a channel without clients is forgotten at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_reconnects_to_a_warm_channel_costs_no_command_each() {
    let _machine = alone().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let channels = ["hot".to_owned()];
    let plans = (0..CROWD).map(|_| Plan::new(&channels, 0));
    let fleet = Fleet::start(plans, &Replicas::of([&gateway]), 1, &["p"]);
    fleet.open().await;
    fleet
        .reach(&append(&redis, "hot", 0..50).await, PATIENCE)
        .await;

    // All are cut, and most are still away when this is appended.
    fleet.cut(0, Duration::from_secs(10));
    let goal = append(&redis, "hot", 50..100).await;
    let start = Instant::now();
    let before = (redis.commands_processed().await, gateway.metrics().await);
    fleet.open().await;
    fleet.reach(&goal, PATIENCE).await;
    let after = (redis.commands_processed().await, gateway.metrics().await);
    let took = start.elapsed().as_secs_f64();
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);

    let grown =
        |name: &str, label: &str| after.1.labelled(name, label) - before.1.labelled(name, label);
    let commands = (after.0 - before.0) as f64;
    let from_tail = grown("sse_gateway_replays_total", r#"source="tail""#);
    println!("{commands} commands in {took} s, {from_tail} replays from the tail");
    // The lease, the health check, and this test's own commands continue: 33 a second.
    let usual = 50.0 + 40.0 * took;
    assert!(commands < usual, "{commands} commands in {took} s");
    assert_eq!(grown("sse_gateway_history_pages_total", ""), 0.0);
    assert_eq!(grown("sse_gateway_replays_total", r#"source="redis""#), 0.0);
    assert!(
        from_tail > 0.5 * CROWD as f64,
        "{from_tail} replays from the tail"
    );
}

/// Breaks when clients that need the same page do not share it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_on_a_cold_replica_shares_page_reads() {
    const EVENTS: u64 = 3000;
    let _machine = alone().await;
    let redis = Redis::start().await;
    let first = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let goal = append(&redis, "deep", 0..EVENTS).await;
    let log = redis.log("deep", 1).await;
    drop(first);
    let channels = ["deep".to_owned()];
    let at = |seen: u64| {
        let mut plan = Plan::new(&channels, 0);
        plan.resume_from = log[seen as usize].0.to_string();
        plan
    };

    // The cost of one client that has everything to read.
    let alone = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let fleet = Fleet::start([at(0)], &Replicas::of([&alone]), 1, &[]);
    assert_exact(&fleet.finish(&goal, PATIENCE).await);
    let pages_of_one = alone.metrics().await.sum("sse_gateway_history_pages_total");
    assert!(
        pages_of_one >= 2.0,
        "history is read in pages, not in {pages_of_one}"
    );
    drop(alone);

    // Ten groups, which miss 100 to 1,000 events, and ten clients that have everything to read.
    let cold = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let before = redis.script_calls().await;
    let plans = (0..CROWD).map(|client| match client {
        0..10 => at(0),
        _ => at(EVENTS - 1 - 100 * (1 + client as u64 % 10)),
    });
    let fleet = Fleet::start(plans, &Replicas::of([&cold]), 1, &[]);
    let reports = fleet.finish(&goal, 2 * PATIENCE).await;
    assert_exact(&reports);
    let calls = redis.script_calls().await - before;
    let pages = cold.metrics().await.sum("sse_gateway_history_pages_total");
    println!("{pages} pages for {CROWD}, {pages_of_one} for one; {calls} script calls");
    // Each group reads at its own pace and place. That costs as much as a few readers, not a thousand.
    assert!(
        pages <= 11.0 * (pages_of_one + 2.0),
        "{pages} pages, {pages_of_one} for one"
    );
    // The gateway's count of pages could be wrong, so Redis' own count is checked as well.
    assert!(calls < 200, "{calls} script calls");
    for (client, report) in reports.iter().enumerate() {
        let expected = match client {
            0..10 => EVENTS - 1,
            _ => 100 * (1 + client as u64 % 10),
        };
        assert_eq!(report.checker.messages(), expected, "client {client}");
    }
}

/// Appends numbered messages in one pipeline.
async fn append(redis: &Redis, channel: &str, numbers: std::ops::Range<u64>) -> Goal {
    // The first append waits until the gateway has made its handshake.
    let mut commands = redis.connect().await;
    redis.append("other", "ready").await;
    let payloads: Vec<_> = numbers
        .clone()
        .map(|seq| Message::now("p", channel, seq).padded(100))
        .collect();
    let call = |payload| {
        vec![
            &b"FCALL"[..],
            b"sse_publish",
            b"0",
            channel.as_bytes(),
            payload,
        ]
    };
    let calls: Vec<_> = payloads
        .iter()
        .map(|payload| call(payload.as_bytes()))
        .collect();
    for reply in commands.call_all(&calls).await.expect("Redis answers") {
        assert!(
            matches!(reply, Reply::Bytes(_) | Reply::Text(_)),
            "{reply:?}"
        );
    }
    Goal::from([((channel.to_owned(), "p".to_owned()), numbers.end - 1)])
}
