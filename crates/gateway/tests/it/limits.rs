//! Limits: a client beyond one receives only a time to reconnect, and no open stream is closed for it.

use std::time::Duration;

use serde_json::json;
use testkit::{Answer, Client, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Gateway, PATIENCE, Redis, Viewer, among_others, becomes, eventually, in_time, refused,
    tokens::{bearer, in_seconds, token, with_secret},
};

const REFUSED: &str = "sse_gateway_refused_total";

/// Breaks when a client beyond a limit is refused in a way that makes an EventSource give up.
fn come_back(answer: &Response) {
    assert_eq!(answer.head.status, 200, "{}", answer.body);
    let retry = answer
        .body
        .strip_prefix("retry:")
        .expect("a time to reconnect");
    let (retry, why) = retry.split_once('\n').expect("a line");
    retry.trim().parse::<u64>().expect("nothing but a number");
    // The comment is for people who look at the network traffic.
    let is_comment = why.starts_with(": ") && why.ends_with('\n') && why.trim().len() > 10;
    assert!(is_comment && why.lines().count() == 1, "{why:?}");
}

async fn refusals(gateway: &Gateway, reason: &str) -> f64 {
    let metrics = gateway.metrics().await;
    metrics.labelled(REFUSED, &format!("reason=\"{reason}\""))
}

/// Waits until the gateway has this many streams.
async fn connections(gateway: &Gateway, count: f64) {
    becomes(gateway, "sse_gateway_streams", "", count).await;
}

/// Breaks when there are more connections than allowed, or when an open one is closed.
#[tokio::test]
async fn new_clients_beyond_max_streams_wait() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    // Counted over all workers.
    let gateway = Gateway::start(&redis, "--max-streams 3 --workers 2").await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(Viewer::open(&gateway, "channel=a").await);
    }
    for _ in 0..5 {
        come_back(&gateway.get("/events?channel=a", "").await);
        let page = gateway
            .get("/events?channel=a", "Accept: application/json\r\n")
            .await;
        assert_eq!(refused(&page, 503), "max_streams");
    }
    assert_eq!(refusals(&gateway, "max_streams").await, 10.0);
    let limit = gateway.metrics().await.sum("sse_gateway_max_streams");
    assert_eq!(limit, 3.0);
    redis.append("a", "still here").await;
    for viewer in &mut kept {
        viewer.until("still here").await;
    }
    kept.pop();
    connections(&gateway, 2.0).await;
    Viewer::open(&gateway, "channel=a").await;
}

/// Breaks when a replica that is full but delivers looks unhealthy, or when the canary takes a client's place.
#[tokio::test]
async fn the_canary_does_not_count_towards_limits() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let limits = "--max-streams 1 --max-streams-per-address 1 --max-stream-rate 1";
    let gateway = Gateway::start(&redis, &format!("{limits} --canary-interval 100ms")).await;
    let received = async || {
        let metrics = gateway.metrics().await;
        metrics.sum("sse_gateway_canary_received_total")
    };
    let hears = async |more: f64| {
        let goal = received().await + more;
        eventually("the canary returns", PATIENCE, async || {
            let now = received().await;
            if now >= goal {
                Ok(())
            } else {
                Err(now.to_string())
            }
        })
        .await;
    };
    hears(1.0).await;
    let mut one = Viewer::open(&gateway, "channel=a").await;
    come_back(&gateway.get("/events?channel=a", "").await);
    hears(5.0).await;
    redis.append("a", "still here").await;
    one.until("still here").await;
}

/// Breaks when a client that has to reconnect cannot, because its ticket is used up.
#[tokio::test]
async fn a_client_that_has_to_reconnect_keeps_its_ticket() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = with_secret("");
    let gateway = Gateway::start_with(&redis, "--max-streams 1", &config).await;
    let anna = bearer(&token(
        &json!({ "exp": in_seconds(600), "subscribe": ["*"] }),
    ));
    let kept = Viewer::open_with(&gateway, "channel=a", &anna).await;
    let answer = gateway.post("/tickets", &anna, "").await;
    let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    let ticket = answer["ticket"].as_str().expect("a ticket");
    let target = format!("/events?channel=a&ticket={ticket}");
    come_back(&gateway.get(&target, "").await);
    drop(kept);
    connections(&gateway, 0.0).await;
    Viewer::open(&gateway, &format!("channel=a&ticket={ticket}")).await;
}

