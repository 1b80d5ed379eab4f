//! `sse-gateway doctor` finds faults between clients and replicas, and nothing where all is well.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use testkit::lab::free_port;

use crate::support::{
    Balancer, BufferingProxy, Dir, Gateway, HaProxy, Kind, MASTER, Nginx, PATIENCE, Place, Process,
    Redis, Sentinel, among_others, certificate, eventually, recording,
};

/// Exit status of the doctor if all is well,
const FINE: Option<i32> = Some(0);
/// if something is wrong,
const WRONG: Option<i32> = Some(1);
/// if the flags are wrong,
const USAGE: Option<i32> = Some(2);
/// and if nothing is wrong but something could not be examined.
const UNKNOWN: Option<i32> = Some(3);

/// Runs the doctor on this URL. Returns its exit status and its report.
async fn examine(redis: &Redis, url: &str, with: &impl Fn(&mut Command)) -> (Option<i32>, String) {
    let mut command = Gateway::command();
    command.args(["doctor", url]);
    command.env("SSE_GATEWAY_REDIS_URL", redis.url());
    with(&mut command);
    let mut process = Process::start("doctor", &mut command);
    let status = process.exit_within(2 * PATIENCE).await;
    (status.code(), process.output() + &process.log())
}

/// Examines, and expects exactly this finding. On a busy machine events and heartbeats may be late without a fault. So
/// one match in three runs is enough.
async fn finds(
    redis: &Redis,
    url: &str,
    with: impl Fn(&mut Command),
    status: Option<i32>,
    what: &[&str],
) {
    let mut reports = Vec::new();
    for _ in 0..3 {
        let (found, report) = examine(redis, url, &with).await;
        let wrong = report.lines().filter(|line| line.starts_with("WRONG"));
        // Exactly one thing is wrong, so one line names it.
        let blamed = usize::from(status == WRONG);
        if found == status && wrong.count() == blamed && what.iter().all(|what| says(&report, what))
        {
            return;
        }
        reports.push(report);
    }
    panic!("not {status:?} with {what:?}:\n{}", reports.join("\n"));
}

fn events(address: SocketAddr) -> String {
    format!("http://{address}/events")
}

fn idle(time: &'static str) -> impl Fn(&mut Command) {
    move |command| _ = command.args(["--idle", time])
}

/// The same, but nothing can be published.
fn idle_and_silent(time: &'static str) -> impl Fn(&mut Command) {
    move |command| {
        idle(time)(command);
        command.env("SSE_GATEWAY_REDIS_URL", "redis://127.0.0.1:1");
    }
}

fn says(report: &str, what: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    report.lines().any(|line| words(line).contains(what))
}

/// Two replicas that record, behind a balancer.
async fn two_behind(redis: &Redis, kind: Kind) -> ([Gateway; 2], Balancer) {
    let a = Gateway::start(redis, "--heartbeat 1s --publish-token t").await;
    let b = Gateway::start(redis, "--heartbeat 1s --publish-token t").await;
    recording([&a, &b], 1).await;
    let replicas = [&a, &b].map(Place::of);
    let balancer = Balancer::start(kind, &replicas, &[a.admin]).await;
    ([a, b], balancer)
}

/// Breaks when the doctor finds a fault where all is well, or takes two replicas for one.
#[tokio::test]
async fn all_is_well_behind_haproxy() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let ([a, _b], balancer) = two_behind(&redis, Kind::HaProxy).await;
    let what = [
        "ok stream 200",
        "advice http HTTP/1.1",
        "ok compression none",
        "ok caching",
        "ok buffering 5 events, each by itself",
        "ok resume 10 reconnects, each with exactly what it had missed, at 2 replicas",
        "ok idle",
        "ok heartbeats",
    ];
    finds(&redis, &events(balancer.public), idle("5s"), FINE, &what).await;
    // By POST through the balancer as well, and at a single replica.
    let post = |command: &mut Command| {
        command.args(["--idle", "3s", "--publish-token", "t"]);
        command.env_remove("SSE_GATEWAY_REDIS_URL");
    };
    let what = "advice resume 10 reconnects, each with exactly what it had missed, all at one";
    finds(&redis, &events(a.public), post, FINE, &[what]).await;
}

