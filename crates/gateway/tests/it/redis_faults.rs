//! Redis stops, loses data, or is replaced by another node: connections stay, ids never go back, and lost events cause
//! a gap.

use std::time::Duration;

use testkit::{Goal, Message, lab::SLOW_CLOCK};
use tokio::time::{Instant, interval};

use crate::support::{
    FaultyLink, Fleet, Gateway, KEEP_ALL, Load, PATIENCE, Plan, Redis, Replicas, Reply, Viewer,
    among_others, assert_exact, assert_rising, assert_told, data, eventually, gaps, heavy,
    messages, next_number, recording, texts,
};

/// Breaks when a lost connection to Redis is passed on to clients, or when events appended while a replica was away are
/// skipped. Breaks also when a replica takes up only a part of its old subscriptions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_cuts_no_client_and_loses_nothing() {
    let _machine = heavy().await;
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let a = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let b = Gateway::start_with(&redis, "", KEEP_ALL).await;
    recording([&a, &b], 1).await;
    let channels: Vec<_> = ["x", "y", "z", "raw"].map(str::to_owned).to_vec();
    let plans = (0..100).map(|client| Plan::new(&channels, client % 2));
    let fleet = Fleet::start(plans, &Replicas::of([&a, &b]), 1, &["f", "before", "after"]);
    fleet.open().await;
    let raw = ["raw".to_owned()];
    // A caller of the function knows that its event is stored. A raw PUBLISH that Redis receives while it stops is
    // lost.
    let appends = Load::append(&redis, "f", &channels[..3]);
    let before = Load::publish(&redis, "before", &raw, 100, 100).await;
    fleet.progress(100).await;
    let mut goal = before.stop().await;
    fleet.reach(&goal, PATIENCE).await;

    redis.stop().await;
    redis.restart().await;
    fleet.progress(100).await;
    redis.kill();
    for replica in [&a, &b] {
        replica.readiness(503).await;
    }
    redis.restart().await;
    fleet.progress(100).await;
    for replica in [&a, &b] {
        replica.ready().await;
    }
    recording([&a, &b], 1).await;
    let after = Load::publish(&redis, "after", &raw, 100, 100).await;
    fleet.progress(100).await;
    goal.extend(after.stop().await);
    goal.extend(appends.stop().await);

    let ledger = fleet.ledger().clone();
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 0),
        "a client was cut"
    );
    // Clients saw exactly the stored events, under the same ids.
    for ((channel, publisher), last) in &goal {
        let log = redis.log(channel, 1).await;
        let prefix = format!("{publisher} ");
        let stored = log
            .iter()
            .filter(|(_, payload)| payload.starts_with(prefix.as_bytes()));
        let stored: Vec<_> = stored.map(|(id, _)| Some(*id)).collect();
        let seen: Vec<_> = (0..=*last)
            .map(|seq| ledger.id_of(channel, publisher, seq))
            .collect();
        assert_eq!(stored, seen, "{publisher} on {channel}");
    }
}

/// Breaks when heartbeats or connections depend on Redis, or when a call to Redis has no time limit.
#[tokio::test]
async fn a_redis_that_hangs_is_noticed_and_survived() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s").await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    redis.append("news", "before").await;
    assert_eq!(viewer.event().await.data, "before");
    redis.pause();
    gateway.readiness(503).await;
    let events = viewer.heartbeats(3).await;
    assert!(
        messages(&events).is_empty() && gaps(&events).is_empty(),
        "{events:?}"
    );
    redis.go_on();
    gateway.ready().await;
    redis.append("news", "after").await;
    assert_eq!(data(&viewer.until("after").await), ["after"]);
}

