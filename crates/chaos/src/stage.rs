//! The system under test and how faults are applied to it: a Redis, replicas, and the network between them.

use std::{net::SocketAddr, ops::Range, time::Duration};

use fastrand::Rng;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    failover,
    fault::{Domain, Fault},
    publishers::{Source, TOKEN},
    store::{HOLD, Store, Times},
};
use testkit::{
    Client,
    lab::{
        Commands, Dir, FaultyLink, Fleet, Gateway, MASTER, PATIENCE, Redis, RedisClient, Replicas,
        SLOW_CLOCK, Sentinels, append_call, eventually, in_time, recording,
    },
    micros_since_epoch, report_progress,
};

/// How long Redis is away before it is started again.
const AWAY: Duration = Duration::from_secs(1);
/// Channels of numbered messages.
pub(crate) const CHANNELS: [&str; 4] = ["c0", "c1", "c2", "c3"];
/// A channel with few clients, for messages that fill buffers.
pub(crate) const BURST: &str = "burst";
/// A payload of this channel that fills buffers.
pub(crate) fn filler(channel: &str) -> String {
    format!("{channel} {}", "_".repeat(16 * 1024))
}

/// This many payloads of [`filler`] are more than all sockets on the way to a client hold.
const TOO_MUCH: usize = 400;
/// Two faults of a row begin within this time of each other, so one may find the damage of the other.
const APART: Duration = Duration::from_secs(4);
/// Files that an idle replica may have open beyond its first count: kept connections to Redis.
const KEPT_FILES: usize = 8;
/// Starts a Redis whose AOF can be limited in size. Without the trap, SIGXFSZ would end it.
const LIMITED: [&str; 4] = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
/// Redis writes before it answers, so a kill loses nothing.
const DURABLE: [&str; 6] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",
    "--repl-diskless-sync-delay",
    "0",
];
/// The replicas' configuration file.
const CONFIG: &str = "gateway.toml";
const HISTORY: &str = r#"
[[channels]]
match = "*"
history = 5000
max_age = "2m"
expire = "1h"
"#;

/// Sentinels regard a server as down after this many milliseconds without an answer.
const DOWN_AFTER: u32 = 1000;

/// Redis and its replicas. Each replica has its own links.
pub(crate) struct Site {
    pub(crate) replicas: Vec<Replica>,
    /// The links of each replica: one to Redis, or one to each of the three sentinels.
    links: Vec<Vec<FaultyLink>>,
    pub(crate) store: Store,
    /// The link from the publishers to Redis. With sentinels there is none.
    link: Option<FaultyLink>,
    /// How publishers find Redis.
    pub(crate) source: Source,
    /// The addresses that clients connect to.
    pub(crate) addresses: Replicas,
    /// The addresses for operators.
    pub(crate) admins: Replicas,
    /// Contains the replicas' configuration.
    dir: Dir,
    /// If set, the first replica is never ended, so its growth can be measured.
    pub(crate) spare_the_first: bool,
    /// The open files of the first replica before any client.
    idle_files: usize,
}

/// A copy of Redis runs for this long before it is promoted. No other fault blinds the replicas for longer.
const STANDBY: Duration = Duration::from_secs(10);

/// A replica, and its log lines.
pub(crate) struct Replica {
    pub(crate) gateway: Gateway,
    /// How it was ended, if it was.
    ended: Option<Ended>,
    /// How many bytes of its log have been read.
    seen: usize,
    /// Log lines of its earlier processes.
    lines: Vec<String>,
}

/// How a process was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Told,
    Killed,
}

