//! A plain PUBLISH is recorded exactly once, through all faults of the recorders.

use std::{collections::BTreeMap, time::Duration};

use testkit::{Goal, Message};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep},
};

use crate::support::{
    Commands, FaultyLink, Fleet, Gateway, KEEP_ALL, Load, PATIENCE, Plan, Redis, Replicas, Reply,
    Viewer, among_others, assert_exact, becomes, data, eventually, gaps, heavy, in_time, messages,
    next_number, recording, shares,
};

const PUBLISHERS: usize = 4;
const EACH: u64 = 5000;

/// Breaks when two replicas record the same message, or when identical payloads are taken for repetitions. Breaks when
/// messages that the dead recorder had received but not recorded are forgotten. Breaks when the new recorder appends
/// again what the old one had appended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_publishes_leave_twenty_thousand_entries_though_recorders_are_killed() {
    kill_recorders(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_publishes_leave_twenty_thousand_entries_in_eight_partitions() {
    kill_recorders(8).await;
}

async fn kill_recorders(partitions: u32) {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let options = format!("--partitions {partitions}");
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(Gateway::start_with(&redis, &options, KEEP_ALL).await);
    }
    recording(&gateways, partitions).await;
    redis.recorders(2).await;
    let replicas = Replicas::of(&gateways);
    let mut channels: Vec<_> = (0..PUBLISHERS)
        .map(|number| format!("own{number}"))
        .collect();
    channels.push("all".to_owned());
    let names: Vec<_> = (0..PUBLISHERS).map(|number| format!("p{number}")).collect();
    let fleet = Fleet::start(
        (0..30).map(|client| Plan::new(&channels, client % 3)),
        &replicas,
        partitions,
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    fleet.open().await;

    let (progress, sent) = watch::channel(0);
    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        let (redis, progress) = (redis.connect().await, progress.clone());
        publishers.spawn(publish(redis, number, progress));
    }
    for kill in 0..3 {
        let held = recording(&gateways, partitions).await;
        redis.recorders(2).await;
        let most = held
            .iter()
            .copied()
            .enumerate()
            .max_by_key(|(_, held)| *held);
        let victim = gateways.remove(most.expect("three replicas").0);
        let so_far = *sent.borrow();
        assert!(
            so_far < 19_000,
            "kill {kill} was too late: {so_far} were sent"
        );
        victim.kill();
        replicas.set(&gateways);
        gateways.push(Gateway::start_with(&redis, &options, KEEP_ALL).await);
        replicas.set(&gateways);
    }
    let mut goal = Goal::new();
    while let Some(published) = publishers.join_next().await {
        goal.extend(published.expect("a publisher does not fail"));
    }

    // A recorder appends in order. When this message is recorded, all earlier ones are.
    let mut commands = redis.connect().await;
    for channel in &channels {
        assert!(commands.publish(channel, "last").await > 0);
    }
    let mut logs = BTreeMap::new();
    for channel in &channels {
        let log = eventually("the last message is recorded", PATIENCE, async || {
            let log = redis.log(channel, partitions).await;
            match log.last() {
                Some((_, payload)) if payload == b"last" => Ok(log),
                _ => Err(format!("{} entries of {channel}", log.len())),
            }
        })
        .await;
        let payloads = log
            .into_iter()
            .map(|(_, payload)| String::from_utf8(payload).expect("text"));
        logs.insert(channel.clone(), payloads.collect::<Vec<_>>());
    }
    let entries: usize = logs.values().map(Vec::len).sum();
    assert_eq!(entries - channels.len(), PUBLISHERS * EACH as usize);
    let ticks = logs["all"]
        .iter()
        .filter(|payload| *payload == "tick")
        .count();
    assert_eq!(
        ticks,
        PUBLISHERS * EACH.div_ceil(3) as usize,
        "identical payloads"
    );
    for ((channel, publisher), last) in &goal {
        let numbers = logs[channel].iter().filter_map(|payload| {
            let message = Message::parse(payload)?;
            (message.publisher == publisher).then_some(message.seq)
        });
        assert!(
            numbers.eq(0..=*last),
            "{publisher}'s numbers on {channel} are not 0..={last}"
        );
    }
    let mut unrecorded = 0.0;
    for gateway in &gateways {
        unrecorded += gateway.metrics().await.sum("sse_gateway_unrecorded_total");
    }
    assert_eq!(unrecorded, 0.0);

    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    for report in &reports {
        assert_eq!(report.checker.came("tick"), ticks as u64);
    }
}