/// Breaks when Envoy holds events back, ends streams that are quiet for a while, or does not pass on the headers with
/// which a client resumes.
#[tokio::test]
async fn all_is_well_behind_envoy() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let ([_a, _b], balancer) = two_behind(&redis, Kind::Envoy).await;
    // By POST, through Envoy as well.
    let post = |command: &mut Command| {
        command.args(["--idle", "5s", "--publish-token", "t"]);
        command.env_remove("SSE_GATEWAY_REDIS_URL");
    };
    let what = [
        "ok stream 200",
        "advice http HTTP/1.1",
        "ok compression none",
        "ok caching",
        "ok buffering 5 events, each by itself",
        "resume 10 reconnects, each with exactly what it had missed",
        "ok idle",
        "ok heartbeats",
    ];
    finds(&redis, &events(balancer.public), post, FINE, &what).await;
}

/// Breaks when a balancer that damages streams is not noticed, or is blamed for another fault.
#[tokio::test]
async fn faults_of_nginx_are_named() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 5s").await;
    recording([&gateway], 1).await;
    for (lines, wrong) in [
        (
            // Bytes a second.
            "limit_rate 10; proxy_ignore_headers X-Accel-Buffering;",
            "WRONG stream no answer within 10s. Either nobody is there, or the answer is held back",
        ),
        (
            "proxy_read_timeout 3s;",
            "s: an idle timeout on the way is shorter than --heartbeat",
        ),
        (
            "proxy_hide_header Cache-Control;",
            "WRONG caching Cache-Control is absent",
        ),
        (
            "proxy_set_header Last-Event-ID \"\";",
            "WRONG resume after a reconnect with Last-Event-ID",
        ),
        ("return 404;", "WRONG stream answered 404 Not Found"),
    ] {
        let nginx = Nginx::before(&gateway, lines).await;
        finds(&redis, &events(nginx.public), idle("8s"), WRONG, &[wrong]).await;
    }
    let gzip = "gzip on; gzip_proxied any; gzip_min_length 1; gzip_types text/event-stream; gzip_http_version 1.0;";
    let nginx = Nginx::before(&gateway, gzip).await;
    let (status, report) = examine(&redis, &events(nginx.public), &idle("8s")).await;
    assert_eq!(status, WRONG, "{report}");
    // Many other findings follow from it.
    let wrong = "WRONG compression somebody compresses (gzip)";
    assert!(says(&report, wrong), "{report}");
    let nginx = Nginx::before(&gateway, "proxy_http_version 1.1;").await;
    finds(&redis, &events(nginx.public), idle("8s"), FINE, &[]).await;
}

/// Breaks when HTTP/2 is not tried, or when a failure is not described in words.
#[tokio::test]
async fn tls_errors_refusals_and_closed_ports_are_distinguished() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let (certificate, key, _) = certificate(&dir);
    let options = format!("--heartbeat 1s --tls-certificate {certificate} --tls-key {key}");
    let gateway = Gateway::start_with(&redis, &options, "public_channels = [\"open\"]").await;
    recording([&gateway], 1).await;
    let url = format!("https://localhost:{}/events", gateway.public.port());
    let trusting = |channel: &'static str| {
        let certificate = &certificate;
        move |command: &mut Command| {
            command.args(["--idle", "3s", "--channel", channel]);
            command.env("SSL_CERT_FILE", certificate);
        }
    };
    finds(&redis, &url, trusting("open"), FINE, &["ok http HTTP/2.0"]).await;
    finds(
        &redis,
        &url,
        trusting("closed"),
        WRONG,
        &["WRONG stream answered 401 Unauthorized"],
    )
    .await;
    finds(
        &redis,
        &url,
        idle("1s"),
        WRONG,
        &["WRONG stream invalid peer certificate"],
    )
    .await;
    finds(
        &redis,
        "http://127.0.0.1:1/events",
        idle("1s"),
        WRONG,
        &["WRONG stream Connection refused"],
    )
    .await;
    // Nothing can be published. The doctor reports that, and examines the rest.
    let nowhere = |command: &mut Command| {
        trusting("open")(command);
        command.env("SSE_GATEWAY_REDIS_URL", "redis://127.0.0.1:1");
    };
    finds(
        &redis,
        &url,
        nowhere,
        UNKNOWN,
        &[
            "unknown publish nothing could be published",
            "ok heartbeats",
        ],
    )
    .await;
}