impl Site {
    /// Starts this many replicas with one Redis. If `guarded`, it is a master with two copies and three sentinels.
    pub(crate) async fn start(replicas: usize, guarded: bool) -> Self {
        let (redis, sentinels) = if guarded {
            let (master, sentinels) = Sentinels::start(&DURABLE, 2, DOWN_AFTER).await;
            (master, Some(sentinels))
        } else {
            let mut redis = Redis::stopped(&DURABLE).through(&LIMITED);
            redis.restart().await;
            (redis, None)
        };
        let ends = match &sentinels {
            Some(sentinels) => sentinels.addresses().to_vec(),
            None => vec![redis.address()],
        };
        let dir = Dir::new();
        dir.write(CONFIG, HISTORY);
        let (mut started, mut links) = (Vec::new(), Vec::new());
        for _ in 0..replicas {
            let mut own = Vec::new();
            for end in &ends {
                own.push(FaultyLink::to(*end).await);
            }
            started.push(Replica {
                gateway: gateway(&dir, &own).await,
                ended: None,
                seen: 0,
                lines: Vec::new(),
            });
            links.push(own);
        }
        let (addresses, admins) = (Replicas::default(), Replicas::default());
        publish_addresses(&started, &addresses, &admins);
        let (link, source) = if guarded {
            (None, Source::Sentinels(ends))
        } else {
            let link = FaultyLink::to(redis.address()).await;
            let source = Source::At(link.address);
            (Some(link), source)
        };
        let mut site = Self {
            replicas: started,
            links,
            store: Store {
                redis,
                behind: false,
                standby: None,
                sentinels,
            },
            link,
            source,
            addresses,
            admins,
            dir,
            spare_the_first: false,
            idle_files: 0,
        };
        site.settle().await;
        site.idle_files = site.replicas[0].gateway.open_files();
        site
    }

    /// Waits until the site works: all replicas ready, two recorders in sync, one of them active.
    pub(crate) async fn settle(&self) {
        for replica in &self.replicas {
            replica.gateway.ready().await;
        }
        let limit = 2 * PATIENCE;
        recording(self.replicas.iter().map(|replica| &replica.gateway), 1).await;
        eventually("two recorders are in sync", limit, async || {
            // Redis may still count a recorder that is dead or has no subscription.
            let mut hearing = 0.0;
            for replica in &self.replicas {
                let metrics = replica.gateway.metrics().await;
                hearing += metrics.sum("sse_gateway_recorder_in_sync");
            }
            match self.store.redis.in_sync_recorders().await {
                2.. if hearing >= 2.0 => Ok(()),
                some => Err(format!("{some}, of which {hearing} hear")),
            }
        })
        .await;
    }

    /// Waits until the first replica has released everything of departed clients, if it lived through all faults.
    pub(crate) async fn at_rest(&self) {
        if !self.spare_the_first {
            return;
        }
        let most = self.idle_files + KEPT_FILES;
        eventually(
            "nothing is left of clients",
            PATIENCE,
            async || match self.replicas[0].gateway.open_files() {
                few if few <= most => Ok(()),
                many => Err(format!("{many} open files, {most} expected")),
            },
        )
        .await;
    }

    /// Chooses the replicas that a fault affects.
    pub(crate) async fn targets(&self, random: &mut Rng) -> Targets {
        let recorder = self.recorder().await;
        let spared = self.spare_the_first.then_some(0);
        let others: Vec<_> = (0..self.replicas.len())
            .filter(|number| *number != recorder && Some(*number) != spared)
            .collect();
        let other = *random.choice(&others).expect("several replicas");
        let metrics = self.replicas[other].gateway.metrics().await;
        Targets {
            recorder,
            other,
            other_has_recorder: metrics.sum("sse_gateway_recorder_subscribed") > 0.0,
        }
    }

