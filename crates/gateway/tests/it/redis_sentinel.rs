//! Redis behind sentinels: the gateway is where they say the master is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use loadtest::lab::free_port;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};

use crate::support::{
    Cable, Commands, Gateway, KEEP_ALL, MASTER, PATIENCE, Redis, Reply, Sentinel, Viewer,
    among_others, assert_rising, assert_told, data, eventually, in_time, messages, recording,
    shares,
};

async fn master_and_copy() -> (Redis, Redis) {
    let first = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let port = first.address().port().to_string();
    let mut second = Redis::stopped(&["--repl-diskless-sync-delay", "0"]);
    second.add_options(&["--replicaof", "127.0.0.1", &port]);
    second.restart().await;
    (first, second)
}

/// Three, of which two have to agree.
async fn three_sentinels(master: &Redis, lines: &str) -> [Sentinel; 3] {
    let [a, b, c] = [(); 3].map(|()| Sentinel::start(master.address(), 2, lines));
    tokio::join!(a, b, c).into()
}

/// Three sentinels, which agree within seconds.
async fn agreeing_sentinels(master: &Redis, down_after: u32) -> [Sentinel; 3] {
    let lines = format!(
        "sentinel down-after-milliseconds {MASTER} {down_after}\nsentinel failover-timeout {MASTER} 2000"
    );
    let sentinels = three_sentinels(master, &lines).await;
    for sentinel in &sentinels {
        let what = "a sentinel knows the others, and the copy";
        eventually(what, PATIENCE, async || {
            let mut sentinel = Commands::connect(sentinel.address)
                .await
                .map_err(|error| error.to_string())?;
            let [quorum, copies] = ["CKQUORUM", "REPLICAS"]
                .map(|word| [b"SENTINEL", word.as_bytes(), MASTER.as_bytes()]);
            let usable = sentinel.call(&quorum).await.expect("an answer");
            let copies = sentinel.call(&copies).await.expect("an answer");
            match (format!("{usable:?}"), copies.array().len()) {
                (usable, 1) if usable.contains("OK 3 usable") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    sentinels
}

/// As flags, behind one that is not there.
fn options(sentinels: &[Sentinel]) -> String {
    let dead = free_port(&[Ipv4Addr::LOCALHOST]);
    let all = sentinels.iter().map(|sentinel| sentinel.address);
    let all: Vec<_> = all.map(|address| address.to_string()).collect();
    let all = all.join(",");
    format!("--redis-url redis://{MASTER} --redis-sentinels 127.0.0.1:{dead},redis://{all}")
}

/// Waits until the copy has all that its master has.
async fn copied(master: &Redis) {
    let mut commands = master.connect().await;
    // A sentinel may make the old master a copy only after a while.
    eventually("the copy is complete", 2 * PATIENCE, async || {
        // WAIT is for what this connection has written, and all before it.
        commands.run("SET copied 1").await;
        match commands.run("WAIT 1 1000").await.integer() {
            1 => Ok(()),
            copies => Err(format!("{copies} copies")),
        }
    })
    .await;
}

/// Waits until sentinels have made it the master. As they do, they cut everybody off.
async fn promoted(redis: &Redis) {
    eventually("it is promoted", PATIENCE, async || {
        let role = async {
            let mut commands = Commands::connect(redis.address()).await?;
            commands.call(&[b"ROLE"]).await
        };
        let role = role.await.map_err(|error| error.to_string())?;
        match role.array()[0].text() {
            role if role == "master" => Ok(()),
            role => Err(role),
        }
    })
    .await;
}

/// Breaks when a failover, planned or not, leaves a replica with the old master, brings ids that go back, or a loss
/// that is not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_is_where_the_sentinels_say() {
    let _machine = among_others().await;
    let (mut first, mut second) = master_and_copy().await;
    let sentinels = agreeing_sentinels(&first, 3000).await;
    let options = format!("{} --publish-token t", options(&sentinels));
    let a = Gateway::start(&first, &options).await;
    let b = Gateway::start(&first, &options).await;
    recording([&a, &b], 1).await;
    first.seats(2).await;
    let mut viewers = [
        Viewer::open(&a, "channel=news").await,
        Viewer::open(&b, "channel=news").await,
    ];
    let seen = first.append_many("news", 3).await[2];
    for viewer in &mut viewers {
        viewer.until("n2").await;
    }
    copied(&first).await;

    // Planned: the old master lives on as a copy, and goes on answering.
    let mut sentinel = Commands::connect(sentinels[0].address).await.unwrap();
    let failover = sentinel.run(&format!("SENTINEL FAILOVER {MASTER}")).await;
    assert_eq!(failover.text(), "OK");
    promoted(&second).await;
    second.append("news", "planned").await;
    for viewer in &mut viewers {
        let events = viewer.until("planned").await;
        assert_rising(&events, seen);
        // That nothing was lost the new master cannot know.
        assert_told(&events, "news");
    }
    recording([&a, &b], 1).await;
    second.seats(2).await;
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
    copied(&second).await;
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

/// Breaks when a few sentinels that know of another master, and not of what the rest has decided, take a replica away
/// from the one that it is at.
#[tokio::test]
async fn less_than_half_of_the_sentinels_move_nobody() {
    let _machine = among_others().await;
    let (redis, other) = (Redis::start().await, Redis::start().await);
    let mut sentinels = three_sentinels(&redis, "").await;
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
    // Each time over a connection of its own, and nobody else is there any more.
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
    // The second time, what came of the first is done.
    eventually("it has asked twice", PATIENCE, async || {
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

/// Breaks when most sentinels, which have not heard of the last failover yet, take a replica back to the old master; or when
/// it does not go though the one that it is at is no master any more.
#[tokio::test]
async fn what_one_sentinel_knew_is_not_forgotten_for_others_that_know_less() {
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
    // The second time, what came of the first is done.
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

/// How a master is replaced that goes on.
#[derive(Clone, Copy, PartialEq)]
enum Replaced {
    /// By order: until sentinels make a copy of it, it takes writes.
    Planned,
    /// It was stalled until then, and carries out what waits in its sockets.
    Stalled,
    /// By order, and one gateway cannot reach the sentinels.
    Unheard,
}

/// Breaks when some replicas go on at the old master while others are at the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_in_silence_when_a_master_is_replaced_by_order() {
    replace(Replaced::Planned).await;
}

/// Breaks when what a master does is believed that was stalled and replaced meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_in_silence_when_a_replaced_master_goes_on() {
    replace(Replaced::Stalled).await;
}

/// Breaks when a replica that hears of no failover goes on at the old master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_in_silence_when_a_replica_cannot_reach_the_sentinels() {
    replace(Replaced::Unheard).await;
}

/// Three replicas, each with a client that stays; numbers that are posted to each in turn, and repeated with their key until
/// they are stored, and others that a backend appends by function. The master is replaced. Each client gets all
/// numbers once, but those that a gap tells of, and ids that rise.
async fn replace(how: Replaced) {
    let _machine = shares(3).await;
    let (first, second) = master_and_copy().await;
    let sentinels = agreeing_sentinels(&first, 1000).await;
    let mut gateways = Vec::new();
    let mut cables = Vec::new();
    for _ in 0..3 {
        let mut addresses = Vec::new();
        for sentinel in &sentinels {
            let cable = Cable::to(sentinel.address).await;
            addresses.push(cable.address.to_string());
            cables.push(cable);
        }
        let options = format!(
            "--redis-url redis://{MASTER} --redis-sentinels {} --publish-token t",
            addresses.join(",")
        );
        gateways.push(Gateway::start_with(&first, &options, KEEP_ALL).await);
    }
    recording(&gateways, 1).await;
    first.seats(2).await;
    let mut viewers = Vec::new();
    for gateway in &gateways {
        viewers.push(Viewer::open(gateway, "channel=posted&channel=called").await);
    }
    copied(&first).await;

    let (stop, stopped) = watch::channel(false);
    let publish = async {
        let (mut number, mut stored) = (0, BTreeSet::new());
        while !*stopped.borrow() {
            let headers = format!("Authorization: Bearer t\r\nIdempotency-Key: {number}\r\n");
            for attempt in 0..40 {
                let gateway = &gateways[(number + attempt) % 3];
                let body = format!("p{number}");
                let posted = gateway.post("/events?channel=posted", &headers, &body);
                if posted.await.head.status == 201 {
                    stored.insert(number);
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
            number += 1;
            sleep(Duration::from_millis(2)).await;
        }
        stored
    };
    let call = async {
        let (mut number, mut stored) = (0, BTreeSet::new());
        let mut at = [&first, &second].map(Redis::address).into_iter().cycle();
        let mut commands: Option<Commands> = None;
        while !*stopped.borrow() {
            if commands.is_none() {
                commands = Commands::connect(at.next().expect("a cycle")).await.ok();
            }
            let Some(redis) = &mut commands else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let text = format!("c{number}");
            let key = format!("k{number}");
            let words = ["FCALL", "sse_publish", "0", "called", &text, &key].map(str::as_bytes);
            match timeout(Duration::from_secs(8), redis.call(&words)).await {
                Ok(Ok(Reply::Bytes(_) | Reply::Text(_))) => {
                    stored.insert(number);
                    number += 1;
                }
                _ => {
                    commands = None;
                    sleep(Duration::from_millis(50)).await;
                }
            }
            sleep(Duration::from_millis(2)).await;
        }
        stored
    };
    let fault = async {
        sleep(Duration::from_millis(500)).await;
        if how == Replaced::Unheard {
            cables[..3].iter().for_each(Cable::drop_everything);
        }
        if how == Replaced::Stalled {
            first.pause();
        } else {
            let mut sentinel = Commands::connect(sentinels[0].address)
                .await
                .expect("it listens");
            let failover = sentinel.run(&format!("SENTINEL FAILOVER {MASTER}")).await;
            assert_eq!(failover.text(), "OK");
        }
        promoted(&second).await;
        if how == Replaced::Stalled {
            sleep(Duration::from_millis(300)).await;
            first.go_on();
        }
        // The old master is a copy by then.
        copied(&second).await;
        cables.iter().for_each(Cable::mend);
        for gateway in &gateways {
            gateway.ready().await;
        }
        sleep(Duration::from_secs(1)).await;
        stop.send_replace(true);
    };
    let (posted, called, ()) = tokio::join!(publish, call, fault);
    recording(&gateways, 1).await;
    second.append("called", "end").await;
    second.append("posted", "last").await;
    let mut ids = BTreeMap::new();
    for (gateway, viewer) in viewers.iter_mut().enumerate() {
        let events = viewer.until("last").await;
        assert_rising(&events, viewer.open.id.parse().expect("an id"));
        for (name, stored) in [('p', &posted), ('c', &called)] {
            let (mut next, mut told, mut lost) = (0, false, 0);
            for event in &events {
                if event.event == "gateway.gap" {
                    told = true;
                }
                let Some(number) = event.data.strip_prefix(name) else {
                    continue;
                };
                let number: usize = number.parse().expect("a number");
                assert!(number >= next, "{name}{number} comes after {name}{next}");
                let missing = (next..number).filter(|number| stored.contains(number));
                lost += if told { 0 } else { missing.count() };
                (next, told) = (number + 1, false);
                let before = ids.insert(event.id.clone(), event.data.clone());
                assert!(
                    before.is_none_or(|before| before == event.data),
                    "{event:?}"
                );
            }
            // What waits in the sockets of a stalled master is carried out before it can be told anything: one call.
            let excused = usize::from(how == Replaced::Stalled && name == 'c');
            assert!(lost <= excused, "{lost} of {name} are missing at {gateway}");
        }
    }
}

/// Breaks when it is not said that sentinels cannot be reached, do not let anybody in, or do not know the name.
#[tokio::test]
async fn sentinels_that_do_not_know_are_named() {
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
        (MASTER, address.to_string(), "NOAUTH"),
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

/// Makes the copy a master, while the old one goes on taking writes, and has a replica vouch for it.
async fn part(first: &Redis, second: &Redis) -> Gateway {
    copied(first).await;
    second.connect().await.run("REPLICAOF NO ONE").await;
    Gateway::start(second, "").await
}

/// Through a replica that has been led to the new master, and still listens to the old one.
async fn assert_nothing_is_hidden(gateway: &Gateway, viewer: &mut Viewer, [old, new]: [&Redis; 2]) {
    let bearer = "Authorization: Bearer t\r\n";
    let posted = gateway.post("/events?channel=news", bearer, "posted").await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    // Newer than what is posted; and the new master's clock is past it. By hand, for a retired master appends nothing.
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

/// Breaks when a replica that has vouched for a new master shows events of the old one: clients that have seen them are
/// past what the new one took meanwhile, and are told nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_master_that_takes_writes_hides_nothing_of_the_new_one() {
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

    // So that it does not make a copy of what is promoted without it.
    let mut sentinel = Commands::connect(sentinel.address).await.unwrap();
    sentinel.run(&format!("SENTINEL REMOVE {MASTER}")).await;
    let _other = part(&first, &second).await;
    let port = second.address().port();
    let monitor = format!("SENTINEL MONITOR {MASTER} 127.0.0.1 {port} 1");
    sentinel.run(&monitor).await;
    eventually("it moves", PATIENCE, async || {
        let log = gateway.process().log();
        match log.contains("another redis is the master") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    assert_nothing_is_hidden(&gateway, &mut viewer, [&first, &second]).await;
}

/// Breaks when the same goes wrong where the address of the old master is given to the new one, and connections to the
/// old one live on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_master_behind_the_same_address_hides_nothing_of_the_new_one() {
    let _machine = among_others().await;
    let (first, second) = master_and_copy().await;
    let cable = Cable::to(first.address()).await;
    let options = format!("--redis-url {} --publish-token t", cable.url());
    let gateway = Gateway::start(&first, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    first.append_many("news", 3).await;
    viewer.until("n2").await;
    let _other = part(&first, &second).await;
    cable.lead_to(second.address());
    // All but those that listen.
    let mut commands = first.connect().await;
    commands.run("CLIENT KILL TYPE normal").await;
    assert_nothing_is_hidden(&gateway, &mut viewer, [&first, &second]).await;
}
