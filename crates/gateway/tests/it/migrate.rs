//! `sse-gateway migrate`: a deployment moves to another Redis while it is used.

use std::{net::SocketAddr, time::Duration};

use testkit::{
    Goal, Message,
    lab::{Cluster, append_call},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    redis_users,
    support::{
        Commands, Fleet, Gateway, KEEP_ALL, Load, PATIENCE, Plan, Process, Redis, Replicas, Reply,
        Viewer, among_others, assert_exact, data, eventually, gaps, heavy, next_number, recording,
        texts,
    },
};

/// The command with these flags, separated by spaces.
fn migrate(options: &str) -> Process {
    let mut command = Gateway::command();
    command.arg("migrate").args(options.split_whitespace());
    Process::start("sse-gateway migrate", &mut command)
}

/// Waits until the command has printed a line with these words, and returns the line.
async fn printed(process: &mut Process, words: &str) -> String {
    let what = format!("migrate prints {words:?}");
    eventually(&what, 2 * PATIENCE, async || {
        let output = process.output();
        let line = output.lines().find(|line| line.contains(words));
        if line.is_none()
            && let Some(status) = process.exited()
        {
            panic!("migrate ended: {status}\n{output}{}", process.log());
        }
        line.map(str::to_owned).ok_or(output)
    })
    .await
}

/// Runs the command to its end. Returns whether it succeeded, and its output.
async fn run(options: &str) -> (bool, String) {
    let mut process = migrate(options);
    let status = process.exit_within(2 * PATIENCE).await;
    (status.success(), process.output() + &process.log())
}

/// A publisher that needs an answer to each message, and repeats it at the next place until it has one.
struct Publisher {
    stop: watch::Sender<bool>,
    task: JoinHandle<Goal>,
}

/// Where it publishes.
#[derive(Clone)]
enum Way {
    /// FCALL, at the servers of any of these.
    Call(Vec<SocketAddr>),
    /// POST, at any of these gateways.
    Post(Replicas),
}

impl Publisher {
    fn start(name: &'static str, channels: &[String], pace: Duration, way: Way) -> Self {
        let (stop, stopped) = watch::channel(false);
        let channels = channels.to_vec();
        let task = tokio::spawn(async move {
            let mut pace = interval(pace);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut sent, mut place) = (Goal::new(), 0);
            let mut turn = channels.iter().cycle();
            while !*stopped.borrow() {
                pace.tick().await;
                let channel = turn.next().expect("there are channels");
                let seq = next_number(&mut sent, name, channel);
                let payload = Message::now(name, channel, seq).to_string();
                let key = format!("{name}-{channel}-{seq}");
                // Any refusal is repeated elsewhere, also one without an answer: the key makes it exact.
                let mut last = Err(String::new());
                for _ in 0..2000 {
                    last = way.publish(place, channel, &payload, &key).await;
                    if last.is_ok() {
                        break;
                    }
                    place += 1;
                    sleep(Duration::from_millis(5)).await;
                }
                last.unwrap_or_else(|error| panic!("{name} cannot publish: {error}"));
            }
            sent
        });
        Self { stop, task }
    }

    async fn stop(self) -> Goal {
        self.stop.send_replace(true);
        self.task.await.expect("a publisher does not fail")
    }
}

impl Way {
    async fn publish(
        &self,
        place: usize,
        channel: &str,
        payload: &str,
        key: &str,
    ) -> Result<(), String> {
        match self {
            Self::Call(servers) => {
                let server = servers[place % servers.len()];
                let [fcall, function, keys, channel, payload] = append_call(channel, payload);
                let call = [fcall, function, keys, channel, payload, key.as_bytes()];
                let mut commands = Commands::connect(server)
                    .await
                    .map_err(|error| error.to_string())?;
                match commands
                    .call(&call)
                    .await
                    .map_err(|error| error.to_string())?
                {
                    Reply::Error(error) => Err(error),
                    _ => Ok(()),
                }
            }
            Self::Post(replicas) => {
                let request = format!(
                    "POST /events?channel={channel} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                     Authorization: Bearer t\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{payload}",
                    payload.len()
                );
                let answer = testkit::request(replicas.at(place), request.as_bytes()).await;
                let answer = answer.map_err(|error| error.to_string())?;
                match answer.head.status {
                    201 => Ok(()),
                    status => {
                        let after = answer.head.field("retry-after");
                        assert!(
                            status == 503 && after.is_some(),
                            "{status}: {}",
                            answer.body
                        );
                        Err(answer.body)
                    }
                }
            }
        }
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("m{number}")).collect()
}

