//! One client takes memory, places or time by means of HTTP itself.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Barrier,
    time::Instant,
};

use crate::support::{
    Gateway, PATIENCE, Redis, Viewer, among_others, becomes, eventually, in_time, shares,
    tokens::bearer,
};

const REFUSED: &str = "sse_gateway_refused_total";
const TWO: &str = "[[publish]]\ntoken = \"a\"\n[[publish]]\ntoken = \"b\"\n";

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

const MAX_WINDOW: u32 = (1 << 31) - 1;

/// An HTTP/2 client that sends any frames.
struct Raw {
    socket: TcpStream,
}

impl Raw {
    /// Connects. A stream may have at most `window` bytes that the client has not read.
    async fn connect(gateway: &Gateway, window: u32) -> Self {
        let socket = TcpStream::connect(gateway.public)
            .await
            .expect("it listens");
        let mut raw = Self { socket };
        raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let mut settings = vec![0, 4];
        settings.extend(window.to_be_bytes());
        raw.write(&frame(SETTINGS, 0, 0, &settings)).await;
        raw
    }

    /// Connects. Each stream may have `window` unread bytes, and the connection any number.
    async fn connect_wide(gateway: &Gateway, window: u32) -> Self {
        let mut raw = Self::connect(gateway, window).await;
        // The connection starts with a window of 64 KiB - 1.
        let more = MAX_WINDOW - 0xFFFF;
        raw.write(&frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes()))
            .await;
        raw
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("it is open");
    }

    async fn get(&mut self, stream: u32, path: &str) {
        // GET, http, a path and an authority.
        let mut block = vec![0x82, 0x86, 0x04];
        block.push(u8::try_from(path.len()).expect("it is short"));
        block.extend(path.as_bytes());
        block.extend(b"\x41\x09localhost");
        self.write(&frame(HEADERS, 5, stream, &block)).await;
    }

    /// The next frame: its kind, its stream and its length.
    async fn read(&mut self) -> (u8, u32, usize) {
        let mut head = [0; 9];
        let read = self.socket.read_exact(&mut head);
        in_time("a frame", read).await.expect("it is open");
        let [a, b, c, kind, _, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let mut rest = vec![0; length];
        let read = self.socket.read_exact(&mut rest);
        in_time("a frame", read).await.expect("it is open");
        (kind, u32::from_be_bytes(stream), length)
    }

    /// Waits until these streams are reset, and asserts that no other is.
    async fn reset(&mut self, mut streams: Vec<u32>) {
        while !streams.is_empty() {
            let (kind, stream, _) = self.read().await;
            if kind == RESET {
                let at = streams.iter().position(|other| *other == stream);
                streams.swap_remove(at.unwrap_or_else(|| panic!("{stream} is reset")));
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Breaks when a complete answer, or a stream that has ended, is kept without a time limit while another stream of the
/// connection is open. With a window of 1 byte hyper takes the first piece of an answer.
#[tokio::test]
async fn an_answer_that_is_not_read_is_given_up() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--max-streams 4").await;
    let text = "x".repeat(20_000);
    redis.append("done", &text).await;
    redis
        .append_end("done", &format!("{{\"data\":{text:?},\"end\":true}}"))
        .await;
    for window in [0, 1] {
        let mut raw = Raw::connect(&gateway, window).await;
        raw.get(1, "/events?channel=live").await;
        for stream in [3, 5, 7] {
            raw.get(stream, "/events?channel=done&since=start").await;
        }
        raw.get(9, "/nothing").await;
        becomes(&gateway, "sse_gateway_streams", "", 1.0).await;
        let start = Instant::now();
        raw.reset(vec![3, 5, 7, 9]).await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
        // All places but one are free, and the other stream is open.
        for _ in 0..3 {
            Viewer::open(&gateway, "channel=a").await;
        }
        raw.get(11, "/nothing").await;
        raw.reset(vec![11]).await;
        let open = gateway.metrics().await.sum("sse_gateway_streams");
        assert!(open >= 1.0);
        drop(raw);
        becomes(&gateway, "sse_gateway_streams", "", 0.0).await;
    }
}

/// Breaks when a client can send any number of frames without requests, or when a busy client is cut.
#[tokio::test]
async fn frames_without_requests_are_counted() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "--public-channels other", TWO).await;
    let frames = [
        ("RST_STREAM", frame(RESET, 0, 1, &[0, 0, 0, 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("PING", frame(6, 1, 0, b"unasked.")),
    ];
    let mut count = 0.0;
    for (name, frame) in frames {
        let mut raw = Raw::connect(&gateway, 1000).await;
        raw.get(1, "/nothing").await;
        while raw.read().await.1 != 1 {}
        // The gateway may close the connection during the write.
        let _closed = raw.socket.write_all(&frame.repeat(30_000)).await;
        let mut rest = Vec::new();
        in_time(name, raw.socket.read_to_end(&mut rest)).await.ok();
        count += 1.0;
        becomes(&gateway, REFUSED, "reason=\"frame_flood\"", count).await;
    }
    // DATA for a request whose body is not read.
    let mut raw = Raw::connect(&gateway, 1000).await;
    let block = b"\x83\x86\x84\x41\x01x";
    raw.write(&frame(HEADERS, 4, 1, block)).await;
    let _closed = raw
        .socket
        .write_all(&frame(0, 0, 1, b"x").repeat(30_000))
        .await;
    let mut rest = Vec::new();
    in_time("an end", raw.socket.read_to_end(&mut rest))
        .await
        .ok();

    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let _chosen = provider.install_default();
    let proxy = reqwest::Client::builder()
        .http2_prior_knowledge()
        .no_proxy()
        .build()
        .unwrap();
    let url = format!("http://{}/events?channel", gateway.public);
    let mut streams = Vec::new();
    for number in 0..500 {
        let opened = proxy.get(format!("{url}=other&_={number}")).send();
        let opened = in_time("a stream", opened).await.unwrap();
        assert_eq!(opened.status(), 200);
        streams.push(opened);
    }
    for _ in 0..5 {
        let body = "x".repeat(900_000);
        let post = proxy
            .post(format!("{url}=upload"))
            .bearer_auth("a")
            .body(body);
        let answer = in_time("an answer", post.send()).await.unwrap();
        assert_eq!(answer.status(), 201);
    }
    becomes(&gateway, REFUSED, "reason=\"frame_flood\"", count).await;
    redis.append("other", "here").await;
    for stream in streams {
        in_time("an event", async move {
            let (mut stream, mut seen) = (stream, Vec::new());
            while !seen.windows(10).any(|window| window == b"data: here") {
                let chunk = stream.chunk().await.expect("it is open");
                seen.extend(chunk.expect("it is open"));
            }
        })
        .await;
    }
}

/// Breaks when a client that reads a little from time to time keeps large events without a time limit.
#[tokio::test]
async fn large_events_are_not_kept_for_clients_that_read_slowly() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--channel-buffer-bytes 64KiB --workers 1").await;
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let _chosen = provider.install_default();
    let greedy = reqwest::Client::builder()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(16_384)
        .no_proxy()
        .build()
        .unwrap();
    let mut dripping = Vec::new();
    for number in 0..140 {
        let url = format!("http://{}/events?channel=c{number}", gateway.public);
        let mut response = in_time("a stream", greedy.get(url).send()).await.unwrap();
        dripping.push(tokio::spawn(async move {
            while let Ok(Some(_)) = response.chunk().await {
                tokio::time::sleep(Duration::from_millis(1200)).await;
            }
        }));
    }
    let large = "x".repeat(950_000);
    for number in 0..140 {
        redis.append(&format!("c{number}"), &large).await;
    }
    // 133 MB, of which 64 MiB may be kept.
    eventually("enough streams are given up", PATIENCE, async || {
        let stalled = gateway.metrics().await.sum("sse_gateway_stalled_total");
        (stalled >= 20.0)
            .then_some(())
            .ok_or_else(|| stalled.to_string())
    })
    .await;
    let stalled = gateway.metrics().await.sum("sse_gateway_stalled_total");
    assert!(stalled < 130.0, "{stalled} of 140");
    for client in dripping {
        client.abort();
    }
}

/// Breaks when a client that does not read the end of a large event keeps all of it in memory. With 2,000 bytes left,
/// h2 has all that the client has not read. With 50,000 it does not.
#[tokio::test]
async fn a_client_that_leaves_the_end_of_a_large_event_does_not_keep_it() {
    // Less than 64 MiB, so only clients that read nothing are given up.
    const CHANNELS: u32 = 65;
    const LENGTH: u32 = 950_000;
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--channel-buffer-bytes 64KiB --workers 1").await;
    let mut reading = Vec::new();
    for rest in [2_000, 50_000] {
        let mut raw = Raw::connect_wide(&gateway, LENGTH - rest).await;
        for number in 0..CHANNELS {
            let path = format!("/events?channel=c{number}");
            raw.get(2 * number + 1, &path).await;
        }
        reading.push(tokio::spawn(async move {
            tokio::io::copy(&mut raw.socket, &mut tokio::io::sink()).await
        }));
    }
    let streams = f64::from(2 * CHANNELS);
    becomes(&gateway, "sse_gateway_streams", "", streams).await;
    let mut reader = Viewer::open(&gateway, "channel=last").await;
    let before = gateway.memory();
    let large = "x".repeat(LENGTH as usize);
    for number in 0..CHANNELS {
        let channel = format!("c{number}");
        redis.append(&channel, &large).await;
        redis.append(&channel, "small").await;
    }
    redis.append("last", "here").await;
    reader.until("here").await;
    // 59 MiB, of which a worker may keep 16.
    eventually(
        "the memory for unread events is bounded",
        PATIENCE,
        async || match gateway.memory().saturating_sub(before) >> 20 {
            held if held < 40 => Ok(()),
            held => Err(format!("{held} MiB")),
        },
    )
    .await;
    let stalled = gateway.metrics().await.sum("sse_gateway_stalled_total");
    assert!(stalled >= 1.0, "no stream was given up");
    for client in reading {
        client.abort();
    }
}

/// Breaks when h2 takes large parts of each stream for a client that allows this and reads nothing. These parts are
/// copies, and the gateway does not count them.
#[tokio::test]
async fn large_windows_of_clients_that_read_nothing_are_not_filled() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--workers 1").await;
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect_wide(&gateway, MAX_WINDOW).await;
        for number in 0..200 {
            raw.get(2 * number + 1, "/events?channel=large").await;
        }
        unread.push(raw);
    }
    becomes(&gateway, "sse_gateway_streams", "", 400.0).await;
    let mut reader = Viewer::open(&gateway, "channel=large").await;
    let before = gateway.memory();
    redis.append("large", &"x".repeat(390_000)).await;
    for number in 0..20 {
        let text = format!("later {number}");
        redis.append("large", &text).await;
        reader.until(&text).await;
    }
    // 400 copies of the event are 156 MB.
    let held = gateway.memory().saturating_sub(before) >> 20;
    assert!(held < 60, "{held} MiB");
}

/// Breaks when the names of events do not count towards the size of a page.
#[tokio::test]
async fn a_page_with_long_event_names_ends_early() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let name = "x".repeat(100_000);
    for _ in 0..60 {
        let payload = format!("{{\"event\":\"{name}\",\"data\":\"\"}}");
        redis.append("names", &payload).await;
    }
    let page = async |query: &str| -> (usize, Value) {
        let target = format!("/events?channel=names&limit=1000&{query}");
        let page = gateway.get(&target, "Accept: application/json\r\n").await;
        assert_eq!(page.head.status, 200, "{}", page.body);
        let page: Value = serde_json::from_str(&page.body).unwrap();
        let count = page["events"].as_array().unwrap().len();
        (count, page)
    };
    let (first, begin) = page("since=start").await;
    assert!(
        begin["more"] == true && (10..50).contains(&first),
        "{first}"
    );
    let last = begin["last_event_id"].as_str().unwrap();
    let (second, end) = page(&format!("last_event_id={last}")).await;
    assert_eq!((first + second, &end["more"]), (60, &Value::Bool(false)));
}

