//! Redis Cluster: each partition lives on the master that owns its slot.

use std::{process::Command, time::Duration};

use testkit::{channel_of_each, lab::Cluster, request};
use tokio::{sync::watch, time::interval};

use crate::{
    redis_users,
    support::{
        Commands, Dir, Gateway, PATIENCE, Process, Redis, Reply, Viewer, among_others, certificate,
        data, eventually, gaps, recording, shares, texts,
    },
};

const PARTITIONS: u32 = 6;

/// The flags of a gateway.
fn options(cluster: &Cluster) -> String {
    let seeds = cluster.seeds();
    format!(
        "--redis-url redis://any --redis-cluster {seeds} --partitions {PARTITIONS} --publish-token t"
    )
}

async fn gateway(cluster: &Cluster) -> Gateway {
    Gateway::start(&cluster.nodes[0], &options(cluster)).await
}

async fn post(gateway: &Gateway, channel: &str, payload: &str) {
    let bearer = "Authorization: Bearer t\r\n";
    let path = format!("/events?channel={channel}");
    let posted = gateway.post(&path, bearer, payload).await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
}

/// Posts until it is stored: replicas may need a moment to find the nodes.
async fn post_at_last(gateway: &Gateway, channel: &str, payload: &str) {
    let headers = format!("Authorization: Bearer t\r\nIdempotency-Key: {channel}\r\n");
    let path = format!("/events?channel={channel}");
    eventually("it is stored", 2 * PATIENCE, async || {
        let posted = gateway.post(&path, &headers, payload).await;
        match posted.head.status {
            201 => Ok(()),
            status => Err(format!("{status}: {}", posted.body)),
        }
    })
    .await;
}

/// Two gateways that record.
async fn replicas(cluster: &Cluster) -> (Gateway, Gateway) {
    let (a, b) = (gateway(cluster).await, gateway(cluster).await);
    recording([&a, &b], PARTITIONS).await;
    (a, b)
}

fn channels() -> Vec<String> {
    channel_of_each(PARTITIONS)
}

/// Breaks when a partition is used at a node that does not hold it, or when a way to publish depends on the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_publish_reaches_clients_of_every_replica() {
    let _machine = among_others().await;
    let cluster = Cluster::start(3, 0, 2000).await;
    let (a, b) = replicas(&cluster).await;
    for (number, channel) in channels().iter().enumerate() {
        // The key of a deployment with one partition.
        let call = [
            "FCALL",
            "sse_publish",
            "1",
            "ssegw:{8209}:clock",
            channel,
            "x",
        ];
        let mut commands = cluster.nodes[cluster.owner(8192).await].connect().await;
        let refused = commands.call(&call.map(str::as_bytes)).await.unwrap();
        assert!(
            matches!(&refused, Reply::Error(error) if error.starts_with("BADKEYS ")),
            "{refused:?}"
        );
        let query = format!("channel={channel}");
        let mut viewers = [
            Viewer::open(&a, &query).await,
            Viewer::open(&b, &query).await,
        ];
        post(&a, channel, "posted").await;
        cluster.append(channel, "called", PARTITIONS).await;
        let node = &cluster.nodes[number % 3];
        assert!(node.connect().await.publish(channel, "raw").await > 0);
        for viewer in &mut viewers {
            let events = viewer.until("raw").await;
            assert_eq!(data(&events), ["posted", "called", "raw"]);
        }
        let id = viewers[0].client.last_event_id().to_owned();
        post(&b, channel, "later").await;
        let mut resumed = Viewer::resume(&b, &query, &id).await;
        assert_eq!(data(&resumed.until("later").await), ["later"]);
    }
}