/// Breaks when a limit on the duration of an answer is taken for an idle timeout, or when the doctor names one of them
/// although it cannot know.
#[tokio::test]
async fn a_limit_on_the_whole_answer_is_distinguished_from_an_idle_timeout() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    // The stream is silent between its beginning and its end.
    let gateway = Gateway::start(&redis, "--heartbeat 1m").await;
    recording([&gateway], 1).await;
    let replicas = [Place::of(&gateway)];
    let envoy = Balancer::limiting(Kind::Envoy, &replicas, &[gateway.admin], "3s").await;
    finds(
        &redis,
        &events(envoy.public),
        idle("8s"),
        WRONG,
        &["it was not for silence: somebody limits"],
    )
    .await;
    finds(
        &redis,
        &events(envoy.public),
        idle_and_silent("8s"),
        WRONG,
        &[
            "unknown publish nothing could be published",
            "either an idle timeout on the way is shorter than --heartbeat",
        ],
    )
    .await;
}

/// Breaks when a proxy that holds heartbeats back, for good or until there are several, is not noticed.
#[tokio::test]
async fn heartbeats_that_are_held_back_are_noticed() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s").await;
    recording([&gateway], 1).await;
    let examined = async |every, time, wrong| {
        let proxy = BufferingProxy::before(gateway.public, every).await;
        let url = events(proxy.public);
        // Late events would show it, so none are published.
        finds(
            &redis,
            &url,
            idle_and_silent(time),
            WRONG,
            &["ok idle", wrong],
        )
        .await;
    };
    tokio::join!(
        examined(
            Duration::from_secs(4),
            "10s",
            "of them, and several at once, so that they were held back"
        ),
        examined(
            Duration::from_secs(3600),
            "30s",
            "WRONG heartbeats none within 30s"
        ),
    );
}

/// Breaks when the balancer is blamed because a channel without history cannot resume.
#[tokio::test]
async fn a_channel_without_history_is_distinguished_from_one_that_does_not_resume() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = "[[channels]]\nmatch = \"*\"\nhistory = 0";
    let gateway = Gateway::start_with(&redis, "--heartbeat 1s", config).await;
    recording([&gateway], 1).await;
    finds(
        &redis,
        &events(gateway.public),
        idle("3s"),
        UNKNOWN,
        &["ok buffering", "unknown resume events come without an id"],
    )
    .await;
}

/// By POST, with a short idle time. Redis is not examined.
fn by_post(command: &mut Command) {
    command.args(["--idle", "2s", "--publish-token", "t"]);
    command.env_remove("SSE_GATEWAY_REDIS_URL");
}

/// An address without a listener.
fn nowhere() -> SocketAddr {
    let ip = Ipv4Addr::LOCALHOST;
    SocketAddr::from((ip, free_port(&[ip])))
}

/// Breaks when the doctor reports that a balancer keeps a client at one replica, although it sends all kinds of
/// requests to the replicas in turn.
#[tokio::test]
async fn round_robin_is_not_taken_for_a_single_replica() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let start = || Gateway::start(&redis, "--heartbeat 1s --publish-token t");
    let replicas = [start().await, start().await, start().await];
    recording(&replicas, 1).await;
    let haproxy = HaProxy::before(&replicas.each_ref().map(|replica| replica.public), "").await;
    let what = [
        "ok resume 10 reconnects, each with exactly what it had missed, at 3 replicas",
        "ok replica asked over HTTP/1.1",
        "note not examined replicas that stop or die (--watch 2m during a rollout), Redis",
    ];
    finds(&redis, &events(haproxy.public), by_post, FINE, &what).await;
}