/// Publishes in three equal parts: identical payloads, numbers on a channel of its own, and numbers on a channel that
/// all publishers share.
async fn publish(mut redis: Commands, number: usize, progress: watch::Sender<u64>) -> Goal {
    let name = format!("p{number}");
    let own = format!("own{number}");
    let mut pace = interval(Duration::from_millis(50));
    let mut sent = Goal::new();
    for batch in 0..EACH.div_ceil(BATCH) {
        pace.tick().await;
        let batch = batch * BATCH..EACH.min((batch + 1) * BATCH);
        let count = batch.end - batch.start;
        let mut messages = Vec::new();
        for turn in batch {
            let channel = if turn % 3 == 1 { &own } else { "all" };
            let payload = if turn % 3 == 0 {
                "tick".to_owned()
            } else {
                let seq = next_number(&mut sent, &name, channel);
                Message::now(&name, channel, seq).to_string()
            };
            messages.push((channel.to_owned(), payload));
        }
        redis.publish_all(&messages).await;
        progress.send_modify(|sent| *sent += count);
    }
    sent
}

/// Messages per pipeline. Each publisher sends 160 a second, so 20,000 take half a minute.
const BATCH: u64 = 8;

/// Breaks when the other recorder does not hold the messages that the dead one had received but not recorded, or does
/// not know how far the dead one had recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_a_killed_recorder_is_recorded_by_the_other() {
    backlog(Fault::Kill).await;
}

/// Breaks when the recorder that took over records the backlog, and the stopped one records it again when it continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_stopped_with_a_backlog_does_not_record_it_again() {
    backlog(Fault::StopFor(Duration::from_millis(3500))).await;
}

/// Breaks when a recorder that was stopped for almost as long as its lease trusts its own clock instead of the
/// server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_stopped_for_about_its_lease_does_not_record_twice() {
    backlog(Fault::StopFor(Duration::from_millis(1950))).await;
}

/// The fault that a recorder suffers.
#[derive(Clone, Copy)]
enum Fault {
    Kill,
    StopFor(Duration),
}

/// Publishes twenty thousand messages as fast as possible while the recorder suffers `fault`. Does so three times.
async fn backlog(fault: Fault) {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        gateways.push(Gateway::start_with(&redis, "", KEEP_ALL).await);
    }
    let channels: Vec<_> = (0..4).map(|number| format!("ch{number}")).collect();
    let mut goal = Goal::new();
    for _ in 0..3 {
        redis.recorders(2).await;
        let held = recording(&gateways, 1).await;
        let recorder = held.iter().position(|held| *held == 1);
        let recorder = gateways.remove(recorder.expect("one of the two"));
        let mut messages = Vec::new();
        for turn in 0..20_000 {
            let channel = &channels[turn % channels.len()];
            let seq = next_number(&mut goal, "p", channel);
            messages.push((channel.clone(), format!("p {channel} {seq} 0")));
        }
        let mut commands = redis.connect().await;
        let before = redis.commands_processed().await;
        let publishing = tokio::spawn(async move { commands.publish_all(&messages).await });
        eventually(
            "a third of the messages is published",
            PATIENCE,
            async || match redis.commands_processed().await - before {
                7000.. => Ok(()),
                few => Err(format!("{few} commands")),
            },
        )
        .await;
        match fault {
            Fault::Kill => {
                recorder.kill();
                gateways.push(Gateway::start_with(&redis, "", KEEP_ALL).await);
            }
            Fault::StopFor(time) => {
                recorder.pause();
                sleep(time).await;
                recorder.go_on();
                gateways.push(recorder);
            }
        }
        publishing.await.expect("all are published");
        assert_recorded_once(&redis, &goal).await;
    }
}

/// Breaks when a connection that was only not read is taken for dead and closed with the messages in it. No other
/// recorder has them.
#[tokio::test]
async fn a_lone_recorder_that_was_stopped_records_the_messages_it_had_received() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut commands = redis.connect().await;
    let mut published = Vec::new();
    for round in 0..3 {
        gateway.pause();
        for number in 0..50 {
            let text = format!("n{round}.{number}");
            assert!(commands.publish("news", &text).await > 0);
            published.push(text);
        }
        // Longer than any time limit of the recorder.
        sleep(Duration::from_secs(7)).await;
        gateway.go_on();
        assert_all_recorded(&redis, &published).await;
    }
}