/// Breaks when the nodes are not used over TLS, or when a certificate is not compared with the name that its node
/// announces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_used_over_tls_by_their_names() {
    let _machine = among_others().await;
    let dir = Dir::new();
    let (certificate, key, _) = certificate(&dir);
    let tls = [
        ["--tls-cert-file", &certificate],
        ["--tls-key-file", &key],
        ["--tls-ca-cert-file", &certificate],
        ["--tls-cluster", "yes"],
        ["--tls-replication", "yes"],
        ["--cluster-announce-hostname", "localhost"],
    ];
    let cluster = Cluster::start_with(2, 0, 2000, &tls.concat()).await;
    let ports: Vec<_> = (cluster.nodes.iter().map(|node| node.option("--tls-port"))).collect();
    let seed = format!("localhost:{}", ports[0]);
    let options = format!(
        "--redis-url rediss://any --redis-cluster {seed} --partitions {PARTITIONS} --publish-token t \
         --redis-ca {certificate} --redis-certificate {certificate} --redis-key {key}"
    );
    let a = Gateway::start(&cluster.nodes[0], &options).await;
    let b = Gateway::start(&cluster.nodes[0], &options).await;
    recording([&a, &b], PARTITIONS).await;
    for channel in &channels() {
        let mut viewer = Viewer::open(&b, &format!("channel={channel}")).await;
        post(&a, channel, "posted").await;
        cluster.append(channel, "called", PARTITIONS).await;
        assert!(
            cluster.nodes[0]
                .connect()
                .await
                .publish(channel, "raw")
                .await
                > 0
        );
        assert_eq!(
            data(&viewer.until("raw").await),
            ["posted", "called", "raw"]
        );
    }
    for (node, port) in cluster.nodes.iter().zip(ports) {
        let list = node.connect().await.run("CLIENT LIST").await.text();
        let others: Vec<_> = list
            .lines()
            .filter(|line| !line.contains(" name=test "))
            .collect();
        assert!(others.len() >= 4, "{list}");
        let all = others
            .iter()
            .all(|client| client.contains(&format!(":{port} ")));
        assert!(all, "{list}");
    }
    // The certificate is not valid for the address of a seed.
    let options = options.replace(&seed, &seed.replace("localhost", "127.0.0.1"));
    let mut gateway = Gateway::start_unready(&cluster.nodes[0], &options, "").await;
    eventually("the name is refused", PATIENCE, async || {
        let log = gateway.process().log();
        match log.contains("certificate not valid for name") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
}

/// Breaks when a cluster with one master is not used like any other: at its start, at a failover, or when it grows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_shard_can_fail_over_and_grow() {
    let _machine = among_others().await;
    let mut cluster = Cluster::start(1, 1, 2000).await;
    let (a, b) = replicas(&cluster).await;
    let channel = &channels()[0];
    let mut viewer = Viewer::open(&b, &format!("channel={channel}")).await;
    let publish = async |cluster: &Cluster, round: &str| {
        post(&a, channel, &format!("posted {round}")).await;
        let called = format!("called {round}");
        cluster.append(channel, &called, PARTITIONS).await;
    };
    publish(&cluster, "first").await;
    assert!(
        cluster.nodes[1]
            .connect()
            .await
            .publish(channel, "raw")
            .await
            == 0
    );
    let events = viewer.until("raw").await;
    assert_eq!(data(&events), ["posted first", "called first", "raw"]);
    cluster.fail_over(0).await;
    publish(&cluster, "after the failover").await;
    let events = viewer.until("called after the failover").await;
    assert_eq!(gaps(&events), []);
    cluster.settle().await;
    cluster.add_master().await;
    cluster
        .move_slot(cluster.slot(0, PARTITIONS).await, 2)
        .await;
    publish(&cluster, "elsewhere").await;
    let events = viewer.until("called elsewhere").await;
    assert_eq!(data(&events), ["posted elsewhere", "called elsewhere"]);
}

/// Breaks when clients notice that a slot has moved to another master: by a gap, by an event that is missing or
/// repeated, or by ids that go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_no_failover() {
    let _machine = among_others().await;
    let cluster = Cluster::start(2, 0, 2000).await;
    let (a, b) = replicas(&cluster).await;
    let channel = &channels()[0];
    let slot = cluster.slot(0, PARTITIONS).await;
    let query = format!("channel={channel}&channel=c0&channel=c1");
    let mut viewers = [
        Viewer::open(&a, &query).await,
        Viewer::open(&b, &query).await,
    ];
    for round in 0..3 {
        post(&a, channel, &format!("before {round}")).await;
        cluster
            .move_slot(slot, (cluster.owner(slot).await + 1) % 2)
            .await;
        post(&b, channel, &format!("after {round}")).await;
    }
    for viewer in &mut viewers {
        let events = viewer.until("after 2").await;
        assert_eq!(gaps(&events), []);
        let expected: Vec<_> = (0..3)
            .flat_map(|round| [format!("before {round}"), format!("after {round}")])
            .collect();
        assert_eq!(texts(&events), expected);
    }
}

