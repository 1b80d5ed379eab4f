//! The load generator counts exactly the deliveries that happened.

use std::time::Duration;

use loadtest::{Outcome, Session, Setup, Way};

use crate::support::{Gateway, KEEP_ALL, PATIENCE, Redis, alone, recording};

fn setup(gateway: &Gateway, redis: &Redis, connections: usize, channels: usize) -> Setup {
    Setup {
        servers: vec![gateway.public],
        target: "/events?channel={channel}".to_owned(),
        connections,
        channels,
        way: Way::Redis {
            address: redis.address(),
            prefix: "sse:".to_owned(),
        },
        bytes: 200,
        connect_rate: Some(2000.0),
        slow: 0,
        slow_bytes_per_second: 0,
        pids: vec![],
    }
}

/// Breaks when the load generator counts deliveries that did not happen, or misses some. Breaks also when a crowd that
/// reconnects at once does not receive exactly the events it missed, or costs Redis a command each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_and_a_reconnect_storm_are_counted_exactly() {
    const STREAMS: usize = 500;
    const CHANNELS: usize = 10;
    let _machine = alone().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    recording([&gateway], 1).await;
    let setup = setup(&gateway, &redis, STREAMS, CHANNELS);
    let measuring = tokio::task::spawn_blocking(move || {
        let mut session = Session::open(setup)?;
        session.wait(Duration::from_millis(500))?;
        let load = session.load(300.0, Duration::from_secs(2), PATIENCE)?;
        let sent = session.cut_and_publish(400)?;
        let storm = session.reconnect(sent, PATIENCE)?;
        anyhow::Ok((load, storm))
    });
    let (load, storm) = measuring.await.unwrap().unwrap();
    let assert_exact = |outcome: &Outcome, messages: u64| {
        let each = (STREAMS / CHANNELS) as u64;
        assert_eq!(outcome.sent.messages, messages, "{:#}", outcome.to_json());
        assert_eq!(outcome.tally.deliveries, messages * each);
        assert!(outcome.is_exact(), "{outcome}");
        assert_eq!(outcome.sent.unheard, 0);
    };
    assert_exact(&load, 600);
    assert_exact(&storm, 400);
    let pages = gateway
        .metrics()
        .await
        .sum("sse_gateway_history_pages_total");
    assert!(pages <= 10.0 * CHANNELS as f64, "{pages} pages");
}

/// Breaks when slow streams do not read slowly, are mixed up with the others, or receive anything but the next events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_streams_are_slow_and_counted_separately() {
    const SLOW: usize = 5;
    const BYTES_PER_SECOND: u64 = 20_000;
    let _machine = alone().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    recording([&gateway], 1).await;
    let setup = Setup {
        slow: SLOW,
        slow_bytes_per_second: BYTES_PER_SECOND,
        ..setup(&gateway, &redis, 50, 1)
    };
    let measuring = tokio::task::spawn_blocking(move || {
        let mut session = Session::open(setup)?;
        session.load(1000.0, Duration::from_secs(3), PATIENCE)
    });
    let outcome = measuring.await.unwrap().unwrap();
    assert!(outcome.is_exact(), "{outcome}");
    assert_eq!(outcome.tally.deliveries, 3000 * 45);
    let slow = outcome.slow.expect("some are slow");
    let most = outcome.took.as_secs_f64().ceil() as u64 * BYTES_PER_SECOND * SLOW as u64;
    assert!((1..=most).contains(&slow.tally.bytes), "{slow:?}");
    assert_eq!(slow.tally.missing + slow.tally.ended + slow.tally.gaps, 0);
    assert_eq!(slow.tally.deliveries + slow.outstanding, 3000 * 5);
}

/// Breaks when an idle stream keeps more than a socket and a cursor, such as the buffers of its HTTP connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_stream_costs_little() {
    const STREAMS: usize = 3000;
    const MAX_EACH: u64 = 3 << 10;
    let _machine = alone().await;
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit of open files");
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let open = async |count| {
        let setup = setup(&gateway, &redis, count, 1);
        let opening = tokio::task::spawn_blocking(move || Session::open(setup));
        opening.await.expect("no panic").expect("they are open")
    };
    // The first streams allocate the memory that all streams share.
    let _first = open(500).await;
    let before = gateway.memory();
    let _idle = open(STREAMS).await;
    let each = gateway.memory().saturating_sub(before) / STREAMS as u64;
    assert!(each < MAX_EACH, "{each} bytes for an idle stream");
}
