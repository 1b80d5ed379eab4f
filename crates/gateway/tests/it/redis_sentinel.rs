//! Redis behind sentinels: the gateway is where they say the master is.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use loadtest::lab::free_port;

use crate::support::{
    Commands, Dir, Gateway, PATIENCE, Process, Redis, Viewer, among_others, assert_rising,
    assert_told, eventually, gaps, in_time, messages, recording,
};

/// What they call the master.
const NAME: &str = "events";

/// Three sentinels, which agree within seconds.
struct Sentinels {
    addresses: Vec<SocketAddr>,
    _processes: Vec<Process>,
    _dirs: Vec<Dir>,
}

impl Sentinels {
    async fn of(master: &Redis) -> Self {
        let (mut addresses, mut processes, mut dirs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let port = free_port(&[Ipv4Addr::LOCALHOST]);
            let dir = Dir::new();
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\n\
                 sentinel monitor {NAME} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {NAME} 1000\n\
                 sentinel failover-timeout {NAME} 2000\n",
                dir.path().display(),
                master.address().port()
            );
            // It writes into this what it learns.
            let config = dir.write("sentinel.conf", &config);
            let mut command = Command::new("redis-server");
            command.args([&config, "--sentinel"]);
            processes.push(Process::start("sentinel", &mut command));
            dirs.push(dir);
            addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        let sentinels = Self {
            addresses,
            _processes: processes,
            _dirs: dirs,
        };
        for address in &sentinels.addresses {
            let what = "a sentinel knows the others, and the copy";
            eventually(what, PATIENCE, async || {
                let mut sentinel = Commands::connect(*address)
                    .await
                    .map_err(|error| error.to_string())?;
                let [quorum, copies] = ["CKQUORUM", "REPLICAS"]
                    .map(|word| [b"SENTINEL", word.as_bytes(), NAME.as_bytes()]);
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

    /// As a flag, behind one that is not there.
    fn options(&self) -> String {
        let dead = free_port(&[Ipv4Addr::LOCALHOST]);
        let all = self.addresses.iter().map(ToString::to_string);
        let all: Vec<_> = all.collect();
        let all = all.join(",");
        format!("--redis-url redis://{NAME} --redis-sentinels 127.0.0.1:{dead},redis://{all}")
    }
}

/// Waits until the copy has all that its master has.
async fn copied(master: &Redis) {
    let mut commands = master.connect().await;
    // What is waited for is what this connection has written, and all before it.
    commands.run("SET copied 1").await;
    let copies = commands.run("WAIT 1 10000").await.integer();
    assert_eq!(copies, 1, "the copy is behind");
}

async fn promoted(redis: &Redis) {
    eventually("it is promoted", PATIENCE, async || {
        let role = redis.info("role").await.unwrap_or_default();
        if role == "master" { Ok(()) } else { Err(role) }
    })
    .await;
}

/// Breaks when a failover, planned or not, leaves a replica with the old master, brings ids that go back, or a loss
/// that is not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_is_where_the_sentinels_say() {
    let _machine = among_others().await;
    let mut first = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let port = first.address().port().to_string();
    let mut second = Redis::stopped(&["--repl-diskless-sync-delay", "0"]);
    second.add_options(&["--replicaof", "127.0.0.1", &port]);
    second.restart().await;
    let sentinels = Sentinels::of(&first).await;
    let options = format!("{} --publish-token t", sentinels.options());
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
    let mut sentinel = Commands::connect(sentinels.addresses[0]).await.unwrap();
    let failover = sentinel.run(&format!("SENTINEL FAILOVER {NAME}")).await;
    assert_eq!(failover.text(), "OK");
    promoted(&second).await;
    second.append("news", "planned").await;
    for viewer in &mut viewers {
        let events = viewer.until("planned").await;
        assert_rising(&events, seen);
        // That nothing was lost the new master cannot know.
        if !gaps(&events).is_empty() {
            assert_told(&events, "news");
        }
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
    in_time("the old master is a copy", copied(&second)).await;
    second.kill();
    promoted(&first).await;
    first.append("news", "unplanned").await;
    for viewer in &mut viewers {
        let events = viewer.until("unplanned").await;
        assert_rising(&events, last);
    }
    recording([&a, &b], 1).await;
    first.kill();
}

/// Breaks when it is not said that sentinels cannot be reached, do not let anybody in, or do not know the name.
#[tokio::test]
async fn sentinels_that_do_not_know_are_named() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let [port, dead] = [0, 1].map(|_| free_port(&[Ipv4Addr::LOCALHOST]));
    let dir = Dir::new();
    let config = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nrequirepass SECRET\n\
         sentinel monitor {NAME} 127.0.0.1 {} 1\n",
        dir.path().display(),
        redis.address().port()
    );
    let config = dir.write("sentinel.conf", &config);
    let mut command = Command::new("redis-server");
    command.args([&config, "--sentinel"]);
    let _sentinel = Process::start("sentinel", &mut command);
    for (master, sentinel, said) in [
        (
            NAME,
            format!("127.0.0.1:{dead}"),
            "no sentinel knows where the master events is: 127.0.0.1:",
        ),
        (NAME, format!("127.0.0.1:{port}"), "NOAUTH"),
        (
            "others",
            format!("redis://:SECRET@127.0.0.1:{port}"),
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
        format!("--redis-url redis://{NAME} --redis-sentinels redis://:SECRET@127.0.0.1:{port}");
    Gateway::start(&redis, &options).await;
}