/// Breaks when a client that sends no request can take all sockets of an address or of the gateway.
#[tokio::test]
async fn sockets_without_a_request_are_counted() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--max-streams-per-address 4").await;
    let mut sockets = Vec::new();
    for _ in 0..40 {
        sockets.push(TcpStream::connect(gateway.public).await.unwrap());
    }
    // The connections beyond the limit are closed.
    let reason = "reason=\"max_sockets_per_address\"";
    becomes(&gateway, REFUSED, reason, 20.0).await;
    drop(sockets);
    eventually("there is room again", PATIENCE, async || {
        let mut client = Client::new("/events?channel=a");
        let answer = client.connect(gateway.public).await;
        answer.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// Breaks when one address has more connections than allowed, when a client can choose the address it counts for, or
/// when all clients behind a proxy count as one.
#[tokio::test]
async fn an_address_is_counted_and_cannot_be_forged() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let limit = "--max-streams-per-address 2";
    let from = |addresses: &str| format!("X-Forwarded-For: {addresses}\r\n");

    // No proxy is trusted. All of these clients count as 127.0.0.1, with any header.
    let direct = Gateway::start(&redis, limit).await;
    let one = Viewer::open_with(&direct, "channel=a", &from("1.1.1.1")).await;
    let two = Viewer::open_with(&direct, "channel=a", &from("2.2.2.2")).await;
    come_back(&direct.get("/events?channel=a", &from("3.3.3.3")).await);
    assert_eq!(refusals(&direct, "max_streams_per_address").await, 1.0);
    drop((one, two));
    connections(&direct, 0.0).await;
    Viewer::open(&direct, "channel=a").await;

    // The proxy is trusted. Its clients count by the address that the proxy saw, not by an address that they sent.
    let behind = Gateway::start(&redis, &format!("{limit} --trusted-proxies 127.0.0.0/8")).await;
    let mut kept = Vec::new();
    for made_up in ["", "6.6.6.1, ", "6.6.6.2, ", "127.0.0.1, "] {
        let headers = from(&format!("{made_up}1.1.1.1"));
        if kept.len() < 2 {
            kept.push(Viewer::open_with(&behind, "channel=a", &headers).await);
        } else {
            come_back(&behind.get("/events?channel=a", &headers).await);
        }
    }
    kept.push(Viewer::open_with(&behind, "channel=a", &from("2.2.2.2")).await);
    // An IPv6 client has as many addresses as it likes.
    for (address, is_let_in) in [
        ("2001:db8::1", true),
        ("[2001:db8::2]:443", true),
        ("2001:db8::3:0:0:4", false),
        ("2001:db8:0:1::1", true),
    ] {
        if is_let_in {
            kept.push(Viewer::open_with(&behind, "channel=a", &from(address)).await);
        } else {
            come_back(&behind.get("/events?channel=a", &from(address)).await);
        }
    }
    assert_eq!(refusals(&behind, "max_streams_per_address").await, 3.0);
}

/// A header of the PROXY protocol, version 2, for an IPv4 client.
fn proxy_header(address: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(address);
    header.extend([127, 0, 0, 1, 0, 80, 0, 80]);
    header
}

/// Breaks when the PROXY protocol is not understood, or is accepted from an address that is no trusted proxy.
#[tokio::test]
async fn the_proxy_protocol_names_the_client() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--proxy-protocol --max-streams-per-address 1 --trusted-proxies";
    let gateway = Gateway::start(&redis, &format!("{options} 127.0.0.1")).await;
    let get =
        b"GET /events?channel=a HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    let open = async |header: &[u8]| {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        socket.write_all(&[header, get].concat()).await.unwrap();
        let mut answer = Vec::new();
        let reading = async {
            while !answer.windows(6).any(|window| window == b"retry:")
                && socket
                    .read_buf(&mut answer)
                    .await
                    .is_ok_and(|read| read > 0)
            {}
        };
        timeout(PATIENCE, reading)
            .await
            .expect("an answer or an end");
        (String::from_utf8(answer).unwrap(), socket)
    };
    let is_open = |answer: &str| answer.contains("chunked");
    let (answer, _one) = open(&proxy_header([1, 1, 1, 1])).await;
    assert!(is_open(&answer), "{answer}");
    let (answer, _) = open(&proxy_header([1, 1, 1, 1])).await;
    assert!(answer.contains("200 OK") && !is_open(&answer), "{answer}");
    let (answer, _two) = open(&proxy_header([2, 2, 2, 2])).await;
    assert!(is_open(&answer), "{answer}");
    // A health check of the proxy itself.
    let (answer, _three) = open(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await;
    assert!(is_open(&answer), "{answer}");

    let mut endless = proxy_header([3, 3, 3, 3]);
    endless[14..16].copy_from_slice(&[0xff, 0xff]);
    for header in [
        &b""[..],
        b"PROXY TCP4 3.3.3.3 127.0.0.1 80 80\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c0123456789ab",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x040123",
        &endless,
    ] {
        let (answer, _) = open(header).await;
        assert_eq!(answer, "", "{}", header.escape_ascii());
    }
    assert_eq!(refusals(&gateway, "bad_proxy_header").await, 5.0);

    let other = Gateway::start(&redis, &format!("{options} 192.0.2.1")).await;
    let mut socket = TcpStream::connect(other.public).await.unwrap();
    let sent = [&proxy_header([1, 1, 1, 1])[..], get].concat();
    socket.write_all(&sent).await.unwrap();
    let mut answer = Vec::new();
    // The gateway closes it with unread bytes, which causes a reset.
    in_time("an end", socket.read_to_end(&mut answer))
        .await
        .ok();
    assert_eq!(answer, b"");
    assert_eq!(refusals(&other, "untrusted_proxy").await, 1.0);
}

