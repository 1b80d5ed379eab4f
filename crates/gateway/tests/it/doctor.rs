//! `sse-gateway doctor` finds what is wrong between clients and replicas, and nothing where all is well.

use std::{net::SocketAddr, process::Command, time::Duration};

use crate::support::{
    Balancer, Dir, Gateway, Hoarder, Kind, Nginx, PATIENCE, Place, Process, Redis, among_others,
    certificate, recording,
};

/// The doctor's exit status, where all is well,
const FINE: Option<i32> = Some(0);
/// where something is wrong,
const WRONG: Option<i32> = Some(1);
/// and where nothing is, but something could not be looked at.
const UNKNOWN: Option<i32> = Some(3);

/// How the doctor leaves who gave it this URL, and what it says.
async fn examine(redis: &Redis, url: &str, with: &impl Fn(&mut Command)) -> (Option<i32>, String) {
    let mut command = Gateway::command();
    command.args(["doctor", url]);
    command.env("SSE_GATEWAY_REDIS_URL", redis.url());
    with(&mut command);
    let mut process = Process::start("doctor", &mut command);
    let status = process.exit_within(2 * PATIENCE).await;
    (status.code(), process.output() + &process.log())
}

/// Examines, and finds just this. It tells what it saw: on a machine that is busy with other things, events and heartbeats may
/// be late without anybody's fault. One time of three is enough.
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
        // One thing is wrong, and one is blamed.
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

/// The same, and nothing can be published.
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

/// Breaks when something is found where nothing is wrong, or when replicas cannot be told apart.
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
    // By POST, through the balancer as well; and at one replica alone.
    let post = |command: &mut Command| {
        command.args(["--idle", "3s", "--publish-token", "t"]);
        command.env("SSE_GATEWAY_REDIS_URL", "redis://127.0.0.1:1");
    };
    let what = "advice resume 10 reconnects, each with exactly what it had missed, all at one";
    finds(&redis, &events(a.public), post, FINE, &[what]).await;
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
            "proxy_read_timeout 3s;",
            "s: somebody's idle timeout is shorter than --heartbeat",
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
    // Much else follows from it.
    let wrong = "WRONG compression somebody compresses (gzip)";
    assert!(says(&report, wrong), "{report}");
    let nginx = Nginx::before(&gateway, "proxy_http_version 1.1;").await;
    finds(&redis, &events(nginx.public), idle("8s"), FINE, &[]).await;
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
    // Nothing can be published, which is said, and the rest is looked at.
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

/// Breaks when a limit of how long an answer takes in all is taken for one of silence, or when the doctor says that it
/// knows which where it cannot.
#[tokio::test]
async fn a_limit_of_the_whole_answer_is_told_from_an_idle_timeout() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    // A stream is silent from its beginning to its end.
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
            "either somebody's idle timeout is shorter than --heartbeat",
        ],
    )
    .await;
}

/// Breaks when somebody who holds heartbeats back is not noticed, for good or until there are several.
#[tokio::test]
async fn heartbeats_that_are_held_back_are_noticed() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s").await;
    recording([&gateway], 1).await;
    let examined = async |every, time, wrong| {
        let hoarder = Hoarder::before(gateway.public, every).await;
        let url = events(hoarder.public);
        // Events that come late would tell.
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

/// Breaks when the balancer is blamed for what a channel without history cannot do.
#[tokio::test]
async fn a_channel_without_history_is_told_from_one_that_does_not_resume() {
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