/// Breaks when the metric does not count a second recorder that is in sync, or still counts it when it is out of sync.
#[tokio::test]
async fn the_number_of_recorders_in_sync_is_a_metric() {
    let _machine = among_others().await;
    let mut redis = Redis::start().await;
    let a = Gateway::start(&redis, "--partitions 2").await;
    let b = Gateway::start(&redis, "--partitions 2").await;
    let in_sync = async |count: f64| {
        eventually(&format!("{count} are in sync"), PATIENCE, async || {
            let mut found = [0.0; 2];
            for (found, gateway) in found.iter_mut().zip([&a, &b]) {
                *found = gateway.metrics().await.sum("sse_gateway_recorder_in_sync");
            }
            match found == [count; 2] {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
    };
    in_sync(2.0).await;
    redis.stop().await;
    in_sync(0.0).await;
}

/// Breaks when a Redis that stalls is taken for a dead connection. The messages published to it arrive as soon as it
/// continues, but only on connections that are still open.
#[tokio::test]
async fn messages_that_a_stalled_redis_had_received_are_recorded() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    redis.recorders(2).await;
    let mut commands = redis.connect().await;
    let mut published = Vec::new();
    for round in 0..2 {
        redis.pause();
        let messages: Vec<_> = (0..50)
            .map(|number| ("news".to_owned(), format!("n{round}.{number}")))
            .collect();
        published.extend(messages.iter().map(|(_, text)| text.clone()));
        let publish = commands.publish_all(&messages);
        let resume = async {
            sleep(Duration::from_secs(7)).await;
            redis.go_on();
        };
        tokio::join!(publish, resume);
        assert_all_recorded(&redis, &published).await;
    }
}

/// Asserts that the log of `news` holds these messages, in order, and nothing else.
async fn assert_all_recorded(redis: &Redis, published: &[String]) {
    let log = eventually("all are recorded", PATIENCE, async || {
        let log = redis.log("news", 1).await;
        if log.len() >= published.len() {
            Ok(log)
        } else {
            Err(format!("{} of {}", log.len(), published.len()))
        }
    })
    .await;
    let log: Vec<_> = log
        .into_iter()
        .map(|(_, payload)| String::from_utf8(payload).expect("text"))
        .collect();
    assert_eq!(log, published);
}

/// Breaks when the append does not check that its lease is still the current one. The recorder continues with commands
/// to send and messages to record, and another recorder has recorded these by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_recorder_writes_nothing() {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        gateways.push(Gateway::start_with(&redis, "", KEEP_ALL).await);
    }
    recording(&gateways, 1).await;
    let channels = ["x".to_owned(), "y".to_owned()];
    let load = Load::publish(&redis, "p", &channels, 400, 100).await;
    for _ in 0..3 {
        redis.recorders(2).await;
        let held = recording(&gateways, 1).await;
        let stale = held.iter().position(|held| *held == 1).unwrap();
        gateways[stale].pause();
        let others: Vec<_> = gateways
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != stale)
            .collect();
        let others = others.into_iter().map(|(_, gateway)| gateway);
        // Its lease expires, and another recorder takes over.
        recording(others.collect::<Vec<_>>(), 1).await;
        let key = Redis::key("log", "x", 1);
        let length = format!("XLEN {key}");
        let mut commands = redis.connect().await;
        let before = commands.run(&length).await.integer();
        eventually("the other recorder appends", PATIENCE, async || {
            match commands.run(&length).await.integer() - before {
                200.. => Ok(()),
                new => Err(format!("{new} entries")),
            }
        })
        .await;
        gateways[stale].go_on();
        recording(&gateways, 1).await;
    }
    let goal = load.stop().await;
    assert_recorded_once(&redis, &goal).await;
}