/// Breaks when events that arrive twice are taken for events that are held back.
#[tokio::test]
async fn a_balancer_that_repeats_a_post_is_not_reported_as_buffering() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s --publish-token t").await;
    recording([&gateway], 1).await;
    let copy = format!(
        "mirror /copy; }} location = /copy {{ internal; if ($request_method = GET) {{ return 204; }} \
         proxy_pass http://{}$request_uri;",
        gateway.public
    );
    let nginx = Nginx::before(&gateway, &copy).await;
    let (status, report) = examine(&redis, &events(nginx.public), &by_post).await;
    assert_eq!(status, WRONG, "{report}");
    assert!(
        says(&report, "WRONG events event 2 was expected, and 1 came"),
        "{report}"
    );
    assert!(
        says(&report, "let the balancer never repeat a POST"),
        "{report}"
    );
    assert!(!says(&report, "WRONG buffering"), "{report}");
}

/// Breaks when a balancer that reaches one replica of two is reported to reach none.
#[tokio::test]
async fn requests_that_a_balancer_refuses_are_counted() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s").await;
    recording([&gateway], 1).await;
    for (servers, counted, advice) in [
        (
            vec![gateway.public, nowhere()],
            "of 11 requests were answered 503 Service Unavailable",
            "the balancer reaches some replicas, and sends others to one that is gone",
        ),
        (
            vec![nowhere()],
            "WRONG stream 11 of 11 requests were answered 503 Service Unavailable",
            "the balancer reaches no replica",
        ),
    ] {
        let haproxy = HaProxy::before(&servers, "").await;
        let (status, report) = examine(&redis, &events(haproxy.public), &idle("1s")).await;
        assert_eq!(status, WRONG, "{report}");
        assert!(says(&report, counted), "{report}");
        assert!(says(&report, advice), "{report}");
    }
}

/// Breaks when HTTP/2 between a balancer and a replica is not noticed.
#[tokio::test]
async fn streams_that_share_a_connection_to_a_replica_are_noticed() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s --publish-token t").await;
    recording([&gateway], 1).await;
    let haproxy = HaProxy::before(&[gateway.public], "proto h2").await;
    let what = ["advice replica the balancer asks it over HTTP/2.0, so that many streams share"];
    finds(&redis, &events(haproxy.public), by_post, FINE, &what).await;
    // Other clients do not get this header.
    let response = gateway
        .get("/events?channel=news", "Accept: application/json\r\n")
        .await;
    assert_eq!(response.head.field("x-sse-http-version"), None);
}

/// Watches for this time.
fn watch(time: &'static str) -> impl Fn(&mut Command) {
    move |command| {
        command.args(["--watch", time]);
        command.env_remove("SSE_GATEWAY_REDIS_URL");
    }
}

/// Breaks when clients that are refused during a rollout are not noticed.
#[tokio::test]
async fn a_watch_reports_streams_that_are_refused() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let haproxy = HaProxy::before(&[gateway.public, nowhere()], "").await;
    let (status, report) = examine(&redis, &events(haproxy.public), &watch("3s")).await;
    assert_eq!(status, WRONG, "{report}");
    for what in [
        "s: answered 503 Service Unavailable (text/html), \"503 Service Unavailable No server",
        "requests were refused, ",
        "There an EventSource stops for good: let it check /readyz",
    ] {
        assert!(says(&report, what), "{report}");
    }
}

