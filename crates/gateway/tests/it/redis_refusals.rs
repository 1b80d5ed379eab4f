//! A Redis that refuses some commands: its user lacks the right, or they were removed, as managed services do.

use std::time::Duration;

use testkit::{channel_of_each, lab::Cluster};
use tokio::time::sleep;

use crate::{
    redis_users,
    support::{
        Gateway, PATIENCE, Redis, Viewer, among_others, becomes, data, eventually, gaps, recording,
        texts,
    },
};

const BEARER: &str = "Authorization: Bearer t\r\n";

/// The options of a gateway with the documented user.
fn options(redis: &Redis) -> String {
    let address = redis.address();
    format!("--redis-url redis://gateway:SECRET@{address} --publish-token t")
}

/// A Redis with the documented users, after this ACL command.
async fn redis_after(command: &str) -> Redis {
    let redis = Redis::start_with(&["--appendonly", "yes"]).await;
    let mut commands = redis.connect().await;
    redis_users::make_users(&mut commands).await;
    commands.run(command).await;
    redis
}

fn count(gateway: &mut Gateway, words: &str) -> usize {
    gateway.process().log().matches(words).count()
}

/// Breaks when a gateway without PSUBSCRIBE does not start, stores no events, lets ends wait for recorders that cannot
/// record, or does not name the loss exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_and_functions_work_without_psubscribe() {
    let _machine = among_others().await;
    let renamed = Redis::start_with(&["--rename-command", "PSUBSCRIBE", ""]).await;
    let denied = redis_after("ACL SETUSER gateway -psubscribe").await;
    let elsewhere = redis_after("ACL SETUSER gateway resetchannels &ssegw:*").await;
    let grant = ["+psubscribe", "&sse:*"].map(Some);
    let [of_denied, of_elsewhere] = [&denied, &elsewhere].map(options);
    tokio::join!(
        work_without_psubscribe(&renamed, "--publish-token t", None),
        work_without_psubscribe(&denied, &of_denied, grant[0]),
        work_without_psubscribe(&elsewhere, &of_elsewhere, grant[1]),
    );
}

async fn work_without_psubscribe(redis: &Redis, options: &str, grant: Option<&str>) {
    let mut gateway = Gateway::start(redis, options).await;
    becomes(&gateway, "sse_gateway_raw_refused", "", 1.0).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let start = viewer.open.id.clone();
    let posted = gateway.post("/events?channel=news", BEARER, "posted").await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    redis.append("news", "called").await;
    let end = r#"{"end":true,"data":"end"}"#;
    let ended = gateway.post("/events?channel=other", BEARER, end).await;
    assert_eq!(ended.head.status, 201, "{}", ended.body);
    assert!(!ended.body.contains("null"), "{}", ended.body);
    assert_eq!(data(&viewer.until("called").await), ["posted", "called"]);
    let mut resumed = Viewer::resume(&gateway, "channel=news", &start).await;
    assert_eq!(data(&resumed.until("called").await), ["posted", "called"]);
    let mut backend = redis.connect().await;
    assert_eq!(backend.publish("news", "raw").await, 0);
    gateway.ready().await;
    let connections = redis.info("total_connections_received").await;
    if let Some(grant) = grant {
        backend.run(&format!("ACL SETUSER gateway {grant}")).await;
        recording([&gateway], 1).await;
        assert!(backend.publish("news", "raw").await > 0);
        assert_eq!(data(&viewer.until("raw").await), ["raw"]);
        becomes(&gateway, "sse_gateway_raw_refused", "", 0.0).await;
    } else {
        // It asks again only every few seconds.
        sleep(Duration::from_secs(2)).await;
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
        let later = number(redis.info("total_connections_received").await);
        let more = later
            .zip(number(connections))
            .map(|(later, before)| later - before);
        assert!(more.is_some_and(|more| more < 5), "{more:?} connections");
    }
    let log = gateway.process().log();
    assert_eq!(count(&mut gateway, "redis refuses PSUBSCRIBE"), 1, "{log}");
    assert_eq!(count(&mut gateway, "connection is down"), 0, "{log}");
}

/// Breaks when a gateway without recorders subscribes to raw messages, or when ends wait for them.
#[tokio::test]
async fn a_deployment_may_have_no_recorders() {
    let _machine = among_others().await;
    let redis = Redis::start_with(&["--rename-command", "PSUBSCRIBE", ""]).await;
    let mut gateway = Gateway::start(&redis, "--publish-token t --recorders 0").await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let end = r#"{"end":true,"data":"end"}"#;
    let ended = gateway.post("/events?channel=news", BEARER, end).await;
    assert!(!ended.body.contains("null"), "{}", ended.body);
    viewer.until("end").await;
    assert_eq!(redis.connect().await.publish("news", "raw").await, 0);
    gateway.process().signal("TERM");
    let status = gateway.process().exit().await;
    assert!(status.success(), "{}", gateway.process().log());
    assert_eq!(count(&mut gateway, "PSUBSCRIBE"), 0);
}

