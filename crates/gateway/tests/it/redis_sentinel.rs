//! Redis with sentinels: the gateway uses the master that the sentinels name.

use std::net::Ipv4Addr;

use testkit::lab::{Sentinels, copied, free_port, promoted};
use tokio::net::TcpListener;

use crate::support::{
    Commands, FaultyLink, Gateway, MASTER, PATIENCE, Redis, Sentinel, Viewer, among_others,
    assert_rising, assert_told, data, eventually, in_time, messages, recording,
};

async fn master_and_copy() -> (Redis, Redis) {
    let first = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let port = first.address().port().to_string();
    let mut second = Redis::stopped(&["--repl-diskless-sync-delay", "0"]);
    second.add_options(&["--replicaof", "127.0.0.1", &port]);
    second.restart().await;
    (first, second)
}

/// As flags, after the address of a dead sentinel.
fn options(sentinels: &[Sentinel]) -> String {
    let dead = free_port(&[Ipv4Addr::LOCALHOST]);
    let all = sentinels.iter().map(|sentinel| sentinel.address);
    let all: Vec<_> = all.map(|address| address.to_string()).collect();
    let all = all.join(",");
    format!("--redis-url redis://{MASTER} --redis-sentinels 127.0.0.1:{dead},redis://{all}")
}

/// Breaks when a failover, planned or not, leaves a replica with the old master, causes ids that go back, or loses
/// events without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_the_master_that_the_sentinels_name() {
    let _machine = among_others().await;
    let (mut first, guard) = Sentinels::start(&[], 1, 3000).await;
    let [mut second] = <[Redis; 1]>::try_from(guard.copies).expect("one");
    let sentinels = guard.all;
    let options = format!("{} --publish-token t", options(&sentinels));
    let a = Gateway::start(&first, &options).await;
    let b = Gateway::start(&first, &options).await;
    recording([&a, &b], 1).await;
    first.recorders(2).await;
    let mut viewers = [
        Viewer::open(&a, "channel=news").await,
        Viewer::open(&b, "channel=news").await,
    ];
    let seen = first.append_many("news", 3).await[2];
    for viewer in &mut viewers {
        viewer.until("n2").await;
    }
    copied(&first, 1).await;

    // Planned: the old master becomes a copy, and still answers.
    sentinels[0].fail_over().await;
    promoted(&second).await;
    second.append("news", "planned").await;
    for viewer in &mut viewers {
        let events = viewer.until("planned").await;
        assert_rising(&events, seen);
        // The old master has confirmed that the new one has all its events.
        assert_eq!(data(&events), ["planned"]);
    }
    recording([&a, &b], 1).await;
    second.recorders(2).await;
    second.connect().await.publish("news", "raw").await;
    for viewer in &mut viewers {
        viewer.until("raw").await;
    }
    let bearer = "Authorization: Bearer t\r\n";
    let posted = b.post("/events?channel=news", bearer, "posted").await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    let mut last = seen;
    for viewer in &mut viewers {
        let events = viewer.until("posted").await;
        last = messages(&events).last().unwrap().id.parse().unwrap();
    }

    // Not planned.
    copied(&second, 1).await;
    second.kill();
    promoted(&first).await;
    first.append("news", "unplanned").await;
    for viewer in &mut viewers {
        let events = viewer.until("unplanned").await;
        assert_rising(&events, last);
        assert_told(&events, "news");
    }
    recording([&a, &b], 1).await;
    first.kill();
}