/// Breaks when a watch reports a cut as a fault, or not at all. An `EventSource` recovers from it.
#[tokio::test]
async fn a_watch_reports_streams_that_are_cut() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let ([a, _b], balancer) = two_behind(&redis, Kind::HaProxy).await;
    let mut command = Gateway::command();
    command.args(["doctor", &events(balancer.public), "--publish-token", "t"]);
    watch("1m")(&mut command);
    let mut doctor = Process::start("doctor", &mut command);
    eventually("the doctor has streams there", PATIENCE, async || {
        match a.metrics().await.sum("sse_gateway_streams") {
            streams if streams >= 3.0 => Ok(()),
            streams => Err(streams.to_string()),
        }
    })
    .await;
    a.kill();
    eventually("a cut is reported", PATIENCE, async || {
        match doctor.output() {
            report if says(&report, "s: cut without an end (") => Ok(()),
            report => Err(report),
        }
    })
    .await;
    // Ctrl-C ends the watch early, with the summary.
    doctor.signal("INT");
    let status = doctor.exit_within(2 * PATIENCE).await;
    let report = doctor.output() + &doctor.log();
    assert_eq!(status.code(), FINE, "{report}");
    assert!(says(&report, "were published"), "{report}");
    assert!(
        says(
            &report,
            "were cut without an end: a replica or the balancer died"
        ),
        "{report}"
    );
}

/// Breaks when late events are not noticed while replicas are watched.
#[tokio::test]
async fn a_watch_reports_late_events() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let proxy = BufferingProxy::before(gateway.public, Duration::from_secs(3)).await;
    let watching = |command: &mut Command| _ = command.args(["--watch", "6s"]);
    let (status, report) = examine(&redis, &events(proxy.public), &watching).await;
    assert_eq!(status, FINE, "{report}");
    assert!(
        says(&report, "that were published came late at a stream"),
        "{report}"
    );
}

/// Runs the doctor with these flags and without the URL of a stream. Returns its exit status and its report.
async fn examine_redis(flags: &[&str]) -> (Option<i32>, String) {
    let mut command = Gateway::command();
    command.arg("doctor").args(flags);
    let mut process = Process::start("doctor", &mut command);
    let status = process.exit_within(2 * PATIENCE).await;
    (status.code(), process.output() + &process.log())
}

/// Breaks when a setting of Redis that loses events is not found, or when the printed command does not correct it.
#[tokio::test]
async fn faults_of_redis_are_reported_with_their_correction() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let url = redis.url();
    let found = async |status, what: &[&str]| {
        let (code, report) = examine_redis(&["--redis-url", &url]).await;
        assert_eq!(code, status, "{report}");
        for what in what {
            assert!(says(&report, what), "{what}:\n{report}");
        }
        report
    };
    let what = [
        "ok redis Redis 7.",
        "standalone, master, 0 copies",
        "ok rights the user \"default\" has all that a gateway needs",
        "note functions the library is not loaded yet",
        "ok eviction maxmemory-policy noeviction",
        "advice buffers client-output-buffer-limit pubsub 33554432",
        "advice persistence appendonly no",
    ];
    found(FINE, &what).await;

    let mut commands = redis.connect().await;
    commands
        .run("CONFIG SET maxmemory-policy allkeys-lru")
        .await;
    let report = found(WRONG, &["WRONG eviction maxmemory-policy allkeys-lru"]).await;
    // Runs the commands as they are printed.
    for line in report.lines() {
        if let Some((_, command)) = line.rsplit_once(": CONFIG SET ") {
            let command = command.split(',').next().expect("a part");
            let (name, value) = command.split_once(' ').expect("two words");
            let value = value.trim_matches('"');
            let words = ["CONFIG", "SET", name, value].map(str::as_bytes);
            assert_eq!(commands.call(&words).await.unwrap().text(), "OK");
        }
    }
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let what = [
        "ok functions the library is loaded, of this version, for --partitions ",
        "ok eviction",
        "ok buffers",
        "ok persistence appendonly yes, appendfsync everysec",
    ];
    found(FINE, &what).await;
    let other = "#!lua name=ssegw\nredis.register_function('x', function() return 1 end)";
    let load = ["FUNCTION", "LOAD", "REPLACE", other].map(str::as_bytes);
    commands.call(&load).await.unwrap();
    found(
        FINE,
        &["advice functions the library is loaded, but not that of"],
    )
    .await;
    drop(gateway);
}

