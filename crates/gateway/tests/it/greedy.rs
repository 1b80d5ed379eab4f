//! One client takes resources that others need: it is limited, and the others do not notice.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::json;
use testkit::lab::append_call;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::support::{
    Gateway, PATIENCE, Redis, Reply, Viewer, among_others, becomes, eventually, in_time, refused,
    shares,
    tokens::{bearer, in_seconds, token, with_secret},
};

const REFUSED: &str = "sse_gateway_refused_total";
const PUBLISHERS: &str = "[[publish]]\ntoken = \"a\"\n[[publish]]\ntoken = \"b\"\n";

/// The beginning of an HTTP/2 connection whose client changes no setting.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// An HTTP/2 client. A stream may have at most `window` bytes that the client has not read.
fn http2(window: u32) -> reqwest::Client {
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    // Another test may have installed it.
    let _chosen = provider.install_default();
    reqwest::Client::builder()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(window)
        .no_proxy()
        .build()
        .expect("a client")
}

fn from(address: &str) -> String {
    format!("X-Forwarded-For: {address}\r\n")
}

/// Breaks when a client can cause a log line with each frame or request, or can send any number of frames that are not
/// part of a request.
#[tokio::test]
async fn no_client_fills_the_log() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateway = Gateway::start_with(&redis, "--public-channels other", PUBLISHERS).await;
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    socket.write_all(PREFACE).await.unwrap();
    // Acknowledgements of a PING that the gateway never sent, and then a PING.
    let unasked = |count| b"\0\0\x08\x06\x01\0\0\0\0unasked.".repeat(count);
    socket.write_all(&unasked(1500)).await.unwrap();
    socket
        .write_all(b"\0\0\x08\x06\0\0\0\0\0the-last")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.windows(8).any(|window| window == b"the-last") {
        let read = in_time("an answer to the PING", socket.read_buf(&mut answer)).await;
        assert!(read.unwrap() > 0, "the connection is closed");
    }
    let lines = |log: &str, part: &str| log.lines().filter(|line| line.contains(part)).count();
    let written = lines(&gateway.process().log(), "");
    assert!(written < 100, "{written} lines for 1,500 frames");
    // The gateway may close the connection during the write.
    let _closed = socket.write_all(&unasked(20_000)).await;
    in_time("an end", socket.read_to_end(&mut answer))
        .await
        .ok();
    becomes(&gateway, REFUSED, "reason=\"frame_flood\"", 1.0).await;

    let mut commands = redis.connect().await;
    commands.run("ACL SETUSER default -getdel").await;
    for number in 0..200 {
        let target = format!("/events?channel=a&ticket={number:032x}");
        let headers = "Accept: application/json\r\n";
        let answer = gateway.get(&target, headers).await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
    }
    let written = lines(&gateway.process().log(), "ticket");
    assert!(
        (1..120).contains(&written),
        "{written} lines for 200 requests"
    );
}

/// Breaks when a body takes memory before it has arrived, without permission to publish, or without a time limit.
#[tokio::test]
async fn bodies_that_do_not_arrive_block_no_other_publisher() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = format!("{PUBLISHERS}{}", with_secret(""));
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let nothing = token(&json!({ "sub": "eve", "exp": in_seconds(600), "subscribe": ["*"] }));
    let mut waiting = Vec::new();
    for number in 0..40 {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        let token = if number < 20 { &nothing } else { "a" };
        let head = format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
             Content-Length: 4194304\r\n{}\r\n",
            bearer(token)
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        waiting.push(socket);
    }
    let start = Instant::now();
    let label = "result=\"forbidden_channel\"";
    becomes(&gateway, "sse_gateway_published_total", label, 20.0).await;
    for token in ["a", "b"] {
        let answer = gateway.post("/events?channel=a", &bearer(token), "x").await;
        assert_eq!(answer.head.status, 201, "{}", answer.body);
    }
    let mut answer = [0; 12];
    for socket in &mut waiting {
        in_time("an answer", socket.read_exact(&mut answer))
            .await
            .unwrap();
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

/// Breaks when a client that does not read its pages prevents others from getting theirs.
#[tokio::test]
async fn pages_that_are_not_read_leave_room_for_others() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--trusted-proxies 127.0.0.0/8").await;
    let large = "x".repeat(100_000);
    for _ in 0..45 {
        redis.append("large", &large).await;
    }
    redis.append("small", "hello").await;
    let greedy = http2(100);
    let url = format!("http://{}/events?channel=large&limit=1000", gateway.public);
    let mut headers = HeaderMap::new();
    headers.insert("accept", "application/json".parse().unwrap());
    headers.insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
    let requests = (0..32).map(|_| greedy.get(&url).headers(headers.clone()).send());
    let requests: Vec<_> = requests.map(tokio::spawn).collect();
    let mut kept = Vec::new();
    for request in requests {
        let response = in_time("an answer", request).await.unwrap().unwrap();
        if response.status() == 200 {
            kept.push(response);
        }
    }
    assert!(kept.len() >= 4, "{} pages", kept.len());
    let headers = format!("Accept: application/json\r\n{}", from("192.0.2.2"));
    for channel in ["small", "large"] {
        let target = format!("/events?channel={channel}");
        let page = gateway.get(&target, &headers).await;
        assert_eq!(page.head.status, 200, "{}", page.body);
    }
    // Pages that the client does not read are cut.
    let mut cut = 0;
    for page in kept {
        cut += usize::from(in_time("an end", page.bytes()).await.is_err());
    }
    assert!(cut > 0, "no page was cut");
}