/// Breaks when one user takes the places of all others.
#[tokio::test]
async fn the_streams_of_a_subject_are_limited() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = with_secret("");
    let gateway = Gateway::start_with(&redis, "--max-streams-per-subject 2", &config).await;
    let of = |subject: &str| {
        bearer(&token(
            &json!({ "sub": subject, "exp": in_seconds(600), "subscribe": ["*"] }),
        ))
    };
    let _one = Viewer::open_with(&gateway, "channel=a", &of("anna")).await;
    let two = Viewer::open_with(&gateway, "channel=b", &of("anna")).await;
    come_back(&gateway.get("/events?channel=c", &of("anna")).await);
    Viewer::open_with(&gateway, "channel=c", &of("ben")).await;
    assert_eq!(refusals(&gateway, "max_streams_per_subject").await, 1.0);
    drop(two);
    connections(&gateway, 1.0).await;
    Viewer::open_with(&gateway, "channel=c", &of("anna")).await;
}

/// Breaks when a crowd is accepted faster than allowed, or when a part of it never is.
#[tokio::test]
async fn a_crowd_is_accepted_gradually() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--max-stream-rate 10 --retry 200ms").await;
    let crowd = (0..20).map(|_| {
        let address = gateway.public;
        tokio::spawn(async move {
            let mut client = Client::new("/events?channel=a");
            for attempt in 1.. {
                assert_eq!(client.connect(address).await.unwrap(), Answer::Stream);
                if let testkit::Received::Event(event) = client.next().await {
                    assert_eq!(event.event, "gateway.open");
                    return (attempt, client);
                }
                tokio::time::sleep(client.retry().expect("a time to reconnect")).await;
            }
            unreachable!("it tries without end")
        })
    });
    let crowd: Vec<_> = crowd.collect();
    let start = tokio::time::Instant::now();
    let mut again = 0;
    for client in crowd {
        let (attempts, client) = in_time("every client is accepted", client).await.unwrap();
        again += usize::from(attempts > 1);
        drop(client);
    }
    assert!(again >= 5, "{again} had to reconnect");
    assert!(
        start.elapsed() > Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    // All of them have the same address.
    let refused = refusals(&gateway, "max_stream_rate").await;
    let of_address = refusals(&gateway, "max_stream_rate_per_address").await;
    assert!(refused + of_address >= again as f64);
}