/// Breaks when a right that a gateway needs is not tried, when trying it executes a command, or when a password is
/// shown.
#[tokio::test]
async fn missing_rights_are_found() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut commands = redis.connect().await;
    let document = include_str!("../../../../docs/redis.md");
    let mut lines = document.lines();
    let documented = lines.find(|line| line.starts_with("ACL SETUSER gateway "));
    let documented = documented.expect("it is documented");
    commands.run(documented).await;
    let url = |password: &str| format!("redis://gateway:{password}@{}", redis.address());
    let (status, report) = examine_redis(&["--redis-url", &url("SECRET")]).await;
    assert_eq!(status, FINE, "{report}");
    assert!(
        says(&report, "ok rights the user \"gateway\" has all"),
        "{report}"
    );

    commands.run("ACL SETUSER gateway resetkeys resetchannels &ssegw:* -function|list -exec -fcall -config|get").await;
    let (status, report) = examine_redis(&["--redis-url", &url("SECRET")]).await;
    assert_eq!(status, WRONG, "{report}");
    assert!(
        says(&report, "WRONG rights the user \"gateway\" lacks some"),
        "{report}"
    );
    assert!(!report.contains("SECRET"), "{report}");
    let (_, mend) = report
        .split_once("lacks some that a gateway needs: ")
        .expect("a command");
    let mend = mend.lines().next().expect("a line");
    let mut granted: Vec<_> = mend.split(' ').skip(3).collect();
    granted.sort_unstable();
    assert_eq!(
        granted,
        ["&sse:*", "+exec", "+fcall", "+function|list", "~ssegw:*"]
    );
    commands.run(mend).await;
    let (status, report) = examine_redis(&["--redis-url", &url("SECRET")]).await;
    assert_eq!(status, FINE, "{report}");
    assert!(
        says(
            &report,
            "note rights gateways cannot warn of costly settings"
        ),
        "{report}"
    );
    assert_eq!(commands.run("KEYS *").await.array().len(), 0);

    commands.run("ACL SETUSER gateway -psubscribe -info").await;
    let (status, report) = examine_redis(&["--redis-url", &url("SECRET")]).await;
    assert_ne!(status, WRONG, "{report}");
    for finding in [
        "ok rights the user \"gateway\" has all",
        "advice rights messages of PUBLISH are not recorded",
        "Else: ACL SETUSER gateway +psubscribe &sse:*",
        "note rights each restart of Redis counts as a failover, and clients receive a gap event: ACL SETUSER gateway +info",
    ] {
        assert!(says(&report, finding), "{report}");
    }

    // All rights, for a user that has none.
    commands
        .run("ACL SETUSER gateway reset on >SECRET +auth")
        .await;
    for (status, what) in [
        (WRONG, "ACL SETUSER gateway +exec +multi"),
        (WRONG, " ~ssegw:* &ssegw:* &sse:*"),
        (FINE, "ok rights"),
    ] {
        let (code, report) = examine_redis(&["--redis-url", &url("SECRET")]).await;
        assert_eq!(code, status, "{report}");
        assert!(says(&report, what), "{report}");
        for line in report.lines().filter(|line| line.contains(" rights ")) {
            if let Some((_, mend)) = line.split_once(": ACL SETUSER ") {
                commands.run(&format!("ACL SETUSER {mend}")).await;
            }
        }
    }

    let (status, report) = examine_redis(&["--redis-url", &url("5113")]).await;
    assert_eq!(status, WRONG, "{report}");
    assert!(
        says(&report, "it refuses the user \"gateway\", or the password"),
        "{report}"
    );
    assert!(!report.contains("5113"), "{report}");
}

