//! Logs and the output of commands that cannot be written.

use std::{fs::File, io::Read as _, process::Command};

use crate::support::{Dir, Gateway, PATIENCE, Process, Redis, Viewer, among_others, eventually};

const DROPPED: &str = "sse_gateway_log_lines_dropped_total";

/// The gateway, with its streams redirected as a shell does.
fn redirected(redis: &Redis, redirection: &str) -> Command {
    let gateway = Gateway::command();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")])
        .arg(gateway.get_program())
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--redis-url", &redis.url(), "--workers", "1"])
        // A log line for nearly every action.
        .env("RUST_LOG", "trace");
    command
}

/// Sends requests until more than `count` log lines were dropped.
async fn dropped(gateway: &Gateway, count: f64) -> f64 {
    eventually("log lines are dropped", PATIENCE, async || {
        for _ in 0..20 {
            gateway.get("/nowhere", "").await;
        }
        match gateway.metrics().await.sum(DROPPED) {
            dropped if dropped > count => Ok(dropped),
            dropped => Err(dropped.to_string()),
        }
    })
    .await
}

/// Breaks when a log without a reader stops or delays the gateway, or when a closed log ends it. Breaks also when the
/// log does not report missing lines afterwards.
#[tokio::test]
async fn a_log_without_a_reader_stops_nothing() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let pipe = dir.path().join("log").display().to_string();
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let opened = {
        let pipe = pipe.clone();
        tokio::task::spawn_blocking(move || File::open(pipe).expect("a pipe"))
    };
    let gateway = Gateway::of(redirected(&redis, &format!("2> '{pipe}'"))).await;
    let mut reader = opened.await.expect("a reader");
    gateway.ready().await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;

    // The reader does not read.
    let unread = dropped(&gateway, 0.0).await;
    redis.append("news", "unread").await;
    assert_eq!(viewer.event().await.data, "unread");

    // The reader continues.
    let reader = tokio::task::spawn_blocking(move || {
        let (mut text, mut part) = (Vec::new(), vec![0; 1 << 16]);
        let missing = "log lines were dropped";
        while !String::from_utf8_lossy(&text).contains(missing) {
            let read = reader.read(&mut part).expect("the gateway writes");
            assert_ne!(read, 0, "the gateway has ended");
            text.extend_from_slice(&part[..read]);
        }
    });
    gateway.get("/nowhere", "").await;
    // When this task ends, the reader is gone.
    reader.await.expect("the log reports the missing lines");
    dropped(&gateway, unread).await;
    redis.append("news", "gone").await;
    assert_eq!(viewer.event().await.data, "gone");
}

/// Breaks when a full disk under the log or under the output ends the gateway.
#[tokio::test]
async fn a_full_disk_under_the_log_stops_nothing() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::of(redirected(&redis, "2> /dev/full")).await;
    gateway.ready().await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    dropped(&gateway, 0.0).await;
    redis.append("news", "full").await;
    assert_eq!(viewer.event().await.data, "full");

    // A full disk under the output, which has the addresses, stops nothing either. They are then in the log.
    let mut command = redirected(&redis, "> /dev/full");
    command.env_remove("RUST_LOG");
    let mut gateway = Process::start("sse-gateway", &mut command);
    eventually("it listens", PATIENCE, async || {
        match (gateway.exited(), gateway.log()) {
            (None, log) if log.contains("listening") => Ok(()),
            (exited, log) => Err(format!("{exited:?} {log}")),
        }
    })
    .await;
    gateway.signal("TERM");
    assert!(gateway.exit().await.success(), "{}", gateway.log());
}

/// Breaks when a command panics because its output has no reader, or succeeds although its output is lost.
#[tokio::test]
async fn commands_end_quietly_with_their_reader() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let doctor = format!(
        "doctor http://{}/events --redis-url {}",
        gateway.public,
        redis.url()
    );
    for (arguments, redirection, expected) in [
        // Like a program that SIGPIPE ends. The doctor would take a minute otherwise.
        (&*doctor, "| head -1", "status 141"),
        ("--help", "> /dev/full", "status 1"),
        ("--version", "> /dev/full", "status 1"),
        ("--help", "| head -1", ""),
        ("--no-such-flag", "2> /dev/full", ""),
    ] {
        let line = format!("{{ \"$0\" {arguments}; echo status $? >&3; }} {redirection}");
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec 3>&2; {line}")])
            .arg(Gateway::command().get_program());
        let mut process = Process::start("sh", &mut command);
        process.exit().await;
        let log = process.log();
        assert!(!log.contains("panicked"), "{line}: {log}");
        assert!(log.contains(expected), "{line}: {log}");
        if redirection == "> /dev/full" {
            assert!(log.contains("cannot write to standard output: "), "{log}");
        }
    }
}