/// The server of Valkey that crates/gateway/tests/valkey installs.
async fn valkey() -> String {
    let install = || {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/valkey");
        let done = Command::new(format!("{folder}/install")).output();
        let done = done.expect("the script runs");
        assert!(done.status.success(), "no Valkey: {done:?}");
        String::from_utf8(done.stdout)
            .expect("a path")
            .trim()
            .to_owned()
    };
    let installed = tokio::task::spawn_blocking(install).await;
    installed.expect("it is installed")
}

/// Breaks when a raw message is lost, repeated or out of order because its partition moves to another node, or when the
/// recorders there are not in sync afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_messages_are_recorded_while_their_partition_moves() {
    let _machine = among_others().await;
    let cluster = Cluster::start(2, 1, 1500).await;
    let move_slot = async |slot, to| cluster.move_slot(slot, to).await;
    raw_messages_are_recorded(&cluster, move_slot).await;
}

/// The same, where a slot moves in one step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_messages_are_recorded_while_their_partition_moves_at_once() {
    let _machine = among_others().await;
    let cluster = Cluster::start_program(&valkey().await, 2, 1, 1500, &[]).await;
    let move_slot = async |slot, to| assert!(cluster.move_slot_at_once(slot, to).await);
    raw_messages_are_recorded(&cluster, move_slot).await;
}

async fn raw_messages_are_recorded(cluster: &Cluster, move_slot: impl AsyncFn(u32, usize)) {
    let (a, b) = replicas(cluster).await;
    let channel = channels()[0].clone();
    let slot = cluster.slot(0, PARTITIONS).await;
    let mut viewer = Viewer::open(&b, &format!("channel={channel}")).await;
    let mut backend = cluster.nodes[3].connect().await;
    let to = channel.clone();
    let publishing = tokio::spawn(async move {
        let mut pace = interval(Duration::from_millis(4));
        for number in 0.. {
            pace.tick().await;
            backend.publish(&to, &format!("{number:05}")).await;
        }
    });
    let mut events = viewer.until("00100").await;
    // The second time, the recorder has not settled at the first node.
    for until in ["00200", "01500"] {
        let owner = cluster.owner(slot).await;
        move_slot(slot, 1 - owner).await;
        events.extend(viewer.until(until).await);
    }
    let holder = cluster.holder(&channel, PARTITIONS).await;
    cluster.fail_over(holder).await;
    events.extend(viewer.until("02700").await);
    recording([&a, &b], PARTITIONS).await;
    assert_eq!(gaps(&events), []);
    drop(a);
    events.extend(viewer.until("03200").await);
    publishing.abort();
    assert_eq!(gaps(&events), []);
    let expected: Vec<_> = (0..=3200).map(|number| format!("{number:05}")).collect();
    assert_eq!(texts(&events), expected);
}