/// Breaks when ids start over, when the loss is not noticed because Redis has nothing left that shows it, or when raw
/// messages are forgotten with the lease.
#[tokio::test]
async fn flushall_causes_a_gap_and_ids_continue() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    let mut live = Viewer::open(&a, "channel=news").await;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(redis.append("news", &format!("n{number}")).await);
    }
    live.until("n9").await;
    let mut commands = redis.connect().await;
    commands.run("FLUSHALL").await;
    commands.publish("news", "raw, at once").await;
    eventually("a raw message is recorded again", PATIENCE, async || {
        let log = redis.log("news", 1).await;
        let texts: Vec<_> = log.iter().map(|(_, payload)| &payload[..]).collect();
        if texts == [b"raw, at once"] {
            Ok(())
        } else {
            Err(format!("{texts:?}"))
        }
    })
    .await;
    let after = redis.append("news", "end").await;
    assert!(after > ids[9], "{after} after {}", ids[9]);

    let events = live.until("end").await;
    assert_eq!(texts(&events), ["raw, at once", "end"]);
    assert_rising(&events, ids[9]);
    let fresh = Gateway::start(&redis, "").await;
    for replica in [&a, &b, &fresh] {
        for missed_from in [3, 9] {
            // A client that has seen everything cannot know that. More events may have been published and forgotten.
            let id = ids[missed_from];
            let mut viewer = Viewer::resume(replica, "channel=news", &id.to_string()).await;
            let events = viewer.until("end").await;
            assert_told(&events, "news");
            assert_rising(&events, id);
            let texts = texts(&events);
            assert!(texts.ends_with(&["raw, at once", "end"]), "{texts:?}");
            // There is one gap, because the client has moved past it.
            let mut viewer = viewer.reconnect(replica).await;
            redis.append("news", "end").await;
            assert_eq!(gaps(&viewer.until("end").await), []);
        }
    }
}

/// Breaks when one channel of several gets no gap, or two, or when a live client gets the gap repeatedly.
#[tokio::test]
async fn flushall_causes_one_gap_for_each_channel() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let a = Gateway::start(&redis, &options).await;
        let b = Gateway::start(&redis, &options).await;
        let names = ["x", "y", "z"];
        let query = format!("channel={}", names.join("&channel="));
        let mut live = Viewer::open(&a, &query).await;
        for name in names {
            redis.append(name, "seen").await;
            live.until("seen").await;
        }
        let id = live.client.last_event_id().to_owned();
        for name in names {
            redis.append(name, "missed").await;
        }
        redis.connect().await.run("FLUSHALL").await;
        for name in names {
            redis.append(name, &format!("new on {name}")).await;
        }
        let all_told = |events: &[testkit::Event]| {
            let gaps = gaps(events).into_iter();
            let mut told: Vec<_> = gaps.map(|gap| gap.channel).collect();
            told.sort_unstable();
            told
        };
        for replica in [&a, &b] {
            let mut viewer = Viewer::resume(replica, &query, &id).await;
            let end = format!("end at {}", replica.public);
            for name in names {
                redis.append(name, &end).await;
            }
            let mut events = Vec::new();
            for _ in names {
                events.extend(viewer.until(&end).await);
            }
            assert_eq!(
                all_told(&events),
                names,
                "{partitions}: {:?}",
                data(&events)
            );
            for name in names {
                let new = format!("new on {name}");
                assert_eq!(data(&events).iter().filter(|text| **text == new).count(), 1);
            }
            // After the gap, a reconnect gets no second one.
            let mut viewer = viewer.reconnect(replica).await;
            redis.append("x", "again").await;
            assert_eq!(data(&viewer.until("again").await), ["again"]);
        }
        let events = live.until("again").await;
        let told = all_told(&events);
        assert!(
            told.windows(2).all(|two| two[0] != two[1]),
            "a gap twice: {:?}",
            data(&events)
        );
    }
}

/// Breaks when a replica that reconnects requests more at once than Redis holds for one subscriber (32 MB by default).
/// Redis would cut it off, and it would request the same again, without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_channels_with_history_are_taken_up_again() {
    const CHANNELS: usize = 600;
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let channels: Vec<_> = (0..CHANNELS).map(|number| format!("ch{number}")).collect();
    let plans = channels
        .iter()
        .map(|channel| Plan::new(std::slice::from_ref(channel), 0));
    let fleet = Fleet::start(plans, &Replicas::of([&gateway]), 1, &["p"]);
    fleet.open().await;
    let mut goal = Goal::new();
    let mut append_to_all = async |bytes: usize| {
        let mut commands = redis.connect().await;
        for channel in &channels {
            let seq = next_number(&mut goal, "p", channel);
            let payload = Message::now("p", channel, seq).padded(bytes);
            let (channel, payload) = (channel.as_bytes(), payload.as_bytes());
            let call = [b"FCALL", &b"sse_publish"[..], b"0", channel, payload];
            let reply = commands.call(&call).await.unwrap();
            assert!(!matches!(reply, Reply::Error(_)), "{reply:?}");
        }
        goal.clone()
    };
    redis.append("other", "handshake").await;
    // 160 KB on each channel: 96 MB in all.
    for _ in 0..15 {
        append_to_all(10_000).await;
    }
    fleet.reach(&append_to_all(10_000).await, PATIENCE).await;
    let mut commands = redis.connect().await;
    for _ in 0..2 {
        commands.run("CLIENT KILL TYPE pubsub").await;
        let goal = append_to_all(1000).await;
        fleet.reach(&goal, PATIENCE).await;
    }
    let goal = append_to_all(1000).await;
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 0),
        "a client was cut"
    );
}