/// Breaks when a server that no gateway can use is called fine, or when sentinels are not asked.
#[tokio::test]
async fn kinds_of_redis_are_distinguished() {
    let _machine = among_others().await;
    let master = Redis::start().await;
    let sentinels = Sentinel::three(&master, "").await;
    let all = sentinels
        .each_ref()
        .map(|sentinel| sentinel.address.to_string());
    let named = |all: &[String]| {
        let (name, all) = (format!("redis://{MASTER}"), all.join(","));
        [
            "--redis-url".to_owned(),
            name,
            "--redis-sentinels".to_owned(),
            all,
        ]
    };
    let port = master.address().port().to_string();
    let copy = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    // The default bus port, which is the port plus 10000, may be too high.
    let bus = nowhere().port().to_string();
    let node = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]).await;
    let url = |url: String| vec!["--redis-url".to_owned(), url];
    let gone = nowhere().to_string();
    for (flags, status, what) in [
        (
            named(&all).to_vec(),
            FINE,
            "ok sentinels 3 of 3 know the master",
        ),
        (
            named(&[all[0].clone(), all[1].clone(), gone.clone()]).to_vec(),
            FINE,
            "advice sentinels 2 of 3 know the master",
        ),
        (
            named(&[all[0].clone(), gone.clone(), nowhere().to_string()]).to_vec(),
            WRONG,
            "WRONG sentinels 1 of 3 know the master",
        ),
        (
            url(format!("redis://{}", all[0])),
            WRONG,
            "this is a sentinel",
        ),
        (url(copy.url()), WRONG, "this is a copy"),
        (
            url(node.url()),
            WRONG,
            "name some of its nodes with --redis-cluster",
        ),
        (
            url(format!("redis://{gone}")),
            UNKNOWN,
            "unknown redis no connection to redis at",
        ),
        (Vec::new(), USAGE, "the URL of a stream is needed"),
    ] {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let (code, report) = examine_redis(&flags).await;
        assert_eq!(code, status, "{flags:?}: {report}");
        assert!(
            report.contains(what) || says(&report, what),
            "{flags:?}: {report}"
        );
    }
}

/// Breaks when the doctor does not report messages that a serializer has written.
#[tokio::test]
async fn messages_of_serializers_are_reported() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut command = Gateway::command();
    command.args(["doctor", "--redis-url", &redis.url(), "--watch", "4s"]);
    let mut doctor = Process::start("doctor", &mut command);
    let mut commands = redis.connect().await;
    eventually(
        "the doctor is subscribed",
        PATIENCE,
        async || match commands.publish("news", "a text").await {
            0 => Err("it is not".to_owned()),
            _ => Ok(()),
        },
    )
    .await;
    commands
        .publish("orders", b"\xac\xed\x00\x05t\x00\x05hello")
        .await;
    commands
        .publish("prices", r#"{"@class":"com.example.Price","data":1}"#)
        .await;
    let status = doctor.exit_within(2 * PATIENCE).await;
    let report = doctor.output() + &doctor.log();
    assert_eq!(status.code(), WRONG, "{report}");
    for what in [
        "WRONG messages orders: 1 of 1 are refused (not_utf8): Java serialization: publish with",
        "advice messages prices: 1 of 1 are delivered as they are: a JSON serializer has added @class",
    ] {
        assert!(says(&report, what), "{report}");
    }
    assert!(!report.contains("news"), "{report}");
}

/// Breaks when the doctor posts with an empty token.
#[tokio::test]
async fn the_doctor_refuses_an_empty_token() {
    let mut command = Gateway::command();
    command.args(["doctor", "http://127.0.0.1:1/events"]);
    command.args(["--publish-token", ""]);
    let mut process = Process::start("doctor", &mut command);
    let status = process.exit_within(PATIENCE).await;
    assert_eq!(status.code(), USAGE);
    let log = process.log();
    assert!(
        log.contains("--publish-token: a token has at least one character"),
        "{log}"
    );
}