/// Breaks when an append whose answer is lost is repeated, or taken for done, without a check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_command_connections_neither_lose_nor_repeat_messages() {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        gateways.push(Gateway::start_with(&redis, "", KEEP_ALL).await);
    }
    recording(&gateways, 1).await;
    redis.recorders(2).await;
    let channels = ["x".to_owned(), "y".to_owned()];
    let fleet = Fleet::start(
        (0..20).map(|client| Plan::new(&channels, client % 2)),
        &Replicas::of(&gateways),
        1,
        &["p"],
    );
    fleet.open().await;
    let load = Load::publish(&redis, "p", &channels, 1000, 100).await;
    let mut commands = redis.connect().await;
    let mut killed = 0;
    for _ in 0..30 {
        fleet.progress(50).await;
        for client in redis.clients().await {
            if client.name != "test" && client.subscriptions == 0 {
                let kill = format!("CLIENT KILL ID {}", client.id);
                killed += commands.run(&kill).await.integer();
            }
        }
    }
    assert!(killed >= 30, "only {killed} connections were cut");
    let goal = load.stop().await;
    assert_recorded_once(&redis, &goal).await;
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 0),
        "a client was cut"
    );
}

/// Breaks when a recorder that lost its subscription, and so missed messages, continues to record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_that_lost_its_subscription_leaves_recording_to_the_other() {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        gateways.push(Gateway::start_with(&redis, "", KEEP_ALL).await);
    }
    recording(&gateways, 1).await;
    let channels = ["x".to_owned()];
    let load = Load::publish(&redis, "p", &channels, 500, 100).await;
    let mut commands = redis.connect().await;
    for _ in 0..3 {
        redis.recorders(2).await;
        recording(&gateways, 1).await;
        // The oldest connection. It is alternately that of the active and of the standby recorder.
        let subscribers = redis.clients().await.into_iter();
        let oldest = subscribers
            .filter(|client| client.patterns > 0)
            .min_by_key(|client| client.id);
        let id = oldest.expect("there are two").id;
        commands.run(&format!("CLIENT KILL ID {id}")).await;
    }
    redis.recorders(2).await;
    let goal = load.stop().await;
    assert_recorded_once(&redis, &goal).await;
}

/// Breaks when another replica can subscribe between a recorder's subscription and the call that numbers it, so that
/// their order is another one. Breaks also when a recorder without the right to MULTI does not record.
#[tokio::test]
async fn a_recorder_subscribes_and_is_numbered_in_one_step() {
    let _machine = among_others().await;
    for user in ["default", "plain"] {
        let redis = Redis::start().await;
        let mut commands = redis.connect().await;
        commands
            .run("ACL SETUSER plain on >x ~* &* +@all -multi")
            .await;
        let url = match user {
            "plain" => format!("--redis-url redis://plain:x@{}", redis.address()),
            _ => String::new(),
        };
        let gateway = Gateway::start(&redis, &format!("{url} --partitions 2")).await;
        recording([&gateway], 2).await;
        if user == "default" {
            let stats = commands.run("INFO commandstats").await.text();
            let exec = stats.lines().find(|line| line.starts_with("cmdstat_exec:"));
            let exec = exec.expect("it was carried out");
            let is_whole = exec.contains("calls=1,") && exec.contains("failed_calls=0");
            assert!(is_whole, "{exec}");
            // No barrier was refused and published again.
            let metrics = gateway.metrics().await;
            let name = "sse_gateway_redis_commands_total";
            assert_eq!(metrics.labelled(name, "ssegw_listen"), 2.0);
        }
        let mut viewer = Viewer::open(&gateway, "channel=news").await;
        commands.publish("news", "hello").await;
        assert_eq!(data(&viewer.until("hello").await), ["hello"]);
    }
}

/// Two replicas that have received a message are stalled. Then a third one acquires the lease, which has not received
/// the message.
async fn stall_two_and_start_a_third(redis: &Redis) -> ([Gateway; 2], Gateway) {
    let stalled = [
        Gateway::start(redis, "").await,
        Gateway::start(redis, "").await,
    ];
    recording(&stalled, 1).await;
    redis.recorders(2).await;
    let mut commands = redis.connect().await;
    commands.publish("news", "before").await;
    texts_in_history(redis, &["before"]).await;
    for gateway in &stalled {
        gateway.pause();
    }
    assert_eq!(commands.publish("news", "received by two").await, 2);
    let third = Gateway::start(redis, "").await;
    recording([&third], 1).await;
    (stalled, third)
}

