//! Signals, and the configuration that SIGHUP reloads.

use tokio::process::Command;

use crate::support::{
    Backend, Dir, Gateway, PATIENCE, Redis, Viewer, among_others, becomes, eventually, refused,
    status,
};

/// Sends SIGHUP. Waits for a log line that contains `line`, and asserts that it contains `detail`.
async fn reload(gateway: &mut Gateway, line: &str, detail: &str) {
    let lines = |log: &str| log.lines().filter(|log| log.contains(line)).count();
    let before = lines(&gateway.process().log());
    gateway.process().signal("HUP");
    eventually(line, PATIENCE, async || {
        let log = gateway.process().log();
        if lines(&log) > before {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    let log = gateway.process().log();
    let last = log.lines().rfind(|log| log.contains(line));
    let last = last.expect("it was just there");
    assert!(last.contains(detail), "{last}");
}

/// Breaks when a changed file needs a restart, or when a reload cuts a stream. Breaks also when a failed reload applies
/// a part of a wrong file, or logs nothing.
#[tokio::test]
async fn a_reload_changes_the_rules_and_cuts_no_stream() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let path = dir.write(
        "gateway.toml",
        "public_channels = [\"news\"]\n[[publish]]\ntoken = \"old\"\n[[publish]]\ntoken = \"both\"\n",
    );
    let mut gateway = Gateway::start(&redis, &format!("--config {path}")).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let post = async |gateway: &Gateway, token: &str, text: &str| {
        let bearer = format!("Authorization: Bearer {token}\r\n");
        gateway.post("/events?channel=news", &bearer, text).await
    };
    assert_eq!(post(&gateway, "old", "one").await.head.status, 201);
    viewer.until("one").await;
    refused(&gateway.get("/events?channel=more", "").await, 401);

    dir.write(
        "gateway.toml",
        "public_channels = [\"news\", \"more\"]\n[[publish]]\ntoken = \"new\"\n[[publish]]\ntoken = \"both\"\n\
         [[channels]]\nmatch = \"*\"\nhistory = 4711\n",
    );
    reload(
        &mut gateway,
        "configuration reloaded",
        "channels, public_channels, publish",
    )
    .await;
    refused(&post(&gateway, "old", "refused").await, 401);
    assert_eq!(post(&gateway, "new", "two").await.head.status, 201);
    assert_eq!(post(&gateway, "both", "three").await.head.status, 201);
    Viewer::open(&gateway, "channel=more").await;
    let mut commands = redis.connect().await;
    let library = commands.run("FUNCTION LIST WITHCODE").await;
    let library = library.array()[0].array();
    let code = library.last().expect("its code").text();
    assert!(code.contains("history = 4711,"), "the old rules");

    for (file, wrong) in [
        (
            "public_channels = [\"*\"]\n[jwt]\nsecret = \"short\"\n",
            "jwt: secret: ",
        ),
        ("public_channels = [\"*\"]\nnonsense = 1\n", "line 2: "),
        // Every client would be refused until it answers.
        (
            "public_channels = [\"*\"]\n[jwt]\njwks_url = \"http://127.0.0.1:1/\"\n",
            "jwt: jwks_url: ",
        ),
    ] {
        dir.write("gateway.toml", file);
        reload(&mut gateway, "failed to reload the configuration", wrong).await;
        refused(&gateway.get("/events?channel=other", "").await, 401);
        let successful = "sse_gateway_config_last_reload_successful";
        assert_eq!(gateway.metrics().await.sum(successful), 0.0);
    }
    assert_eq!(post(&gateway, "new", "four").await.head.status, 201);
    // The same connection all the time.
    let events = viewer.until("four").await;
    assert_eq!(events.len(), 3, "{events:#?}");
}

/// Breaks when a reload drops keys, or answers of a backend, although their source has not changed.
#[tokio::test]
async fn a_reload_keeps_answers_of_backends() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let backend = Backend::start(|_| status(200)).await;
    let dir = Dir::new();
    let forward = format!(
        "[forward_auth]\nurl = \"http://{}/auth\"\ncache = \"1h\"\n",
        backend.address
    );
    let path = dir.write("gateway.toml", &forward);
    let mut gateway = Gateway::start(&redis, &format!("--config {path}")).await;
    Viewer::open(&gateway, "channel=news").await;
    assert_eq!(backend.requests(), 1);
    dir.write(
        "gateway.toml",
        &format!("public_channels = [\"more\"]\n{forward}"),
    );
    reload(&mut gateway, "configuration reloaded", "public").await;
    Viewer::open(&gateway, "channel=news").await;
    assert_eq!(backend.requests(), 1);
}

/// Breaks when a signal without a meaning here ends the gateway, or when a signal to stop cuts its streams.
#[tokio::test]
async fn other_signals_end_no_stream() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateway = Gateway::start(&redis, "--drain-window 1s").await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    for signal in ["USR1", "USR2", "ALRM"] {
        gateway.process().signal(signal);
        eventually(signal, PATIENCE, async || {
            let log = gateway.process().log();
            let line = format!("SIG{signal} received");
            if log.contains(&line) {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
    }
    // Without a file there is nothing to read, and no error.
    reload(&mut gateway, "configuration reloaded", "").await;
    gateway.process().signal("XFSZ");
    redis.append("news", "alive").await;
    viewer.until("alive").await;
    let get = format!(
        "GET /events?channel=news HTTP/1.1\r\nHost: {}\r\n\r\n",
        gateway.public
    );
    let public = gateway.public;
    let raw = tokio::spawn(async move { testkit::request(public, get.as_bytes()).await });
    becomes(&gateway, "sse_gateway_streams", "", 2.0).await;
    gateway.process().signal("QUIT");
    let raw = raw.await.expect("no panic").expect("an answer");
    let last = raw.body.lines().rfind(|line| !line.is_empty());
    assert!(
        last.is_some_and(|line| line.starts_with(": drained: ")),
        "{}",
        raw.body
    );
    let (_, end) = viewer.until_end().await;
    assert_eq!(end, testkit::End::Whole);
    assert!(gateway.process().exit().await.success());
}

/// Breaks when a configuration is valid for the check and invalid for the start, or the reverse.
#[tokio::test]
async fn a_check_reports_the_same_error_as_a_start() {
    let dir = Dir::new();
    let run = async |arguments: &str| {
        let mut command = Command::from(Gateway::command());
        command.args(arguments.split(' '));
        let output = command.output().await.expect("it runs");
        let text = output.stdout.into_iter().chain(output.stderr).collect();
        let text = String::from_utf8(text).expect("UTF-8");
        (output.status.code(), text)
    };
    let right = dir.write(
        "right.toml",
        "public_channels = [\"news\"]\n[[publish]]\ntoken = \"t\"\n[[channels]]\nmatch = \"*\"\n",
    );
    let (code, text) = run(&format!("check --config {right}")).await;
    let valid = format!("{right} is valid: 1 channel rule, 1 publish token\n");
    assert_eq!((code, text), (Some(0), valid));
    let doubtful = dir.write(
        "doubtful.toml",
        "public_channels = [\"news\"]\n[[publish]]\ntoken = \"t\"\nchannels = []\n",
    );
    let (code, text) = run(&format!("check --config {doubtful}")).await;
    let doubt = "[[publish]] number 1: channels = [] allows nothing";
    assert!(code == Some(0) && text.contains(doubt), "{text}");
    let wrong = dir.write("wrong.toml", "[[channels]]\nmatch = \"*\"\nhistroy = 5\n");
    let empty = dir.write("empty.toml", "");
    for options in [
        format!("--config {wrong}"),
        format!("--config {empty} --listen 0.0.0.0:0"),
        format!("--config {right} --tls-certificate {right} --tls-key {right}"),
    ] {
        let (code, text) = run(&format!("{options} check")).await;
        assert_eq!(code, Some(2), "{text}");
        let (_, started) = run(&options).await;
        let started = started.lines().last().expect("a line");
        assert_eq!(text.trim_end(), started, "{options}");
    }
}