/// Breaks when a minority of the sentinels, which names another master and does not know the decision of the rest,
/// takes a replica away from its master.
#[tokio::test]
async fn a_minority_of_the_sentinels_moves_no_replica() {
    let _machine = among_others().await;
    let (redis, other) = (Redis::start().await, Redis::start().await);
    let mut sentinels = Sentinel::three(&redis, "").await;
    let all = sentinels.each_ref().map(|one| one.address.to_string());
    let all = all.join(",");
    let options = format!("--redis-url redis://{MASTER} --redis-sentinels {all}");
    let mut gateway = Gateway::start(&redis, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let [lone, others @ ..] = &mut sentinels;
    let mut lone = Commands::connect(lone.address).await.unwrap();
    let elsewhere = other.address().port();
    lone.run(&format!("SENTINEL REMOVE {MASTER}")).await;
    lone.run(&format!(
        "SENTINEL MONITOR {MASTER} 127.0.0.1 {elsewhere} 1"
    ))
    .await;
    for sentinel in others {
        sentinel.process.kill();
    }
    // The replica uses a new connection each time, and no other client is left.
    let mut asked = async || {
        let stats = lone.run("INFO stats").await.text();
        let count = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        count
            .and_then(|count| count.parse::<u64>().ok())
            .expect("a number")
    };
    let before = asked().await;
    // When it asks for the second time, it has finished with the first answers.
    eventually("the replica has asked twice", PATIENCE, async || {
        match asked().await - before {
            2.. => Ok(()),
            times => Err(format!("{times} times")),
        }
    })
    .await;
    redis.append("news", "here").await;
    viewer.until("here").await;
    let log = gateway.process().log();
    assert!(log.contains("a sentinel does not know the master"), "{log}");
    assert!(!log.contains("another redis is the master"), "{log}");
}

/// Breaks when most sentinels do not know the last failover yet, and take a replica back to the old master. Breaks also
/// when a replica stays with its master although that is no longer one.
#[tokio::test]
async fn the_newest_epoch_of_a_sentinel_is_kept_when_others_are_older() {
    let _machine = among_others().await;
    let (old, new) = (Redis::start().await, Redis::start().await);
    let sentinel = async |master: &Redis, epoch: u32| {
        let line = format!("sentinel config-epoch {MASTER} {epoch}");
        Sentinel::start(master.address(), 2, &line).await
    };
    let mut first = sentinel(&new, 2).await;
    let others = [sentinel(&old, 1).await, sentinel(&old, 1).await];
    let all = [&first, &others[0], &others[1]].map(|one| one.address.to_string());
    let options = format!(
        "--redis-url redis://{MASTER} --redis-sentinels {}",
        all.join(",")
    );
    others[1].process.signal("STOP");
    let mut gateway = Gateway::start(&new, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;

    first.process.kill();
    let place = TcpListener::bind(first.address).await.expect("it is free");
    others[1].process.signal("CONT");
    // When it asks for the second time, it has finished with the first answers.
    for _ in 0..2 {
        let asked = in_time("it asks all of them", place.accept()).await;
        asked.expect("a connection");
    }
    new.append("news", "here").await;
    viewer.until("here").await;
    let log = gateway.process().log();
    assert!(!log.contains("another redis is the master"), "{log}");

    let port = old.address().port();
    let mut commands = new.connect().await;
    commands.run(&format!("REPLICAOF 127.0.0.1 {port}")).await;
    old.append("news", "there").await;
    viewer.until("there").await;
}

/// Breaks when the log does not report that sentinels cannot be reached, refuse the gateway, or do not know the name.
#[tokio::test]
async fn faults_of_sentinels_are_named() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dead = free_port(&[Ipv4Addr::LOCALHOST]);
    let sentinel = Sentinel::start(redis.address(), 1, "requirepass SECRET").await;
    let address = sentinel.address;
    for (master, sentinel, said) in [
        (
            MASTER,
            format!("127.0.0.1:{dead}"),
            "no sentinel knows where the master events is: 127.0.0.1:",
        ),
        (MASTER, address.to_string(), "redis wants a password"),
        (
            "others",
            format!("redis://:SECRET@{address}"),
            "No such master with that name",
        ),
    ] {
        let options = format!("--redis-url redis://{master} --redis-sentinels {sentinel}");
        let mut gateway = Gateway::start_unready(&redis, &options, "").await;
        eventually(said, PATIENCE, async || {
            let log = gateway.process().log();
            if log.contains(said) { Ok(()) } else { Err(log) }
        })
        .await;
        gateway.readiness(503).await;
    }
    let options =
        format!("--redis-url redis://{MASTER} --redis-sentinels redis://:SECRET@{address}");
    Gateway::start(&redis, &options).await;
}

/// Waits until a replica has logged that it moves to another master.
async fn moved(gateway: &mut Gateway) {
    eventually("the replica moves", PATIENCE, async || {
        let log = gateway.process().log();
        match log.contains("another redis is the master") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
}

/// Breaks when sentinels announce another name of the same master and a replica retires it, so that all appends are
/// refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_name_of_the_same_master_does_not_retire_it() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let names = "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes";
    let sentinel = Sentinel::start(redis.address(), 1, names).await;
    let options = format!(
        "--redis-url redis://{MASTER} --redis-sentinels {}",
        sentinel.address
    );
    let mut gateway = Gateway::start(&redis, &options).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut sentinel = Commands::connect(sentinel.address).await.unwrap();
    sentinel.run(&format!("SENTINEL REMOVE {MASTER}")).await;
    let port = redis.address().port();
    let monitor = format!("SENTINEL MONITOR {MASTER} localhost {port} 1");
    sentinel.run(&monitor).await;
    moved(&mut gateway).await;
    gateway.ready().await;
    redis.append("news", "here").await;
    viewer.until("here").await;
}

/// Breaks when a replica continues to use a master that another replica has retired. Also breaks when it does not
/// return after that master has been a copy and was promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_master_is_left_until_it_is_promoted_again() {
    let _machine = among_others().await;
    let (first, second) = master_and_copy().await;
    let gateway = Gateway::start(&first, "").await;
    recording([&gateway], 1).await;
    copied(&first, 1).await;
    let mut commands = first.connect().await;
    commands.run("FCALL ssegw_retire 0 5 ssegw:{8209}:").await;
    gateway.readiness(503).await;
    eventually(
        "no replica is subscribed any more",
        PATIENCE,
        async || match commands.publish("news", "x").await {
            0 => Ok(()),
            receivers => Err(receivers.to_string()),
        },
    )
    .await;

    second.connect().await.run("REPLICAOF NO ONE").await;
    let port = second.address().port();
    commands.run(&format!("REPLICAOF 127.0.0.1 {port}")).await;
    copied(&second, 1).await;
    let mut commands = first.connect().await;
    commands.run("REPLICAOF NO ONE").await;
    gateway.ready().await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    first.append("news", "again").await;
    viewer.until("again").await;
}

/// Makes the copy a master, and has a replica make a handshake with it. The old master still accepts writes.
async fn part(first: &Redis, second: &Redis) -> Gateway {
    copied(first, 1).await;
    second.connect().await.run("REPLICAOF NO ONE").await;
    Gateway::start(second, "").await
}

/// Asserts that no event of the new master is hidden. The replica was moved to the new master and is still subscribed
/// to the old one.
async fn assert_nothing_is_hidden(gateway: &Gateway, viewer: &mut Viewer, [old, new]: [&Redis; 2]) {
    let bearer = "Authorization: Bearer t\r\n";
    let posted = gateway.post("/events?channel=news", bearer, "posted").await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    // An event newer than the posted one, but older than the new master's clock. It is published by hand, because a
    // retired master appends nothing.
    let mut commands = old.connect().await;
    let time = commands.run("TIME").await;
    let seconds: u64 = time.array()[0].text().parse().expect("a number");
    let late = format!("{}-0 0-0\nlate", (seconds + 1) * 1000);
    let live = Redis::key("live", "news", 1);
    let words = [b"PUBLISH", live.as_bytes(), late.as_bytes()];
    commands.call(&words).await.expect("Redis answers");
    new.append("others", "x").await;
    new.append("news", "after").await;
    let events = viewer.until("after").await;
    assert_eq!(data(&events), ["<gap>", "posted", "after"]);
}

/// Breaks when a replica that has made a handshake with a new master delivers events of the old one. Their ids are past
/// events of the new one, so clients would miss these without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_master_that_accepts_writes_hides_no_event_of_the_new_one() {
    let _machine = among_others().await;
    let (first, second) = master_and_copy().await;
    let sentinel = Sentinel::start(first.address(), 1, "").await;
    let options = format!(
        "--redis-url redis://{MASTER} --redis-sentinels {} --publish-token t",
        sentinel.address
    );
    let mut gateway = Gateway::start(&first, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    first.append_many("news", 3).await;
    viewer.until("n2").await;

    // Otherwise the sentinel would turn the promoted master into a copy again.
    let mut sentinel = Commands::connect(sentinel.address).await.unwrap();
    sentinel.run(&format!("SENTINEL REMOVE {MASTER}")).await;
    let _other = part(&first, &second).await;
    let port = second.address().port();
    let monitor = format!("SENTINEL MONITOR {MASTER} 127.0.0.1 {port} 1");
    sentinel.run(&monitor).await;
    moved(&mut gateway).await;
    assert_nothing_is_hidden(&gateway, &mut viewer, [&first, &second]).await;
}

/// The same where the new master gets the address of the old one, and connections to the old one stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_master_at_the_same_address_hides_no_event_of_the_new_one() {
    let _machine = among_others().await;
    let (first, second) = master_and_copy().await;
    let link = FaultyLink::to(first.address()).await;
    let options = format!("--redis-url {} --publish-token t", link.url());
    let gateway = Gateway::start(&first, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    first.append_many("news", 3).await;
    viewer.until("n2").await;
    let _other = part(&first, &second).await;
    link.redirect_to(second.address());
    // All connections except subscriptions.
    let mut commands = first.connect().await;
    commands.run("CLIENT KILL TYPE normal").await;
    assert_nothing_is_hidden(&gateway, &mut viewer, [&first, &second]).await;
}