/// Breaks when a replica subscribes to all its channels before it reads the confirmations. Redis would cut it off for
/// the unread confirmations, and it would subscribe to all again, without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_channels_are_taken_up_again() {
    const VIEWERS: usize = 800;
    const CHANNELS: usize = 50;
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut commands = redis.connect().await;
    // Far less than all confirmations need, including the part that the kernel holds.
    let limit = b"pubsub 262144 0 0";
    let words = [b"CONFIG", &b"SET"[..], b"client-output-buffer-limit", limit];
    commands.call(&words).await.unwrap();
    let filler = "x".repeat(240);
    let name = |viewer: usize, channel: usize| format!("{viewer}.{channel}.{filler}");
    let mut viewers = Vec::new();
    for viewer in 0..VIEWERS {
        let names: Vec<_> = (0..CHANNELS)
            .map(|channel| format!("channel={}", name(viewer, channel)))
            .collect();
        viewers.push(Viewer::open(&gateway, &names.join("&")).await);
    }
    let subscribed = async |count: u64| {
        eventually("the channels are taken up", PATIENCE, async || {
            let clients = redis.clients().await.into_iter();
            let most = clients.map(|client| client.subscriptions).max();
            match most.unwrap_or_default() {
                enough if enough >= count => Ok(()),
                some => Err(format!("{some} of {count}")),
            }
        })
        .await;
    };
    let all = (VIEWERS * CHANNELS) as u64;
    subscribed(all).await;
    commands.run("CLIENT KILL TYPE pubsub").await;
    subscribed(all).await;
    gateway.ready().await;
    for (number, viewer) in viewers.iter_mut().enumerate().step_by(40) {
        redis
            .append(&name(number, number % CHANNELS), "after")
            .await;
        assert_eq!(data(&viewer.until("after").await), ["after"]);
    }
}

/// Breaks when a replica that Redis cut off, because it was too slow, continues as if nothing had been sent in that
/// time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_too_slow_for_redis_reads_the_missed_events() {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let a = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let b = Gateway::start_with(&redis, "", KEEP_ALL).await;
    recording([&a, &b], 1).await;
    let mut commands = redis.connect().await;
    // Enough for the traffic of two channels, and too little for a backlog.
    let limit = b"pubsub 2097152 2097152 1";
    let words = [b"CONFIG", &b"SET"[..], b"client-output-buffer-limit", limit];
    commands.call(&words).await.unwrap();
    let channels = ["x".to_owned(), "y".to_owned()];
    let plans = (0..50).map(|_| Plan::new(&channels, 0));
    let fleet = Fleet::start(plans, &Replicas::of([&a]), 1, &["p"]);
    fleet.open().await;
    let load = Load::publish(&redis, "p", &channels, 400, 8 * 1024).await;
    let subscribed = async |redis: &Redis| {
        let clients = redis.clients().await.into_iter();
        clients.filter(|client| client.subscriptions > 0).count()
    };
    for _ in 0..2 {
        redis.recorders(2).await;
        fleet.progress(100).await;
        let before = subscribed(&redis).await;
        a.pause();
        eventually(
            "Redis cuts the replica off",
            2 * PATIENCE,
            async || match subscribed(&redis).await {
                fewer if fewer < before => Ok(()),
                some => Err(format!("{some} connections are subscribed")),
            },
        )
        .await;
        a.go_on();
        a.ready().await;
    }
    fleet.progress(100).await;
    let goal = load.stop().await;
    let reports = fleet.finish(&goal, 2 * PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 0),
        "a client was cut"
    );
}