    /// Applies these faults at about the same time, and returns when they are over.
    pub(crate) async fn inflict(
        &mut self,
        faults: &[Fault],
        targets: Targets,
        fleet: &Fleet,
        random: &mut Rng,
    ) -> Times {
        let spared = self.spare_the_first.then_some(0);
        let last = random.usize(..faults.len());
        let apart = APART.mul_f64(random.f64());
        let (unheard, stall) = (random.usize(..self.replicas.len()), random.f64());
        let (addresses, admins) = (self.addresses.clone(), self.admins.clone());
        // Returns the fault of a domain when it is due.
        let of = async |domain| {
            let mut numbered = faults.iter().copied().enumerate();
            let (number, fault) = numbered.find(|(_, fault)| fault.domain() == domain)?;
            if number == last && faults.len() > 1 {
                sleep(apart).await;
            }
            Some(fault)
        };
        let Self {
            replicas,
            links,
            store,
            link,
            dir,
            ..
        } = self;
        let other = replicas[targets.other].gateway.public;
        let redis = store.redis.address();
        let replicas_ = async {
            match of(Domain::Replicas).await {
                Some(fault) => Some(
                    on_replicas(
                        fault,
                        replicas,
                        links,
                        dir,
                        targets,
                        spared,
                        [&addresses, &admins],
                    )
                    .await,
                ),
                None => None,
            }
        };
        let store_ = async {
            match of(Domain::Redis).await {
                Some(fault) if fault.needs_sentinels() => {
                    Some(failover::inflict(fault, store, &links[unheard], stall).await)
                }
                Some(fault) => {
                    let links = links.iter().flatten().chain(link.as_ref());
                    Some(on_redis(fault, store, &links.collect::<Vec<_>>(), fleet).await)
                }
                None => None,
            }
        };
        let network = async {
            match of(Domain::Network).await {
                Some(fault) => Some(on_network(fault, links, targets, [other, redis]).await),
                None => None,
            }
        };
        let clients = async {
            match of(Domain::Clients).await {
                Some(fault) => Some(on_clients(fault, fleet, &addresses, redis).await),
                None => None,
            }
        };
        let (a, b, c, d) = tokio::join!(replicas_, store_, network, clients);
        [a, b, c, d].into_iter().flatten().collect()
    }

    /// Restarts the replicas that have ended, after a while. If there is a new master, all other nodes become its
    /// copies.
    pub(crate) async fn repair(&mut self) {
        if let Some(sentinels) = &mut self.store.sentinels {
            sentinels.settle(&mut self.store.redis).await;
        }
        if self.replicas.iter().all(|replica| replica.ended.is_none()) {
            return;
        }
        sleep(AWAY).await;
        for (replica, links) in self.replicas.iter_mut().zip(&self.links) {
            if replica.ended.is_some() {
                replica.replace(&self.dir, links).await;
            }
        }
        publish_addresses(&self.replicas, &self.addresses, &self.admins);
    }

    /// Prepares the site for these faults.
    pub(crate) async fn prepare(&mut self, faults: &[Fault]) {
        if faults.contains(&Fault::Promote) {
            self.store.stand_by().await;
        }
        if self.spare_the_first && faults.iter().any(|fault| fault.ends_recorder()) {
            self.relieve_the_first().await;
        }
    }

    /// Makes sure that the spared replica does not record.
    async fn relieve_the_first(&self) {
        if self.recorder().await != 0 {
            return;
        }
        let gateway = &self.replicas[0].gateway;
        gateway.pause();
        self.recorder_among(1..self.replicas.len()).await;
        gateway.go_on();
        self.settle().await;
    }

    /// Which replica records.
    async fn recorder(&self) -> usize {
        self.recorder_among(0..self.replicas.len()).await
    }

    /// Waits until one of these replicas records.
    async fn recorder_among(&self, numbers: Range<usize>) -> usize {
        eventually("a replica records", PATIENCE, async || {
            for number in numbers.clone() {
                let replica = &self.replicas[number];
                let metrics = replica.gateway.try_metrics().await;
                let active = metrics.map(|metrics| metrics.sum("sse_gateway_recorder_active"));
                if active.is_ok_and(|active| active == 1.0) {
                    return Ok(number);
                }
            }
            Err("none does".to_owned())
        })
        .await
    }
}

impl Replica {
    /// The lines logged since the last call.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let log = self.gateway.process().log();
        let mut lines = std::mem::take(&mut self.lines);
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        lines.extend(log[self.seen.min(whole)..whole].lines().map(str::to_owned));
        self.seen = whole;
        lines
    }

    /// Starts a new process after the old one was killed or stopped.
    async fn replace(&mut self, dir: &Dir, links: &[FaultyLink]) {
        let status = self.gateway.process().exit().await;
        let ended = self.ended.take();
        // A killed process has no exit code.
        let expected = (ended == Some(Ended::Told)).then_some(0);
        assert_eq!(status.code(), expected, "a replica ended with {status}");
        self.lines = self.new_lines();
        self.seen = 0;
        self.gateway = gateway(dir, links).await;
    }
}