/// Breaks when a raw message is lost or recorded twice that has reached other nodes, and not that of its partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_messages_that_their_node_misses_are_recorded() {
    let _machine = among_others().await;
    let debug = ["--enable-debug-command", "yes"];
    let cluster = Cluster::start_with(3, 0, 5000, &debug).await;
    let (a, b) = replicas(&cluster).await;
    let channel = channels()[0].clone();
    let holder = cluster.holder(&channel, PARTITIONS).await;
    let mut viewer = Viewer::open(&b, &format!("channel={channel}")).await;
    let mut backend = cluster.nodes[(holder + 1) % 3].connect().await;
    let mut node = cluster.nodes[holder].connect().await;
    eventually("the replicas compare", 3 * PATIENCE, async || {
        let compared = a.metrics().await.sum("sse_gateway_recorder_compared");
        match compared == f64::from(PARTITIONS) {
            true => Ok(()),
            false => Err(format!("{compared} partitions")),
        }
    })
    .await;
    // It ignores messages of this type: those of PUBLISH (cluster.h of Redis).
    node.run("DEBUG DROP-CLUSTER-PACKET-FILTER 4").await;
    let (mut expected, mut seen) = (Vec::new(), Vec::new());
    for state in ["missed", "heard"] {
        for number in 0..50 {
            let message = format!("{state} {number}");
            backend.publish(&channel, &message).await;
            expected.push(message);
        }
        seen.extend(viewer.until(&format!("{state} 49")).await);
        node.run("DEBUG DROP-CLUSTER-PACKET-FILTER -1").await;
    }
    assert_eq!(gaps(&seen), []);
    assert_eq!(texts(&seen), expected);
    let peer = backend.run("CLUSTER MYID").await.text();
    node.run(&format!("DEBUG CLUSTERLINK KILL FROM {peer}"))
        .await;
    eventually("the link that was lost is counted", PATIENCE, async || {
        let metrics = a.metrics().await;
        match metrics.sum("sse_gateway_redis_bus_links_rebuilt_total") {
            0.0 => Err("none is".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// Breaks when clients notice that redis-cli spreads all partitions over one more master and takes some back: by an event
/// that is lost, repeated or out of order, or by a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cli_moves_slots_unnoticed() {
    let _machine = shares(2).await;
    let mut cluster = Cluster::start(2, 0, 2000).await;
    let (a, b) = replicas(&cluster).await;
    let mut viewers = Vec::new();
    for channel in channels() {
        viewers.push(Viewer::open(&b, &format!("channel={channel}")).await);
    }
    cluster.add_master().await;
    let (moving, moved) = watch::channel(true);
    let publish = async |way: &str| {
        let mut pace = interval(Duration::from_millis(10));
        let mut raw = cluster.nodes[2].connect().await;
        let mut number = 0;
        while *moved.borrow() || number % channels().len() > 0 {
            pace.tick().await;
            let channel = &channels()[number % channels().len()];
            let payload = format!("{way} {number:05}");
            match way {
                "raw" => _ = raw.publish(channel, &payload).await,
                "posted" => post(&a, channel, &payload).await,
                _ => _ = cluster.append(channel, &payload, PARTITIONS).await,
            }
            number += 1;
        }
        number
    };
    let move_slots = async {
        cluster
            .redis_cli("rebalance", &["--cluster-use-empty-masters"])
            .await;
        let of = ["--cluster-from", "2", "--cluster-to", "0"];
        let slots = ["--cluster-slots", "3000", "--cluster-yes"];
        cluster
            .redis_cli("reshard", &[of.as_slice(), &slots].concat())
            .await;
        moving.send_replace(false);
    };
    let (raw, posted, called, ()) = tokio::join!(
        publish("raw"),
        publish("posted"),
        publish("called"),
        move_slots
    );
    for (place, (channel, viewer)) in channels().iter().zip(&mut viewers).enumerate() {
        // Raw messages may be recorded a few seconds later than the others.
        let last = format!("raw {:05}", raw - channels().len() + place);
        let mut events = viewer.until(&last).await;
        post(&a, channel, "last").await;
        events.extend(viewer.until("last").await);
        assert_eq!(gaps(&events), []);
        for (way, count) in [("raw", raw), ("posted", posted), ("called", called)] {
            let of_way = texts(&events)
                .into_iter()
                .filter(|text| text.starts_with(way));
            let numbers = (place..count).step_by(channels().len());
            let expected: Vec<_> = numbers.map(|number| format!("{way} {number:05}")).collect();
            assert_eq!(of_way.collect::<Vec<_>>(), expected, "{channel}");
        }
    }
}

/// Breaks when replicas stay with a master that was replaced, or when a planned failover causes a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_a_failover() {
    let _machine = among_others().await;
    let mut cluster = Cluster::start(3, 1, 1500).await;
    let (a, b) = replicas(&cluster).await;
    let channel = &channels()[0];
    let query = format!("channel={channel}");
    let mut viewers = [
        Viewer::open(&a, &query).await,
        Viewer::open(&b, &query).await,
    ];
    post(&a, channel, "before").await;
    let holder = cluster.holder(channel, PARTITIONS).await;
    let master = cluster.fail_over(holder).await;
    post(&b, channel, "planned").await;
    for viewer in &mut viewers {
        let events = viewer.until("planned").await;
        assert_eq!(data(&events), ["before", "planned"]);
    }
    cluster.settle().await;
    let slot = cluster.slot(0, PARTITIONS).await;
    cluster.nodes[master].kill();
    cluster.replaced(slot, master).await;
    cluster.settle().await;
    post(&a, channel, "unplanned").await;
    for viewer in &mut viewers {
        viewer.until("unplanned").await;
    }
}

/// Breaks when replicas look for a master at its former address, where another one is now. Its config epoch stays the
/// same. In containers, addresses change at every restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_masters_to_other_addresses() {
    let _machine = among_others().await;
    let mut cluster = Cluster::start_with(3, 0, 10_000, &["--appendonly", "yes"]).await;
    let (a, b) = replicas(&cluster).await;
    let mut viewers = Vec::new();
    for channel in &channels() {
        viewers.push(Viewer::open(&b, &format!("channel={channel}")).await);
        post(&a, channel, "before").await;
    }
    cluster.swap_addresses(0, 1).await;
    for (channel, viewer) in channels().iter().zip(&mut viewers) {
        post_at_last(&a, channel, "after").await;
        assert_eq!(data(&viewer.until("after").await), ["before", "after"]);
    }
}

/// Breaks when replicas wait for the former owners of a cluster that was created again, because its epochs began again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_use_a_cluster_that_was_created_again() {
    let _machine = among_others().await;
    let mut cluster = Cluster::start(2, 0, 10_000).await;
    let (a, b) = replicas(&cluster).await;
    let mut viewers = Vec::new();
    for channel in &channels() {
        viewers.push(Viewer::open(&b, &format!("channel={channel}")).await);
        post(&a, channel, "before").await;
    }
    cluster.form_again().await;
    for (channel, viewer) in channels().iter().zip(&mut viewers) {
        post_at_last(&a, channel, "after").await;
        let events = viewer.until("after").await;
        assert_eq!(gaps(&events).len(), 1);
        assert_eq!(texts(&events), ["before", "after"]);
    }
}

