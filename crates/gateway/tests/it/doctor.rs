//! `sse-gateway doctor` finds what is wrong between clients and replicas, and nothing where all is well.

use std::{net::SocketAddr, process::Command};

use crate::support::{
    Balancer, Dir, Gateway, Kind, Nginx, PATIENCE, Place, Process, Redis, among_others,
    certificate, recording,
};

/// What the doctor says of this URL, and whether it is satisfied.
async fn examine(redis: &Redis, url: &str, with: impl FnOnce(&mut Command)) -> (bool, String) {
    let mut command = Gateway::command();
    command.args(["doctor", url]);
    command.env("SSE_GATEWAY_REDIS_URL", redis.url());
    with(&mut command);
    let mut process = Process::start("doctor", &mut command);
    let status = process.exit_within(2 * PATIENCE).await;
    (status.success(), process.output() + &process.log())
}

fn events(address: SocketAddr) -> String {
    format!("http://{address}/events")
}

fn idle(time: &'static str) -> impl FnOnce(&mut Command) {
    move |command| _ = command.args(["--idle", time])
}

#[track_caller]
fn says(report: &str, what: &str) {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let found = report.lines().any(|line| words(line).contains(what));
    assert!(found, "{what:?} is not in\n{report}");
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

/// Breaks when something is found where nothing is wrong, or when replicas cannot be told apart.
#[tokio::test]
async fn all_is_well_behind_haproxy() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let ([a, _b], balancer) = two_behind(&redis, Kind::HaProxy).await;
    let (fine, report) = examine(&redis, &events(balancer.public), idle("5s")).await;
    assert!(fine, "{report}");
    for what in [
        "ok stream 200",
        "advice http HTTP/1.1",
        "ok compression none",
        "ok caching",
        "ok buffering 5 events, each by itself",
        "ok resume 10 reconnects, each with exactly what it had missed, at 2 replicas",
        "ok idle",
        "ok heartbeats",
    ] {
        says(&report, what);
    }
    // By POST, through the balancer as well; and at one replica alone.
    let post = |command: &mut Command| {
        command.args(["--idle", "3s", "--publish-token", "t"]);
        command.env("SSE_GATEWAY_REDIS_URL", "redis://127.0.0.1:1");
    };
    let (fine, report) = examine(&redis, &events(a.public), post).await;
    assert!(fine, "{report}");
    says(
        &report,
        "advice resume 10 reconnects, each with exactly what it had missed, all at one",
    );
}

/// Breaks when Envoy holds events back, ends streams that are quiet for a while, or keeps from a replica what makes a
/// client resume.
#[tokio::test]
async fn all_is_well_behind_envoy() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let ([_a, _b], balancer) = two_behind(&redis, Kind::Envoy).await;
    // By POST, through Envoy as well.
    let post = |command: &mut Command| {
        command.args(["--idle", "5s", "--publish-token", "t"]);
        command.env("SSE_GATEWAY_REDIS_URL", "redis://127.0.0.1:1");
    };
    let (fine, report) = examine(&redis, &events(balancer.public), post).await;
    assert!(fine, "{report}");
    for what in [
        "ok stream 200",
        "advice http HTTP/1.1",
        "ok compression none",
        "ok caching",
        "ok buffering 5 events, each by itself",
        "resume 10 reconnects, each with exactly what it had missed",
        "ok idle",
        "ok heartbeats",
    ] {
        says(&report, what);
    }
}

/// Breaks when a balancer that spoils streams is not noticed, or is blamed for something else.
#[tokio::test]
async fn what_nginx_does_wrong_is_said() {
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
            "gzip on; gzip_proxied any; gzip_min_length 1; gzip_types text/event-stream; gzip_http_version 1.0;",
            "WRONG compression somebody compresses (gzip)",
        ),
        (
            "proxy_read_timeout 2s;",
            "WRONG idle a stream was cut after 2s (",
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
        let (fine, report) = examine(&redis, &events(nginx.public), idle("8s")).await;
        assert!(!fine, "{lines}\n{report}");
        says(&report, wrong);
        // One thing is wrong, and one is blamed, but where everything else follows from it.
        if !lines.contains("gzip") {
            let count = report
                .lines()
                .filter(|line| line.starts_with("WRONG"))
                .count();
            assert_eq!(count, 1, "{lines}\n{report}");
        }
    }
    let nginx = Nginx::before(&gateway, "proxy_http_version 1.1;").await;
    let (fine, report) = examine(&redis, &events(nginx.public), idle("8s")).await;
    assert!(fine, "{report}");
}

/// Breaks when HTTP/2 is not tried, or when a failure is not told in words.
#[tokio::test]
async fn tls_refusals_and_dead_ends_are_told_apart() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let (certificate, key, _) = certificate(&dir);
    let options = format!("--heartbeat 1s --tls-certificate {certificate} --tls-key {key}");
    let gateway = Gateway::start_with(&redis, &options, "public = [\"open\"]").await;
    recording([&gateway], 1).await;
    let url = format!("https://localhost:{}/events", gateway.public.port());
    let trusting = |channel: &'static str| {
        let certificate = certificate.clone();
        move |command: &mut Command| {
            command.args(["--idle", "3s", "--channel", channel]);
            command.env("SSL_CERT_FILE", certificate);
        }
    };
    let (fine, report) = examine(&redis, &url, trusting("open")).await;
    assert!(fine, "{report}");
    says(&report, "ok http HTTP/2.0");
    let (fine, report) = examine(&redis, &url, trusting("closed")).await;
    assert!(!fine, "{report}");
    says(&report, "WRONG stream answered 401 Unauthorized");
    let (fine, report) = examine(&redis, &url, idle("1s")).await;
    assert!(!fine, "{report}");
    says(&report, "WRONG stream invalid peer certificate");
    let (fine, report) = examine(&redis, "http://127.0.0.1:1/events", idle("1s")).await;
    assert!(!fine, "{report}");
    says(&report, "WRONG stream Connection refused");
    // Nothing can be published, which is said, and the rest is looked at.
    let nowhere = |command: &mut Command| {
        trusting("open")(command);
        command.env("SSE_GATEWAY_REDIS_URL", "redis://127.0.0.1:1");
    };
    let (fine, report) = examine(&redis, &url, nowhere).await;
    assert!(fine, "{report}");
    says(&report, "advice publish nothing could be published");
    says(&report, "ok heartbeats");
}