/// Breaks when a gateway needs CONFIG or INFO to start, when it does not name the loss exactly once, or when it takes a
/// restarted Redis for the same process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_and_info_may_be_refused() {
    let _machine = among_others().await;
    let removed = [
        "--rename-command",
        "CONFIG",
        "",
        "--rename-command",
        "INFO",
        "",
    ];
    let lone = Redis::start_with(&removed).await;
    let started = Gateway::start(&lone, "--publish-token t").await;
    recording([&started], 1).await;
    let mut viewer = Viewer::open(&started, "channel=news").await;
    assert!(lone.connect().await.publish("news", "raw").await > 0);
    viewer.until("raw").await;

    let mut redis = redis_after("ACL SETUSER gateway -config|get -info").await;
    let options = options(&redis);
    let mut gateways = [
        Gateway::start(&redis, &options).await,
        Gateway::start(&redis, &options).await,
    ];
    recording(&gateways, 1).await;
    redis.recorders(2).await;
    let mut viewer = Viewer::open(&gateways[1], "channel=news").await;
    let posted = gateways[0]
        .post("/events?channel=news", BEARER, "posted")
        .await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    assert!(redis.connect().await.publish("news", "raw").await > 0);
    let events = viewer.until("raw").await;
    assert_eq!(data(&events), ["posted", "raw"]);
    // A later replica meets the same process.
    let third = Gateway::start(&redis, &options).await;
    let mut viewer = viewer.reconnect(&third).await;
    redis.append("news", "called").await;
    assert_eq!(data(&viewer.until("called").await), ["called"]);

    redis.stop().await;
    redis.restart().await;
    let mut commands = redis.connect().await;
    redis_users::make_users(&mut commands).await;
    commands.run("ACL SETUSER gateway -config|get -info").await;
    eventually("an event is stored", PATIENCE, async || {
        let posted = third.post("/events?channel=news", BEARER, "after").await;
        match posted.head.status {
            201 => Ok(()),
            status => Err(format!("{status}: {}", posted.body)),
        }
    })
    .await;
    let events = viewer.until("after").await;
    assert_eq!(gaps(&events).len(), 1, "{events:?}");
    assert_eq!(texts(&events), ["after"]);
    recording(&gateways, 1).await;
    for gateway in &mut gateways {
        let log = gateway.process().log();
        assert_eq!(
            count(gateway, "redis does not allow CONFIG GET"),
            1,
            "{log}"
        );
        assert_eq!(count(gateway, "redis shows no run id"), 1, "{log}");
    }
}

/// Breaks when the nodes of a cluster cannot be distinguished without INFO, or when a slot that moves then causes a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_may_refuse_info() {
    let _machine = among_others().await;
    let cluster = Cluster::start(2, 0, 2000).await;
    for node in &cluster.nodes {
        let mut commands = node.connect().await;
        redis_users::make_users(&mut commands).await;
        commands
            .run("ACL SETUSER gateway +cluster|nodes -config|get -info")
            .await;
    }
    let options = format!(
        "--redis-url redis://gateway:SECRET@any --redis-cluster {} --partitions 2 --publish-token t",
        cluster.seeds()
    );
    let mut gateways = [
        Gateway::start(&cluster.nodes[0], &options).await,
        Gateway::start(&cluster.nodes[0], &options).await,
    ];
    recording(&gateways, 2).await;
    let channel = &channel_of_each(2)[0];
    let mut viewer = Viewer::open(&gateways[1], &format!("channel={channel}")).await;
    let path = format!("/events?channel={channel}");
    let slot = cluster.slot(0, 2).await;
    for round in ["first", "second"] {
        let posted = gateways[0].post(&path, BEARER, round).await;
        assert_eq!(posted.head.status, 201, "{}", posted.body);
        let mut backend = cluster.nodes[1].connect().await;
        backend.publish(channel, &format!("raw {round}")).await;
        let events = viewer.until(&format!("raw {round}")).await;
        assert_eq!(data(&events), [round, &format!("raw {round}")]);
        let owner = cluster.owner(slot).await;
        cluster.move_slot(slot, 1 - owner).await;
    }
    for gateway in &mut gateways {
        let log = gateway.process().log();
        assert_eq!(count(gateway, "redis shows no run id"), 1, "{log}");
    }
}
