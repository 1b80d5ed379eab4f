//! Requests of any size and with any bytes, and bytes that are no request.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Gateway, PATIENCE, Redis, Viewer, among_others, refused};

/// Breaks when a header of any size or with any bytes causes a server error instead of a client error, or affects other
/// requests.
#[tokio::test]
async fn headers_of_any_size_and_bytes_get_a_clear_answer() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut witness = Viewer::open(&gateway, "channel=news").await;
    let mut values: Vec<Vec<u8>> = [1_000, 10_000, 100_000, 10_000_000]
        .iter()
        .map(|size| b"9".repeat(*size))
        .collect();
    values.push(b"0.1-0_".repeat(4000));
    values.extend((0..=255_u8).map(|byte| vec![b'1', byte, b'0']));
    for value in values {
        let mut request =
            b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: ".to_vec();
        request.extend_from_slice(&value);
        request.extend_from_slice(b"\r\n\r\n");
        let shown = String::from_utf8_lossy(&value[..value.len().min(20)]).into_owned();
        match status(&gateway, &request).await {
            // A request that is not HTTP may be closed without an answer.
            None | Some(200 | 400..=499) => {}
            Some(status) => panic!("{shown:?}: {status}"),
        }
    }
    redis.append("news", "still here").await;
    assert_eq!(witness.event().await.data, "still here");
}

/// Breaks when a page of another site reads everything through a name of its own that resolves to this machine. Breaks
/// also when a gateway with rules refuses other host names.
#[tokio::test]
async fn without_rules_only_requests_to_this_machine_are_answered() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--publish-token t --console").await;
    let open = Gateway::start(&redis, "--public-channels * --publish-token t").await;
    let head = |target: &str, host: &str| {
        let token = "Authorization: Bearer t\r\nContent-Length: 0\r\nAccept: application/json";
        format!("{target} HTTP/1.1\r\nHost: {host}\r\n{token}\r\nConnection: close\r\n\r\n")
    };
    for target in ["GET /events?channel=a", "POST /events?channel=a", "GET /"] {
        let foreign = head(target, "rebound.example:8080");
        let answer = gateway.send(foreign.as_bytes()).await.unwrap();
        assert_eq!(refused(&answer, 421), "foreign_host", "{target}");
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "10.0.0.1:8080"] {
            assert!(matches!(
                status(&gateway, head(target, host).as_bytes()).await,
                Some(200 | 201)
            ));
        }
    }
    let reasons = gateway.metrics().await;
    assert_eq!(
        reasons.labelled("sse_gateway_refused_total", "reason=\"foreign_host\""),
        3.0
    );
    let named = head("GET /events?channel=a", "events.example.com");
    assert_eq!(status(&open, named.as_bytes()).await, Some(200));
}

/// Breaks when a parameter that has no meaning for a stream is ignored silently.
#[tokio::test]
async fn a_limit_of_events_on_a_stream_is_refused() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let answer = gateway.get("/events?channel=a&limit=5", "").await;
    assert_eq!(refused(&answer, 400), "bad_limit");
    assert!(
        answer.body.contains("Accept: application/json"),
        "{}",
        answer.body
    );
}

/// Breaks when bytes that are no request, or half of one, stop the listener.
#[tokio::test]
async fn bytes_that_are_no_request_do_no_harm() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut witness = Viewer::open(&gateway, "channel=news").await;
    let long_target = format!(
        "GET /events?channel={} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a".repeat(1_000_000)
    );
    let many_fields = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    let many_channels = format!(
        "GET /events?{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "channel=a&".repeat(5_000)
    );
    let requests: [&[u8]; 12] = [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /events?channel=news\r\n\r\n",
        b"GET /events?channel=news HTTP/9.9\r\n\r\n",
        b"GET /events?channel=news HTTP/1.1\nHost: localhost\n\n",
        b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        long_target.as_bytes(),
        many_fields.as_bytes(),
        many_channels.as_bytes(),
    ];
    for request in requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        match status(&gateway, request).await {
            None | Some(200 | 400..=499 | 501 | 505) => {}
            Some(status) => panic!("{shown:?}: {status}"),
        }
    }
    // Many connections send half a request each, and nothing more.
    let mut halves = Vec::new();
    for _ in 0..200 {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        socket
            .write_all(b"GET /events?channel=news HT")
            .await
            .unwrap();
        halves.push(socket);
    }
    let mut late = Viewer::open(&gateway, "channel=news").await;
    redis.append("news", "still here").await;
    assert_eq!(witness.event().await.data, "still here");
    assert_eq!(late.event().await.data, "still here");
    drop(halves);
}

