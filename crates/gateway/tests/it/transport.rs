//! HTTP/1.1, HTTP/2 and TLS with curl, which is an independent client.

use std::process::{Command, Stdio};

use crate::support::{
    Dir, Gateway, PATIENCE, Process, Redis, Viewer, among_others, becomes, certificate, eventually,
};

/// Runs curl with these arguments until it is dropped.
fn curl(arguments: &[&str]) -> Process {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--no-buffer", "--include"]);
    command.args(arguments);
    Process::start("curl", &mut command)
}

async fn reads(curl: &Process, text: &str) {
    eventually(&format!("curl reads {text}"), PATIENCE, async || {
        let output = curl.output();
        if output.contains(text) {
            Ok(())
        } else {
            Err(format!("{output:?} {}", curl.log()))
        }
    })
    .await;
}

/// Breaks when a stream differs between versions of HTTP.
#[tokio::test]
async fn a_stream_is_the_same_over_http_1_and_2_with_and_without_tls() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let (certificate, key, _) = certificate(&dir);
    let plain = Gateway::start(&redis, "--heartbeat 1s").await;
    let options =
        format!("--heartbeat 1s --tls-certificate {certificate} --tls-key {key} --publish-token t");
    let tls = Gateway::start(&redis, &options).await;
    let url = |gateway: &Gateway, scheme: &str| {
        format!(
            "{scheme}://localhost:{}/events?channel=a&channel=b",
            gateway.public.port()
        )
    };
    let connect = format!("localhost:{}:127.0.0.1", tls.public.port());
    let resolve = format!("localhost:{}:127.0.0.1", plain.public.port());
    let clients = [
        (
            "HTTP/1.1 200",
            curl(&["--resolve", &resolve, "--http1.1", &url(&plain, "http")]),
        ),
        (
            "HTTP/1.1 200",
            curl(&["--resolve", &resolve, "--http1.0", &url(&plain, "http")]),
        ),
        (
            "HTTP/2 200",
            curl(&[
                "--resolve",
                &resolve,
                "--http2-prior-knowledge",
                &url(&plain, "http"),
            ]),
        ),
        (
            "HTTP/1.1 200",
            curl(&[
                "--resolve",
                &connect,
                "--cacert",
                &certificate,
                "--http1.1",
                &url(&tls, "https"),
            ]),
        ),
        (
            "HTTP/2 200",
            curl(&[
                "--resolve",
                &connect,
                "--cacert",
                &certificate,
                "--http2",
                &url(&tls, "https"),
            ]),
        ),
    ];
    for (_, client) in &clients {
        reads(client, "gateway.open").await;
    }
    let large = "x".repeat(300_000);
    for text in ["one", "two", &large, "three"] {
        redis.append("a", text).await;
    }
    for (version, client) in &clients {
        reads(client, "data: three").await;
        let output = client.output();
        assert!(output.starts_with(version), "{output}");
        let head = output.split("\r\n\r\n").next().unwrap();
        for line in [
            "content-type: text/event-stream; charset=utf-8",
            "cache-control: no-store, no-transform",
            "x-accel-buffering: no",
        ] {
            assert!(head.contains(line), "{head}");
        }
        assert!(!head.contains("content-length"), "{head}");
        let at = |text: &str| output.find(text).unwrap_or_else(|| panic!("{text}"));
        assert!(at("data: one") < at("data: two") && at("data: two") < at(&large));
        // Heartbeats.
        reads(client, "\n:\n").await;
    }

    // The rest of the interface over HTTP/2.
    for arguments in [
        &["-H", "Accept: application/json"][..],
        &["-I"],
        &["-H", "Last-Event-ID: 0-0", "-H", "Accept: application/json"],
    ] {
        let url = url(&tls, "https");
        let all = [
            arguments,
            &[
                "--resolve",
                &connect,
                "--cacert",
                &certificate,
                "--http2",
                &url,
            ],
        ]
        .concat();
        let mut client = curl(&all);
        assert!(client.exit().await.success(), "{}", client.log());
        assert!(
            client.output().starts_with("HTTP/2 200"),
            "{}",
            client.output()
        );
    }
    let url = format!("https://localhost:{}/events?channel=b", tls.public.port());
    let end = r#"{"data":"bye","end":true}"#;
    let mut client = curl(&[
        "--resolve",
        &connect,
        "--cacert",
        &certificate,
        "-H",
        "Authorization: Bearer t",
        "-d",
        end,
        &url,
    ]);
    assert!(client.exit().await.success(), "{}", client.log());
    assert!(
        client.output().starts_with("HTTP/2 201"),
        "{}",
        client.output()
    );
    for url in [
        format!("{url}&since=start"),
        format!("{url}&last_event_id=9999999999999-0"),
    ] {
        let mut client = curl(&["--resolve", &connect, "--cacert", &certificate, &url]);
        assert!(client.exit().await.success(), "{}", client.log());
        let output = client.output();
        let status = if url.contains("since") {
            "HTTP/2 200"
        } else {
            "HTTP/2 20"
        };
        assert!(output.starts_with(status), "{output}");
    }

    // The streams of clients that left are closed.
    let connected = plain.metrics().await.sum("sse_gateway_streams");
    assert_eq!(connected, 3.0);
    drop(clients);
    for gateway in [&plain, &tls] {
        becomes(gateway, "sse_gateway_streams", "", 0.0).await;
    }
}

