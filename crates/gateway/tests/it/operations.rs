//! The operator's view: routes, metrics, readiness, command line.

use testkit::request;

use crate::support::{
    Dir, Gateway, PATIENCE, Process, Redis, Reply, Viewer, among_others, eventually, in_time,
    recording,
};

/// Breaks when the answer to a hopeless request makes pages repeat it. Breaks also when operators' pages are on the
/// public port.
#[tokio::test]
async fn routes_and_methods_answer_clearly() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let cases = [
        ("GET", "/events", 400..=400),
        ("GET", "/events?channel=", 400..=400),
        ("GET", "/events?chanel=news", 400..=400),
        ("GET", "/nowhere", 404..=404),
        ("GET", "/events/", 404..=404),
        ("GET", "/metrics", 404..=404),
        ("GET", "/readyz", 404..=404),
        ("GET", "/livez", 404..=404),
        ("PUT", "/events?channel=news", 405..=405),
        ("DELETE", "/events?channel=news", 405..=405),
        ("HEAD", "/nowhere", 404..=404),
        ("BREW", "/events?channel=news", 400..=499),
    ];
    for (method, target, expected) in cases {
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = gateway.send(request.as_bytes()).await.unwrap();
        let status = response.head.status;
        assert!(
            expected.contains(&status),
            "{method} {target}: {status} {}",
            response.body
        );
    }
    for (target, status) in [("/livez", 200), ("/readyz", 200), ("/nowhere", 404)] {
        let get = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let response = request(gateway.admin, get.as_bytes());
        let response = in_time(target, response).await.unwrap();
        assert_eq!(response.head.status, status, "{target}");
    }
}

/// Breaks when a promised metric is missing, or when channel names appear in the metrics, which would grow with them.
#[tokio::test]
async fn metrics_count_what_happens_and_name_no_channel() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut first = Viewer::open(&gateway, "channel=a-telling-name").await;
    let mut second = Viewer::open(&gateway, "channel=a-telling-name").await;
    let mut publisher = redis.connect().await;
    for text in ["one", "two", "three"] {
        publisher.publish("a-telling-name", text).await;
    }
    first.until("three").await;
    second.until("three").await;
    eventually("deliveries are counted", PATIENCE, async || {
        let metrics = gateway.metrics().await;
        let deliveries = metrics.sum("sse_gateway_deliveries_total");
        let connections = metrics.sum("sse_gateway_streams");
        // The `gateway.open` events may be counted or not.
        if (6.0..=8.0).contains(&deliveries) && connections == 2.0 {
            Ok(())
        } else {
            Err(format!(
                "{deliveries} deliveries to {connections} connections"
            ))
        }
    })
    .await;
    let id = first.client.last_event_id().to_owned();
    publisher.publish("a-telling-name", "four").await;
    // The event has reached the replica, so it has to be replayed.
    first.until("four").await;
    drop(second);
    let mut again = Viewer::resume(&gateway, "channel=a-telling-name", &id).await;
    again.until("four").await;
    eventually("the replay and the end are counted", PATIENCE, async || {
        let metrics = gateway.metrics().await;
        let replays = metrics.labelled("sse_gateway_replays_total", r#"source="tail""#);
        let connections = metrics.sum("sse_gateway_streams");
        if replays >= 1.0 && connections == 2.0 {
            Ok(())
        } else {
            Err(format!("{replays} replays, {connections} connections"))
        }
    })
    .await;
    let metrics = gateway.metrics().await;
    assert!(
        !metrics.text().contains("telling"),
        "a channel's name is in the metrics"
    );
}

/// Breaks when sockets, subscriptions or memory of clients that have left are not released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_are_forgotten() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let files = gateway.open_files();
    let visit = async |from: usize| {
        for number in from..from + 1000 {
            Viewer::open(&gateway, &format!("channel=visited{number}")).await;
        }
    };
    visit(0).await;
    let memory = gateway.memory();
    visit(1000).await;
    visit(2000).await;
    let mut commands = redis.connect().await;
    eventually("the clients are forgotten", 6 * PATIENCE, async || {
        let connections = gateway.metrics().await.sum("sse_gateway_streams");
        let open = gateway.open_files();
        let channels = commands.run("PUBSUB SHARDCHANNELS ssegw:*:live:*").await;
        let channels = channels.array().len();
        if connections == 0.0 && open <= files + 10 && channels == 0 {
            Ok(())
        } else {
            Err(format!(
                "{connections} connections, {open} files, {channels} subscriptions"
            ))
        }
    })
    .await;
    let grown = gateway.memory().saturating_sub(memory);
    assert!(grown < 8 * 1024 * 1024, "+{grown} bytes");
}