/// Waits until the history of `news` holds these texts.
async fn texts_in_history(redis: &Redis, expected: &[&str]) {
    eventually("all is recorded", PATIENCE, async || {
        let log = redis.log("news", 1).await;
        let texts: Vec<_> = log
            .iter()
            .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
            .collect();
        match texts == expected {
            true => Ok(()),
            false => Err(format!("{texts:?}")),
        }
    })
    .await;
}

/// Breaks when a message that only stalled replicas have received is not recorded when they continue, or is recorded
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_only_stalled_recorders_received_are_recorded_when_they_continue() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let (stalled, _third) = stall_two_and_start_a_third(&redis).await;
    for gateway in &stalled {
        gateway.go_on();
    }
    texts_in_history(&redis, &["before", "received by two"]).await;
    redis.connect().await.publish("news", "last").await;
    texts_in_history(&redis, &["before", "received by two", "last"]).await;
}

/// Breaks when a message that only stalled replicas have received is recorded after later ones, or is lost and no
/// client receives a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_only_stalled_recorders_received_cause_a_gap_after_later_ones() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let (stalled, third) = stall_two_and_start_a_third(&redis).await;
    let mut viewer = Viewer::open(&third, "channel=news&since=start").await;
    let mut commands = redis.connect().await;
    commands.publish("news", "later").await;
    texts_in_history(&redis, &["before", "later"]).await;
    for gateway in &stalled {
        gateway.go_on();
    }
    for mut gateway in stalled {
        eventually(
            "the stalled recorder is too late",
            PATIENCE,
            async || match gateway.process().log() {
                log if log.contains("another replica began to record") => Ok(()),
                log => Err(log),
            },
        )
        .await;
    }
    commands.publish("news", "last").await;
    let events = viewer.until("last").await;
    assert_eq!(data(&events)[..3], ["before", "<gap>", "later"]);
    texts_in_history(&redis, &["before", "later", "last"]).await;
}

/// Breaks when a rolling restart is faster than a recorder is replaced. Messages that no remaining replica has received
/// would then never be recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_recorder_records_until_another_is_in_sync() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        gateways.push(Gateway::start_with(&redis, "", KEEP_ALL).await);
    }
    redis.recorders(2).await;
    let third = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let held = recording(&gateways, 1).await;
    let load = Load::publish(&redis, "p", &["x".to_owned()], 400, 100).await;
    // It cannot become the new recorder while it is paused.
    third.pause();
    let recorder = held.iter().position(|held| *held == 1).unwrap();
    let mut first = gateways.remove(recorder);
    let mut last = gateways.remove(0);
    first.process().signal("TERM");
    in_time(
        "the recorder stops, because another is in sync",
        first.process().exit(),
    )
    .await;
    recording([&last], 1).await;
    last.process().signal("TERM");
    let mut commands = redis.connect().await;
    let length = format!("XLEN {}", Redis::key("log", "x", 1));
    let before = commands.run(&length).await.integer();
    eventually("the last recorder continues", PATIENCE, async || {
        match commands.run(&length).await.integer() - before {
            400.. => Ok(()),
            new => Err(format!("{new} entries")),
        }
    })
    .await;
    third.go_on();
    in_time(
        "the recorder stops, because another is in sync",
        last.process().exit(),
    )
    .await;
    recording([&third], 1).await;
    let goal = load.stop().await;
    assert_recorded_once(&redis, &goal).await;
}

/// Breaks when a replica that gave up a surplus candidacy cannot record when it becomes a candidate again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_gave_up_its_candidacy_can_become_a_candidate_again() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        gateways.push(Gateway::start(&redis, "").await);
    }
    redis.recorders(2).await;
    gateways.push(Gateway::start(&redis, "").await);
    let held = recording(&gateways, 1).await;
    // Its candidacy expires, and the third replica takes it.
    let other = &gateways[held[..2].iter().position(|held| *held == 0).unwrap()];
    other.pause();
    in_sync(&gateways[2]).await;
    other.go_on();
    two_recorders(&redis).await;
    let left = eventually("one has given up its candidacy", PATIENCE, async || {
        for (number, gateway) in gateways.iter().enumerate() {
            if gateway
                .metrics()
                .await
                .sum("sse_gateway_recorder_subscribed")
                == 0.0
            {
                return Ok(number);
            }
        }
        Err("all have one".to_owned())
    })
    .await;
    let left = gateways.remove(left);
    for gateway in gateways {
        gateway.kill();
    }
    in_sync(&left).await;
    recording([&left], 1).await;
}

