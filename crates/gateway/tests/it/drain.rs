//! A replica that stops releases its clients without a stampede.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use testkit::{Answer, Client, End, Received};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep},
};

use crate::support::{
    Balancer, Fleet, Gateway, Kind, Load, PATIENCE, Place, Plan, Redis, Replicas, Viewer, alone,
    among_others, assert_exact, eventually, in_time, messages, recording,
};

/// Breaks when a deployment cuts all pages at once, loses an event, or does not end by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_without_a_stampede() {
    const PAGES: usize = 200;
    const WINDOW: Duration = Duration::from_secs(8);
    let _machine = alone().await;
    let redis = Redis::start().await;
    // Two workers, with different numbers of pages to drain.
    let options = "--drain-window 8s --heartbeat 1s --workers 2";
    let mut a = Gateway::start(&redis, options).await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    let channels = ["news".to_owned()];
    let fleet = Fleet::start(
        (0..100).map(|_| Plan::new(&channels, 0)),
        &Replicas::of([&a, &b]),
        1,
        &["p"],
    );
    fleet.open().await;
    let mut pages = JoinSet::new();
    for _ in 0..PAGES {
        let mut page = Viewer::open(&a, "channel=quiet").await;
        pages.spawn(async move {
            let (events, end) = page.until_end().await;
            assert!(messages(&events).is_empty(), "{events:?}");
            assert_eq!(end, End::Whole, "a page was cut instead of ended");
            (Instant::now(), page.client.retry())
        });
    }
    let load = Load::publish(&redis, "p", &channels, 100, 100).await;
    fleet.progress(50).await;

    let start = Instant::now();
    a.process().signal("TERM");
    a.readiness(503).await;
    eventually("drained streams are counted", WINDOW, async || {
        let closed = a.metrics().await;
        match closed.labelled("sse_gateway_closed_total", "drained") > 0.0 {
            true => Ok(()),
            false => Err("none".to_owned()),
        }
    })
    .await;
    let mut newcomer = Client::new("/events?channel=quiet");
    if let Ok(answer) = newcomer.connect(a.public).await {
        // The gateway accepted it at the last moment. Only an answer of 200 can carry a time to reconnect.
        assert_eq!(answer, Answer::Stream);
        while !matches!(in_time("the end", newcomer.next()).await, Received::End(_)) {}
    }
    let status = a.process().exit().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let took = start.elapsed();
    assert!(took < WINDOW + Duration::from_secs(2), "took {took:?}");

    let (mut ends, mut retries) = (Vec::new(), BTreeSet::new());
    while let Some(page) = pages.join_next().await {
        let (end, retry) = page.unwrap();
        ends.push(end - start);
        retries.insert(retry.expect("a page has a retry"));
    }
    ends.sort_unstable();
    assert!(
        ends[PAGES - 1] - ends[0] > WINDOW / 3,
        "all ended within {:?}",
        ends[PAGES - 1] - ends[0]
    );
    let crowd = ends
        .windows(PAGES / 2)
        .map(|half| half[half.len() - 1] - half[0])
        .min()
        .unwrap();
    assert!(crowd > WINDOW / 10, "half of them ended within {crowd:?}");
    assert!(retries.len() > PAGES / 10, "only {retries:?}");

    fleet.progress(20).await;
    let goal = load.stop().await;
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 1),
        "each client moved once"
    );
}

/// Breaks when a drain behind a balancer loses an event, or sends its clients to the other replica all at once. Breaks
/// also when a client sees anything but the end of a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_clients_are_drained_behind_a_balancer() {
    const CLIENTS: usize = 5000;
    const CHANNELS: usize = 50;
    let _machine = alone().await;
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit of open files");
    let redis = Redis::start().await;
    // All clients are on the first replica, because the second has not started yet.
    let places = Place::some::<2>();
    let mut a = places[0]
        .start(&redis, "--drain-window 10s --workers 2")
        .await;
    let balancer = Balancer::start(Kind::HaProxy, &places, &[a.admin]).await;

    let opened = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let channel = format!("c{}", number % CHANNELS);
        clients.spawn(follow(balancer.public, channel, Arc::clone(&opened)));
        // As fast as they are accepted, not faster.
        while number > opened.load(Ordering::Relaxed) + 200 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    eventually("all are open", 3 * PATIENCE, async || {
        match opened.load(Ordering::Relaxed) {
            CLIENTS => Ok(()),
            count => Err(count.to_string()),
        }
    })
    .await;
    assert_eq!(a.metrics().await.sum("sse_gateway_streams"), CLIENTS as f64);
    let _b = places[1].start(&redis, "--workers 2").await;
    redis.recorders(2).await;

    let mut publisher = redis.connect().await;
    let mut rounds = interval(Duration::from_secs(1));
    let start = Instant::now();
    let mut number = 0;
    let status = loop {
        rounds.tick().await;
        for channel in 0..CHANNELS {
            publisher
                .publish(&format!("c{channel}"), number.to_string())
                .await;
        }
        number += 1;
        match number {
            2 => a.process().signal("TERM"),
            n if n > 2 => {
                if let Some(status) = a.process().exited() {
                    break status;
                }
            }
            _ => {}
        }
        assert!(
            start.elapsed() < Duration::from_secs(40),
            "the drain does not end"
        );
    };
    assert_eq!(status.code(), Some(0), "{status}");
    // The last clients are still waiting to reconnect.
    for _ in 0..3 {
        rounds.tick().await;
        for channel in 0..CHANNELS {
            publisher
                .publish(&format!("c{channel}"), number.to_string())
                .await;
        }
        number += 1;
    }
    for channel in 0..CHANNELS {
        publisher.publish(&format!("c{channel}"), "last").await;
    }
    let mut seconds = BTreeMap::<u64, usize>::new();
    while let Some(client) = clients.join_next().await {
        let (numbers, opened) = client.expect("no client saw anything but streams");
        assert_eq!(numbers, (0..number).collect::<Vec<_>>());
        assert_eq!(opened.len(), 2, "each client moved once");
        *seconds.entry((opened[1] - start).as_secs()).or_default() += 1;
    }
    assert!(
        seconds.values().all(|count| *count <= CLIENTS / 5),
        "{seconds:?}"
    );
    assert!(seconds.len() >= 8, "{seconds:?}");
}