/// Breaks when the move to a Redis Cluster with more partitions costs a client more than a reconnect, or when its id from
/// before is not exact. Breaks also when a message is lost or repeated on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_moves_to_a_cluster_and_clients_miss_nothing() {
    let _machine = heavy().await;
    let (redis, cluster) = tokio::join!(Redis::start(), Cluster::start(3, 0, 2000));
    let one = "--publish-token t --drain-window 1s";
    let a = Gateway::start_with(&redis, one, KEEP_ALL).await;
    let b = Gateway::start_with(&redis, one, KEEP_ALL).await;
    recording([&a, &b], 1).await;
    let before = redis.append_many("old", 20).await;
    let channels = names(6);
    let plans = (0..40).map(|client| {
        let own = [
            &channels[..],
            &channels[..1],
            &channels[1..3],
            &channels[5..],
        ];
        Plan::new(own[client % 4], client)
    });
    let replicas = Replicas::of([&a, &b]);
    let fleet = Fleet::start(plans, &replicas, 16, &["raw", "raw2", "call", "post"]);
    fleet.open().await;
    let raw = Load::publish(&redis, "raw", &channels, 300, 100).await;
    let mut servers = vec![redis.address()];
    servers.extend(cluster.nodes.iter().map(Redis::address));
    let pace = Duration::from_millis(7);
    let call = Publisher::start("call", &channels, pace, Way::Call(servers));
    let post = Publisher::start("post", &channels, pace, Way::Post(replicas.clone()));
    fleet.progress(300).await;

    let seeds = cluster.seeds();
    let mut migration = migrate(&format!(
        "--from {} --to redis://any --to-cluster {seeds} --partitions 16",
        redis.url()
    ));
    printed(&mut migration, "copying").await;
    let sixteen = format!("{one} --redis-url redis://any --redis-cluster {seeds} --partitions 16");
    let c = Gateway::start_unready(&cluster.nodes[0], &sixteen, KEEP_ALL).await;
    let d = Gateway::start_unready(&cluster.nodes[0], &sixteen, KEEP_ALL).await;
    let moved = printed(&mut migration, "moved: ").await;
    assert!(moved.contains("1 to 16 partitions"), "{moved}");
    let pause = moved.rsplit(' ').nth(1).and_then(|it| it.parse().ok());
    assert!(pause.is_some_and(|pause: u64| pause < 5000), "{moved}");
    for new in [&c, &d] {
        new.ready().await;
    }
    replicas.set([&c, &d]);
    for mut old in [a, b] {
        old.process().exit().await;
    }
    fleet.open().await;
    fleet.progress(300).await;
    fleet.cut(1, Duration::from_millis(100));
    fleet.open().await;
    let mut goal = raw.stop().await;
    // Publishers of raw messages may change over one by one.
    let new = Load::publish(&cluster.nodes[1], "raw2", &["m0".to_owned()], 50, 100).await;
    fleet.progress(100).await;
    goal.extend(new.stop().await);
    goal.extend(call.stop().await);
    goal.extend(post.stop().await);
    fleet.reach(&goal, PATIENCE).await;
    migration.signal("INT");
    assert!(migration.exit().await.success(), "{}", migration.log());
    let done = printed(&mut migration, "done: ").await;
    assert!(!done.contains("interrupted"), "{done}");
    assert_eq!(redis.connect().await.publish("m0", "x").await, 0);
    assert_exact(&fleet.finish(&goal, PATIENCE).await);

    // An id of the one partition, for channels in several of the sixteen.
    let id = before[9].to_string();
    let query = "channel=old&channel=m0&channel=m1&channel=m2";
    let mut viewer = Viewer::resume(&c, query, &id).await;
    post_to(&c, "old", "end").await;
    let events = viewer.until("end").await;
    assert_eq!(gaps(&events), []);
    let old = texts(&events)
        .iter()
        .filter(|it| it.starts_with('n'))
        .count();
    assert_eq!(old, 10);
}

