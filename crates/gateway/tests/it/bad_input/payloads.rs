//! Payloads with any bytes and of any size, by PUBLISH and by function, and foreign data under the gateway's keys.

use testkit::{Answer, Client};

use super::assert_alive;
use crate::support::{
    Gateway, PATIENCE, Redis, Reply, Viewer, among_others, data, eventually, gaps, in_time,
    recording, texts,
};

/// Breaks when a payload is changed, delivered in part, or delivered although it is refused. Breaks also when the
/// messages next to a refused one are lost.
#[tokio::test]
async fn payloads_arrive_unchanged_or_not_at_all() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start(&redis, "").await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    let mut viewers = [
        Viewer::open(&a, "channel=news").await,
        Viewer::open(&b, "channel=news").await,
    ];
    let start = viewers[0].open.id.clone();
    let mut publisher = redis.connect().await;

    let nested = "[".repeat(200_000);
    let deep = format!(r#"{{"data":{}{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
    let large = "x".repeat(1_000_000);
    let taken: [(&str, &str); 16] = [
        ("a\0b", "a\0b"),
        ("lone\rCR", "lone\nCR"),
        ("\r", "\n"),
        ("\r\n\r\n", "\n\n"),
        ("\n\r", "\n\n"),
        ("\u{feff}BOM first", "\u{feff}BOM first"),
        ("\u{feff}", "\u{feff}"),
        (" one space", " one space"),
        ("\u{2028}\u{85}\u{b}", "\u{2028}\u{85}\u{b}"),
        ("data: x\n\nid: 9-9\n\n", "data: x\n\nid: 9-9\n\n"),
        ("retry: 1", "retry: 1"),
        ("event: gateway.gap", "event: gateway.gap"),
        (r#"{"data":"a\u0000b"}"#, "a\0b"),
        (r#"{"data":"\ufeff"}"#, "\u{feff}"),
        (&nested, &nested),
        (&large, &large),
    ];
    let ten_megabytes = vec![b'x'; 10_000_000];
    let refused: [&[u8]; 14] = [
        b"\xff",
        b"valid, then \xc3",
        b"\xed\xa0\x80 is a surrogate",
        b"{\"data\":\"\xff\"}",
        br#"{"data":"x","event":"a\nb"}"#,
        br#"{"data":"x","event":"a\rb"}"#,
        br#"{"data":"x","event":"a\u0000b"}"#,
        br#"{"data":"x","event":"gateway.open"}"#,
        br#"{"data":"x","event":"gateway.gap"}"#,
        br#"{"data":"x","event":"gateway.anything"}"#,
        br#"{"data":"x","event":"error"}"#,
        br#"{"data":"x","event":"open"}"#,
        &ten_megabytes,
        // Twice, so that a limit that is only checked once is found.
        &ten_megabytes,
    ];
    let before = rejected(&[&a, &b]).await;
    for (number, payload) in refused.iter().enumerate() {
        let words = [b"PUBLISH", &b"sse:news"[..], payload];
        publisher.call(&words).await.unwrap();
        publisher
            .publish("news", format!("neighbour {number}"))
            .await;
    }
    for (payload, _) in taken {
        publisher.publish("news", payload).await;
    }
    publisher.publish("news", "end").await;
    let neighbours = (0..refused.len()).map(|number| format!("neighbour {number}"));
    let mut expected: Vec<_> = neighbours.collect();
    expected.extend(taken.iter().map(|(_, text)| (*text).to_owned()));
    expected.push("end".to_owned());
    let fresh = Gateway::start(&redis, "").await;
    let [on_a, on_b] = &mut viewers;
    let mut replay = Viewer::resume(&fresh, "channel=news", &start).await;
    for viewer in [on_a, on_b, &mut replay] {
        let events = viewer.until("end").await;
        for (event, expected) in events.iter().zip(&expected) {
            assert!(
                event.data == *expected,
                "{:.60?}, not {:.60?}",
                event.data,
                expected
            );
            assert_eq!(event.event, "message");
        }
        assert_eq!(events.len(), expected.len());
    }
    eventually("each refusal is counted", PATIENCE, async || {
        let counted = rejected(&[&a, &b]).await - before;
        if counted == refused.len() as f64 {
            Ok(())
        } else {
            Err(format!("{counted}"))
        }
    })
    .await;
    // This payload may be delivered or refused. Either way, the messages after it arrive.
    publisher.publish("news", &deep).await;
    publisher.publish("news", "after the deep one").await;
    viewers[0].until("after the deep one").await;
}

/// Breaks when other fields of an envelope, of any type, crash the reader.
#[tokio::test]
async fn odd_envelopes_do_no_harm() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut publisher = redis.connect().await;
    let odd = [
        r#"{"data":"x","event":5}"#,
        r#"{"data":"x","event":null}"#,
        r#"{"data":"x","event":""}"#,
        r#"{"data":"x","event":["a"]}"#,
        r#"{"data":"x","retry":-1}"#,
        r#"{"data":"x","retry":1.5}"#,
        r#"{"data":"x","retry":"soon"}"#,
        r#"{"data":"x","retry":99999999999999999999999}"#,
        r#"{"data":"x","end":"yes"}"#,
        r#"{"data":"x","end":0}"#,
        r#"{"data":"x","end":null}"#,
        r#"{"data":"x","data":"y"}"#,
        r#"{"data":"\ud800"}"#,
        r#"{"data":1e999}"#,
    ];
    for payload in odd {
        publisher.publish("news", payload).await;
        let words = [
            b"FCALL",
            &b"sse_publish"[..],
            b"0",
            b"news",
            payload.as_bytes(),
        ];
        let reply = publisher.call(&words).await.unwrap();
        assert!(
            matches!(reply, Reply::Bytes(_) | Reply::Text(_) | Reply::Error(_)),
            "{reply:?}"
        );
        let end = format!("after {payload}");
        publisher.publish("news", &end).await;
        let events = viewer.until(&end).await;
        let types = events
            .iter()
            .all(|event| !event.event.starts_with("gateway."));
        assert!(types && events.len() <= 3, "{events:?}");
    }
}

/// Breaks when the function accepts a payload that PUBLISH would refuse, and clients receive it.
#[tokio::test]
async fn payloads_of_the_function_are_checked_as_well() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    redis.append("news", "handshake").await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let start = viewer.open.id.clone();
    let mut commands = redis.connect().await;
    let payloads: [&[u8]; 5] = [
        br#"{"data":"x","event":"a\nid: 5-0"}"#,
        br#"{"data":"x","event":"gateway.gap"}"#,
        b"\xff\xfe",
        &vec![b'x'; 10_000_000],
        b"",
    ];
    for payload in payloads {
        let words = [b"FCALL", &b"sse_publish"[..], b"0", b"news", payload];
        commands.call(&words).await.unwrap();
    }
    let odd_calls: [&[&[u8]]; 6] = [
        &[b"FCALL", b"sse_publish", b"0"],
        &[b"FCALL", b"sse_publish", b"0", b"news"],
        &[b"FCALL", b"sse_publish", b"0", b"news", b"x", b"y", b"z"],
        &[b"FCALL", b"sse_publish", b"1", b"news", b"x"],
        &[b"FCALL", b"sse_publish", b"0", b"", b"x"],
        &[b"FCALL", b"sse_publish", b"0", b"\xff\x00", b"x"],
    ];
    for call in odd_calls {
        commands.call(call).await.unwrap();
    }
    redis.append("news", "end").await;
    let fresh = Gateway::start(&redis, "").await;
    let mut replay = Viewer::resume(&fresh, "channel=news", &start).await;
    for viewer in [&mut viewer, &mut replay] {
        let events = viewer.until("end").await;
        assert_eq!(gaps(&events).len(), 0, "{:?}", data(&events));
        let foreign = events
            .iter()
            .any(|event| event.id.starts_with("5-") || event.event != "message");
        assert!(!foreign, "{events:?}");
        assert!(
            events.iter().all(|event| event.data.len() < 2_000_000),
            "an event is too large for a client"
        );
    }
}