/// Breaks when the function, which knows no watermark, can write to a Redis that has lost events.
#[tokio::test]
async fn an_empty_redis_at_the_same_address_causes_a_gap() {
    let _machine = among_others().await;
    let mut redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut live = Viewer::open(&gateway, "channel=news").await;
    let seen = redis.append("news", "seen").await;
    live.until("seen").await;
    let missed = redis.append("news", "missed").await;
    live.until("missed").await;
    // Nothing is on disk, so it starts with neither events nor the function.
    redis.kill();
    redis.restart().await;
    let after = redis.append("news", "end").await;
    assert!(after > missed, "{after} after {missed}");
    let events = live.until("end").await;
    assert_eq!(texts(&events), ["end"]);
    assert_rising(&events, missed);
    let mut away = Viewer::resume(&gateway, "channel=news", &seen.to_string()).await;
    let events = away.until("end").await;
    assert_told(&events, "news");
    assert_rising(&events, seen);
}

/// Breaks when ids are taken from Redis alone, which has lost the newest ones, or when a replica that knows them does
/// not report them. Breaks also when the gap is not where the events are missing.
#[tokio::test]
async fn a_promoted_replica_that_missed_writes_causes_a_gap_at_the_right_place() {
    let _machine = among_others().await;
    let mut master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let mut copy = Redis::start().await;
    let a = Gateway::start(&master, "").await;
    let b = Gateway::start(&master, "").await;
    let mut live = Viewer::open(&a, "channel=news").await;
    let mut also_live = Viewer::open(&b, "channel=news").await;
    let mut ids = master.append_many("news", 20).await;

    let mut replication = copy.connect().await;
    let port = master.address().port();
    replication
        .run(&format!("REPLICAOF 127.0.0.1 {port}"))
        .await;
    eventually("the copy is complete", PATIENCE, async || {
        let link = copy.info("master_link_status").await;
        let link = link.unwrap_or_default();
        if link == "up" { Ok(()) } else { Err(link) }
    })
    .await;
    eventually("the copy is up to date", PATIENCE, async || {
        let log = copy.log("news", 1).await;
        if log.len() == 20 {
            Ok(())
        } else {
            Err(format!("{} entries", log.len()))
        }
    })
    .await;
    // Cut off. The next writes reach only the master.
    replication.run("REPLICAOF NO ONE").await;
    for number in 20..30 {
        ids.push(master.append("news", &format!("n{number}")).await);
    }
    live.until("n29").await;
    also_live.until("n29").await;
    master.kill();
    replication.run("SAVE").await;
    drop(replication);
    copy.take_the_place_of(&master).await;
    let redis = copy;

    let first = redis.append("news", "n30").await;
    assert!(first > ids[29], "{first} after {}", ids[29]);
    redis.append("news", "end").await;
    // Both replicas return with the ids that they saw. After that, no client gets a second gap.
    for replica in [&a, &b] {
        replica.ready().await;
    }
    let last = redis.append("news", "last").await;
    for viewer in [&mut live, &mut also_live] {
        let events = viewer.until("last").await;
        assert_eq!(texts(&events), ["n30", "end", "last"]);
        assert_rising(&events, ids[29]);
        assert!(gaps(&events).len() <= 1, "{:?}", data(&events));
        let mut again = Viewer::resume(&a, "channel=news", &first.to_string()).await;
        assert_eq!(data(&again.until("last").await), ["end", "last"]);
        assert_eq!(again.client.last_event_id(), last.to_string());
    }

    let fresh = Gateway::start(&redis, "").await;
    let expected: Vec<_> = (10..20).map(|number| format!("n{number}")).collect();
    for replica in [&fresh, &a, &b] {
        // Seen up to 9. The events 10 to 19 exist, 20 to 29 do not, and the gap is there.
        let id = ids[9].to_string();
        let mut viewer = Viewer::resume(replica, "channel=news", &id).await;
        let events = viewer.until("last").await;
        assert_told(&events, "news");
        assert_rising(&events, ids[9]);
        let seen = data(&events);
        let at = seen.iter().position(|text| *text == "<gap>").unwrap();
        assert_eq!(seen[..10.min(at)], expected[..10.min(at)], "{seen:?}");
        assert!(at >= 10, "the gap is too early: {seen:?}");
        assert_eq!(seen[at + 1..], ["n30", "end", "last"], "{seen:?}");
        // Seen up to 24, which this Redis does not know.
        let id = ids[24].to_string();
        let mut viewer = Viewer::resume(replica, "channel=news", &id).await;
        let events = viewer.until("last").await;
        assert_told(&events, "news");
        assert_rising(&events, ids[24]);
        let texts = texts(&events);
        assert!(texts.ends_with(&["n30", "end", "last"]), "{texts:?}");
    }
}