/// The status of the answer to `request`. `None` if there is no answer, and the connection is closed or kept open.
async fn status(gateway: &Gateway, request: &[u8]) -> Option<u16> {
    let mut socket = TcpStream::connect(gateway.public)
        .await
        .expect("it accepts");
    // The request may be refused before it is sent in full.
    timeout(PATIENCE, socket.write_all(request))
        .await
        .expect("it is read or refused")
        .ok();
    let mut answer = Vec::new();
    let reading = async {
        while answer.len() < 12 {
            match socket.read_buf(&mut answer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // Half a request needs no answer.
    timeout(Duration::from_secs(2), reading).await.ok();
    std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

/// Breaks when a misspelled name of a parameter or header is ignored silently. The client would get something else than
/// it requested.
#[tokio::test]
async fn no_misspelled_name_is_ignored_silently() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--publish-token t").await;
    let ids = redis.append_many("news", 3).await;
    let json = "Accept: application/json\r\n";
    for (query, headers, code, advice) in [
        ("sinse=start", "", "unknown_parameter", "since"),
        ("lastEvent=1-1", "", "unknown_parameter", "last_event_id"),
        ("topic=a", "", "unknown_parameter", "channel, last_event_id"),
        (
            "",
            "X-Last-Event-ID: 1-1\r\n",
            "unknown_header",
            "last-event-id",
        ),
    ] {
        let target = format!("/events?channel=news&{query}");
        for accept in ["", json] {
            let answer = gateway.get(&target, &format!("{accept}{headers}")).await;
            assert_eq!(answer.head.status, 400, "{query}");
            for word in [code, advice] {
                assert!(answer.body.contains(word), "{query}: {}", answer.body);
            }
        }
    }
    let bearer = "Authorization: Bearer t\r\n";
    for (target, headers, code, advice) in [
        (
            "/events?channel=news&type=e",
            "",
            "unknown_parameter",
            "event=",
        ),
        (
            "/events?channel=news&evnt=e",
            "",
            "unknown_parameter",
            "event",
        ),
        (
            "/events?channel=news&last_event_id=1-1",
            "",
            "unknown_parameter",
            "channel, event",
        ),
        (
            "/events?channel=news",
            "X-Idempotency-Key: k\r\n",
            "unknown_header",
            "idempotency-key",
        ),
        (
            "/tickets?subject=anna",
            "",
            "unknown_parameter",
            "this route has none",
        ),
    ] {
        let answer = gateway
            .post(target, &format!("{bearer}{headers}"), "x")
            .await;
        assert_eq!(answer.head.status, 400, "{target}");
        for word in [code, advice] {
            assert!(answer.body.contains(word), "{target}: {}", answer.body);
        }
    }
    // Parameters that libraries and cache busters add are accepted.
    for name in ["lastEventId", "Last-Event-ID", "lastEventID"] {
        let query = format!("channel=news&since=start&_=1763800000000&{name}={}", ids[1]);
        let mut viewer = Viewer::open(&gateway, &query).await;
        assert_eq!(viewer.event().await.data, "n2", "{name}");
    }
    let answer = gateway.post("/events?channel=news&_=1", bearer, "x").await;
    assert_eq!(answer.head.status, 201);
}