/// Breaks when an unreadable head is not counted, or is answered without a reason.
#[tokio::test]
async fn unreadable_heads_are_counted() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let head = format!(
        "GET /events?channel=a HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    let answer = gateway.send(head.as_bytes()).await.unwrap();
    assert_eq!(refused(&answer, 431), "header_too_large");
    becomes(&gateway, REFUSED, "reason=\"header_too_large\"", 1.0).await;
    let space = b"GET /events?channel=a b HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = gateway.send(space).await.unwrap();
    assert_eq!(refused(&answer, 400), "bad_head");
    becomes(&gateway, REFUSED, "reason=\"bad_head\"", 1.0).await;
}

/// Breaks when a head has no time limit, on any kind of connection.
#[tokio::test]
async fn a_head_has_to_arrive_in_time() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--header-timeout 5s").await;
    let mut sockets = Vec::new();
    // Four beginnings: no byte, the start of a method that might be HTTP/2, half a head, and HTTP/2 without a request.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for begin in [
        &b""[..],
        b"PR",
        b"GET /events?channel=a HTTP/1.1\r\nHost:",
        preface,
    ] {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        socket.write_all(begin).await.unwrap();
        sockets.push(socket);
    }
    for mut socket in sockets {
        let mut answer = Vec::new();
        let end = socket.read_to_end(&mut answer);
        let ended = timeout(PATIENCE, end).await;
        ended.expect("the connection is closed").ok();
    }
    assert_eq!(refusals(&gateway, "header_timeout").await, 3.0);
}

/// Breaks when one publisher can keep Redis busy for all others.
#[tokio::test]
async fn a_publisher_has_a_rate_of_its_own() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config =
        "[[publish]]\ntoken = \"a\"\n[[publish]]\ntoken = \"b\"\n[[publish]]\ntoken = \"c\"\n";
    let gateway = Gateway::start_with(&redis, "--max-publish-rate 2", config).await;
    let post = async |token| gateway.post("/events?channel=a", &bearer(token), "x").await;
    let mut stored = 0;
    let answer = loop {
        let answer = post("a").await;
        if answer.head.status != 201 {
            break answer;
        }
        stored += 1;
        assert!(stored < 50, "there is no limit");
    };
    assert_eq!(refused(&answer, 429), "max_publish_rate");
    assert_eq!(answer.head.field("retry-after"), Some("1"));
    assert_eq!(post("b").await.head.status, 201);
    // Each line of a batch counts, and a batch is accepted as a whole.
    let batch = "{\"channel\":\"a\",\"data\":\"x\"}\n".repeat(20);
    let lines_of = |token| format!("{}Content-Type: application/x-ndjson\r\n", bearer(token));
    let answer = gateway.post("/events", &lines_of("b"), &batch).await;
    assert_eq!(answer.head.status, 200);
    let answer = post("b").await;
    assert_eq!(refused(&answer, 429), "max_publish_rate");
    let wait: u64 = answer.head.field("retry-after").unwrap().parse().unwrap();
    assert!((5..=12).contains(&wait), "{wait}");
    // An idempotency key is stored in addition to its event, so it counts too.
    let keyed = format!("{}Idempotency-Key: k\r\n", lines_of("c"));
    let answer = gateway.post("/events", &keyed, &batch).await;
    assert_eq!(answer.head.status, 200);
    let answer = post("c").await;
    assert_eq!(refused(&answer, 429), "max_publish_rate");
    let wait: u64 = answer.head.field("retry-after").unwrap().parse().unwrap();
    assert!((13..=20).contains(&wait), "{wait}");
    // Tickets have quotas of their own.
    let answer = gateway
        .post("/tickets", &bearer("b"), r#"{"channels":["a"]}"#)
        .await;
    assert_eq!(answer.head.status, 201, "{}", answer.body);
    let metrics = gateway.metrics().await;
    let refused = metrics.labelled("sse_gateway_published_total", "max_publish_rate");
    assert_eq!(refused, 3.0);
}