/// Breaks when a lost node takes more than its own partitions: streams, history or publishing of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_takes_its_own_partitions_only() {
    let _machine = among_others().await;
    let partial = ["--cluster-require-full-coverage", "no"];
    let mut cluster = Cluster::start_with(3, 0, 1500, &partial).await;
    let gateway = gateway(&cluster).await;
    recording([&gateway], PARTITIONS).await;
    let mut holders = Vec::new();
    for channel in &channels() {
        post(&gateway, channel, "before").await;
        holders.push(cluster.holder(channel, PARTITIONS).await);
    }
    let lost = holders[0];
    cluster.nodes[lost].kill();
    let of_lost = (0..).zip(&holders).filter(|(_, holder)| **holder == lost);
    let of_lost: Vec<_> = of_lost
        .map(|(partition, _): (u32, _)| partition.to_string())
        .collect();
    let without = format!("ready, without partitions {}\n", of_lost.join(","));
    eventually("it is ready without them", PATIENCE, async || {
        let get = "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let response = request(gateway.admin, get.as_bytes()).await;
        match response.map_err(|error| error.to_string())?.body {
            body if body == without => Ok(()),
            body => Err(body),
        }
    })
    .await;
    let bearer = "Authorization: Bearer t\r\n";
    for (channel, holder) in channels().iter().zip(&holders) {
        let path = format!("/events?channel={channel}");
        if *holder == lost {
            let refused = gateway.post(&path, bearer, "lost").await;
            assert_eq!(refused.head.status, 503, "{}", refused.body);
            continue;
        }
        let mut viewer = Viewer::open(&gateway, &format!("channel={channel}&since=start")).await;
        viewer.until("before").await;
        post(&gateway, channel, "after").await;
        viewer.until("after").await;
    }
}