/// Breaks when a replica that starts before its Redis gives up, or reports that it is ready.
#[tokio::test]
async fn a_replica_waits_for_its_redis() {
    let _machine = among_others().await;
    let mut redis = Redis::stopped(&[]);
    let gateway = Gateway::start_unready(&redis, "", "").await;
    gateway.readiness(503).await;
    let livez = request(
        gateway.admin,
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert_eq!(in_time("/livez", livez).await.unwrap().head.status, 200);
    redis.restart().await;
    gateway.ready().await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    redis.append("news", "hello").await;
    assert_eq!(viewer.event().await.data, "hello");
}

/// Breaks when another number of partitions moves channels to other keys without an error.
#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let _first = Gateway::start(&redis, "--partitions 1").await;
    let mut command = Gateway::command();
    command
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--redis-url", &redis.url(), "--partitions", "8"]);
    let mut second = Process::start("sse-gateway", &mut command);
    let status = second.exit().await;
    assert!(!status.success());
    assert!(second.log().contains("partitions"), "{}", second.log());

    // Also after Redis has lost all its data, or has evicted the number.
    let mut commands = redis.connect().await;
    for loss in ["FLUSHALL", "DEL ssegw:partitions"] {
        commands.run(loss).await;
        eventually(
            "the number is stored again",
            PATIENCE,
            async || match commands.run("GET ssegw:partitions").await {
                Reply::Bytes(number) if number == b"1" => Ok(()),
                other => Err(format!("after {loss}: {other:?}")),
            },
        )
        .await;
    }
}

