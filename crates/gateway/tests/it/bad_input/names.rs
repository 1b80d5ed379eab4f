//! Names of channels, as clients request them and publishers use them.

use testkit::{Answer, Client};

use super::{assert_alive, encode};
use crate::support::{
    Gateway, Redis, Viewer, among_others, data, gaps, in_time, messages, recording,
};

/// Breaks when an accepted name is not the name that is subscribed to: escaped once too often, cut,
/// or taken for a pattern or a hash tag.
#[tokio::test]
async fn channel_names_are_used_byte_for_byte_or_refused() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let gateway = Gateway::start(&redis, &format!("--partitions {partitions}")).await;
        recording([&gateway], partitions).await;
        let mut witness = Viewer::open(&gateway, "channel=news").await;
        let mut names: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![b'a', byte, b'z']).collect();
        let more = [
            "{",
            "}",
            "{}",
            "{0}",
            "}{",
            "{x}y",
            "*",
            "a*",
            "?",
            "[a-z]",
            "\\",
            "sse:news",
            "ssegw:{8209}:log:news",
            "é",
            "日本語",
            "🦀",
            "\u{feff}x",
            "a&b",
            "a=b",
            "a,b",
            "a/b",
            "../x",
            "a%2Fb",
            " ",
            " a",
            "a ",
        ];
        names.extend(more.iter().map(|name| name.as_bytes().to_vec()));
        names.push(vec![b'x'; 200]);
        names.push(vec![b'x'; 70_000]);
        names.push(b"\xff\xfe".to_vec());
        names.push(b"\xc3".to_vec());
        let mut publisher = redis.connect().await;
        let mut taken = 0;
        for name in &names {
            let target = format!("/events?channel={}", encode(name));
            let shown = String::from_utf8_lossy(&name[..name.len().min(20)]).into_owned();
            let mut client = Client::new(&*target);
            // A target that is too long may be refused before it is read.
            let answer = in_time("an answer", client.connect(gateway.public)).await;
            let is_taken = match answer {
                Ok(Answer::Stream) => true,
                Ok(Answer::Refused(400..=499)) | Err(_) if name.len() > 10_000 => false,
                Ok(Answer::Refused(400)) => false,
                other => panic!("{shown:?}: {other:?}"),
            };
            let raw = [b"sse:", &name[..]].concat();
            publisher
                .call(&[b"PUBLISH", &raw, b"for this one"])
                .await
                .unwrap();
            if is_taken {
                taken += 1;
                let mut viewer = Viewer::over(gateway.public, client).await;
                // The first message may have arrived on the connection that was just replaced.
                publisher.call(&[b"PUBLISH", &raw, b"again"]).await.unwrap();
                let events = viewer.until("again").await;
                assert!(gaps(&events).is_empty(), "{shown:?}");
            }
        }
        assert!(taken > 60, "letters, digits and dots at least, not {taken}");
        publisher.publish("news", "end").await;
        // `news` itself is not among the names, so "for this one" and "again" are not published
        // there.
        assert_eq!(data(&witness.until("end").await), ["end"]);
    }
}

/// Breaks when names that no client could request are recorded, or block the names that a client
/// could.
#[tokio::test]
async fn publishers_may_use_any_name() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut publisher = redis.connect().await;
    let long = [&b"sse:"[..], &[b'x'; 100_000]].concat();
    let names: [&[u8]; 8] = [
        b"sse:",
        b"sse:\xff\xfe",
        b"sse:\0",
        b"sse:a\r\nb",
        b"sse:{",
        b"sse:sse:news",
        b"sse",
        &long,
    ];
    for name in names {
        publisher.call(&[b"PUBLISH", name, b"x"]).await.unwrap();
    }
    // Messages that look like the gateways' own are ignored.
    for name in [
        "ssegw:{8209}:live:news",
        "ssegw:{8209}:answers:x",
        "ssegw:{8209}:live:",
        "ssegw:{8209}:lease",
    ] {
        for payload in [&b""[..], b"garbage", b"\xff\x00\xff", b"{}", b"1-0"] {
            publisher
                .call(&[b"SPUBLISH", name.as_bytes(), payload])
                .await
                .unwrap();
        }
    }
    publisher.publish("news", "end").await;
    let events = viewer.until("end").await;
    assert_eq!(messages(&events).len(), 1, "{events:?}");
    assert_alive(&gateway, &redis, &mut publisher).await;
}

/// Breaks when a message that cannot be read loses the messages after it, or the connection.
#[tokio::test]
async fn a_name_larger_than_any_message_does_no_harm() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut commands = redis.connect().await;
    let huge = "x".repeat(3 << 20);
    for number in 0..3 {
        assert!(commands.publish(&huge, "nowhere").await > 0);
        commands.publish("news", format!("n{number}")).await;
    }
    assert_eq!(data(&viewer.until("n2").await), ["n0", "n1", "n2"]);
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("sse_gateway_redis_reconnects_total"), 0.0);
    assert!(metrics.sum("sse_gateway_raw_rejected_total") >= 3.0);
}
