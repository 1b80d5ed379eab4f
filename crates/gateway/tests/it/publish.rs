//! `POST /events`: its answers, stored events, and refusals.

use std::time::Duration;

use loadtest::{Session, Setup, Way};
use serde_json::{Value, json};
use testkit::{
    Answer, Id, Response,
    lab::{append_call, copied},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Gateway, KEEP_ALL, PATIENCE, Redis, Reply, Viewer, alone, among_others, data, in_time,
    recording, texts,
};

const CONFIG: &str = r#"
[[publish]]
token = "all"

[[publish]]
token = "chat-only"
channels = ["chat.*"]
"#;

/// A publisher's request. Each of the `headers` ends with CR LF.
async fn post(gateway: &Gateway, query: &str, headers: &str, body: &[u8]) -> Response {
    let length = body.len();
    let head = format!(
        "POST /events?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    gateway
        .send(&[head.as_bytes(), body].concat())
        .await
        .expect("an answer")
}

const ALL: &str = "Authorization: Bearer all\r\n";

fn json(response: &Response) -> Value {
    serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{:?}", response.body))
}

fn refused(response: &Response, status: u16, code: &str) {
    assert_eq!(response.head.status, status, "{}", response.body);
    assert_eq!(
        response.head.field("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(json(response)["code"], code, "{}", response.body);
}

/// The id in an answer 201.
fn created(response: &Response) -> Id {
    assert_eq!(response.head.status, 201, "{}", response.body);
    let id = json(response)["id"].as_str().expect("an id").parse();
    id.expect("an id of an event")
}

/// Breaks when an answer arrives before the event is stored, or names another id than clients see. Breaks also when a
/// payload is treated differently than by other ways to publish.
#[tokio::test]
async fn a_posted_event_is_stored_and_its_id_returned() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let a = Gateway::start_with(&redis, &options, CONFIG).await;
        let b = Gateway::start_with(&redis, &options, CONFIG).await;
        let mut viewer = Viewer::open(&b, "channel=news").await;
        let start = viewer.open.id.clone();
        let cases: [(&str, &str, &[u8], &str, &str); 7] = [
            ("", "", b"hello", "message", "hello"),
            (
                "",
                "Content-Type: text/plain; charset=utf-8\r\n",
                "ü\r\nb".as_bytes(),
                "message",
                "ü\nb",
            ),
            (
                "",
                "Content-Type: application/json\r\n",
                br#"{"a": 1}"#,
                "message",
                r#"{"a": 1}"#,
            ),
            (
                "",
                "Content-Type: application/json\r\n",
                br#"{"event":"e","data":{"a": 1}}"#,
                "e",
                r#"{"a":1}"#,
            ),
            ("&event=tick", "", b"say \"hi\"", "tick", "say \"hi\""),
            (
                "&event=mine",
                "",
                br#"{"event":"theirs","data":"d"}"#,
                "mine",
                "d",
            ),
            ("&retry=7000", "", b"", "message", ""),
        ];
        let mut ids = Vec::new();
        for (query, headers, body, event, data) in cases {
            let query = format!("channel=news{query}");
            let answer = post(&a, &query, &format!("{ALL}{headers}"), body).await;
            let id = created(&answer);
            let received = viewer.event().await;
            assert_eq!(received.id, id.to_string());
            assert_eq!((&*received.event, &*received.data), (event, data));
            ids.push(id);
        }
        assert!(ids.is_sorted());
        assert_eq!(
            viewer.client.retry().map(|retry| retry.as_millis()),
            Some(7000)
        );
        // The same from history, up to the end.
        let answer = post(&b, "channel=news&end", ALL, b"bye").await;
        assert_eq!(answer.head.status, 201, "{}", answer.body);
        let mut replay = Viewer::resume(&a, "channel=news", &start).await;
        let (events, _) = replay.until_end().await;
        let sent = cases.iter().map(|case| case.4).chain(["bye"]);
        assert_eq!(texts(&events), sent.collect::<Vec<_>>());
        let published = a.metrics().await.sum("sse_gateway_published_total");
        assert_eq!(published, cases.len() as f64);
    }
}

/// How a payload is treated.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// An envelope with this `retry`, if it has one.
    Envelope(Option<u64>),
    /// The payload itself is the data.
    Data,
    Refused,
}