/// Breaks when the answer to a mistake is a backtrace, silence, or a start.
#[tokio::test]
async fn a_wrong_setting_causes_one_clear_line() {
    let _machine = among_others().await;
    let dir = Dir::new();
    let broken = dir.write(
        "broken.toml",
        "[[channels]]\nmatch = \"*\"\nhistory = \"many\"\n",
    );
    let unknown = dir.write("unknown.toml", "[[channels]]\nmatch = \"*\"\nhistroy = 5\n");
    let cases: [(&[&str], &str); 14] = [
        (&["revoke"], "<SUBJECT>"),
        (&["--redis", "x"], "--redis-"),
        (&["--listen", "nowhere"], "--listen"),
        (&["--admin-listen", "127.0.0.1:99999"], "--admin-listen"),
        (&["--redis-url", "http://127.0.0.1"], "--redis-url"),
        (&["--partitions", "0"], "--partitions"),
        (&["--partitions", "many"], "--partitions"),
        (&["--workers=-1"], "--workers"),
        (&["--heartbeat", "soon"], "--heartbeat"),
        (&["--max-payload", "large"], "--max-payload"),
        (
            &["--config", "/nonexistent/gateway.toml"],
            "/nonexistent/gateway.toml",
        ),
        (&["--config", &broken], "broken.toml"),
        (&["--config", &unknown], "unknown.toml"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (arguments, named) in cases {
        let (code, output, error) = run(arguments, &[]).await;
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(named), "{arguments:?}: {error}");
        assert_eq!(
            error.trim_end().lines().count(),
            1,
            "{arguments:?}: {error}"
        );
        assert_eq!(output, "", "{arguments:?}");
    }
    let (code, _, error) = run(&[], &[("SSE_GATEWAY_RETRY", "soon")]).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(error.to_ascii_lowercase().contains("retry"), "{error}");
}

/// Breaks when a command that fails does not name the fault and its place.
#[tokio::test]
async fn a_command_that_fails_names_the_fault_and_its_place() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut commands = redis.connect().await;
    let user = "ACL SETUSER anna on >SECRET +ping";
    assert_eq!(commands.run(user).await.text(), "OK");
    let address = redis.address();
    // Port 1 is closed.
    let cases = [
        (
            "revoke anna --redis-url redis://127.0.0.1:1".to_owned(),
            "no connection to redis at 127.0.0.1:1: Connection refused".to_owned(),
        ),
        (
            format!("revoke anna --redis-url redis://anna:wrong@{address}"),
            format!(
                "no connection to redis at {address}: it refuses the user \"anna\", or the password"
            ),
        ),
        (
            format!("revoke anna --redis-url redis://anna:SECRET@{address}"),
            "redis does not allow this to its user".to_owned(),
        ),
        (
            "healthcheck --admin-listen 127.0.0.1:1".to_owned(),
            "127.0.0.1:1 does not answer: Connection refused".to_owned(),
        ),
    ];
    let fails = async |arguments: &str, expected: &str| {
        let arguments: Vec<_> = arguments.split(' ').collect();
        let (code, _, error) = run(&arguments, &[]).await;
        assert_eq!(code, Some(1), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert!(
            !error.contains("SECRET") && error.lines().count() == 1,
            "{error}"
        );
    };
    for (arguments, expected) in &cases {
        fails(arguments, expected).await;
    }
    let set = "CONFIG SET requirepass SECRET";
    assert_eq!(commands.run(set).await.text(), "OK");
    let revoke = format!("revoke anna --redis-url redis://{address}");
    fails(&revoke, "redis wants a password: give it as in redis://").await;
}

/// Breaks when a misspelled variable is ignored silently, or when a variable that Kubernetes sets is taken for a
/// misspelled one.
#[tokio::test]
async fn unknown_variables_are_named_with_the_nearest_known_one() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut command = Gateway::command();
    command
        .env("SSE_GATEWAY_MAX_PAYLOADS", "1KiB")
        .env("SSE_GATEWAY_PORT", "tcp://10.0.0.1:80")
        .env("SSE_GATEWAY_PORT_80_TCP_ADDR", "10.0.0.1")
        .env("SSE_GATEWAY_SERVICE_HOST", "10.0.0.1")
        .env("SSE_GATEWAY_SERVICE_PORT_HTTP", "80")
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--redis-url", &redis.url(), "--workers", "1"]);
    let mut gateway = Gateway::of(command).await;
    gateway.ready().await;
    let log = eventually("the log names a variable", PATIENCE, async || {
        let log = gateway.process().log();
        let is_there = log.contains("unknown environment variable");
        if is_there { Ok(log) } else { Err(log) }
    })
    .await;
    let unknown: Vec<_> = log
        .lines()
        .filter(|line| line.contains("unknown environment variable"))
        .collect();
    assert_eq!(unknown.len(), 1, "{log}");
    for name in ["SSE_GATEWAY_MAX_PAYLOADS", "\"SSE_GATEWAY_MAX_PAYLOAD\""] {
        assert!(unknown[0].contains(name), "{log}");
    }
    let url = [("SSE_GATEWAY_REDIS_URI", "redis://127.0.0.1:1")];
    let (_, _, error) = run(&["token", "--subscribe", "a"], &url).await;
    assert!(error.contains("SSE_GATEWAY_REDIS_URL"), "{error}");
    // A health check runs every few seconds, so it does not log this.
    let (_, _, error) = run(&["healthcheck", "--admin-listen", "127.0.0.1:1"], &url).await;
    assert!(!error.contains("SSE_GATEWAY_REDIS_UR"), "{error}");
}

/// Breaks when a replica stays ready although it has lost a worker.
#[tokio::test]
async fn a_worker_that_panics_ends_the_process_in_order() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut command = Gateway::command();
    command.env("SSE_GATEWAY_PANIC", "1");
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.args([
        "--redis-url",
        &redis.url(),
        "--workers",
        "2",
        "--drain-window",
        "0s",
    ]);
    let mut process = Process::start("sse-gateway", &mut command);
    let status = process.exit_within(PATIENCE).await;
    assert_eq!(status.code(), Some(1));
    let log = process.log();
    for text in ["asked to panic", "draining", "panicked: the process ends"] {
        assert!(log.contains(text), "{text}: {log}");
    }
}

