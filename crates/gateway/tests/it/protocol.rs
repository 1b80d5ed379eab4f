//! A page's view: the head, the position, the start, event types, envelopes, the end.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use testkit::{Answer, Client, End, Event, Position, Received};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Gateway, PATIENCE, Redis, Viewer, among_others, data, eventually, gaps, in_time, messages,
    recording, refused, texts,
};

/// Breaks when the headers that turn off buffering and caching in proxies are missing, when the position is missing, or
/// when two replicas number an event differently.
#[tokio::test]
async fn a_publish_reaches_pages_on_every_replica() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "--workers 2").await;
    recording([&a, &b], 1).await;
    let mut on_a = Viewer::open(&a, "channel=news").await;
    let mut on_b = Viewer::open(&b, "channel=news").await;

    let head = on_a.client.head().unwrap();
    let field = |name: &str| head.field(name).unwrap_or_default().to_ascii_lowercase();
    assert_eq!(field("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(field("x-accel-buffering"), "no");
    for directive in ["no-store", "no-transform"] {
        assert!(
            field("cache-control").contains(directive),
            "{directive} is missing"
        );
    }
    serde_json::from_str::<Value>(&on_a.open.data).expect("gateway.open carries JSON");
    let start: Position = on_a
        .open
        .id
        .parse()
        .expect("gateway.open carries the position");

    redis.connect().await.publish("news", "hello").await;
    let event = on_a.event().await;
    assert_eq!(
        (event.event.as_str(), event.data.as_str()),
        ("message", "hello")
    );
    let id: Position = event.id.parse().unwrap();
    assert!(matches!(id, Position::Single(_)), "{id}");
    assert!(id != start && id.is_not_before(&start));
    assert_eq!(on_b.event().await, event);

    let log = redis.log("news", 1).await;
    assert_eq!(log.len(), 1);
    assert_eq!(
        (log[0].0.to_string(), &*log[0].1),
        (event.id, &b"hello"[..])
    );
}

/// Breaks when all pages of a replica reconnect after the same time.
#[tokio::test]
async fn retry_is_jittered_around_the_configured_value() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--retry 4s").await;
    let mut told = BTreeSet::new();
    for _ in 0..20 {
        let viewer = Viewer::open(&gateway, "channel=news").await;
        told.insert(
            viewer
                .client
                .retry()
                .expect("a retry before the open event"),
        );
    }
    assert!(told.len() > 5, "{told:?}");
    let near = Duration::from_secs(2)..=Duration::from_secs(8);
    assert!(told.iter().all(|retry| near.contains(retry)), "{told:?}");
}

/// Breaks when an id does not contain the position in every partition of the stream. Breaks also when it has bytes or a
/// length for which browsers send a preflight request.
#[tokio::test]
async fn a_position_names_each_partition_of_the_stream() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--partitions 8").await;
    let names: Vec<_> = (0..10).map(|number| format!("ch{number}")).collect();
    let touched: BTreeSet<_> = names
        .iter()
        .map(|name| testkit::partition_of(name, 8))
        .collect();
    assert!(touched.len() > 2, "the names are in too few partitions");
    let query = format!("channel={}", names.join("&channel="));
    let mut viewer = Viewer::open(&gateway, &query).await;
    let mut before: Position = viewer.open.id.parse().unwrap();
    for name in &names {
        let id = redis.append(name, name).await;
        let event = viewer.event().await;
        assert_eq!(&event.data, name);
        assert!(
            event
                .id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        );
        let Ok(Position::Vector(8, ids)) = event.id.parse() else {
            panic!("{} is not a vector", event.id);
        };
        assert_eq!(ids.keys().copied().collect::<BTreeSet<_>>(), touched);
        assert_eq!(
            ids[&testkit::partition_of(name, 8)],
            id,
            "the event's own id is not in the position"
        );
        let after = Position::Vector(8, ids);
        assert!(after.is_not_before(&before), "{before}, then {after}");
        before = after;
    }
    let alone = Viewer::open(&gateway, "channel=ch0").await;
    assert!(
        matches!(alone.open.id.parse(), Ok(Position::Single(_))),
        "{}",
        alone.open.id
    );
    let three = Viewer::open(&gateway, "channel=ch0&channel=ch1&channel=ch2").await;
    assert!(three.open.id.len() < 128, "{}", three.open.id);
}