/// A copy of `master` whose clock is 20 s slow. It receives `count` entries of channel news and no more.
async fn copy_with_a_slow_clock(master: &Redis, count: usize) -> Redis {
    let mut copy = Redis::stopped(&["--repl-diskless-sync-delay", "0"]).through(&SLOW_CLOCK);
    copy.restart().await;
    let mut replication = copy.connect().await;
    let port = master.address().port();
    replication
        .run(&format!("REPLICAOF 127.0.0.1 {port}"))
        .await;
    eventually("the copy is up to date", PATIENCE, async || {
        let log = copy.log("news", 1).await;
        if log.len() == count {
            Ok(())
        } else {
            Err(format!("{} entries", log.len()))
        }
    })
    .await;
    replication.run("REPLICAOF NO ONE").await;
    copy
}

/// Breaks when a new master issues lower ids than clients already have. The first replica that finds it has not seen
/// the newest event.
#[tokio::test]
async fn ids_do_not_go_back_when_the_first_handshake_lacks_the_newest_event() {
    let _machine = among_others().await;
    let mut master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let links = [
        FaultyLink::to(master.address()).await,
        FaultyLink::to(master.address()).await,
    ];
    let options = links
        .each_ref()
        .map(|link| format!("--redis-url {}", link.url()));
    let a = Gateway::start(&master, &options[0]).await;
    let b = Gateway::start(&master, &options[1]).await;
    let mut seen = Viewer::open(&a, "channel=news").await;
    Viewer::open(&b, "channel=news").await;
    master.append_many("news", 3).await;
    seen.until("n2").await;
    let copy = copy_with_a_slow_clock(&master, 3).await;
    // The newest event reaches only the first replica.
    links[1].hold();
    let newest = master.append("news", "newest").await;
    seen.until("newest").await;
    links[0].drop_everything();
    master.kill();
    links[1].redirect_to(copy.address());
    links[1].restore();
    b.ready().await;
    // Its client reconnects to the other replica.
    let mut viewer = seen.reconnect(&b).await;
    copy.append("news", "after").await;
    let events = viewer.until("after").await;
    assert_rising(&events, newest);
    assert_told(&events, "news");
    links[0].redirect_to(copy.address());
    links[0].restore();
    a.ready().await;
    copy.append("news", "last").await;
    let events = viewer.until("last").await;
    assert_eq!(data(&events), ["last"], "there is a second gap");
}

/// Breaks when events are lost without a gap because no replica was connected when the master took them, and the copy
/// that replaces it does not have them.
#[tokio::test]
async fn a_failover_causes_a_gap_though_no_replica_has_seen_the_lost_events() {
    let _machine = among_others().await;
    let mut master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let link = FaultyLink::to(master.address()).await;
    let gateway = Gateway::start(&master, &format!("--redis-url {}", link.url())).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let seen = master.append_many("news", 3).await;
    viewer.until("n2").await;
    let copy = copy_with_a_slow_clock(&master, 3).await;
    eventually("the copy has run for a while", PATIENCE, async || {
        let uptime = copy.info("uptime_in_seconds").await.unwrap_or_default();
        if uptime.parse::<u64>().is_ok_and(|uptime| uptime > 8) {
            Ok(())
        } else {
            Err(uptime)
        }
    })
    .await;
    link.drop_everything();
    master.append("news", "seen by nobody").await;
    master.kill();
    link.redirect_to(copy.address());
    link.restore();
    copy.append("news", "after").await;
    let events = viewer.until("after").await;
    assert_told(&events, "news");
    assert_rising(&events, seen[2]);
}