/// Breaks when a variable that a template left empty prevents a start, or when an empty list of public channels makes
/// all channels public.
#[tokio::test]
async fn an_empty_variable_counts_as_unset() {
    let _machine = among_others().await;
    let empty = [
        ("SSE_GATEWAY_WORKERS", ""),
        ("SSE_GATEWAY_HEARTBEAT", ""),
        ("SSE_GATEWAY_CONSOLE", ""),
        ("SSE_GATEWAY_PUBLISH_TOKEN", ""),
        ("SSE_GATEWAY_CONFIG", ""),
    ];
    let (code, output, error) = run(&["check"], &empty).await;
    assert_eq!((code, &*error), (Some(0), ""), "{output}");
    let (code, _, error) = run(&["check"], &[("SSE_GATEWAY_PUBLIC_CHANNELS", "")]).await;
    assert!(
        code == Some(0) && error.contains("no one can subscribe"),
        "{error}"
    );
}

/// Breaks when a gateway starts with an invalid RUST_LOG. Its log would then miss the requested lines.
#[tokio::test]
async fn an_invalid_rust_log_prevents_the_start() {
    let _machine = among_others().await;
    let options = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let (code, _, error) = run(&options, &[("RUST_LOG", "gateway=loud")]).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains("RUST_LOG") && error.contains("gateway=debug"),
        "{error}"
    );
}

/// Breaks when the manual misses a flag.
#[tokio::test]
async fn help_names_the_flags_and_their_variables() {
    let (code, manual, _) = run(&["--help"], &[]).await;
    assert_eq!(code, Some(0));
    let flags = "--listen --admin-listen --redis-url --channel-prefix --partitions --recorders --workers \
        --heartbeat --retry --max-payload --drain-window --config";
    for flag in flags.split_whitespace() {
        assert!(manual.contains(flag), "{flag} is not in the manual");
        let variable = flag
            .trim_start_matches('-')
            .to_ascii_uppercase()
            .replace('-', "_");
        assert!(
            manual.contains(&format!("SSE_GATEWAY_{variable}")),
            "the variable of {flag} is not in the manual"
        );
    }
}

/// Runs the binary to its end. Returns exit code, output and log.
async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Gateway::command();
    command.args(arguments).envs(environment.iter().copied());
    let mut process = Process::start("sse-gateway", &mut command);
    let status = process.exit().await;
    (status.code(), process.output(), process.log())
}

/// Breaks when a replica that delivers nothing looks healthy, or a replica that delivers looks unhealthy. Breaks also
/// when a client may subscribe to the canary's channel.
#[tokio::test]
async fn the_canary_shows_whether_events_are_delivered() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    // No client may read any channel. The canary still receives its events.
    let options = "--canary-interval 200ms --heartbeat 1s --max-stream-age 5s";
    let gateway = Gateway::start_with(&redis, options, "public_channels = []\n").await;
    let quick = async || {
        eventually("the canary returns", PATIENCE, async || {
            let metrics = gateway.metrics().await;
            let received = metrics.sum("sse_gateway_canary_received_total");
            let lag = metrics.sum("sse_gateway_canary_lag_seconds");
            if received >= 5.0 && lag < 1.0 {
                Ok(received)
            } else {
                Err(format!("{received} received, {lag} s late"))
            }
        })
        .await
    };
    let before = quick().await;
    redis.pause();
    eventually("the lag is seen", PATIENCE, async || {
        let lag = gateway
            .metrics()
            .await
            .sum("sse_gateway_canary_lag_seconds");
        if lag > 3.0 {
            Ok(())
        } else {
            Err(format!("{lag} s late"))
        }
    })
    .await;
    redis.go_on();
    assert!(quick().await >= before);
    // The canary's stream reaches its maximum age as any stream does, and the next one continues from its position.
    eventually("it has connected again", PATIENCE, async || {
        let metrics = gateway.metrics().await;
        let opened = metrics.sum("sse_gateway_streams_total");
        if opened >= 3.0 {
            Ok(())
        } else {
            Err(format!("{opened} streams"))
        }
    })
    .await;
    quick().await;
    let metrics = gateway.metrics().await;
    for name in ["gaps", "lost", "duplicates"] {
        let count = metrics.sum(&format!("sse_gateway_canary_{name}_total"));
        assert_eq!(count, 0.0, "{name}");
    }
    let keys = redis
        .connect()
        .await
        .run("KEYS ssegw:{8209}:log:canary.*")
        .await;
    let key = keys.array()[0].text();
    let channel = key.split_once("log:").expect("a channel").1;
    let answer = gateway.get(&format!("/events?channel={channel}"), "").await;
    assert_eq!(answer.head.status, 401, "{}", answer.body);
    let off = Gateway::start(&redis, "").await;
    assert!(!off.metrics().await.text().contains("canary"));
}