/// Breaks when one of the ways to choose the start is off by one or ignored.
#[tokio::test]
async fn since_chooses_where_to_start() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut ids = Vec::new();
    for number in 0..6 {
        // At least two milliseconds apart, so that there is a time between any two events.
        let spaced = eventually("an id of its own time", PATIENCE, async || {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_millis();
            let last = ids.last().map_or(0, |id: &testkit::Id| u128::from(id.ms));
            if now > last + 2 {
                Ok(())
            } else {
                Err("too early".to_owned())
            }
        });
        spaced.await;
        ids.push(redis.append("news", &format!("n{number}")).await);
    }
    let between = ids[3].ms - 1;
    let rfc3339 = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(between));
    let cases = [
        ("since=start".to_owned(), 0),
        ("since=-2".to_owned(), 4),
        ("since=-100".to_owned(), 0),
        (format!("since={}", ids[2]), 3),
        (format!("since={between}"), 3),
        (format!("since={rfc3339}"), 3),
        (format!("last_event_id={}", ids[4]), 5),
        (format!("last_event_id={}&since=start", ids[4]), 5),
        (String::new(), 6),
    ];
    let fresh = Gateway::start(&redis, "").await;
    let mut viewers = Vec::new();
    for (query, first) in &cases {
        for replica in [&gateway, &fresh] {
            let viewer = Viewer::open(replica, &format!("channel=news&{query}")).await;
            // Other starts have no id. A client that is cut before its first event repeats its request.
            let has_id = query.is_empty()
                || query.contains(&ids[2].to_string())
                || query.starts_with("last");
            assert_eq!(
                !viewer.open.id.is_empty(),
                has_id,
                "{query}: {:?}",
                viewer.open
            );
            viewers.push((viewer, query, *first));
        }
    }
    redis.append("news", "end").await;
    let all = ["n0", "n1", "n2", "n3", "n4", "n5", "end"];
    for (mut viewer, query, first) in viewers {
        assert_eq!(data(&viewer.until("end").await), all[first..], "{query}");
    }
    // A header is newer than the URL, which a browser never changes.
    let client = Client::resuming("/events?channel=news&since=start", ids[4].to_string());
    let mut viewer = Viewer::over(fresh.public, client).await;
    assert_eq!(viewer.event().await.data, "n5");
}

/// Breaks when a page that requests the start, or the last N, and is cut at once loses events that it has not seen.
/// Until its first event it has no id, so its URL counts again.
#[tokio::test]
async fn a_page_that_starts_in_the_past_is_not_moved_by_the_open_event() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    for text in ["one", "two", "three"] {
        redis.append("news", text).await;
    }
    for (query, expected) in [("since=start", "one"), ("since=-2", "two")] {
        let viewer = Viewer::open(&gateway, &format!("channel=news&{query}")).await;
        assert_eq!(viewer.client.last_event_id(), "", "{query}");
        let mut viewer = viewer.reconnect(&gateway).await;
        assert_eq!(viewer.event().await.data, expected, "{query}");
        let mut viewer = viewer.reconnect(&gateway).await;
        let rest = viewer.until("three").await;
        assert!(!data(&rest).contains(&expected), "{query}: {rest:?}");
    }
}