/// Breaks when a body has no time limit, and keeps its room from others.
#[tokio::test]
async fn a_body_has_to_arrive_in_time() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--publish-token t").await;
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    let head = format!(
        "POST /events?channel=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n{}\r\nhal",
        bearer("t")
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = socket.read_to_end(&mut answer);
    let ended = timeout(Duration::from_secs(60), end).await;
    ended.expect("the connection is closed").ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"body_timeout\""), "{answer}");
    let metrics = gateway.metrics().await;
    let refused = metrics.labelled("sse_gateway_published_total", "body_timeout");
    assert_eq!(refused, 1.0);
}

/// Breaks when more streams are opened in a second than allowed, or when the limit stays reached.
#[tokio::test]
async fn streams_opened_in_a_second_are_limited() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--max-stream-rate 3 --trusted-proxies 127.0.0.1";
    let gateway = Gateway::start(&redis, options).await;
    let from = |number: usize| format!("X-Forwarded-For: 192.0.2.{number}\r\n");
    let mut reached = None;
    for number in 1..200 {
        let headers = from(number) + "Accept: application/json\r\n";
        let answer = gateway.get("/events?channel=a", &headers).await;
        if answer.head.status != 200 {
            assert_eq!(refused(&answer, 503), "max_stream_rate");
            reached = Some(number);
            break;
        }
    }
    let reached = reached.expect("there is a limit");
    assert!(reached > 3, "{reached}");
    eventually("a stream is opened", PATIENCE, async || {
        let mut client = Client::new("/events?channel=a");
        client.set_headers(from(250));
        match client.connect(gateway.public).await {
            Ok(Answer::Stream) => match client.next().await {
                testkit::Received::Event(_) => Ok(()),
                other => Err(format!("{other:?}")),
            },
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Breaks when one client can keep any number of channels open, or when another client's channels are refused then.
#[tokio::test]
async fn one_client_gets_only_a_share_of_the_open_channels() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--max-open-channels 40 --trusted-proxies 127.0.0.1";
    let config = format!(
        "public_channels = [\"*\", \"!private.*\"]\n{}",
        with_secret("")
    );
    let gateway = Gateway::start_with(&redis, options, &config).await;
    let from = |last: u8| format!("X-Forwarded-For: 192.0.2.{last}\r\n");
    let names = |first: usize, count: usize| {
        let names = (first..first + count).map(|number| format!("channel=c{number}"));
        names.collect::<Vec<_>>().join("&")
    };
    let one = Viewer::open_with(&gateway, &names(0, 20), &from(1)).await;
    for query in [names(20, 1), names(10, 20)] {
        come_back(&gateway.get(&format!("/events?{query}"), &from(1)).await);
        let json = from(1) + "Accept: application/json\r\n";
        let answer = gateway.get(&format!("/events?{query}"), &json).await;
        assert_eq!(refused(&answer, 503), "max_open_channels");
    }
    // A channel that is already open costs nothing.
    let again = Viewer::open_with(&gateway, &names(0, 20), &from(1)).await;
    let _two = Viewer::open_with(&gateway, &names(10, 20), &from(2)).await;
    // A subject is counted by itself, from any address.
    let anna = json!({ "sub": "anna", "exp": in_seconds(600), "subscribe": ["private.*"] });
    let anna = bearer(&token(&anna)) + &from(1);
    let _anna = Viewer::open_with(&gateway, "channel=private.a&channel=private.b", &anna).await;
    // The first client's channels count for it until their last stream ends.
    drop(one);
    connections(&gateway, 3.0).await;
    come_back(&gateway.get("/events?channel=c30", &from(1)).await);
    drop(again);
    eventually("the channels are released", PATIENCE, async || {
        let json = from(1) + "Accept: application/json\r\n";
        let answer = gateway.get("/events?channel=c30", &json).await;
        match answer.head.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}