/// Breaks when data under the gateway's keys is trusted to be its own.
#[tokio::test]
async fn foreign_entries_in_a_stream_do_no_harm() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let id = redis.append("news", "first").await;
    let mut commands = redis.connect().await;
    let key = Redis::key("log", "news", 1);
    commands.run(&format!("XADD {key} * nonsense 1")).await;
    commands
        .run(&format!("XADD {key} * payload x prev nonsense"))
        .await;
    // A page that reconnects in `onerror` would reconnect again and again.
    let reserved = r#"{"event":"error","data":"x"}"#;
    for payload in [reserved, "end of the foreign entries"] {
        let words = ["XADD", &key, "*", "prev", "0-0", "payload", payload];
        let reply = commands.call(&words.map(str::as_bytes)).await.unwrap();
        reply.text();
    }
    commands
        .call(&[
            b"SET",
            Redis::key("log", "text", 1).as_bytes(),
            b"not a stream",
        ])
        .await
        .unwrap();
    commands
        .call(&[b"SET", Redis::key("ids", "odd", 1).as_bytes(), b"not an id"])
        .await
        .unwrap();
    drop(gateway);
    let fresh = Gateway::start(&redis, "").await;
    for channel in ["news", "text", "odd"] {
        let mut client = Client::resuming(format!("/events?channel={channel}"), id.to_string());
        let answer = in_time("an answer", client.connect(fresh.public))
            .await
            .unwrap();
        assert!(
            matches!(answer, Answer::Stream | Answer::Stop),
            "{channel}: {answer:?}"
        );
    }
    let mut replay = Viewer::resume(&fresh, "channel=news", &id.to_string()).await;
    let told = replay.until("end of the foreign entries").await;
    let stored = told.iter().find(|event| event.data == reserved);
    assert_eq!(stored.expect("it is shown as it is").event, "message");
    let mut other = Viewer::open(&fresh, "channel=other").await;
    redis.append("other", "end").await;
    assert_eq!(data(&other.until("end").await), ["end"]);
    assert_alive(&fresh, &redis, &mut commands).await;
}