/// Breaks when a recorder whose subscription delivers nothing reports that it is in sync. A replica that stops would
/// step down to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_with_a_silent_subscription_is_not_in_sync() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let recorder = Gateway::start(&redis, "").await;
    recording([&recorder], 1).await;
    let link = FaultyLink::to(redis.address()).await;
    let mut other = Gateway::start(&redis, &format!("--redis-url {}", link.url())).await;
    in_sync(&other).await;
    let until = async |count| {
        eventually("the recorders are in sync", PATIENCE, async || match redis
            .in_sync_recorders()
            .await
        {
            now if now == count => Ok(()),
            now => Err(format!("{now}, not {count}")),
        })
        .await;
    };
    until(2).await;
    link.drop_everything();
    until(1).await;
    // It can send commands to Redis again, over new connections. Its subscription stays silent.
    link.restore();
    becomes(&other, "sse_gateway_recorder_in_sync", "", 0.0).await;
    eventually(
        "the recorder notices that its connection is down",
        PATIENCE,
        async || {
            let count = redis.in_sync_recorders().await;
            let log = other.process().log();
            if log.contains("the recorder's connection is down") {
                return Ok(());
            }
            assert_eq!(count, 1, "{log}");
            Err(log)
        },
    )
    .await;
    in_sync(&other).await;
}

async fn in_sync(gateway: &Gateway) {
    becomes(gateway, "sse_gateway_recorder_in_sync", "", 1.0).await;
}

/// Breaks when the last replica stops while it has unrecorded messages, or waits for other replicas although there are
/// none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_replica_records_all_messages_before_it_stops() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    recording([&gateway], 1).await;
    let mut commands = redis.connect().await;
    let messages: Vec<_> = (0..20_000)
        .map(|number| ("news".to_owned(), number.to_string()))
        .collect();
    commands.publish_all(&messages).await;
    let mut published: Vec<_> = messages.into_iter().map(|(_, text)| text).collect();
    let lease = Redis::key("lease", "", 1);
    let lease = format!("EXISTS {}", lease.trim_end_matches(':'));
    assert_eq!(commands.run(&lease).await.integer(), 1);
    let start = Instant::now();
    gateway.process().signal("TERM");
    // The answer to PUBLISH shows whether a recorder has received the message.
    for number in published.len().. {
        let text = number.to_string();
        if commands.publish("news", &text).await == 0 {
            break;
        }
        published.push(text);
    }
    // A replica that waits for others stays subscribed for four seconds.
    assert!(start.elapsed() < Duration::from_secs(3));
    in_time("the replica stops", gateway.process().exit()).await;
    assert_all_recorded(&redis, &published).await;
    // It leaves no lease or mark for which the next recorder would have to wait.
    assert_eq!(commands.run(&lease).await.integer(), 0);
    assert_eq!(redis.in_sync_recorders().await, 0);
}

/// Breaks when every replica subscribes to raw messages, which costs Redis and the network without need. Breaks also
/// when only one does, because its messages are lost with it.
#[tokio::test]
async fn two_recorders_are_subscribed_with_any_number_of_replicas() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..4 {
        gateways.push(Gateway::start(&redis, "").await);
    }
    recording(&gateways, 1).await;
    two_recorders(&redis).await;
    let held = recording(&gateways, 1).await;
    let recorder = held.iter().position(|held| *held == 1).unwrap();
    gateways.remove(recorder).kill();
    recording(&gateways, 1).await;
    two_recorders(&redis).await;
}

async fn two_recorders(redis: &Redis) {
    // A surplus recorder leaves after up to twenty seconds.
    eventually("two recorders", 2 * PATIENCE, async || {
        let clients = redis.clients().await.into_iter();
        match clients.filter(|client| client.patterns > 0).count() {
            2 => Ok(()),
            other => Err(format!("{other} are subscribed")),
        }
    })
    .await;
}