/// Breaks when leases and candidacies of dead replicas stay valid for too long on a new master with a slow clock. Their
/// times are those of the old master.
#[tokio::test]
async fn a_new_master_whose_clock_is_slow_has_a_recorder_at_once() {
    let _machine = among_others().await;
    let mut master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let link = FaultyLink::to(master.address()).await;
    let options = format!("--redis-url {}", link.url());
    let mut dead = Vec::new();
    for _ in 0..2 {
        dead.push(Gateway::start(&master, &options).await);
    }
    recording(&dead, 1).await;
    master.recorders(2).await;
    master.append_many("news", 3).await;
    let survivor = Gateway::start(&master, &options).await;
    let copy = copy_with_a_slow_clock(&master, 3).await;
    // In the copy, they hold the lease and both candidacies.
    for gateway in dead {
        gateway.kill();
    }
    master.kill();
    link.redirect_to(copy.address());
    let start = Instant::now();
    recording([&survivor], 1).await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

/// Breaks when a replica that started while Redis refused writes reports a gap for events that it has seen since then.
#[tokio::test]
async fn a_replica_started_while_writes_are_refused_causes_no_false_gap() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "--publish-token t").await;
    recording([&a], 1).await;
    let mut old = Viewer::open(&a, "channel=news").await;
    let mut commands = redis.connect().await;
    redis.append("news", "before").await;
    commands.run("CONFIG SET min-replicas-to-write 1").await;
    let b = Gateway::start(&redis, "--publish-token t").await;
    let mut new = Viewer::open(&b, "channel=news").await;
    commands.run("CONFIG SET min-replicas-to-write 0").await;
    redis.append("news", "after").await;
    new.until("after").await;
    // Its first write, which needs a handshake.
    let bearer = "Authorization: Bearer t\r\n";
    assert_eq!(
        b.post("/events?channel=news", bearer, "end")
            .await
            .head
            .status,
        201
    );
    assert_eq!(data(&new.until("end").await), ["end"]);
    assert_eq!(data(&old.until("end").await), ["before", "after", "end"]);
}

/// Breaks when a restarted Redis refuses a replica's handshake, and the replica later takes a new event of another
/// replica for an event that was lost in the restart.
#[tokio::test]
async fn a_refused_handshake_is_repeated_with_the_same_watermark() {
    let _machine = among_others().await;
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let a = Gateway::start(&redis, "--publish-token t").await;
    let b = Gateway::start(&redis, "--publish-token t").await;
    let gateways = [&a, &b];
    recording(gateways, 1).await;
    let mut viewers = Vec::new();
    redis.append("news", "before").await;
    for gateway in gateways {
        let mut viewer = Viewer::open(gateway, "channel=news&last_event_id=0-0").await;
        viewer.until("before").await;
        viewers.push(viewer);
    }
    redis.kill();
    for gateway in gateways {
        gateway.readiness(503).await;
    }
    redis.add_options(&["--min-replicas-to-write", "1"]);
    redis.restart().await;
    for gateway in gateways {
        gateway.ready().await;
    }
    let mut commands = redis.connect().await;
    commands.run("CONFIG SET min-replicas-to-write 0").await;
    let bearer = "Authorization: Bearer t\r\n";
    for (gateway, text) in [(&a, "after"), (&b, "end")] {
        let posted = gateway.post("/events?channel=news", bearer, text).await;
        assert_eq!(posted.head.status, 201);
        for viewer in &mut viewers {
            assert_eq!(data(&viewer.until(text).await), [text]);
        }
    }
}

/// Breaks when a new replica, whose handshake a restarted Redis refuses, later makes a handshake as if it had seen all
/// earlier events. It cannot know whether any of them are lost.
#[tokio::test]
async fn a_new_replica_whose_handshake_was_refused_causes_a_gap_for_earlier_events() {
    let _machine = among_others().await;
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let old = Gateway::start(&redis, "").await;
    let ids = redis.append_many("news", 3).await;
    old.kill();
    redis.kill();
    redis.add_options(&["--min-replicas-to-write", "1"]);
    redis.restart().await;
    let new = Gateway::start(&redis, "--publish-token t").await;
    // By a script, because functions are refused. From now on the replica knows ids.
    let _viewer = Viewer::open(&new, "channel=news").await;
    let mut commands = redis.connect().await;
    commands.run("CONFIG SET min-replicas-to-write 0").await;
    let bearer = "Authorization: Bearer t\r\n";
    let posted = new.post("/events?channel=news", bearer, "end").await;
    assert_eq!(posted.head.status, 201);
    let mut away = Viewer::resume(&new, "channel=news", &ids[2].to_string()).await;
    assert_told(&away.until("end").await, "news");
}