/// Breaks when idle connections keep probes and Prometheus out.
#[tokio::test]
async fn probes_are_answered_when_idle_connections_fill_the_admin_port() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let files = gateway.open_files();
    let mut idle = Vec::new();
    for number in 0..300 {
        let mut socket = TcpStream::connect(gateway.admin).await.unwrap();
        if number % 2 == 0 {
            // Half of them begin a request. The write fails if the gateway has already closed the connection.
            let _closed = socket.write_all(b"GET /met").await;
        }
        idle.push(socket);
    }
    gateway.readiness(200).await;
    gateway.metrics().await;
    let held = gateway.open_files().saturating_sub(files);
    assert!(held < 120, "{held} of 300 connections");
    let mut first = idle.remove(0);
    let mut answer = Vec::new();
    // The end may be a reset.
    in_time("the first is closed", first.read_to_end(&mut answer))
        .await
        .ok();
    // The newest connection may wait for ten seconds.
    let start = Instant::now();
    let mut last = idle.pop().unwrap();
    in_time("the last is closed", last.read_to_end(&mut answer))
        .await
        .ok();
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// Breaks when an HTTP/2 connection without a request stays longer than one of HTTP/1.1.
#[tokio::test]
async fn an_idle_connection_of_http_2_is_closed_in_time() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--header-timeout 4s").await;
    // Windows of 0, and a request whose answer does not fit.
    let no_window = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
    let get = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x";
    let mut sockets = Vec::new();
    for begin in [PREFACE.to_vec(), [PREFACE, no_window, get].concat()] {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        socket.write_all(&begin).await.unwrap();
        sockets.push(socket);
    }
    let start = Instant::now();
    for mut socket in sockets {
        let mut answer = Vec::new();
        in_time("it is closed", socket.read_to_end(&mut answer))
            .await
            .ok();
        let took = start.elapsed();
        assert!(took > Duration::from_secs(3), "{took:?}");
        // An answer that the client does not read is given up after 5 s. The connection is idle after that.
        assert!(took < Duration::from_secs(18), "{took:?}");
    }
}

/// Breaks when refused requests use up the rate at which others connect.
#[tokio::test]
async fn refused_requests_count_for_their_own_address() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--max-stream-rate 12 --trusted-proxies 127.0.0.0/8";
    let gateway = Gateway::start_with(&redis, options, &with_secret("")).await;
    let good = bearer(&token(
        &json!({ "sub": "anna", "exp": in_seconds(600), "subscribe": ["*"] }),
    ));
    let good = format!("{good}{}", from("192.0.2.2"));
    let mut opened = Vec::new();
    for _ in 0..5 {
        // Refused first because the credential is missing, and then because there are too many.
        for _ in 0..40 {
            gateway.get("/events?channel=a", &from("192.0.2.1")).await;
        }
        opened.push(Viewer::open_with(&gateway, "channel=a", &good).await);
    }
    let metrics = gateway.metrics().await;
    let count = |reason| metrics.labelled(REFUSED, &format!("reason=\"{reason}\""));
    assert!(count("unauthorized") >= 5.0);
    assert!(count("max_stream_rate_per_address") >= 1.0);
    assert_eq!(count("max_stream_rate"), 0.0);
}

/// Breaks when clients that read nothing make the gateway hold large events for them, or when that affects other
/// clients.
#[tokio::test]
async fn large_events_are_not_kept_for_clients_that_do_not_read() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--channel-buffer-bytes 64KiB").await;
    let greedy = http2(100);
    let mut kept = Vec::new();
    for number in 0..60 {
        let url = format!("http://{}/events?channel=c{number}", gateway.public);
        let response = in_time("a stream", greedy.get(url).send()).await.unwrap();
        assert_eq!(response.status(), 200);
        kept.push(response);
    }
    let mut reader = Viewer::open(&gateway, "channel=c0").await;
    let before = gateway.memory();
    let large = "x".repeat(900_000);
    for number in 0..60 {
        for _ in 0..2 {
            redis.append(&format!("c{number}"), &large).await;
        }
        redis.append(&format!("c{number}"), "small").await;
    }
    reader.until("small").await;
    eventually(
        "the memory for unread events is bounded",
        PATIENCE,
        async || match gateway.memory().saturating_sub(before) >> 20 {
            held if held < 45 => Ok(()),
            held => Err(format!("{held} MiB")),
        },
    )
    .await;
    let stalled = gateway.metrics().await.sum("sse_gateway_stalled_total");
    assert!((1.0..60.0).contains(&stalled), "{stalled} of 60");
    redis.append("c0", "still here").await;
    reader.until("still here").await;
}

/// Breaks when one call attaches many channels that have long histories of small events. Redis serves no other client
/// during a call.
#[tokio::test]
async fn channels_with_many_events_are_attached_by_several_calls() {
    const CHANNELS: usize = 24;
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut commands = redis.connect().await;
    let channels: Vec<_> = (0..CHANNELS).map(|number| format!("c{number}")).collect();
    for channel in &channels {
        let calls = vec![append_call(channel, "x").to_vec(); 520];
        commands.call_all(&calls).await.unwrap();
    }
    for setting in ["max-len 10000", "log-slower-than 0"] {
        commands.run(&format!("CONFIG SET slowlog-{setting}")).await;
    }
    let names: Vec<_> = channels
        .iter()
        .map(|name| format!("channel={name}"))
        .collect();
    let mut viewer = Viewer::open(&gateway, &names.join("&")).await;
    redis.append("c23", "here").await;
    viewer.until("here").await;
    let log = commands.run("SLOWLOG GET 10000").await;
    let is_attach = |entry: &&Reply| {
        let words: Vec<_> = entry.array()[3].array().iter().map(Reply::text).collect();
        words[0] == "FCALL" && words[1] == "ssegw_attach" && words.len() > 10
    };
    let calls = log.array().iter().filter(is_attach).count();
    assert!((3..=CHANNELS).contains(&calls), "{calls} calls");
}