/// Breaks when a publisher whose library serializes payloads gets no hint in the log.
#[tokio::test]
async fn serialized_payloads_are_named_in_metrics_and_log() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=prices").await;
    let mut commands = redis.connect().await;
    let payloads: [&[u8]; 3] = [
        b"\xac\xed\x00\x05t\x00\x05hello",
        br#"{"@class":"com.example.Price","event":"price","data":1}"#,
        b"last",
    ];
    for payload in payloads {
        let publish = [&b"PUBLISH"[..], b"sse:prices", payload];
        commands.call(&publish).await.expect("an answer");
    }
    let class = std::str::from_utf8(payloads[1]).unwrap();
    assert_eq!(texts(&viewer.until("last").await), [class, "last"]);
    let metrics = gateway.metrics().await;
    for (serializer, count) in [("java", 1.0), ("json_class", 1.0), ("binary", 0.0)] {
        let name = "sse_gateway_raw_serialized_total";
        assert_eq!(metrics.labelled(name, serializer), count, "{serializer}");
    }
    let log = gateway.process().log();
    for part in [
        r"begins=\xac\xed\x00\x05t\x00\x05h",
        "StringRedisTemplate",
        "channel=sse:prices",
        "a JSON serializer has added @class",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

async fn rejected(gateways: &[&Gateway]) -> f64 {
    let mut sum = 0.0;
    for gateway in gateways {
        sum += gateway
            .metrics()
            .await
            .sum("sse_gateway_raw_rejected_total");
    }
    sum
}

/// Breaks when a foreign key of another type prevents other channels from being attached.
#[tokio::test]
async fn a_key_of_the_wrong_type_does_not_affect_other_channels() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut commands = redis.connect().await;
    for (kind, channel) in [("log", "broken1"), ("ids", "broken2")] {
        let key = Redis::key(kind, channel, 1);
        commands.run(&format!("HSET {key} a b")).await;
    }
    let mut clients = Vec::new();
    for channel in ["broken1", "broken2"] {
        let mut client = Client::new(format!("/events?channel={channel}&channel=news"));
        client.connect(gateway.public).await.unwrap();
        clients.push(client);
    }
    let names: Vec<_> = (0..30).map(|number| format!("ch{number}")).collect();
    let query = format!("channel={}", names.join("&channel="));
    let mut viewer = Viewer::open(&gateway, &query).await;
    commands.publish("broken1", "lost").await;
    commands.publish("broken2", "lost").await;
    commands.publish("ch7", "hello").await;
    assert_eq!(viewer.event().await.data, "hello");
    let attempts = gateway
        .metrics()
        .await
        .sum("sse_gateway_redis_commands_total");
    let mut beats = Viewer::open(&gateway, "channel=ch7&channel=ch8").await;
    commands.publish("ch8", "again").await;
    beats.until("again").await;
    let more = gateway
        .metrics()
        .await
        .sum("sse_gateway_redis_commands_total")
        - attempts;
    assert!(more < 100.0, "{more} commands: it tries without a pause");
}

/// Breaks when an event that is larger than this replica's limit prevents its channel from being attached.
#[tokio::test]
async fn an_event_over_this_replicas_limit_is_read_as_a_page() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let large = Gateway::start(&redis, "").await;
    let payload = "x".repeat(900_000);
    redis.append("news", &payload).await;
    redis.append("other", "hello").await;
    drop(large);
    let small = Gateway::start(&redis, "--max-payload 64KiB").await;
    let mut viewer = Viewer::open(&small, "channel=news&channel=other&since=start").await;
    assert_eq!(viewer.event().await.data.len(), payload.len());
    assert_eq!(viewer.event().await.data, "hello");
    redis.append("news", "small").await;
    assert_eq!(viewer.event().await.data, "small");
}