/// Asserts that the logs hold each message of `goal` once, in order, and nothing else.
async fn assert_recorded_once(redis: &Redis, goal: &Goal) {
    for ((channel, publisher), last) in goal {
        let log = eventually("everything is recorded", PATIENCE, async || {
            let log = redis.log(channel, 1).await;
            let newest = log
                .last()
                .and_then(|(_, payload)| std::str::from_utf8(payload).ok());
            match newest.and_then(Message::parse) {
                Some(message) if message.seq >= *last => Ok(log),
                message => Err(format!("the newest of {channel} is {message:?}")),
            }
        })
        .await;
        let numbers: Vec<_> = log
            .iter()
            .map(|(_, payload)| {
                let text = std::str::from_utf8(payload).expect("text");
                let message = Message::parse(text).unwrap_or_else(|| panic!("{text:?}"));
                assert_eq!(message.publisher, publisher);
                message.seq
            })
            .collect();
        let wrong = numbers
            .iter()
            .zip(0..)
            .position(|(seq, expected)| *seq != expected);
        let around = wrong.map(|at| &numbers[at.saturating_sub(3)..numbers.len().min(at + 4)]);
        assert_eq!(
            around, None,
            "{channel}: the numbers around the first wrong one"
        );
        assert_eq!(numbers.len() as u64, last + 1, "{channel}");
    }
}

/// Breaks when a recorder whose subscription is cut forgets its pending messages, or when a later recorder records
/// without the pending messages of an earlier one. Breaks also when a message is lost on its way and no gap follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_without_a_gap_when_every_subscription_is_cut_at_once() {
    cut_all(Cuts::Pubsub).await;
}

/// The same where answers to appends are lost as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_without_a_gap_when_every_connection_to_redis_is_cut_at_once() {
    cut_all(Cuts::Network).await;
}

/// How subscriptions are cut.
#[derive(Clone, Copy, PartialEq)]
enum Cuts {
    Pubsub,
    Network,
}

/// Publishes a message every millisecond, and cuts all subscriptions five times. Each message that was answered with 1
/// or more must be recorded once or followed by a gap.
async fn cut_all(cuts: Cuts) {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let (mut gateways, mut links) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let link = FaultyLink::to(redis.address()).await;
        let options = format!("--redis-url {}", link.url());
        gateways.push(Gateway::start_with(&redis, &options, KEEP_ALL).await);
        links.push(link);
    }
    recording(&gateways, 1).await;
    redis.recorders(2).await;
    let mut viewer = Viewer::open(&gateways[0], "channel=cut").await;

    let (stop, stopped) = watch::channel(false);
    let mut commands = redis.connect().await;
    let publisher = tokio::spawn(async move {
        let mut pace = interval(Duration::from_millis(1));
        let mut answers = Vec::new();
        while !*stopped.borrow() {
            pace.tick().await;
            let payload = answers.len().to_string();
            answers.push(commands.publish("cut", &payload).await);
        }
        answers
    });
    let mut commands = redis.connect().await;
    let mut pace = interval(Duration::from_millis(1200));
    pace.tick().await;
    for _ in 0..5 {
        pace.tick().await;
        match cuts {
            Cuts::Pubsub => _ = commands.run("CLIENT KILL TYPE pubsub").await,
            Cuts::Network => {
                links.iter().for_each(FaultyLink::cut);
                sleep(Duration::from_millis(10)).await;
                links.iter().for_each(FaultyLink::restore);
            }
        }
    }
    redis.recorders(2).await;
    stop.send_replace(true);
    let answers = publisher.await.expect("it does not fail");
    commands.publish("cut", "last").await;

    let mut recorded = BTreeMap::new();
    let log = eventually("the last message is recorded", PATIENCE, async || {
        let log = redis.log("cut", 1).await;
        match log.last() {
            Some((_, payload)) if payload == b"last" => Ok(log),
            _ => Err(format!("{} entries", log.len())),
        }
    })
    .await;
    for (_, payload) in log {
        *recorded
            .entry(String::from_utf8(payload).expect("text"))
            .or_insert(0) += 1;
    }
    assert_eq!(recorded.values().max(), Some(&1), "recorded twice");
    // The messages right after a gap.
    let mut gaps = Vec::new();
    let mut gap = false;
    for event in viewer.until("last").await {
        match event.data.parse::<usize>() {
            _ if event.event == "gateway.gap" => gap = true,
            Ok(number) if std::mem::take(&mut gap) => gaps.push(number),
            _ => {}
        }
    }
    gaps.extend(gap.then_some(answers.len()));
    let lost: Vec<_> = (0..answers.len())
        .filter(|number| answers[*number] > 0 && !recorded.contains_key(&number.to_string()))
        .collect();
    let heard = answers.iter().filter(|answer| **answer > 0).count();
    for number in &lost {
        assert!(
            gaps.iter().any(|gap| gap > number),
            "{number} is lost, and no gap follows: {gaps:?}"
        );
    }
    assert!(lost.len() < heard / 10, "{} of {heard}", lost.len());
}