/// Breaks when a payload that is no envelope is taken for one, or the reverse, or when data does not arrive as it was
/// sent.
#[tokio::test]
async fn an_envelope_is_an_object_with_data_and_nothing_unknown() {
    let _machine = among_others().await;
    let cases = [
        ("hello", "message", "hello"),
        (r#"{"data":"x"}"#, "message", "x"),
        (r#"{"data":""}"#, "message", ""),
        (r#"{ "event": "price", "data": "x" }"#, "price", "x"),
        (
            r#"{"data":{"b": 1, "a": [1, 2.50, "x y"]}}"#,
            "message",
            r#"{"b":1,"a":[1,2.50,"x y"]}"#,
        ),
        (
            r#"{"data":12345678901234567890123}"#,
            "message",
            "12345678901234567890123",
        ),
        (r#"{"data":null}"#, "message", "null"),
        (r#"{"data":[ ]}"#, "message", "[]"),
        (r#"{"data":"a\nb\r\nc\rd"}"#, "message", "a\nb\nc\nd"),
        (r#"{"data":"\u00e9\ud83d\ude00"}"#, "message", "é😀"),
        (r#"{"data":"x","end":false}"#, "message", "x"),
        // Not envelopes. The payload itself is the data, byte for byte.
        (
            r#"{"data":"x","other":1}"#,
            "message",
            r#"{"data":"x","other":1}"#,
        ),
        (r#"{"event":"price"}"#, "message", r#"{"event":"price"}"#),
        (r#"{ "end": true }"#, "message", r#"{ "end": true }"#),
        ("{}", "message", "{}"),
        (r#"{"data":"x""#, "message", r#"{"data":"x""#),
        (r#"[{"data":"x"}]"#, "message", r#"[{"data":"x"}]"#),
        (r#""data""#, "message", r#""data""#),
        ("  two spaces", "message", "  two spaces"),
        (
            "id: 5-0\nevent: x\n\ndata: y",
            "message",
            "id: 5-0\nevent: x\n\ndata: y",
        ),
        (": a comment", "message", ": a comment"),
        ("", "message", ""),
        ("\n", "message", "\n"),
        ("line\n", "message", "line\n"),
    ];
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut live = Viewer::open(&gateway, "channel=news").await;
    let start = live.open.id.clone();
    let mut publisher = redis.connect().await;
    let check = |seen: &testkit::Event, (payload, event, text): (&str, &str, &str)| {
        assert_eq!(
            (&*seen.event, &*seen.data),
            (event, text),
            "for {payload:?}"
        );
    };
    for case in cases {
        publisher.publish("news", case.0).await;
        check(&live.event().await, case);
    }
    // The same from history, on a replica that has never seen these events.
    let fresh = Gateway::start(&redis, "").await;
    let mut replay = Viewer::resume(&fresh, "channel=news", &start).await;
    for case in cases {
        check(&replay.event().await, case);
    }
    // The same by the function.
    for case in cases {
        redis.append("news", case.0).await;
        check(&live.event().await, case);
    }
    publisher
        .publish("news", r#"{"data":"x","retry":7321}"#)
        .await;
    assert_eq!(live.event().await.data, "x");
    assert_eq!(live.client.retry(), Some(Duration::from_millis(7321)));
}

/// Breaks when a channel that is named twice is delivered twice.
#[tokio::test]
async fn a_channel_named_twice_is_delivered_once() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--partitions 8").await;
    let query = "channel=news&channel=news&channel=x&channel=news";
    let viewer = Viewer::open(&gateway, query).await;
    redis.append("news", "missed").await;
    let mut viewer = viewer.reconnect(&gateway).await;
    redis.append("news", "one").await;
    let news = viewer.until("one").await;
    assert_eq!(data(&news), ["missed", "one"]);
    redis.append("x", "x").await;
    assert_eq!(data(&viewer.until("x").await), ["x"]);
}

/// Breaks when a position with many partitions is cut, or when its channels are limited to a few.
#[tokio::test]
async fn fifty_channels_in_sixty_four_partitions_resume_exactly() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "--partitions 64").await;
    let b = Gateway::start(&redis, "--partitions 64").await;
    let names: Vec<_> = (0..50).map(|number| format!("ch{number:02}")).collect();
    let query = format!("channel={}", names.join("&channel="));
    let mut viewer = Viewer::open(&a, &query).await;
    for round in 0..3 {
        for name in &names {
            redis.append(name, &format!("{round} {name}")).await;
        }
        viewer = viewer.reconnect(if round == 1 { &a } else { &b }).await;
        let mut seen = Vec::new();
        for _ in &names {
            seen.push(viewer.event().await.data);
        }
        seen.sort_unstable();
        let all: Vec<_> = names.iter().map(|name| format!("{round} {name}")).collect();
        assert_eq!(seen, all);
    }
}

/// Breaks when a proxy that uses HTTP/1.0, as nginx does by default, receives chunks.
#[tokio::test]
async fn http_1_0_gets_a_body_without_chunks() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    let request = b"GET /events?channel=news HTTP/1.0\r\nHost: localhost\r\n\r\n";
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let mut read_to = async |part: &[u8]| {
        in_time("the answer", async {
            while !answer.windows(part.len()).any(|window| window == part) {
                assert!(socket.read_buf(&mut answer).await.unwrap() > 0);
            }
        })
        .await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let open = read_to(b"gateway.open").await;
    assert!(!open.to_ascii_lowercase().contains("chunked"), "{open}");
    redis.append("news", "hello").await;
    let whole = read_to(b"data: hello\nid: ").await;
    let (_, body) = whole.split_once("\r\n\r\n").unwrap();
    let mut lines = body.lines().filter(|line| !line.is_empty());
    let fields = ["id:", "event:", "data:", "retry:", ":"];
    let known = |line: &str| fields.iter().any(|field| line.starts_with(field));
    assert!(lines.all(known), "{body:?}");
}

/// Breaks when the function does not return the id that clients receive, or when it returns before the event is stored.
#[tokio::test]
async fn the_function_returns_the_id_of_the_stored_event() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let gateway = Gateway::start(&redis, &format!("--partitions {partitions}")).await;
        let mut viewer = Viewer::open(&gateway, "channel=news").await;
        for text in ["one", "two"] {
            let id = redis.append("news", text).await;
            let log = redis.log("news", partitions).await;
            let last = log.last().map(|(id, payload)| (*id, &payload[..]));
            assert_eq!(last, Some((id, text.as_bytes())));
            let event = viewer.event().await;
            assert_eq!((event.data.as_str(), event.id), (text, id.to_string()));
        }
    }
}

/// Breaks when a key is taken for that of another channel, or when an empty key counts as a key.
#[tokio::test]
async fn a_repetition_with_the_same_key_stores_nothing() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let _gateway = Gateway::start(&redis, "").await;
    redis.append("other", "handshake").await;
    let mut commands = redis.connect().await;
    let mut publish = async |channel: &str, payload: &str, key: &str| {
        let words = ["FCALL", "sse_publish", "0", channel, payload, key].map(str::as_bytes);
        commands.call(&words).await.unwrap().text()
    };
    let first = publish("a", "one", "k").await;
    assert_eq!(publish("a", "one", "k").await, first);
    assert_ne!(publish("b", "one", "k").await, first);
    assert_ne!(publish("a", "two", "l").await, first);
    assert_ne!(
        publish("a", "three", "").await,
        publish("a", "three", "").await
    );
    let payloads = async |channel| {
        let log = redis.log(channel, 1).await.into_iter();
        log.map(|(_, payload)| String::from_utf8(payload).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(payloads("a").await, ["one", "two", "three", "three"]);
    assert_eq!(payloads("b").await, ["one"]);
}

/// Breaks when the last event of a channel is too large to be attached together with other channels, and its end is not
/// noticed.
#[tokio::test]
async fn a_large_last_event_ends_its_channel() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let names: Vec<_> = (0..20).map(|number| format!("answer{number}")).collect();
    let many = format!("channel={}", names.join("&channel="));
    let start = Viewer::open(&a, &many).await.open.id;
    let end = format!(r#"{{"data":"{}","end":true}}"#, "x".repeat(200_000));
    for name in &names {
        redis.append(name, "hello").await;
        redis.append_end(name, &end).await;
    }
    // A single channel is attached by a call of its own from the start. One of many is not.
    for (query, count) in [("channel=answer7", 2), (&many, 40), (&many, 40)] {
        let b = Gateway::start(&redis, "").await;
        let mut missed = Viewer::resume(&b, query, &start).await;
        let (events, end) = missed.until_end().await;
        assert_eq!((messages(&events).len(), end), (count, End::Whole));
        let mut done = missed.client;
        let c = Gateway::start(&redis, "").await;
        for replica in [&b, &c] {
            // On a busy machine the channels may not be live within the time that an answer waits for them. The stream
            // then ends as soon as they are.
            while done.connect(replica.public).await.unwrap() != Answer::Stop {
                while let Received::Event(event) = in_time("the end", done.next()).await {
                    assert!(event.event.starts_with("gateway."), "{event:?}");
                }
            }
        }
    }
}

/// Breaks when pages of a finished channel reconnect without end, or when a page that was away misses the end. Breaks
/// also when clients that ignore the answer 204 do not receive the end.
#[tokio::test]
async fn a_completed_channel_stops_its_pages_and_no_others() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    let mut live = Viewer::open(&a, "channel=answer").await;
    let away = Viewer::open(&a, "channel=answer").await;
    let start = away.open.id.clone();
    drop(away);
    let mut other = Viewer::open(&a, "channel=news").await;
    redis.append("answer", "hello").await;
    redis
        .append_end("answer", r#"{"data":"bye","end":true}"#)
        .await;

    let is_told = |viewer: &Viewer, events: &[Event]| {
        let last = events.last().expect("an event of the gateway's own");
        let position = format!(r#"{{"position":"{}"}}"#, last.id);
        assert_eq!((&*last.event, &last.data), ("gateway.end", &position));
        assert_eq!(viewer.client.last_event_id(), last.id);
        // Between half a minute and one and a half.
        let retry = viewer.client.retry().expect("a retry");
        assert!((30..=90).contains(&retry.as_secs()), "{retry:?}");
    };
    let (events, end) = live.until_end().await;
    assert_eq!((texts(&events), end), (vec!["hello", "bye"], End::Whole));
    is_told(&live, &events);
    for replica in [&a, &b] {
        let id = live.client.last_event_id().to_owned();
        let mut missed = Viewer::resume(replica, "channel=answer", &start).await;
        let (events, end) = missed.until_end().await;
        assert_eq!((texts(&events), end), (vec!["hello", "bye"], End::Whole));
        is_told(&missed, &events);
        // The channel is live here now, so the answer does not have to wait for it.
        for mut done in [
            Client::resuming("/events?channel=answer", id),
            missed.client,
        ] {
            assert_eq!(done.connect(replica.public).await.unwrap(), Answer::Stop);
        }
    }
    for (replica, count) in [(&a, 4.0), (&b, 3.0)] {
        let closed = replica.metrics().await;
        assert_eq!(closed.labelled("sse_gateway_closed_total", "ended"), count);
    }
    redis.append("news", "still here").await;
    assert_eq!(other.event().await.data, "still here");
}

/// Breaks when a stream cannot request more frequent heartbeats for an impatient client, or fewer.
#[tokio::test]
async fn a_stream_can_request_another_heartbeat() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let rare = Gateway::start(&redis, "--heartbeat 1h").await;
    let mut impatient = Viewer::open(&rare, "channel=quiet&heartbeat=2s").await;
    impatient.heartbeats(2).await;

    let frequent = Gateway::start(&redis, "--heartbeat 1s").await;
    let mut patient = Viewer::open(&frequent, "channel=quiet&heartbeat=20s").await;
    let mut other = Viewer::open(&frequent, "channel=quiet").await;
    other.heartbeats(4).await;
    redis.append("quiet", "last").await;
    patient.until("last").await;
    assert_eq!(patient.client.comments(), 0);
    for heartbeat in ["1s", "21s", "4", "0s", "x", ""] {
        let target = format!("/events?channel=quiet&heartbeat={heartbeat}");
        let answer = frequent.get(&target, "").await;
        assert_eq!(refused(&answer, 400), "bad_heartbeat", "{heartbeat}");
    }
}

/// Some clients take a block for complete that was cut with its connection. Breaks when such a client resumes after
/// that event.
#[tokio::test]
async fn the_id_is_the_last_field_of_a_block() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--partitions 4").await;
    let payload = r#"{"event":"price","data":"1\n2","retry":3000}"#;
    let id = redis.append("a", payload).await.to_string();
    // A stream with channels of several partitions has ids of its own.
    for query in ["channel=a", "channel=a&channel=b&channel=c&channel=d"] {
        let head = format!("GET /events?{query}&since=start HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let fields = "event: price\nretry: 3000\ndata: 1\ndata: 2\n";
        let block = in_time("the event", async {
            loop {
                let text = String::from_utf8_lossy(&answer).replace("\r\n", "\n");
                let behind = text.split_once(fields).map(|(_, behind)| behind.to_owned());
                if let Some(behind) = behind.filter(|behind| behind.contains("\n\n")) {
                    return behind;
                }
                assert!(socket.read_buf(&mut answer).await.unwrap() > 0, "{text}");
            }
        });
        let behind = block.await;
        assert!(behind.contains("id: ") && behind.contains(&id), "{behind}");
    }
}

/// Breaks when connections look dead to proxies, or when a heartbeat is an event that pages see.
#[tokio::test]
async fn heartbeats_keep_a_quiet_connection_alive() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--heartbeat 1s").await;
    let mut viewer = Viewer::open(&gateway, "channel=quiet").await;
    let events = viewer.heartbeats(3).await;
    assert!(messages(&events).is_empty(), "{events:?}");
    assert!(
        events.iter().all(|event| event.event == "gateway.position"),
        "{events:?}"
    );
}

/// Breaks when the position of a page on a quiet channel expires, so that it receives a gap although nothing is
/// missing.
#[tokio::test]
async fn the_position_of_a_quiet_page_does_not_expire() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = r#"
        [[channels]]
        match = "*"
        history = 100
        max_age = "2s"
        expire = "6s"
    "#;
    let gateway = Gateway::start_with(&redis, "--heartbeat 1s", config).await;
    let mut viewer = Viewer::open(&gateway, "channel=quiet").await;
    let opened: Position = viewer.open.id.parse().unwrap();
    // Every fourth heartbeat carries the position, so nine comments take twelve seconds. That is twice the `expire` of
    // the channel.
    let events = viewer.heartbeats(9).await;
    let position: Position = viewer.client.last_event_id().parse().unwrap();
    assert!(
        position != opened && position.is_not_before(&opened),
        "{events:?}"
    );
    let mut viewer = viewer.reconnect(&gateway).await;
    redis.append("quiet", "end").await;
    let events = viewer.until("end").await;
    assert_eq!(
        gaps(&events),
        [],
        "there was a gap although nothing was missing"
    );
}