/// The replicas that a fault of one replica affects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    recorder: usize,
    /// A replica that does not record.
    other: usize,
    /// Whether it subscribes to raw messages all the same.
    pub(crate) other_has_recorder: bool,
}

/// Gives clients and operators the current addresses.
fn publish_addresses(replicas: &[Replica], addresses: &Replicas, admins: &Replicas) {
    let gateways = replicas.iter().map(|replica| &replica.gateway);
    admins.set_addresses(gateways.clone().map(|gateway| gateway.admin).collect());
    addresses.set(gateways);
}

/// A replica that reaches Redis, or sentinels, over these links. It listens, but may not be ready.
async fn gateway(dir: &Dir, links: &[FaultyLink]) -> Gateway {
    let mut command = Gateway::command();
    if let [redis] = links {
        command.args(["--redis-url", &redis.url()]);
    } else {
        let sentinels = links.iter().map(|link| link.address.to_string());
        let sentinels = sentinels.collect::<Vec<_>>().join(",");
        command.args(["--redis-url", &format!("redis://{MASTER}")]);
        command.args(["--redis-sentinels", &sentinels]);
    }
    command
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--workers", "1"])
        .args(["--retry", "500ms", "--heartbeat", "1s"])
        .args(["--drain-delay", "0s", "--drain-window", "1s"])
        .args(["--max-stream-rate", "0"])
        .args(["--max-channel-rate-per-address", "0"])
        // This is a second or two of events. A client that is away for longer, or slow, reads history.
        .args(["--channel-buffer-bytes", "4KiB"])
        .args(["--publish-token", TOKEN, "--log-format", "json"])
        .arg("--config")
        .arg(dir.path().join(CONFIG));
    Gateway::of(command).await
}

async fn on_replicas(
    fault: Fault,
    replicas: &mut [Replica],
    links: &[Vec<FaultyLink>],
    dir: &Dir,
    targets: Targets,
    spared: Option<usize>,
    [addresses, admins]: [&Replicas; 2],
) -> Times {
    let from = micros_since_epoch();
    let target = match fault {
        Fault::KillRecorder | Fault::TermRecorder | Fault::StopRecorder => targets.recorder,
        _ => targets.other,
    };
    let over = match fault {
        Fault::KillReplica | Fault::KillRecorder => {
            replicas[target].gateway.process().kill();
            replicas[target].ended = Some(Ended::Killed);
            micros_since_epoch()
        }
        Fault::TermReplica | Fault::TermRecorder => {
            replicas[target].gateway.process().signal("TERM");
            replicas[target].ended = Some(Ended::Told);
            micros_since_epoch()
        }
        Fault::RollingRestart => {
            let mut over = from;
            for number in (0..replicas.len()).filter(|number| Some(*number) != spared) {
                let replica = &mut replicas[number];
                replica.gateway.process().signal("TERM");
                replica.ended = Some(Ended::Told);
                over = micros_since_epoch();
                replica.replace(dir, &links[number]).await;
                replica.gateway.ready().await;
                publish_addresses(replicas, addresses, admins);
            }
            over
        }
        Fault::StopReplica | Fault::StopRecorder => {
            let gateway = &replicas[target].gateway;
            gateway.pause();
            sleep(HOLD).await;
            gateway.go_on();
            micros_since_epoch()
        }
        Fault::NoFiles => {
            let gateway = &mut replicas[target].gateway;
            // The limit is below the current count, so a client that leaves makes no room.
            gateway.process().limit("nofile", Some(1));
            // Other clients connect at random times, and this one now.
            let _comer = TcpStream::connect(gateway.public).await;
            sleep(HOLD).await;
            gateway.process().limit("nofile", None);
            micros_since_epoch()
        }
        other => unreachable!("{other:?} is not done to replicas"),
    };
    Times { from, over }
}