/// Breaks when a connection that only looks alive is trusted. No message would arrive, and no error either.
#[tokio::test]
async fn silent_connections_are_given_up() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let link = FaultyLink::to(redis.address()).await;
    let options = format!("--recorders 1 --redis-url {}", link.url());
    let gateway = Gateway::start(&redis, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut commands = redis.connect().await;
    commands.publish("news", "before").await;
    viewer.until("before").await;
    link.go_silent();
    // Redis also takes the silent connections for alive, so messages to them are lost.
    let heard = eventually("messages are recorded again", 2 * PATIENCE, async || {
        commands.publish("news", "after").await;
        match &redis.log("news", 1).await[..] {
            [_] => Err("they are not"),
            log => Ok(log.len()),
        }
        .map_err(str::to_owned)
    })
    .await;
    assert!(heard >= 2);
    // Some of the messages published in that time were on their way to the silent connections.
    assert_told(&viewer.until("after").await, "news");
}

/// Breaks when a replica that subscribes to a restarted Redis leaves the recording to recorders that were in sync
/// before and have not returned. The messages that it receives until then would be lost.
#[tokio::test]
async fn the_first_subscriber_of_a_restarted_redis_records() {
    let _machine = among_others().await;
    let mut redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let link = FaultyLink::to(redis.address()).await;
    let recorder = Gateway::start(&redis, &format!("--redis-url {}", link.url())).await;
    recording([&recorder], 1).await;
    let other = Gateway::start(&redis, "").await;
    redis.recorders(2).await;
    redis.append("news", "before").await;
    link.cut();
    redis.stop().await;
    redis.restart().await;
    let mut commands = redis.connect().await;
    eventually("a replica is subscribed", PATIENCE, async || match commands
        .publish("news", "heard")
        .await
    {
        0 => Err("no replica".to_owned()),
        _ => Ok(()),
    })
    .await;
    link.restore();
    recording([&recorder, &other], 1).await;
    eventually("the message is recorded", PATIENCE, async || {
        let log = redis.log("news", 1).await;
        match &log[..] {
            [_, (_, heard)] if heard == b"heard" => Ok(()),
            _ => Err(format!("{log:?}")),
        }
    })
    .await;
}

/// Breaks when a replica stays with a demoted master, which still answers, although its address already leads to
/// another.
#[tokio::test]
async fn a_replica_leaves_a_demoted_master_for_the_new_one_at_its_address() {
    let _machine = among_others().await;
    let (old, new) = (Redis::start().await, Redis::start().await);
    let link = FaultyLink::to(old.address()).await;
    let gateway = Gateway::start(&old, &format!("--redis-url {}", link.url())).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let seen = old.append("news", "before").await;
    viewer.until("before").await;
    link.redirect_to(new.address());
    old.connect().await.run("REPLICAOF 127.0.0.1 1").await;
    let mut commands = new.connect().await;
    let log = eventually(
        "messages are recorded at the new master",
        2 * PATIENCE,
        async || {
            commands.publish("news", "after").await;
            match new.log("news", 1).await {
                log if log.is_empty() => Err("they are not"),
                log => Ok(log),
            }
            .map_err(str::to_owned)
        },
    )
    .await;
    assert!(log[0].0 > seen, "ids went back: {log:?} after {seen}");
    let events = viewer.until("after").await;
    // The new master has none of the events that were seen here.
    assert_told(&events, "news");
    assert_rising(&events, seen);
}