fn head(token: &str, kind: &str, length: usize) -> String {
    format!(
        "POST /events{kind}\r\nContent-Length: {length}\r\n{}Connection: close\r\n\r\n",
        bearer(token)
    )
}

/// Breaks when bodies that arrive at the same time block each other although there is room.
#[tokio::test]
async fn two_bodies_of_the_maximum_size_are_both_stored() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "--max-payload 16MiB", TWO).await;
    let step = Arc::new(Barrier::new(2));
    let bodies = [1, 2].map(|number| {
        let (step, address) = (Arc::clone(&step), gateway.public);
        tokio::spawn(async move {
            let kind = format!(
                "?channel=c{number} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain"
            );
            let mut socket = TcpStream::connect(address).await.unwrap();
            let head = head("a", &kind, 16 << 20);
            socket.write_all(head.as_bytes()).await.unwrap();
            socket.write_all(&vec![b'x'; 12 << 20]).await.unwrap();
            step.wait().await;
            // A refusal may arrive before the end of the body.
            let _refused = socket.write_all(&vec![b'x'; 4 << 20]).await;
            let mut answer = Vec::new();
            let _reset = socket.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        })
    });
    for body in bodies {
        let answer = in_time("an answer", body).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

/// Breaks when the bodies of one publisher block another one.
#[tokio::test]
async fn bodies_of_one_publisher_leave_room_for_another() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", TWO).await;
    let kind = " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson";
    let greedy = (0..16).map(|_| {
        let address = gateway.public;
        tokio::spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket
                .write_all(head("a", kind, 4 << 20).as_bytes())
                .await
                .unwrap();
            let _refused = socket.write_all(&vec![b' '; 4_000_000]).await;
            let mut answer = Vec::new();
            let _reset = socket.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).contains("\"busy\"")
        })
    });
    let greedy: Vec<_> = greedy.collect();
    let published = "sse_gateway_published_total";
    eventually("one is refused", PATIENCE, async || {
        let busy = gateway
            .metrics()
            .await
            .labelled(published, "result=\"busy\"");
        let body = "y".repeat(900_000);
        let answer = gateway.post("/events?channel=a", &bearer("b"), &body).await;
        assert_eq!(answer.head.status, 201, "{}", answer.body);
        (busy > 0.0).then_some(()).ok_or_else(|| "none".to_owned())
    })
    .await;
    let mut busy = 0;
    for body in greedy {
        busy += usize::from(in_time("an answer", body).await.unwrap());
    }
    assert!(busy > 0);
}

/// Breaks when connections whose answers are not read keep a probe from the admin port.
#[tokio::test]
async fn probes_are_answered_while_all_connections_have_unread_answers() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut answering = Vec::new();
    for _ in 0..100 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        // With small segments, the gateway's side buffers little as well.
        let small = socket2::SockRef::from(&socket).set_tcp_mss(536);
        small.unwrap();
        let mut socket = socket.connect(gateway.admin).await.unwrap();
        let request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // The gateway may have closed the connection already.
        let _closed = socket.write_all(request).await;
        answering.push(socket);
    }
    gateway.readiness(200).await;
    gateway.metrics().await;
}