/// Breaks when a path that loses every second event without a gap looks healthy.
#[tokio::test]
async fn the_canary_counts_events_that_are_lost_without_a_gap() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--canary-interval 100ms").await;
    let count = async |name: &str| {
        let metrics = gateway.metrics().await;
        metrics.sum(&format!("sse_gateway_canary_{name}"))
    };
    let received = async |more: f64| {
        let goal = count("received_total").await + more;
        eventually("the canary returns", PATIENCE, async || {
            let received = count("received_total").await;
            if received >= goal {
                Ok(())
            } else {
                Err(format!("{received} of {goal}"))
            }
        })
        .await;
    };
    received(3.0).await;

    // The canary ignores messages that others publish to its channel. A message that is too large for it does not block
    // it.
    let mut commands = redis.connect().await;
    let logs = commands.run("KEYS ssegw:{8209}:log:canary.*").await;
    let key = logs.array()[0].text();
    let channel = key.split_once(":log:").expect("the key of a log").1;
    let (number, large) = (u64::MAX.to_string(), "x".repeat(100_000));
    let end = r#"{"data":"x","end":true}"#;
    for payload in [&*number, "0", "1 x", &large, end] {
        commands.publish(channel, payload).await;
    }
    received(10.0).await;
    assert_eq!(count("duplicates_total").await, 0.0);
    assert_eq!(count("lost_total").await, 0.0);

    // This library does not store every second message and answers the previous id for it.
    let libraries = commands.run("FUNCTION LIST WITHCODE").await;
    let fields = libraries.array()[0].array();
    let code = fields.last().expect("its code").text();
    let changes = [(
        "local id = text(state.ms, state.seq + 1)",
        "if string.match(payload, '^%d+') % 2 == 0 then return prev end",
    )];
    let code = changes.iter().fold(code, |code, (line, more)| {
        assert_eq!(code.matches(line).count(), 1, "{line}");
        code.replace(line, &format!("{line} {more}"))
    });
    let load: [&[u8]; 4] = [b"FUNCTION", b"LOAD", b"REPLACE", code.as_bytes()];
    let loaded = commands.call(&load).await.expect("an answer");
    assert_eq!(loaded.text(), "ssegw");
    // Until the first loss, events that were stored earlier may still arrive.
    let lost = eventually("an event is lost", PATIENCE, async || {
        match count("lost_total").await {
            0.0 => Err("none".to_owned()),
            lost => Ok(lost),
        }
    })
    .await;
    received(5.0).await;
    let lost = count("lost_total").await - lost;
    assert!(lost >= 4.0, "{lost}");
    // On a busy machine one event may be late. The next is not.
    eventually(
        "the canary's event arrives in time",
        PATIENCE,
        async || match count("lag_seconds").await {
            lag if lag < 1.0 => Ok(()),
            lag => Err(format!("{lag} s late")),
        },
    )
    .await;
    for name in ["gaps_total", "duplicates_total"] {
        assert_eq!(count(name).await, 0.0, "{name}");
    }
}

/// Breaks when a gateway that uses no HTTPS does not start in an image without certificates.
#[tokio::test]
async fn certificates_are_needed_only_for_https() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut command = Gateway::command();
    command
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("SSL_CERT_DIR", "/nonexistent")
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--redis-url", &redis.url(), "--workers", "1"]);
    let gateway = Gateway::of(command).await;
    gateway.ready().await;
    Viewer::open(&gateway, "channel=a").await;
}