async fn on_clients(fault: Fault, fleet: &Fleet, addresses: &Replicas, redis: SocketAddr) -> Times {
    let from = micros_since_epoch();
    match fault {
        Fault::None => sleep(HOLD).await,
        Fault::Stampede => cut_half(fleet, Duration::ZERO).await,
        Fault::NeverReading => {
            let filled = async { append(&mut connect(redis).await?, BURST, TOO_MUCH).await };
            // Another fault may keep Redis away, or read-only.
            filled
                .await
                .unwrap_or_else(|error| report_progress(format_args!("({error}) ")));
            let mut sockets = Vec::new();
            for turn in 0..50 {
                // Another fault may keep the replica away.
                sockets.extend(ask_for_everything(addresses.at(turn)).await.ok());
            }
            sleep(HOLD).await;
        }
        Fault::Churn => {
            let deadline = Instant::now() + HOLD;
            let mut comers = JoinSet::new();
            for comer in 0..8 {
                let addresses = addresses.clone();
                comers.spawn(async move {
                    let mut turn = comer;
                    while Instant::now() < deadline {
                        come_and_go(addresses.at(turn), turn % 2 == 0).await;
                        turn += 1;
                    }
                });
            }
            comers.join_all().await;
        }
        other => unreachable!("{other:?} is not done to clients"),
    }
    let over = micros_since_epoch();
    Times { from, over }
}

/// Cuts half of the clients. When this returns, each of them has been disconnected, except clients that stall.
async fn cut_half(fleet: &Fleet, spread: Duration) {
    let ordered = || fleet.counts()[2];
    let before = ordered();
    fleet.cut_some(0.5, spread);
    let least = fleet.len() as u64 / 4;
    eventually("half are cut", PATIENCE, async || {
        match ordered() - before {
            enough if enough >= least => Ok(()),
            few => Err(format!("{few} of {}", fleet.len())),
        }
    })
    .await;
}

/// A client that asks for all events and never reads.
async fn ask_for_everything(replica: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut socket = socket.connect(replica).await?;
    let channels = CHANNELS.join("&channel=");
    let head = format!(
        "GET /events?channel={BURST}&channel={channels}&since=start HTTP/1.1\r\nHost: localhost\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    Ok(socket)
}

/// A client that leaves before the answer or right after it.
async fn come_and_go(replica: SocketAddr, with_reset: bool) {
    // The client leaves in any case, so it ignores a refusal.
    let Ok(mut socket) = TcpStream::connect(replica).await else {
        return sleep(Duration::from_millis(1)).await;
    };
    let head = b"GET /events?channel=c0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    if with_reset {
        // Closing sends a reset, so no port remains in TIME_WAIT.
        socket.set_zero_linger().ok();
        socket.write_all(head).await.ok();
    } else if socket.write_all(head).await.is_ok() {
        socket.readable().await.ok();
    }
}