/// Breaks when a replica starts with a cluster that it cannot use as configured, or does not name the flag.
#[tokio::test]
async fn a_cluster_that_is_configured_wrongly_causes_one_clear_line() {
    let _machine = among_others().await;
    let (cluster, lone) = (Cluster::start(1, 0, 2000).await, Redis::start().await);
    let first = gateway(&cluster).await;
    let (node, alone) = (cluster.nodes[0].url(), lone.address().to_string());
    let seeds = cluster.seeds();
    for (flags, says) in [
        (format!("--redis-url {node}"), "--redis-cluster host:port"),
        (
            format!("--redis-cluster {alone}"),
            "without cluster support",
        ),
        (
            format!("--redis-cluster {seeds} --partitions 5"),
            "set --partitions 6",
        ),
        (format!("--redis-cluster {node}"), "is not host:port"),
        (
            format!("--redis-cluster {seeds} --redis-sentinels a"),
            "exclude each other",
        ),
    ] {
        let mut command = Gateway::command();
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(flags.split(' '));
        let mut process = Process::start("sse-gateway", &mut command);
        let status = process.exit().await;
        assert!(!status.success(), "{flags}");
        assert!(process.log().contains(says), "{flags}: {}", process.log());
    }
    first.ready().await;
}

/// Breaks when a part of the gateway uses a right in a cluster that the documented user lacks. Also breaks when a client
/// without keys does not find the node of a channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_users_are_enough() {
    let _machine = among_others().await;
    let cluster = Cluster::start(3, 0, 2000).await;
    for node in &cluster.nodes {
        let mut commands = node.connect().await;
        redis_users::make_users(&mut commands).await;
        for line in [
            "ACL SETUSER gateway +cluster|nodes +cluster|links",
            "ACL SETUSER appender +asking +command +info +cluster|info +cluster|keyslot +cluster|myid +cluster|nodes +cluster|slots",
        ] {
            commands.run(line).await;
        }
    }
    let options = options(&cluster).replace("redis://any", "redis://gateway:SECRET@any");
    let a = Gateway::start(&cluster.nodes[0], &options).await;
    let b = Gateway::start(&cluster.nodes[0], &options).await;
    recording([&a, &b], PARTITIONS).await;
    let mut backend = cluster.nodes[0].connect().await;
    assert_eq!(backend.run("AUTH backend SECRET").await.text(), "OK");
    let mut moved = 0;
    for channel in &channels() {
        let mut viewer = Viewer::open(&b, &format!("channel={channel}")).await;
        post(&a, channel, "posted").await;
        assert!(backend.publish(channel, "raw").await > 0);
        let mut at = cluster.nodes[0].address();
        let id = loop {
            let mut appender = Commands::connect(at).await.unwrap();
            assert_eq!(appender.run("AUTH appender SECRET").await.text(), "OK");
            let call = ["FCALL", "sse_publish", "0", channel, "called"];
            match appender.call(&call.map(str::as_bytes)).await.unwrap() {
                Reply::Error(error) => {
                    moved += 1;
                    let to = error
                        .strip_prefix("MOVED ")
                        .and_then(|to| to.split(' ').nth(1));
                    at = to.unwrap_or_else(|| panic!("{error}")).parse().unwrap();
                }
                id => break id.text(),
            }
        };
        assert!(id.contains('-'), "{id}");
        let events = viewer.until("called").await;
        assert!(data(&events).contains(&"posted"), "{events:?}");
    }
    assert!(
        (1..channels().len()).contains(&moved),
        "{moved} answers were MOVED"
    );
    for node in &cluster.nodes {
        let denied = redis_users::denied(&mut node.connect().await).await;
        assert_eq!(denied, [""; 0]);
    }
}

/// Breaks when the doctor does not examine each master of a cluster.
#[tokio::test]
async fn the_doctor_examines_each_master() {
    let _machine = among_others().await;
    let cluster = Cluster::start(2, 0, 2000).await;
    let _gateway = gateway(&cluster).await;
    let mut command = Gateway::command();
    command.args(["doctor", "--redis-cluster", &cluster.seeds()]);
    let mut doctor = Process::start("doctor", &mut command);
    doctor.exit().await;
    let report = doctor.output();
    assert!(
        report.contains("2 nodes answer, 2 masters with slots"),
        "{report}"
    );
    for node in &cluster.nodes {
        let about = |name| report.contains(&format!("{}: {name}", node.address()));
        assert!(about("Redis") || about("Valkey"), "{report}");
        let library = format!("{}: the library is loaded", node.address());
        assert!(report.contains(&library), "{report}");
    }
}