/// Breaks when a Redis that refuses writes stops what needs no writes. Breaks also when unrecorded messages are not
/// counted, are relayed twice, or are recorded later as well.
#[tokio::test]
async fn messages_are_relayed_while_redis_refuses_writes() {
    let _machine = among_others().await;
    // Four reasons: out of memory, a master without replicas, a master that was made a replica, and a Redis that cannot
    // save. The last one refuses pings as well.
    tokio::join!(
        still_relays(&["CONFIG SET maxmemory 1"], "CONFIG SET maxmemory 0"),
        still_relays(
            &["CONFIG SET min-replicas-to-write 1"],
            "CONFIG SET min-replicas-to-write 0",
        ),
        still_relays(&["REPLICAOF 127.0.0.1 1"], "REPLICAOF NO ONE"),
        still_relays(
            &["CONFIG SET dir /proc", "BGSAVE"],
            "CONFIG SET stop-writes-on-bgsave-error no",
        ),
    );
}

async fn still_relays(refuse: &[&str], allow: &str) {
    let redis = Redis::start_with(&["--save", "3600 1", "--enable-protected-configs", "yes"]).await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    let mut viewers = [
        Viewer::open(&a, "channel=news").await,
        Viewer::open(&b, "channel=news").await,
    ];
    let mut commands = redis.connect().await;
    commands.publish("news", "before").await;
    for viewer in &mut viewers {
        assert_eq!(viewer.event().await.data, "before");
    }
    for command in refuse {
        commands.run(command).await;
    }
    let refuse = refuse[0];
    eventually("writes are refused", PATIENCE, async || {
        match commands.call(&[b"SET", b"probe", b"1"]).await {
            Ok(Reply::Error(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // Longer than the lease, which cannot be renewed. A probe may be unanswered as well.
    let mut pace = interval(Duration::from_millis(100));
    for number in 0..80 {
        pace.tick().await;
        commands.publish("news", format!("refused {number}")).await;
    }
    for viewer in &mut viewers {
        let before = viewer.client.last_event_id().to_owned();
        for number in 0..80 {
            let event = viewer.event().await;
            assert_eq!(event.data, format!("refused {number}"), "{refuse}");
            assert_eq!(event.id, before, "{refuse}: it has no id of its own");
        }
    }
    // A new client connects and reads the history.
    let mut history = Viewer::open(&a, "channel=news&since=start").await;
    assert_eq!(history.event().await.data, "before", "{refuse}");
    commands.run(allow).await;
    // One of the next messages is recorded, but maybe not the first. The recorder finds out by trying.
    let recorded = eventually("messages are recorded again", PATIENCE, async || {
        commands.publish("news", "after").await;
        let log = redis.log("news", 1).await;
        match &log[..] {
            [_, rest @ ..] if !rest.is_empty() => Ok(rest[0].1.clone()),
            _ => Err(format!("{} entries", log.len())),
        }
    })
    .await;
    assert_eq!(recorded, b"after", "{refuse}");
    let mut unrecorded = 0.0;
    for replica in [&a, &b] {
        unrecorded += replica.metrics().await.sum("sse_gateway_unrecorded_total");
    }
    assert!(unrecorded >= 80.0, "{refuse}: {unrecorded}");
    for viewer in &mut viewers {
        let events = viewer.until("after").await;
        assert_eq!(gaps(&events), [], "{refuse}");
    }
}

/// Breaks when a recorder whose lease Redis has evicted assumes that no other recorder has had it since. Both recorders
/// would then relay the same messages.
#[tokio::test]
async fn an_evicted_lease_belongs_to_no_recorder() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    redis.recorders(2).await;
    let mut viewers = [
        Viewer::open(&a, "channel=news").await,
        Viewer::open(&b, "channel=news").await,
    ];
    let mut commands = redis.connect().await;
    // Redis evicts all keys at the next command, and refuses writes.
    let evict = "CONFIG SET maxmemory-policy allkeys-lru maxmemory 1";
    commands.run(evict).await;
    let mut pace = interval(Duration::from_millis(50));
    for number in 0..80 {
        pace.tick().await;
        commands.publish("news", format!("n{number}")).await;
    }
    commands.run("CONFIG SET maxmemory 0").await;
    commands.publish("news", "end").await;
    let expected: Vec<_> = (0..80).map(|number| format!("n{number}")).collect();
    for viewer in &mut viewers {
        let events = viewer.until("end").await;
        let texts = texts(&events);
        assert_eq!(texts[..80], expected[..], "{texts:?}");
        assert_eq!(texts[80..], ["end"]);
    }
}