async fn on_redis(fault: Fault, store: &mut Store, links: &[&FaultyLink], fleet: &Fleet) -> Times {
    let from = micros_since_epoch();
    let mut commands = store.redis.connect().await;
    match fault {
        Fault::KillPubsub => _ = commands.run("CLIENT KILL TYPE pubsub").await,
        Fault::KillCommands => {
            for client in store.redis.clients().await {
                if client.subscriptions == 0 && client.name != "test" {
                    // It may have closed by itself.
                    let id = client.id.to_string();
                    in_time(
                        "CLIENT KILL",
                        commands.call(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]),
                    )
                    .await
                    .expect("Redis answers");
                }
            }
        }
        Fault::ClientPause => {
            commands.run("CLIENT PAUSE 2000 ALL").await;
            sleep(Duration::from_secs(2)).await;
        }
        Fault::ScriptFlush => {
            commands.run("SCRIPT FLUSH").await;
            commands.run("FUNCTION FLUSH").await;
        }
        Fault::Trim => {
            cut_half(fleet, Duration::from_secs(2)).await;
            sleep(Duration::from_secs(1)).await;
            for channel in CHANNELS {
                let log = Redis::key("log", channel, 1);
                commands.run(&format!("XTRIM {log} MAXLEN 1")).await;
            }
            let log = Redis::key("log", CHANNELS[0], 1);
            commands.run(&format!("DEL {log}")).await;
        }
        Fault::FlushAll => _ = commands.run("FLUSHALL").await,
        Fault::OutOfMemory => {
            commands.run("CONFIG SET maxmemory 1").await;
            sleep(HOLD).await;
            commands.run("CONFIG SET maxmemory 0").await;
        }
        Fault::Evict => {
            // Adds enough data for an eviction.
            let appended = in_time("ballast", append(&mut commands, "ballast", 500)).await;
            appended.expect("Redis answers");
            let used = store.redis.info("used_memory").await;
            let used: u64 = used.and_then(|used| used.parse().ok()).expect("a number");
            let least = used - (2 << 20);
            let set = format!("CONFIG SET maxmemory-policy allkeys-lru maxmemory {least}");
            commands.run(&set).await;
            sleep(HOLD).await;
            eventually("a key is evicted", PATIENCE, async || {
                match store.redis.info("evicted_keys").await.as_deref() {
                    None | Some("0") => Err("none is".to_owned()),
                    Some(_) => Ok(()),
                }
            })
            .await;
            let set = "CONFIG SET maxmemory-policy noeviction maxmemory 0";
            commands.run(set).await;
        }
        Fault::DiskFull => {
            // The next write exceeds the limit.
            store.redis.process().limit("fsize", Some(1));
            sleep(HOLD).await;
            store.redis.process().limit("fsize", None);
        }
        Fault::StopRedis => {
            store.redis.pause();
            sleep(HOLD).await;
            store.redis.go_on();
        }
        Fault::RestartRedis => {
            store.redis.stop().await;
            sleep(AWAY).await;
            store.redis.restart().await;
        }
        Fault::KillRedis => {
            store.redis.kill();
            sleep(AWAY).await;
            store.redis.restart().await;
        }
        Fault::Promote => return promote(store, links).await,
        other => unreachable!("{other:?} is not done to Redis"),
    }
    let over = micros_since_epoch();
    Times { from, over }
}

impl Store {
    /// Starts a copy with the other kind of clock. It is up to date when this returns.
    async fn stand_by(&mut self) {
        let clock: &[&str] = if self.behind { &[] } else { &SLOW_CLOCK };
        let mut copy = Redis::stopped(&DURABLE).through(clock).through(&LIMITED);
        copy.restart().await;
        let start = Instant::now();
        let mut replication = copy.connect().await;
        let time = replication.run("TIME").await.array()[0].text();
        let now = micros_since_epoch() / 1_000_000;
        let behind = now.saturating_sub(time.parse::<u64>().expect("seconds"));
        assert_eq!(
            behind > 10,
            !self.behind,
            "the clock is {behind} s behind: is libfaketime there?"
        );
        let port = self.redis.address().port();
        replication
            .run(&format!("REPLICAOF 127.0.0.1 {port}"))
            .await;
        eventually("the copy is complete", 2 * PATIENCE, async || {
            let link = copy.info("master_link_status").await.unwrap_or_default();
            if link == "up" && start.elapsed() > STANDBY {
                Ok(())
            } else {
                Err(link)
            }
        })
        .await;
        self.standby = Some(copy);
    }
}

/// The copy misses a second. Then the Redis dies, and the copy replaces it.
async fn promote(store: &mut Store, links: &[&FaultyLink]) -> Times {
    let copy = store.standby.take().expect("it was made before");
    let from = micros_since_epoch();
    copy.connect().await.run("REPLICAOF NO ONE").await;
    sleep(Duration::from_secs(1)).await;
    store.redis.kill();
    store.redis = copy;
    store.behind = !store.behind;
    for link in links {
        link.redirect_to(store.redis.address());
    }
    let over = micros_since_epoch();
    Times { from, over }
}