/// A MULTI that publishes more than Redis holds for a subscriber cuts all subscribers off, and none of its messages
/// arrives. Valkey 9 sends some before it cuts a subscriber off, and keeps a fast subscriber.
///
/// Breaks when clients receive no gap, when it is not counted, or when there is no warning about such a small limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_larger_than_the_output_buffer_causes_a_gap() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        gateways.push(Gateway::start(&redis, "").await);
    }
    recording(&gateways, 1).await;
    redis.recorders(2).await;
    let mut viewer = Viewer::open(&gateways[0], "channel=large").await;
    redis.connect().await.publish("large", "first").await;
    viewer.until("first").await;
    let megabyte = "x".repeat(1_000_000);
    let publish = vec![&b"PUBLISH"[..], b"sse:large", megabyte.as_bytes()];
    let mut calls = vec![vec![&b"MULTI"[..]]];
    calls.resize(35, publish);
    calls.push(vec![b"EXEC"]);
    let replies = redis.connect().await.call_all(&calls).await;
    let replies = replies.expect("Redis answers");
    let heard = replies.last().expect("of EXEC").array();
    assert_eq!(
        heard,
        vec![Reply::Integer(2); 34],
        "a replica did not receive it"
    );

    recording(&gateways, 1).await;
    redis.recorders(2).await;
    redis.connect().await.publish("large", "last").await;
    let events = viewer.until("last").await;
    let arrived = messages(&events).len() - 1;
    let all_arrived = arrived == 34;
    assert_eq!(gaps(&events).is_empty(), all_arrived, "{arrived} arrived");
    let mut interruptions = 0.0;
    for gateway in &mut gateways {
        let metrics = gateway.metrics().await;
        interruptions += metrics.sum("sse_gateway_recording_interruptions_total");
        let log = gateway.process().log();
        assert!(
            log.contains("client-output-buffer-limit \"pubsub 256mb"),
            "{log}"
        );
    }
    assert_eq!(interruptions, if all_arrived { 0.0 } else { 1.0 });
}

/// Breaks when the gateway warns of a limit that is large enough, or when the transaction is lost in spite of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_larger_output_buffer_holds_a_larger_transaction() {
    let _machine = shares(2).await;
    let limit = ["--client-output-buffer-limit", "pubsub 256mb 64mb 60"];
    let redis = Redis::start_with(&limit).await;
    let mut gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    recording([&gateway], 1).await;
    redis.recorders(1).await;
    let payload = "x".repeat(4096);
    let publish = vec![&b"PUBLISH"[..], b"sse:large", payload.as_bytes()];
    let mut calls = vec![vec![&b"MULTI"[..]]];
    calls.resize(9_001, publish);
    calls.push(vec![b"EXEC"]);
    let replies = redis.connect().await.call_all(&calls).await;
    replies.expect("Redis answers");
    becomes(&gateway, "sse_gateway_recorded_total", "", 9_000.0).await;
    let log = gateway.process().log();
    assert!(!log.contains("client-output-buffer-limit"), "{log}");
}

/// Breaks when clients of a deployment with one replica receive a gap after SIGTERM and a new start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_recorder_stops_without_an_interruption() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateway = Gateway::start(&redis, "--drain-window 0s").await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=calm").await;
    redis.connect().await.publish("calm", "before").await;
    viewer.until("before").await;
    gateway.process().signal("TERM");
    gateway.process().exit().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut viewer = viewer.reconnect(&gateway).await;
    redis.connect().await.publish("calm", "after").await;
    assert_eq!(data(&viewer.until("after").await), ["after"]);
    // A replica that is killed may have received unrecorded messages.
    gateway.kill();
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut viewer = viewer.reconnect(&gateway).await;
    redis.connect().await.publish("calm", "at last").await;
    assert_eq!(data(&viewer.until("at last").await), ["<gap>", "at last"]);
}