/// Follows a channel to its last event, across replicas. Returns the numbers that arrived, and the times at which its
/// streams began.
async fn follow(
    proxy: SocketAddr,
    channel: String,
    here: Arc<AtomicUsize>,
) -> (Vec<u32>, Vec<Instant>) {
    let mut client = Client::new(format!("/events?channel={channel}"));
    let (mut numbers, mut opened) = (Vec::new(), Vec::new());
    loop {
        let answer = client.connect(proxy).await.expect("an answer");
        assert_eq!(answer, Answer::Stream);
        let end = loop {
            match client.next().await {
                Received::Event(event) if event.event == "gateway.open" => {
                    // If the balancer itself answers, with a time to reconnect, this event is missing.
                    opened.push(Instant::now());
                    if opened.len() == 1 {
                        here.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Received::Event(event) if event.data == "last" => return (numbers, opened),
                Received::Event(event) if event.event == "message" => {
                    numbers.push(event.data.parse().expect("a number"));
                }
                Received::Event(event) => assert_eq!(event.event, "gateway.position"),
                Received::End(end) => break end,
            }
        };
        assert_eq!(end, End::Whole);
        sleep(client.retry().expect("the stream has a retry")).await;
    }
}

/// Breaks when a balancer that checks from time to time sends clients to a closed port, or when a second signal during
/// the delay has no effect.
#[tokio::test]
async fn balancers_are_given_time_to_notice() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--drain-delay 10s --drain-window 1s";
    let mut gateway = Gateway::start(&redis, options).await;
    let mut early = Viewer::open(&gateway, "channel=a").await;
    assert_eq!(gateway.metrics().await.sum("sse_gateway_ready"), 1.0);
    let start = Instant::now();
    gateway.process().signal("TERM");
    gateway.readiness(503).await;
    assert_eq!(gateway.metrics().await.sum("sse_gateway_ready"), 0.0);
    while start.elapsed() < Duration::from_secs(2) {
        // Served as before.
        let mut late = Viewer::open(&gateway, "channel=a").await;
        redis.append("a", "hello").await;
        late.until("hello").await;
        early.until("hello").await;
    }
    assert_eq!(early.until_end().await.1, End::Whole);
    assert!(start.elapsed() > Duration::from_secs(10));
    assert!(gateway.process().exit().await.success());

    // A second signal, or Ctrl-C, ends it without the delay.
    for signals in [&["TERM", "TERM"][..], &["INT"]] {
        let mut gateway = Gateway::start(&redis, "--drain-delay 60s --drain-window 1s").await;
        let start = Instant::now();
        for (number, signal) in signals.iter().enumerate() {
            if number > 0 {
                gateway.readiness(503).await;
            }
            gateway.process().signal(signal);
        }
        assert!(gateway.process().exit().await.success());
        assert!(start.elapsed() < Duration::from_secs(30), "{signals:?}");
    }
}

/// Breaks when a balancer that checks once a second sends clients to a closed port, with default settings.
#[tokio::test]
async fn a_replica_accepts_for_some_seconds_after_sigterm() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut command = Gateway::command();
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.args(["--redis-url", &redis.url(), "--workers", "1"]);
    let mut gateway = Gateway::of(command).await;
    gateway.ready().await;
    let start = Instant::now();
    gateway.process().signal("TERM");
    gateway.readiness(503).await;
    while start.elapsed() < Duration::from_secs(3) {
        let mut late = Viewer::open(&gateway, "channel=a").await;
        redis.append("a", "hello").await;
        late.until("hello").await;
    }
    assert!(
        gateway
            .process()
            .exit_within(Duration::from_secs(30))
            .await
            .success()
    );
    assert!(start.elapsed() > Duration::from_secs(5));
}

/// Breaks when connections stay on one replica without end, all end at once, or lose an event.
#[tokio::test]
async fn old_streams_end_at_different_times() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--max-stream-age 15s --retry 200ms").await;
    let other = Gateway::start(&redis, "").await;
    let mut pages = JoinSet::new();
    let start = Instant::now();
    for _ in 0..50 {
        let mut page = Viewer::open(&gateway, "channel=a").await;
        pages.spawn(async move {
            let (events, end) = page.until_end().await;
            assert_eq!(end, End::Whole);
            (Instant::now(), events.len(), page)
        });
    }
    redis.append("a", "while they are there").await;
    let (mut seconds, mut away) = (BTreeSet::new(), Vec::new());
    while let Some(page) = pages.join_next().await {
        let (end, count, page) = page.unwrap();
        let age = end - start;
        assert!(
            age > Duration::from_secs(13) && age < Duration::from_secs(25),
            "{age:?}"
        );
        assert_eq!(count, 1);
        seconds.insert(age.as_secs());
        away.push(page);
    }
    assert!(seconds.len() >= 3, "{seconds:?}");
    redis.append("a", "while they are away").await;
    for page in away {
        let mut page = page.reconnect(&other).await;
        assert_eq!(page.event().await.data, "while they are away");
    }
    let closed = gateway.metrics().await;
    assert_eq!(closed.labelled("sse_gateway_closed_total", "expired"), 50.0);
}