async fn post_to(gateway: &Gateway, channel: &str, payload: &str) {
    let path = format!("/events?channel={channel}");
    let bearer = "Authorization: Bearer t\r\n";
    let posted = gateway.post(&path, bearer, payload).await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
}

/// Breaks when the command leaves something behind that it does not find again after it was killed, when both Redis take
/// events, or when none does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_was_killed_is_continued() {
    let _machine = heavy().await;
    let (from, to) = (Redis::start().await, Redis::start().await);
    let old = "--partitions 2 --publish-token t --drain-window 1s";
    let a = Gateway::start_with(&from, old, KEEP_ALL).await;
    recording([&a], 2).await;
    let channels = names(40);
    let replicas = Replicas::of([&a]);
    let plans = channels
        .iter()
        .map(|it| Plan::new(std::slice::from_ref(it), 0));
    let mut plans: Vec<_> = plans.collect();
    plans.extend((0..4).map(|part| Plan::new(&channels[10 * part..][..10], 0)));
    let fleet = Fleet::start(plans, &replicas, 8, &["call", "post"]);
    fleet.open().await;
    let servers = vec![from.address(), to.address()];
    let pace = Duration::from_millis(2);
    let call = Publisher::start("call", &channels, pace, Way::Call(servers));
    let post = Publisher::start("post", &channels, pace, Way::Post(replicas.clone()));
    fleet.progress(20).await;
    let options = format!("--from {} --to {} --partitions 8", from.url(), to.url());
    let mut c = None;
    for step in 0..20 {
        let mut process = migrate(&options);
        printed(&mut process, "copying").await;
        if c.is_none() {
            let new = old.replace("--partitions 2", "--partitions 8");
            c = Some(Gateway::start_unready(&to, &new, KEEP_ALL).await);
        }
        sleep(Duration::from_millis(3 * step)).await;
        let is_done = process.output().contains("moved: ");
        process.kill();
        if is_done {
            break;
        }
    }
    let mut migration = migrate(&options);
    printed(&mut migration, "relaying").await;
    let c = c.expect("it was started");
    c.ready().await;
    replicas.set([&c]);
    fleet.progress(20).await;
    fleet.cut(0, Duration::ZERO);
    fleet.open().await;
    let mut goal = call.stop().await;
    goal.extend(post.stop().await);
    fleet.reach(&goal, PATIENCE).await;
    migration.signal("TERM");
    assert!(migration.exit().await.success(), "{}", migration.log());
    assert_exact(&fleet.finish(&goal, PATIENCE).await);
    let refused = from.connect().await.call(&append_call("m0", "x")).await;
    assert!(
        matches!(&refused, Ok(Reply::Error(error)) if error.starts_with("MIGRATED ")),
        "{refused:?}"
    );
}

/// A step of a migration in the one partition, as the command makes it.
async fn step(redis: &Redis, step: &str) -> Reply {
    let mut commands = redis.connect().await;
    let clock = "ssegw:{8209}:clock";
    let phase = commands
        .run(&format!("HGET {clock} migration"))
        .await
        .text();
    let name = phase.split(' ').nth(1).expect("a migration has begun");
    let keys = format!("{clock} ssegw:{{8209}}:lease ssegw:{{8209}}:ends");
    commands
        .run(&format!("FCALL ssegw_migrate 3 {keys} {name} {step} x"))
        .await
}