/// Breaks when a slow HTTP/2 client makes the gateway hold data that it does not read, or does not
/// receive all of it in the end.
#[tokio::test]
async fn a_slow_http_2_client_costs_only_a_cursor() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let url = format!("http://{}/events?channel=a", gateway.public);
    let slow = curl(&["--http2-prior-knowledge", &url]);
    reads(&slow, "gateway.open").await;
    slow.signal("STOP");
    let before = gateway.memory();
    let large = "x".repeat(100_000);
    for number in 0..300 {
        redis.append("a", &format!("{number} {large}")).await;
    }
    let mut quick = Viewer::open(&gateway, "channel=a").await;
    redis.append("a", "last").await;
    quick.until("last").await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(
        grown < 20 << 20,
        "{} KiB for 30 MB that one does not take",
        grown / 1024
    );
    slow.signal("CONT");
    reads(&slow, "data: last\n").await;
    let output = slow.output();
    for number in 0..300 {
        assert!(
            output.contains(&format!("data: {number} x")),
            "{number} is missing"
        );
    }
}

/// Breaks when a drain cuts streams that share a connection with others.
#[tokio::test]
async fn a_drain_ends_streams_of_http_2_whole() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let (certificate, key, _) = certificate(&dir);
    let options = format!("--drain-window 1s --tls-certificate {certificate} --tls-key {key}");
    let mut gateway = Gateway::start(&redis, &options).await;
    let connect = format!("localhost:{}:127.0.0.1", gateway.public.port());
    let url = format!(
        "https://localhost:{}/events?channel=a",
        gateway.public.port()
    );
    let options = [
        "--resolve",
        &connect,
        "--cacert",
        &certificate,
        "--http2",
        "--parallel",
    ];
    let mut clients = curl(&[&options, &[&*url; 5][..]].concat());
    eventually("all are open", PATIENCE, async || {
        match clients.output().matches("gateway.open").count() {
            5 => Ok(()),
            now => Err(format!("{now}")),
        }
    })
    .await;
    gateway.process().signal("TERM");
    assert!(gateway.process().exit().await.success());
    assert!(clients.exit().await.success(), "{}", clients.log());
    let output = clients.output();
    assert_eq!(output.matches("HTTP/2 200").count(), 5);
    assert_eq!(output.matches("retry: ").count(), 10, "{output}");
}

/// Breaks when a renewed certificate needs a restart, or when a broken one closes the port.
#[tokio::test]
async fn a_certificate_is_renewed_without_a_restart() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let (certificate_path, key_path, _) = certificate(&dir);
    let options = format!("--tls-certificate {certificate_path} --tls-key {key_path}");
    let mut gateway = Gateway::start(&redis, &options).await;
    let connect = format!("localhost:{}:127.0.0.1", gateway.public.port());
    let url = format!("https://localhost:{}/events", gateway.public.port());
    let trusts = |authority: &str| {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--resolve",
            &connect,
            "--cacert",
            authority,
            &url,
        ]);
        command.stdout(Stdio::null()).status().unwrap().success()
    };
    let old = Dir::new();
    let old_path = old.write(
        "old.pem",
        &std::fs::read_to_string(&certificate_path).unwrap(),
    );
    assert!(trusts(&old_path));
    dir.write("key.pem", "half a key");
    eventually(
        "the broken one is noticed",
        PATIENCE,
        async || match gateway
            .process()
            .log()
            .contains("the new certificate cannot be used")
        {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        },
    )
    .await;
    assert!(trusts(&old_path));
    let (_, _, _) = certificate(&dir);
    eventually("the new one is used", PATIENCE, async || {
        if trusts(&certificate_path) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    assert!(!trusts(&old_path));
}