async fn on_network(
    fault: Fault,
    links: &[Vec<FaultyLink>],
    targets: Targets,
    [replica, redis]: [SocketAddr; 2],
) -> Times {
    let from = micros_since_epoch();
    let met = match fault {
        Fault::CutRecorder
        | Fault::DelayRecorder
        | Fault::HalfOpenRecorder
        | Fault::BlackholeRecorder => &links[targets.recorder..=targets.recorder],
        _ => links,
    };
    match fault {
        Fault::Cut | Fault::CutRecorder => {
            for link in met.iter().flatten() {
                link.cut();
            }
            sleep(Duration::from_secs(2)).await;
        }
        Fault::Delay | Fault::DelayRecorder => {
            for link in met.iter().flatten() {
                link.slow_down(Duration::from_millis(200));
            }
            sleep(HOLD).await;
        }
        Fault::HalfOpen | Fault::HalfOpenRecorder => {
            for link in met.iter().flatten() {
                link.go_silent();
            }
        }
        Fault::Blackhole | Fault::BlackholeRecorder => {
            for link in met.iter().flatten() {
                link.drop_everything();
            }
            sleep(Duration::from_secs(5)).await;
        }
        Fault::OutputBuffer => {
            let filled = fill(&links[targets.other][0], replica, redis).await;
            // The rows show which other fault prevented it.
            filled.unwrap_or_else(|error| report_progress(format_args!("({error}) ")));
        }
        other => unreachable!("{other:?} is not done to the network"),
    }
    for link in links.iter().flatten() {
        link.restore();
    }
    let over = micros_since_epoch();
    Times { from, over }
}

/// Publishes more than Redis buffers for a replica that does not read.
///
/// # Errors
///
/// If another fault stops Redis or changes the subscribers at the same time.
async fn fill(link: &FaultyLink, replica: SocketAddr, redis: SocketAddr) -> std::io::Result<()> {
    // Makes sure that the replica is subscribed. If another fault keeps it away, Redis has no connection to cut.
    let mut client = Client::new(format!("/events?channel={BURST}"));
    client
        .connect(replica)
        .await
        .map_err(std::io::Error::other)?;
    timeout(PATIENCE, client.next()).await.ok();
    let mut commands = connect(redis).await?;
    limit_output(&mut commands, "pubsub 262144 262144 1").await?;
    let before = subscribers(&mut commands).await?;
    link.hold();
    let filled = async {
        // This is more than Redis and all sockets on the way hold, but less than the history of the channel.
        for _ in 0..60 {
            if subscribers(&mut commands).await? < before {
                return Ok(());
            }
            append(&mut commands, BURST, 50).await?;
        }
        Err(std::io::Error::other("redis cut nobody off"))
    };
    let filled = filled.await;
    limit_output(&mut connect(redis).await?, "pubsub 33554432 8388608 60").await?;
    filled
}

/// Appends this many payloads of [`filler`].
///
/// # Errors
///
/// If Redis is stopped at the same time.
async fn append(commands: &mut Commands, channel: &str, count: usize) -> std::io::Result<()> {
    let payload = filler(channel);
    let calls = vec![append_call(channel, &payload).to_vec(); count];
    commands.call_all(&calls).await.map(drop)
}

/// Its name distinguishes the connection from those of the gateways.
async fn connect(redis: SocketAddr) -> std::io::Result<Commands> {
    let mut commands = Commands::connect(redis).await?;
    commands.call(&[b"CLIENT", b"SETNAME", b"test"]).await?;
    Ok(commands)
}

async fn limit_output(commands: &mut Commands, limit: &str) -> std::io::Result<()> {
    let limit = limit.as_bytes();
    let words = [b"CONFIG", &b"SET"[..], b"client-output-buffer-limit", limit];
    commands.call(&words).await.map(drop)
}

async fn subscribers(commands: &mut Commands) -> std::io::Result<usize> {
    let list = commands.call(&[b"CLIENT", b"LIST"]).await?;
    let clients = RedisClient::read_all(&list.text()).into_iter();
    Ok(clients.filter(|client| client.subscriptions > 0).count())
}
