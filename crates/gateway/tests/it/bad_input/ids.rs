//! A `Last-Event-ID` can be anything: from another server, from the future, or from no server at all.

use testkit::{Answer, Client};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::encode;
use crate::support::{Gateway, Redis, Viewer, among_others, data, gaps, in_time, messages};

/// Values of `Last-Event-ID` that this gateway never issued.
const NOT_IDS: &[&str] = &[
    "-1",
    "0",
    "1",
    "-",
    "abc",
    "1-",
    "-1-0",
    "1--1",
    "1-0-0",
    "0x10-0",
    "+1-0",
    "1 - 0",
    "99999999999999999999-0",
    "1-99999999999999999999",
    "18446744073709551616-0",
    "NaN",
    "null",
    "undefined",
    "[object Object]",
    "$",
    "*",
    "urn:uuid:5b7a0a63-0a4e-4f6e-8f0e-7b8f6d1c2e11",
    "1763800000000-3:epoch",
    "3.1763800000000-3",
    "4_3.1763800000000-3_",
    "4_4.1763800000000-3",
    "_",
    ".",
    "-1.1-0",
    "1_0.1-0_0.2-0",
    "8_7.1-0_3.1-0",
    "%31%2D%30",
    "🦀",
    "'; FLUSHALL; --",
    "{\"id\":1}",
    "../../etc/passwd",
];

/// Breaks when an id that cannot be read stops the page for good, replays everything, or causes no gap event for events
/// that may be missing.
#[tokio::test]
async fn an_unreadable_id_causes_a_gap() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let mut witness = Viewer::open(&gateway, "channel=news").await;
    for number in 0..5 {
        redis.append("news", &format!("old {number}")).await;
    }
    // The replica has these events now. So a client that connects from here on starts after them.
    assert_eq!(data(&witness.until("old 4").await).len(), 5);
    let mut viewers = Vec::new();
    for id in NOT_IDS {
        viewers.push((id, Viewer::resume(&gateway, "channel=news", id).await));
    }
    redis.append("news", "end").await;
    for (id, mut viewer) in viewers {
        let events = viewer.until("end").await;
        assert_eq!(gaps(&events).len(), 1, "{id:?}: {:?}", data(&events));
        assert_eq!(
            messages(&events).len(),
            1,
            "{id:?} replays: {:?}",
            data(&events)
        );
        // From here on it is a client like any other.
        let mut viewer = viewer.reconnect(&gateway).await;
        redis.append("news", "again").await;
        assert_eq!(data(&viewer.until("again").await), ["again"], "{id:?}");
    }
    assert_eq!(data(&witness.until("end").await), ["end"]);
}

/// Breaks when an id from the future silences a client until that time, or moves the ids of other clients.
#[tokio::test]
async fn an_id_from_the_future_causes_a_gap_and_does_not_move_the_clock() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let gateway = Gateway::start(&redis, &format!("--partitions {partitions}")).await;
        let now = redis.append("news", "old").await;
        let far = now.ms + 1_000_000_000;
        let ids = [
            format!("{far}-0"),
            format!("{}-18446744073709551615", now.ms + 60_000),
            // The greatest id of Redis. No event can follow it.
            format!("{}-{}", u64::MAX, u64::MAX),
        ];
        for id in &ids {
            let mut viewer = Viewer::resume(&gateway, "channel=news", id).await;
            // The gap arrives at once. Another test shows that nothing is lost before it.
            let gap = viewer.event().await;
            assert_eq!(gap.event, "gateway.gap", "{id}");
            let next = redis.append("news", "next").await;
            assert!(next.ms < now.ms + 60_000, "{id} moved the ids to {next}");
            assert_eq!(data(&viewer.until("next").await), ["next"], "{id}");
            assert_eq!(viewer.client.last_event_id(), next.to_string());
        }
        // An id of another form: a vector although the stream has one partition, and the reverse.
        let vector = format!("0.{now}_1.{now}");
        let mut viewer = Viewer::resume(&gateway, "channel=news", &vector).await;
        redis.append("news", "end").await;
        viewer.until("end").await;
        let query = "channel=news&channel=x&channel=y&channel=z";
        let mut viewer = Viewer::resume(&gateway, query, &now.to_string()).await;
        redis.append("news", "end of several").await;
        viewer.until("end of several").await;
    }
}

/// Breaks when the id of the open event is not the position from which the client continues. A page that requests
/// something once it is open must not miss the answer.
#[tokio::test]
async fn an_id_from_the_future_loses_no_event_after_the_open_event() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let now = redis.append("news", "old").await;
    let future = format!("{}-0", now.ms + 1_000_000_000);
    for number in 0..100 {
        let mut viewer = Viewer::resume(&gateway, "channel=news", &future).await;
        let (next, end) = (format!("next {number}"), format!("end {number}"));
        redis.append("news", &next).await;
        redis.append("news", &end).await;
        let events = viewer.until(&end).await;
        assert_eq!(data(&events), ["<gap>", &*next, &*end], "{events:?}");
    }
}

/// Breaks when an id of a deployment with other partitions is trusted. It has no position for the partitions here.
#[tokio::test]
async fn an_id_of_other_partitions_causes_a_gap() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    for id in [
        "2_1.5-0",
        "16_9.1-0",
        "8_3.1763800000000-3_7.1763800000000-0",
    ] {
        redis.append("news", "old").await;
        let mut viewer = Viewer::resume(&gateway, "channel=news", id).await;
        let end = format!("end of {id}");
        redis.append("news", &end).await;
        let events = viewer.until(&end).await;
        assert_eq!(gaps(&events).len(), 1, "{id}: {:?}", data(&events));
    }
}

/// Breaks when an empty id is taken for an id, or when the query parameter is handled unlike the header.
#[tokio::test]
async fn an_empty_or_unreadable_id_gets_a_clear_answer_in_any_place() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    redis.append("news", "old").await;
    // Not `Client`, which sends no header when it has no id.
    let request =
        b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: \r\n\r\n";
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    in_time("the open event", async {
        while !contains(&answer, b"gateway.open") {
            assert!(socket.read_buf(&mut answer).await.unwrap() > 0);
        }
    })
    .await;
    redis.append("news", "a message, now").await;
    in_time("the message", async {
        while !contains(&answer, b"a message, now") {
            assert!(socket.read_buf(&mut answer).await.unwrap() > 0);
        }
    })
    .await;
    let text = String::from_utf8(answer).unwrap();
    assert!(
        !text.contains("gateway.gap") && !text.contains("old"),
        "{text}"
    );

    for parameter in ["last_event_id", "since"] {
        let more = [
            "",
            "--5",
            "-0",
            "-99999999999999999999",
            "yesterday",
            "2025-13-45T99:99:99Z",
            "%00",
            "%ff%fe",
        ];
        for value in NOT_IDS.iter().chain(&more) {
            let target = format!(
                "/events?channel=news&{parameter}={}",
                encode(value.as_bytes())
            );
            let mut client = Client::new(&*target);
            match in_time("an answer", client.connect(gateway.public))
                .await
                .unwrap()
            {
                Answer::Stream | Answer::Refused(400) => {}
                other => panic!("{target}: {other:?}"),
            }
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