/// Breaks when the source stays closed after the command has died, or when it opens after the commit. Breaks also when
/// messages that no recorder could record are missing without a gap.
#[tokio::test]
async fn a_migration_that_died_at_the_switch_opens_the_source_or_is_completed() {
    let _machine = among_others().await;
    let (from, to) = (Redis::start().await, Redis::start().await);
    let a = Gateway::start(&from, "--publish-token t").await;
    recording([&a], 1).await;
    let mut viewer = Viewer::open(&a, "channel=news").await;
    let start = viewer.open.id.clone();
    from.connect().await.publish("news", "raw").await;
    viewer.until("raw").await;
    let options = format!("--from {} --to {}", from.url(), to.url());
    let mut process = migrate(&options);
    printed(&mut process, "waiting until gateways wait").await;
    process.kill();
    step(&from, "close").await;
    let bearer = "Authorization: Bearer t\r\n";
    let refused = a.post("/events?channel=news", bearer, "x").await;
    assert_eq!(refused.head.status, 503, "{}", refused.body);
    assert!(refused.head.field("retry-after").is_some());
    from.connect()
        .await
        .publish("news", "raw while closed")
        .await;
    eventually("it takes events again", PATIENCE, async || {
        let posted = a.post("/events?channel=news", bearer, "posted").await;
        match posted.head.status {
            201 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    // Its recorder has kept the message.
    let events = viewer.until("raw while closed").await;
    assert_eq!(data(&events), ["posted", "raw while closed"]);

    step(&from, "close").await;
    step(&from, "commit").await;
    from.connect().await.publish("news", "lost").await;
    let c = Gateway::start_unready(&to, "--publish-token t", "").await;
    let (is_done, printed_by) = run(&format!("{options} --relay-until-quiet 100ms")).await;
    assert!(is_done && printed_by.contains("moved: "), "{printed_by}");
    c.ready().await;
    post_to(&c, "news", "end").await;
    let mut resumed = Viewer::resume(&c, "channel=news", &start).await;
    let events = resumed.until("end").await;
    let expected = ["raw", "posted", "raw while closed", "<gap>", "end"];
    assert_eq!(data(&events), expected);
}

/// Breaks when raw messages that are published at the earlier Redis are lost without a gap, because the command that
/// relays them was killed; or when the next one does not continue.
#[tokio::test]
async fn a_relay_that_was_killed_leaves_a_gap() {
    let _machine = among_others().await;
    let (from, to) = (Redis::start().await, Redis::start().await);
    let a = Gateway::start(&from, "--publish-token t").await;
    recording([&a], 1).await;
    let mut backend = from.connect().await;
    backend.publish("news", "first").await;
    let options = format!("--from {} --to {} --partitions 4", from.url(), to.url());
    let mut process = migrate(&options);
    printed(&mut process, "copying").await;
    let c = Gateway::start_unready(&to, "--partitions 4", "").await;
    printed(&mut process, "relaying").await;
    c.ready().await;
    let mut viewer = Viewer::open(&c, "channel=news").await;
    backend.publish("news", "relayed").await;
    assert_eq!(data(&viewer.until("relayed").await), ["relayed"]);
    process.kill();
    backend.publish("news", "lost").await;
    let mut process = migrate(&options);
    printed(&mut process, "relaying raw messages").await;
    backend.publish("news", "again").await;
    let events = viewer.until("again").await;
    assert_eq!(data(&events), ["<gap>", "again"]);
    process.signal("INT");
    assert!(process.exit().await.success(), "{}", process.log());
    // It was ended in order.
    let mut process = migrate(&options);
    printed(&mut process, "relaying raw messages").await;
    backend.publish("news", "at last").await;
    assert_eq!(data(&viewer.until("at last").await), ["at last"]);
    process.signal("INT");
    assert!(process.exit().await.success(), "{}", process.log());
}

/// Breaks when a command that cannot work does not say why, or changes something.
#[tokio::test]
async fn a_migration_that_cannot_work_is_refused() {
    let _machine = among_others().await;
    let (from, to, empty) = (
        Redis::start().await,
        Redis::start().await,
        Redis::start().await,
    );
    let _a = Gateway::start(&from, "--partitions 2").await;
    let _other = Gateway::start(&to, "").await;
    let (source, occupied, empty_url) = (from.url(), to.url(), empty.url());
    for (options, expected) in [
        (format!("--from {source}"), "--to"),
        (format!("--to {source}"), "--from"),
        (
            format!("--from {source} --to {source}"),
            "--to is the same Redis as --from",
        ),
        (
            format!("--from {empty_url} --to {source}"),
            "--from holds no deployment",
        ),
        (
            format!("--from {source} --to {occupied}"),
            "--to holds a deployment with 1 partitions already",
        ),
        (
            format!("--from {source} --to {empty_url} --partitions 3"),
            "--partitions 3 is not a multiple of the 2 partitions at --from: the ids of clients would not be valid. 4 would",
        ),
        (
            format!("--from {source} --to redis://127.0.0.1:1"),
            "--to: no connection to redis at 127.0.0.1:1",
        ),
        (
            format!("--from {source} --to {empty_url} --max-pause x"),
            "--max-pause",
        ),
        (format!("--from {source} --to http://x"), "--to: "),
        (
            format!("--from {source} --abort"),
            "--from: no migration has begun there",
        ),
    ] {
        let (is_done, printed) = run(&options).await;
        assert!(
            !is_done && printed.contains(expected),
            "{options}: {printed}"
        );
    }
    let mut commands = from.connect().await;
    let other = b"#!lua name=ssegw\nlocal PARTITIONS = 2\nredis.register_function('sse_publish', function() end)";
    let load = [b"FUNCTION", &b"LOAD"[..], b"REPLACE", other];
    commands.call(&load).await.unwrap();
    let (is_done, printed) = run(&format!("--from {source} --to {empty_url}")).await;
    assert!(
        !is_done && printed.contains("of another version"),
        "{printed}"
    );
    let keys = empty.connect().await.run("DBSIZE").await.integer();
    assert_eq!(keys, 0);
}

/// Breaks when a migration cannot be ended before the deployment has moved, or when gateways use what it has left.
#[tokio::test]
async fn a_migration_can_be_aborted_and_begun_again() {
    let _machine = among_others().await;
    let (from, to) = (Redis::start().await, Redis::start().await);
    let a = Gateway::start(&from, "--publish-token t").await;
    recording([&a], 1).await;
    from.append("news", "one").await;
    let options = format!("--from {} --to {}", from.url(), to.url());
    let mut process = migrate(&options);
    printed(&mut process, "waiting until gateways wait at --to: 0 of 1").await;
    process.kill();
    let c = Gateway::start_unready(&to, "", "").await;
    c.readiness(503).await;
    let (is_done, printed_by) = run(&format!("{options} --abort")).await;
    assert!(is_done, "{printed_by}");
    post_to(&a, "news", "two").await;
    let head = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let why = testkit::request(c.admin, head).await.unwrap().body;
    assert_eq!(why, "sse-gateway migrate has not opened this redis yet\n");
    let (is_done, printed_by) = run(&format!("{options} --relay-until-quiet 100ms")).await;
    assert!(
        is_done && printed_by.contains("moved: 1 channels, 2 events"),
        "{printed_by}"
    );
    c.ready().await;
    let mut viewer = Viewer::open(&c, "channel=news&since=start").await;
    assert_eq!(data(&viewer.until("two").await), ["one", "two"]);
    let (is_done, printed_by) = run(&format!("{options} --abort")).await;
    assert!(!is_done && printed_by.contains("has moved"), "{printed_by}");
    let mut late = Gateway::command();
    late.args(["--redis-url", &from.url(), "--listen", "127.0.0.1:0"]);
    late.args(["--admin-listen", "127.0.0.1:0"]);
    let mut late = Process::start("sse-gateway", &mut late);
    assert!(!late.exit().await.success());
    let log = late.log();
    assert!(
        log.contains("the events of this redis have moved to another one"),
        "{log}"
    );
    let (is_done, printed_by) = run(&format!("{options} --relay-until-quiet 100ms")).await;
    assert!(
        is_done && printed_by.contains("is open already"),
        "{printed_by}"
    );
}

/// Breaks when the command uses a command, a key or a channel that the documented users may not.
#[tokio::test]
async fn the_documented_users_are_enough() {
    let _machine = among_others().await;
    let (from, to) = (Redis::start().await, Redis::start().await);
    let document = include_str!("../../../../docs/redis.md");
    for redis in [&from, &to] {
        let mut commands = redis.connect().await;
        redis_users::make_users(&mut commands).await;
        let rights = "+scan +zrangebyscore";
        assert!(document.contains(&format!("`{rights}`")));
        commands.run(&format!("ACL SETUSER gateway {rights}")).await;
    }
    let user = |redis: &Redis| format!("redis://gateway:SECRET@{}", redis.address());
    let (source, target) = (user(&from), user(&to));
    let a = Gateway::start(&from, &format!("--publish-token t --redis-url {source}")).await;
    recording([&a], 1).await;
    post_to(&a, "news", "posted").await;
    let options = format!("--from {source} --to {target} --partitions 2");
    let options = format!("{options} --gateways 0 --relay-until-quiet 100ms");
    let (is_done, printed_by) = run(&options).await;
    assert!(is_done, "{printed_by}");
    for redis in [&from, &to] {
        let mut commands = redis.connect().await;
        assert_eq!(redis_users::denied(&mut commands).await, [""; 0]);
    }
}
