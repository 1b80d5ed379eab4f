//! A client that reconnects, to any replica, receives exactly the events it missed.

use std::time::Duration;

use crate::support::{
    Fleet, Gateway, KEEP_ALL, Load, PATIENCE, Plan, Redis, Replicas, Viewer, among_others,
    assert_exact, data, eventually, heavy, recording,
};

const CLIENTS: usize = 1000;
const CHANNELS: usize = 10;

// Each of these breaks when an event that is published while a client is away is skipped, delivered
// twice, or numbered differently by two replicas. A skip can come from a cursor that is taken too
// late, or from a hole between history and live events. Repetition means that history and live
// events overlap.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_swap_replicas_with_one_channel_each() {
    swap_replicas(1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_swap_replicas_with_three_channels_each() {
    swap_replicas(1, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_swap_replicas_with_one_channel_each_in_eight_partitions() {
    swap_replicas(8, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_swap_replicas_with_three_channels_each_across_eight_partitions() {
    swap_replicas(8, 3).await;
}

/// Two replicas and a thousand clients, with continuous raw PUBLISH. All clients are cut and
/// reconnect to the other replica, twice. Then one replica dies for good.
async fn swap_replicas(partitions: u32, channels_each: usize) {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let options = format!("--partitions {partitions}");
    let a = Gateway::start_with(&redis, &options, KEEP_ALL).await;
    let b = Gateway::start_with(&redis, &format!("{options} --workers 2"), KEEP_ALL).await;
    recording([&a, &b], partitions).await;

    let channels: Vec<_> = (0..CHANNELS).map(|number| format!("ch{number}")).collect();
    let plans = (0..CLIENTS).map(|client| {
        // Neighbours except for the last channel, so that sets of channels overlap in many ways.
        let offsets = [0, 1, 5].into_iter().take(channels_each);
        let channels = offsets.map(|offset| channels[(client + offset) % CHANNELS].clone());
        Plan::new(&channels.collect::<Vec<_>>(), client % 2)
    });
    let replicas = Replicas::of([&a, &b]);
    let fleet = Fleet::start(plans, &replicas, partitions, &["p", "q"]);
    fleet.open().await;

    let p = Load::publish(&redis, "p", &channels, 60, 100).await;
    let q = Load::publish(&redis, "q", &channels, 40, 300).await;
    for _ in 0..2 {
        fleet.progress(15).await;
        fleet.cut(1, Duration::from_secs(1));
        fleet.open().await;
    }
    fleet.progress(15).await;
    replicas.set([&b]);
    a.kill();
    fleet.progress(15).await;
    fleet.open().await;

    let mut goal = p.stop().await;
    goal.extend(q.stop().await);
    let reports = fleet.finish(&goal, 2 * PATIENCE).await;
    assert_exact(&reports);
    let cuts: u64 = reports.iter().map(|report| report.cuts).sum();
    // Half of the clients were on the replica that died. The test itself caused all other cuts.
    assert_eq!(cuts, CLIENTS as u64 / 2);
}

/// Breaks when the client gets its position only with the first event. Breaks also when the
/// position is that of the client's read instead of its connection.
#[tokio::test]
async fn a_client_cut_before_its_first_event_resumes_from_the_open_event() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let a = Gateway::start(&redis, &options).await;
        let b = Gateway::start(&redis, &options).await;
        let query = "channel=x&channel=y&channel=z";
        let viewer = Viewer::open(&a, query).await;
        assert!(!viewer.open.id.is_empty());
        for channel in ["x", "y", "z"] {
            redis
                .append(channel, &format!("while away, on {channel}"))
                .await;
        }
        let mut viewer = viewer.reconnect(&b).await;
        let mut missed = Vec::new();
        for _ in 0..3 {
            missed.push(viewer.event().await.data);
        }
        // Channels of different partitions have no common order.
        missed.sort_unstable();
        let all = ["x", "y", "z"].map(|channel| format!("while away, on {channel}"));
        assert_eq!(missed, all, "{partitions} partitions");
        redis.append("z", "end").await;
        assert_eq!(data(&viewer.until("end").await), ["end"]);
    }
}

/// Breaks when a reconnect replays the event whose id it names, or skips other events of the same
/// millisecond.
#[tokio::test]
async fn a_client_can_resume_from_every_id() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    let mut viewer = Viewer::open(&a, "channel=news").await;
    let mut commands = redis.connect().await;
    // In one pipeline, so that several share a millisecond.
    let messages = (0..50).map(|number| ("news".to_owned(), format!("n{number}")));
    commands.publish_all(&messages.collect::<Vec<_>>()).await;
    let events = viewer.until("n49").await;
    let all = data(&events);
    assert_eq!(all.len(), 50);
    for (number, event) in events.iter().enumerate().take(49) {
        let mut again = Viewer::resume(&b, "channel=news", &event.id).await;
        let rest = again.until("n49").await;
        assert_eq!(data(&rest), all[number + 1..], "after {}", event.id);
        assert!(rest.iter().zip(&events[number + 1..]).all(|(x, y)| x == y));
    }
}

/// Breaks when a cursor is assumed to cover the present channels. A page that adds a channel under
/// its old id must get the new channel's events since then, and no gap for it.
#[tokio::test]
async fn a_channel_added_under_an_old_id_needs_no_gap() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let viewer = Viewer::open(&gateway, "channel=old").await;
    let id = redis.append("old", "seen").await;
    drop(viewer);
    redis.append("new", "missed on new").await;
    redis.append("old", "missed on old").await;
    let query = "channel=old&channel=new";
    let mut viewer = Viewer::resume(&gateway, query, &id.to_string()).await;
    redis.append("old", "end").await;
    let events = viewer.until("end").await;
    assert_eq!(data(&events), ["missed on new", "missed on old", "end"]);
}

/// Breaks when a client with several channels of one partition receives one channel's events after
/// the other's.
#[tokio::test]
async fn several_channels_are_delivered_in_id_order() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let start = Viewer::open(&gateway, "channel=c0&channel=c1&channel=c2").await;
    let mut expected = Vec::new();
    for number in 0..60 {
        let text = format!("n{number}");
        redis.append(&format!("c{}", number * 7 % 3), &text).await;
        expected.push(text);
    }
    let mut replay = start.reconnect(&gateway).await;
    assert_eq!(data(&replay.until("n59").await), expected);
    let from_start = "channel=c0&channel=c1&channel=c2&since=start";
    let mut all = Viewer::open(&gateway, from_start).await;
    assert_eq!(data(&all.until("n59").await), expected);
}

/// Breaks when lost subscriptions are only noticed when clients reconnect. Events that were
/// appended while a replica was not subscribed must reach its connected clients at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_missed_by_lost_subscriptions_arrive_without_a_cut() {
    let _machine = heavy().await;
    let redis = Redis::start().await;
    let a = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let b = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let channels = ["x".to_owned(), "y".to_owned()];
    let plans = (0..50).map(|client| Plan::new(&channels, client % 2));
    let fleet = Fleet::start(plans, &Replicas::of([&a, &b]), 1, &["p"]);
    fleet.open().await;
    let load = Load::append(&redis, "p", &channels);
    let mut commands = redis.connect().await;
    let mut killed = 0;
    while killed < 10 {
        fleet.progress(20).await;
        killed += commands.run("CLIENT KILL TYPE pubsub").await.integer();
    }
    fleet.progress(20).await;
    let goal = load.stop().await;
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 0),
        "a client was cut"
    );
    eventually("both are ready again", PATIENCE, async || {
        a.ready().await;
        b.ready().await;
        Ok(())
    })
    .await;
}