/// Breaks when a payload is an envelope for one way to publish, and none for another way or for the reader.
#[tokio::test]
async fn every_way_to_publish_treats_payloads_alike() {
    use Verdict::{Data, Envelope, Refused};
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", CONFIG).await;
    recording([&gateway], 1).await;
    let mut viewers = Vec::new();
    for channel in ["raw", "function", "post"] {
        let viewer = Viewer::open(&gateway, &format!("channel={channel}")).await;
        viewers.push((channel, viewer));
    }
    let mut publisher = redis.connect().await;
    let table = [
        (r#"{"data":"x","retry":700}"#, Envelope(Some(700))),
        (r#"{"data":"x","retry":500.0}"#, Envelope(Some(500))),
        (r#"{"data":"x","retry":1e3}"#, Envelope(Some(1000))),
        (r#"{"data":"x","retry":2.5E+2}"#, Envelope(Some(250))),
        (r#"{"data":"x","retry":200000e-3}"#, Envelope(Some(200))),
        // Limited to between 100 ms and an hour.
        (r#"{"data":"x","retry":0}"#, Envelope(Some(100))),
        (r#"{"data":"x","retry":-0}"#, Envelope(Some(100))),
        (r#"{"data":"x","retry":3600001}"#, Envelope(Some(3_600_000))),
        (
            r#"{"data":"x","retry":4294967295.0}"#,
            Envelope(Some(3_600_000)),
        ),
        (r#"{"data":"x","retry":null}"#, Envelope(None)),
        (r#"{"data":"x","event":"","end":false}"#, Envelope(None)),
        (r#"{"data":"x","event":null,"end":null}"#, Envelope(None)),
        (r#"{"data":"x","retry":1.5}"#, Refused),
        (r#"{"data":"x","retry":1e-3}"#, Refused),
        (r#"{"data":"x","retry":-1.0}"#, Refused),
        (r#"{"data":"x","retry":4294967296.0}"#, Refused),
        (r#"{"data":"x","retry":1e999}"#, Refused),
        (r#"{"data":"x","retry":"5"}"#, Refused),
        (r#"{"data":"x","retry":true}"#, Refused),
        (r#"{"data":"x","end":1.0}"#, Refused),
        (r#"{"data":"x","event":5.0}"#, Refused),
        (r#"{"data":"x","event":"gateway.\u0061"}"#, Refused),
        (r#"{"data":"x","event":"error"}"#, Refused),
        (r#"{"data":"x","event":"\u006fpen"}"#, Refused),
        (r#"{"data":"x","event":"Error"}"#, Envelope(None)),
        (r#"{"data":"x","event":"\ud83d\ude00\n"}"#, Refused),
        (r#"{"data":"x","event":"\ud800"}"#, Data),
        (r#"{"data":"x","event":"\udc00\ud800"}"#, Data),
        (r#"{"data":"x","retry":NaN}"#, Data),
        (r#"{"data":"x","retry":-0x1}"#, Data),
        (r#"{"data":"x","retry":01.5}"#, Data),
        (r#"{"data":"x","retry":-1.}"#, Data),
        (r#"{"data":"x","retry":5.}"#, Data),
        ("{\"data\":\"x\",\"event\":\"a\nb\"}", Data),
        ("{\"data\":\"\\\"\tx\",\"end\":1}", Data),
        (r#"{"data":"x","data":"y"}"#, Data),
        (r#"{"data":"x","id":5}"#, Data),
    ];
    for (number, (payload, verdict)) in table.into_iter().enumerate() {
        publisher.publish("raw", payload).await;
        let words = ["FCALL", "sse_publish", "0", "function", payload];
        let reply = publisher.call(&words.map(str::as_bytes)).await.unwrap();
        let answer = post(&gateway, "channel=post", ALL, payload.as_bytes()).await;
        let refused = matches!(verdict, Refused);
        let is_error = matches!(reply, Reply::Error(_));
        assert_eq!(is_error, refused, "{payload}: {reply:?}");
        let expected = if refused { 400 } else { 201 };
        assert_eq!(answer.head.status, expected, "{payload}: {}", answer.body);
        let end = format!("end of {number}");
        for (channel, viewer) in &mut viewers {
            // Published in the same way, so that it arrives after the payload.
            match *channel {
                "raw" => drop(publisher.publish("raw", &end).await),
                _ => drop(redis.append(channel, &end).await),
            }
            let events = viewer.until(&end).await;
            let expected = match verdict {
                Refused => vec![&*end],
                Data => vec![payload, &*end],
                Envelope(_) => vec!["x", &*end],
            };
            assert_eq!(data(&events), expected, "{channel}: {payload}");
            if let Envelope(Some(retry)) = verdict {
                let told = viewer.client.retry().map(|retry| retry.as_millis());
                assert_eq!(told, Some(retry.into()), "{channel}: {payload}");
            }
        }
    }
    let last = r#"{"data":"bye","end":true,"retry":5.0}"#;
    publisher.publish("raw", last).await;
    redis.append_end("function", last).await;
    let posted = post(&gateway, "channel=post", ALL, last.as_bytes()).await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    for (channel, mut viewer) in viewers {
        let (events, _) = viewer.until_end().await;
        assert_eq!(texts(&events), ["bye"], "{channel}");
    }
}

/// Breaks when an end by FCALL or POST is stored before raw messages that were published before it. They open the
/// channel again, and its clients never receive 204.
#[tokio::test]
async fn an_end_follows_the_raw_messages_before_it() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start_with(&redis, "--partitions 8", CONFIG).await;
    let b = Gateway::start_with(&redis, "--partitions 8", CONFIG).await;
    recording([&a, &b], 8).await;
    let mut publisher = redis.connect().await;
    let end = r#"{"data":"bye","end":true}"#;
    let names: Vec<_> = (0..100).map(|number| format!("answer.{number}")).collect();
    for (name, number) in names.iter().zip(0..) {
        for token in ["one", "two"] {
            publisher.publish(name, token).await;
        }
        match number % 2 {
            0 => {
                let answer = publisher.call(&append_call(name, end)).await.unwrap();
                assert_eq!(answer.text(), "-", "{name}");
            }
            _ => {
                let target = format!("channel={name}&end");
                let posted = post(&a, &target, ALL, b"bye").await;
                assert_eq!(
                    (posted.head.status, json(&posted)["id"].is_null()),
                    (201, true)
                );
            }
        }
    }
    for name in &names {
        let mut viewer = Viewer::open(&b, &format!("channel={name}&since=start")).await;
        let (events, _) = viewer.until_end().await;
        assert_eq!(texts(&events), ["one", "two", "bye"], "{name}");
        let mut client = viewer.client;
        assert_eq!(client.connect(b.public).await.unwrap(), Answer::Stop);
    }

    // All recorders are cut before they have received it.
    let mut viewer = Viewer::open(&b, "channel=answer.last").await;
    let append = append_call("answer.last", end);
    let kill = [b"CLIENT", &b"KILL"[..], b"TYPE", b"pubsub"];
    let step = [&[&b"MULTI"[..]][..], &append, &kill, &[b"EXEC"]].map(<[&[u8]]>::to_vec);
    let answers = publisher.call_all(&step).await.unwrap();
    assert_eq!(answers[3].array()[0].text(), "-");
    let (events, _) = viewer.until_end().await;
    assert_eq!(texts(&events), ["bye"]);
}

/// Breaks when a repeated request stores a second event, or when publishers share keys.
#[tokio::test]
async fn a_repeated_post_with_the_same_key_stores_nothing() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let a = Gateway::start_with(&redis, "--partitions 8", CONFIG).await;
    let b = Gateway::start_with(&redis, "--partitions 8", CONFIG).await;
    let mut viewer = Viewer::open(&a, "channel=one").await;
    let keyed = format!("{ALL}Idempotency-Key: \"8e03978e\"\r\n");
    let first = created(&post(&a, "channel=one", &keyed, b"first").await);
    for gateway in [&a, &b] {
        let again = created(&post(gateway, "channel=one", &keyed, b"first").await);
        assert_eq!(again, first);
    }
    let elsewhere = created(&post(&a, "channel=two", &keyed, b"first").await);
    let other_key = format!("{ALL}Idempotency-Key: other\r\n");
    let other = created(&post(&a, "channel=one", &other_key, b"other").await);
    assert!(other != first && elsewhere != first);
    // Another payload with the same key, and the same key of another publisher.
    let answer = post(&b, "channel=one", &keyed, b"second").await;
    refused(&answer, 422, "idempotency_key_reused");
    let answer = post(&b, "channel=one&event=e", &keyed, b"first").await;
    refused(&answer, 422, "idempotency_key_reused");
    let chat = "Authorization: bearer chat-only\r\nIdempotency-Key: \"8e03978e\"\r\n";
    let mine = created(&post(&a, "channel=chat.a", &keyed, b"x").await);
    let yours = created(&post(&a, "channel=chat.a", chat, b"x").await);
    assert_ne!(mine, yours);
    let mut commands = redis.connect().await;
    let mut first_call = None;
    for (payload, key, error) in [
        ("x", "\"8e03978e\"", None),
        ("x", "\"8e03978e\"", None),
        ("y", "\"8e03978e\"", Some("KEYREUSED")),
    ] {
        let words = ["FCALL", "sse_publish", "0", "chat.a", payload, key];
        let reply = commands.call(&words.map(str::as_bytes)).await.unwrap();
        match (reply, error) {
            (Reply::Error(told), Some(error)) => assert!(told.starts_with(error), "{told}"),
            (reply, None) => {
                let id: Id = reply.text().parse().unwrap();
                assert!(id != mine && id != yours && first_call.is_none_or(|first| first == id));
                first_call = Some(id);
            }
            (reply, _) => panic!("{reply:?}"),
        }
    }
    let words = ["FCALL", "sse_publish", "0", "one", "x", "k", "too many"];
    let reply = commands.call(&words.map(str::as_bytes)).await.unwrap();
    assert!(matches!(reply, Reply::Error(_)), "{reply:?}");
    created(&post(&a, "channel=one", ALL, b"end").await);
    assert_eq!(data(&viewer.until("end").await), ["first", "other", "end"]);
    for bad in ["".to_owned(), "k".repeat(257), "k\u{e9}".to_owned()] {
        let headers = format!("{ALL}Idempotency-Key: {bad}\r\n");
        let answer = post(&a, "channel=one", &headers, b"x").await;
        refused(&answer, 400, "bad_idempotency_key");
    }
}

/// Breaks when an answer does not wait until copies of Redis have the event, when it waits without an end, or when other
/// publishers wait with it.
#[tokio::test]
async fn a_post_can_wait_for_copies_of_redis() {
    let _machine = among_others().await;
    let mut redis = Redis::start().await;
    let port = redis.address().port().to_string();
    let copy = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    copied(&redis, 1).await;
    let gateway = Gateway::start_with(&redis, "", CONFIG).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let copied_to = |count: &str| format!("channel=news&replicas={count}");
    for count in ["0", "6", "-1", "one", ""] {
        let answer = post(&gateway, &copied_to(count), ALL, b"x").await;
        refused(&answer, 400, "bad_setting");
    }
    let id = created(&post(&gateway, &copied_to("1"), ALL, b"safe").await);
    let entries = copy.log("news", 1).await;
    assert_eq!(entries, [(id, b"safe".to_vec())]);
    // The answer is late, and the event is stored.
    let not_copied = |answer: &Response| {
        refused(answer, 504, "not_copied");
        let id = json(answer)["id"].as_str().expect("an id").to_owned();
        id.parse::<Id>().expect("an id of an event")
    };
    let mut stored = vec![
        id,
        not_copied(&post(&gateway, &copied_to("2"), ALL, b"one").await),
    ];

    copy.pause();
    let target = copied_to("1");
    let late = post(&gateway, &target, ALL, b"late");
    tokio::pin!(late);
    // The answer to the first is late.
    let other = tokio::select! {
        biased;
        other = post(&gateway, "channel=news", ALL, b"other") => created(&other),
        _ = &mut late => panic!("another publisher waits for the copy"),
    };
    stored.extend([other, not_copied(&late.await)]);
    let lines = ["a", "b"].map(|data| format!(r#"{{"channel":"news","data":"{data}"}}"#));
    let lines = lines.join("\n");
    let batch = format!("{ALL}Content-Type: application/x-ndjson\r\n");
    let answer = post(&gateway, "replicas=1", &batch, lines.as_bytes()).await;
    assert_eq!(answer.head.status, 504, "{}", answer.body);
    assert_eq!(
        answer.body.matches("not_copied").count(),
        2,
        "{}",
        answer.body
    );

    copy.go_on();
    copied(&redis, 1).await;
    let answer = post(&gateway, "replicas=1", &batch, lines.as_bytes()).await;
    assert_eq!(answer.head.status, 200, "{}", answer.body);
    stored.push(created(&post(&gateway, &copied_to("1"), ALL, b"end").await));
    stored.sort();
    let events = viewer.until("end").await;
    // The server ends before a copy has the event.
    copy.pause();
    let target = copied_to("1");
    let lost = async {
        viewer.until("lost").await;
        redis.kill();
    };
    let (answer, ()) = tokio::join!(post(&gateway, &target, ALL, b"lost"), lost);
    not_copied(&answer);
    let seen: Vec<Id> = events
        .iter()
        .map(|event| event.id.parse().unwrap())
        .collect();
    assert!(
        stored.iter().all(|id| seen.contains(id)),
        "{stored:?} {seen:?}"
    );
}

/// Breaks when one bad line spoils a batch, when answers are not in the order of their lines, or when a repeated batch
/// stores an event twice.
#[tokio::test]
async fn a_batch_is_answered_line_by_line() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let gateway = Gateway::start_with(&redis, &options, CONFIG).await;
        let mut viewers = Vec::new();
        for channel in ["chat.a", "chat.b"] {
            viewers.push(Viewer::open(&gateway, &format!("channel={channel}")).await);
        }
        let lines = [
            r#"{"channel":"chat.a","data":"one"}"#,
            r#"{"channel":"chat.b","data":{"n": 2},"event":"e","end":false}"#,
            "",
            r#"{"channel":"news","data":"not for this credential"}"#,
            r#"{"channel":"chat.a"}"#,
            r#"{"channel":"chat.a","data":"x","evnt":"typo"}"#,
            r#"{"channel":"chat.a","data":"x","event":"gateway.open"}"#,
            r#"{"channel":"chat.a","data":"x","retry":-1}"#,
            r#"{"channel":"","data":"x"}"#,
            "not JSON",
            r#"{"channel":"chat.a","data":"end"}"#,
            r#"{"channel":"chat.b","data":"end"}"#,
        ];
        let headers = "Authorization: bearer chat-only\r\nContent-Type: application/x-ndjson\r\n\
                       Idempotency-Key: batch\r\n";
        let body = lines.join("\r\n");
        let answer = post(&gateway, "", headers, body.as_bytes()).await;
        assert_eq!(answer.head.status, 200, "{}", answer.body);
        assert_eq!(
            answer.head.field("content-type"),
            Some("application/x-ndjson")
        );
        let results: Vec<Value> = answer
            .body
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let codes: Vec<_> = results
            .iter()
            .map(|result| result["error"]["code"].as_str())
            .collect();
        assert_eq!(
            codes,
            [
                None,
                None,
                Some("forbidden_channel"),
                Some("bad_line"),
                Some("bad_line"),
                Some("bad_event"),
                Some("bad_envelope"),
                Some("bad_channel"),
                Some("bad_line"),
                None,
                None,
            ]
        );
        let a = viewers[0].until("end").await;
        let b = viewers[1].until("end").await;
        let seen: Vec<_> = [&a[0], &b[0], &a[1], &b[1]]
            .iter()
            .map(|event| json!(event.id))
            .collect();
        let told: Vec<_> = results
            .iter()
            .filter(|result| result["error"].is_null())
            .map(|result| result["id"].clone())
            .collect();
        assert_eq!(told, seen);
        assert_eq!((&*b[0].event, &*b[0].data), ("e", r#"{"n":2}"#));
        let again = post(&gateway, "", headers, body.as_bytes()).await;
        assert_eq!(again.body, answer.body);
        // The same batch without the refused lines, so that the others have other line numbers.
        let rest = [lines[0], lines[1], lines[10], lines[11]].join("\n");
        let again = post(&gateway, "", headers, rest.as_bytes()).await;
        let ids = again.body.lines().map(|line| {
            let result: Value = serde_json::from_str(line).expect("JSON");
            result["id"].clone()
        });
        assert_eq!(ids.collect::<Vec<_>>(), told);
        for viewer in &mut viewers {
            redis.append("chat.a", "later").await;
            redis.append("chat.b", "later").await;
            assert_eq!(viewer.event().await.data, "later");
        }
    }
}

/// Breaks when a client without a valid token can publish, or a publisher can publish to other channels than allowed.
/// Breaks also when publishing is on by default.
#[tokio::test]
async fn only_known_publishers_may_publish_and_only_to_allowed_channels() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let off = Gateway::start(&redis, "").await;
    refused(
        &post(&off, "channel=news", ALL, b"x").await,
        403,
        "publishing_off",
    );
    let gateway = Gateway::start_with(&redis, "", CONFIG).await;
    let mut viewer = Viewer::open(&gateway, "channel=news&channel=chat.1").await;
    for (headers, code) in [
        ("", "unauthorized"),
        ("Authorization: all\r\n", "unauthorized"),
        ("Authorization: Basic all\r\n", "unauthorized"),
        ("Authorization: Bearer\r\n", "unauthorized"),
        ("Authorization: Bearer \r\n", "unauthorized"),
        ("Authorization: Bearer \u{e9}\r\n", "unauthorized"),
        ("Authorization: Bearer al\r\n", "token_unknown"),
        ("Authorization: Bearer alll\r\n", "token_unknown"),
        ("Authorization: Bearer ALL\r\n", "token_unknown"),
    ] {
        let answer = post(&gateway, "channel=news", headers, b"x").await;
        refused(&answer, 401, code);
        let challenge = answer.head.field("www-authenticate");
        assert!(challenge.is_some_and(|challenge| challenge.starts_with("Bearer")));
    }
    let chat = "Authorization: Bearer chat-only\r\n";
    for channel in ["news", "chat", "xchat.1"] {
        let answer = post(&gateway, &format!("channel={channel}"), chat, b"x").await;
        refused(&answer, 403, "forbidden_channel");
    }
    created(&post(&gateway, "channel=chat.1", chat, b"allowed").await);
    created(&post(&gateway, "channel=news", ALL, b"end").await);
    assert_eq!(data(&viewer.until("end").await), ["allowed", "end"]);
}

/// Breaks when the answer to a bad request does not name its fault, or when the request is carried out in part.
#[tokio::test]
async fn bad_events_are_refused_clearly() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "--max-payload 1KiB", CONFIG).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let large = [b'x'; 1025];
    let cases: [(&str, &str, &[u8], u16, &str); 18] = [
        ("", "", b"x", 400, "no_channel"),
        ("channel=", "", b"x", 400, "bad_channel"),
        ("channel=a%00", "", b"x", 400, "bad_channel"),
        ("channel=%ff", "", b"x", 400, "bad_query"),
        ("channel=news&channel=b", "", b"x", 400, "one_channel"),
        ("channel=news&retry=soon", "", b"x", 400, "bad_setting"),
        ("channel=news&retry=-1", "", b"x", 400, "bad_setting"),
        ("channel=news&end=maybe", "", b"x", 400, "bad_setting"),
        ("channel=news&event=a%0Ab", "", b"x", 400, "bad_event"),
        ("channel=news&event=gateway.gap", "", b"x", 400, "bad_event"),
        ("channel=news", "", b"\xff", 400, "not_utf8"),
        (
            "channel=news",
            "",
            br#"{"data":"x","event":5}"#,
            400,
            "bad_envelope",
        ),
        ("channel=news", "", &large, 413, "too_large"),
        // The body fits, but its envelope does not.
        ("channel=news&event=e", "", &large[..1020], 413, "too_large"),
        (
            "channel=news",
            "Content-Type: image/png\r\n",
            b"x",
            415,
            "unsupported_media_type",
        ),
        (
            "channel=news",
            "Content-Type: multipart/form-data; boundary=b\r\n",
            b"x",
            415,
            "unsupported_media_type",
        ),
        (
            "",
            "Content-Type: application/x-ndjson\r\n",
            b"\n \r\n",
            400,
            "empty_batch",
        ),
        (
            "channel=news",
            "Content-Type: application/x-ndjson\r\n",
            b"{}",
            400,
            "batch_query",
        ),
    ];
    for (query, headers, body, status, code) in cases {
        let answer = post(&gateway, query, &format!("{ALL}{headers}"), body).await;
        refused(&answer, status, code);
    }
    // Without a length, the limit is found while reading.
    let head = format!(
        "POST /events?channel=news HTTP/1.1\r\nHost: localhost\r\n{ALL}Transfer-Encoding: chunked\r\n\r\n"
    );
    let chunk = [b"401\r\n", &large[..], b"\r\n0\r\n\r\n"].concat();
    let answer = gateway
        .send(&[head.as_bytes(), &chunk].concat())
        .await
        .unwrap();
    refused(&answer, 413, "too_large");
    let lines = "{\"channel\":\"news\",\"data\":\"x\"}\n".repeat(1001);
    let ndjson = format!("{ALL}Content-Type: application/x-ndjson\r\n");
    let answer = post(&gateway, "", &ndjson, lines.as_bytes()).await;
    refused(&answer, 413, "too_many_lines");
    created(&post(&gateway, "channel=news", ALL, &large[..1024]).await);
    created(&post(&gateway, "channel=news", ALL, b"end").await);
    assert_eq!(viewer.until("end").await.len(), 2);
}

/// Breaks when the gateway resets the connection of a publisher whose head it refuses, while the publisher still sends
/// the body. The publisher would never read the reason.
#[tokio::test]
async fn a_publisher_that_is_refused_while_sending_can_read_the_answer() {
    const BYTES: usize = 8 << 20;
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", CONFIG).await;
    let cases = [
        ("", "401"),
        ("Authorization: Bearer all\r\n", "413"),
        (
            "Authorization: Bearer all\r\nContent-Type: image/png\r\n",
            "415",
        ),
    ];
    for (headers, status) in cases {
        let mut socket = TcpStream::connect(gateway.public)
            .await
            .expect("a connection");
        let head = format!(
            "POST /events?channel=news HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {BYTES}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.expect("room");
        let body = vec![b'x'; BYTES];
        in_time("the body is taken", socket.write_all(&body))
            .await
            .expect("no reset");
        let mut answer = Vec::new();
        in_time("an answer", socket.read_to_end(&mut answer))
            .await
            .expect("no reset");
        let answer = String::from_utf8(answer).expect("text");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
}

/// Breaks when a publisher gets a success while Redis accepts no writes, or gets no time to retry.
#[tokio::test]
async fn publishers_are_asked_to_retry_while_redis_accepts_no_writes() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", CONFIG).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    created(&post(&gateway, "channel=news", ALL, b"before").await);
    let mut commands = redis.connect().await;
    commands.run("CONFIG SET min-replicas-to-write 1").await;
    let wait = |answer: &Response| assert!(answer.head.field("retry-after").is_some());
    let answer = post(&gateway, "channel=news", ALL, b"refused").await;
    refused(&answer, 503, "redis_takes_no_writes");
    wait(&answer);
    let ndjson = format!("{ALL}Content-Type: application/x-ndjson\r\n");
    let batch = b"{\"channel\":\"news\",\"data\":\"refused\"}\n{}";
    let answer = post(&gateway, "", &ndjson, batch).await;
    assert_eq!(answer.head.status, 503, "{}", answer.body);
    wait(&answer);
    assert!(answer.body.contains("redis_takes_no_writes") && answer.body.contains("bad_line"));
    commands.run("CONFIG SET min-replicas-to-write 0").await;
    // A key of another type affects only its own channel.
    commands.run("SET ssegw:{8209}:log:broken x").await;
    let answer = post(&gateway, "channel=broken", ALL, b"x").await;
    refused(&answer, 409, "cannot_be_stored");
    created(&post(&gateway, "channel=news", ALL, b"end").await);
    assert_eq!(data(&viewer.until("end").await), ["before", "end"]);
    // Redis no longer answers.
    redis.pause();
    let answer = post(&gateway, "channel=news", ALL, b"lost?").await;
    assert_eq!(answer.head.status, 503, "{}", answer.body);
    wait(&answer);
    redis.go_on();
}

/// Breaks when events that are posted under load are lost, repeated or out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_over_http_is_delivered_to_the_last_event() {
    let _machine = alone().await;
    let redis = Redis::start().await;
    let config = format!("{CONFIG}{KEEP_ALL}");
    let gateway = Gateway::start_with(&redis, "--workers 2", &config).await;
    recording([&gateway], 1).await;
    let setup = Setup {
        servers: vec![gateway.public],
        target: "/events?channel={channel}".to_owned(),
        connections: 50,
        channels: 5,
        way: Way::Http {
            address: gateway.public,
            target: "/events?channel={channel}".to_owned(),
            token: Some("all".to_owned()),
        },
        bytes: 200,
        connect_rate: None,
        slow: 0,
        slow_bytes_per_second: 0,
        pids: vec![],
    };
    let measuring = tokio::task::spawn_blocking(move || {
        let mut session = Session::open(setup)?;
        session.load(500.0, Duration::from_secs(2), PATIENCE)
    });
    let outcome = measuring.await.unwrap().unwrap();
    assert!(outcome.is_exact(), "{outcome}");
    assert_eq!(outcome.tally.deliveries, 1000 * 10);
}
