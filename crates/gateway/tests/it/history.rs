//! The history of a channel, and gaps: only clients that miss events receive them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use testkit::{Id, lab::append_call};

use crate::support::{
    Commands, Gateway, KEEP_ALL, PATIENCE, Redis, Reply, Viewer, alone, among_others,
    assert_rising, assert_told, data, eventually, gaps, recording, refused, texts,
};

/// Channels that expire soon.
const SHORT_LIVED: &str = r#"
    [[channels]]
    match = "*"
    history = 100
    max_age = "1s"
    expire = "2s"
"#;

/// Breaks when trimmed history is skipped without a gap, or when a client that misses nothing receives one.
#[tokio::test]
async fn a_trimmed_stream_causes_a_gap_only_for_clients_that_miss_events() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let ids = redis.append_many("news", 30).await;
    let mut commands = redis.connect().await;
    let key = Redis::key("log", "news", 1);
    commands.run(&format!("XTRIM {key} MAXLEN = 10")).await;
    drop(gateway);
    let fresh = Gateway::start(&redis, "").await;
    let all: Vec<_> = (0..30)
        .map(|number| format!("n{number}"))
        .chain(["end".into()])
        .collect();
    let mut viewers = Vec::new();
    for (seen, gap) in [(0, true), (18, true), (19, false), (25, false), (29, false)] {
        let id = ids[seen].to_string();
        viewers.push((Viewer::resume(&fresh, "channel=news", &id).await, seen, gap));
    }
    redis.append("news", "end").await;
    for (mut viewer, seen, gap) in viewers {
        let events = viewer.until("end").await;
        assert_eq!(texts(&events), all[seen.max(19) + 1..], "seen up to {seen}");
        assert_rising(&events, ids[seen]);
        if gap {
            assert_told(&events, "news");
            assert_eq!(
                events[0].event, "gateway.gap",
                "the gap is not before the remaining events"
            );
        } else {
            assert_eq!(gaps(&events), [], "seen up to {seen}");
        }
    }
}

/// A rule that keeps no history, so that a match is visible.
fn nothing_of(pattern: &str) -> String {
    format!("[[channels]]\nmatch = \"{pattern}\"\nhistory = 0\n")
}

/// Breaks when Redis matches a pattern differently than access rules do.
#[tokio::test]
async fn a_star_in_a_rule_matches_any_run_of_characters() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut commands = redis.connect().await;
    let table: [(&str, &[&str], &[&str]); 9] = [
        ("*", &["a", "a.b", "*"], &[]),
        (
            "chat.*",
            &["chat.", "chat.a", "chat.a.b"],
            &["chat", "achat.a"],
        ),
        ("*.log", &[".log", "a.log", "a.log.log"], &["a.log.", "log"]),
        (
            "a*b*c",
            &["abc", "a-b-c", "abbc", "abcbc"],
            &["ac", "ab", "acb", "abcd"],
        ),
        ("a**c", &["ac", "abc"], &["a", "acb"]),
        // The same characters cannot match both ends of the pattern.
        ("aba*aba", &["abaaba", "aba-aba"], &["aba", "ababa"]),
        ("a*ab*b", &["aabb", "a-ab-b"], &["aab", "abb"]),
        ("a.b", &["a.b"], &["axb", "a.b."]),
        ("a?[b]%d", &["a?[b]%d"], &["axb1"]),
    ];
    for (pattern, yes, no) in table {
        let gateway = Gateway::start_with(&redis, "", &nothing_of(pattern)).await;
        for (names, expected) in [(yes, true), (no, false)] {
            for name in names {
                let id = eventually("the rules apply", PATIENCE, async || {
                    match commands.call(&append_call(name, "x")).await.unwrap() {
                        Reply::Error(error) => Err(error),
                        reply => Ok(reply.text()),
                    }
                })
                .await;
                assert_eq!(id == "-", expected, "{pattern} {name}");
            }
        }
        drop(gateway);
    }
}

/// Breaks when the name of a channel, which any client can choose, can keep Redis busy.
#[tokio::test]
async fn no_name_takes_long_to_match() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let rules = nothing_of("*:*:*:*:private");
    let _gateway = Gateway::start_with(&redis, "", &rules).await;
    redis.append("news", "handshake").await;
    let mut commands = redis.connect().await;
    commands.run("CONFIG SET slowlog-log-slower-than 0").await;
    let mut shortest = Duration::MAX;
    // Other load on the machine counts as well. So one fast call of three is enough.
    for colons in 254..=256 {
        commands.run("SLOWLOG RESET").await;
        redis.append(&":".repeat(colons), "x").await;
        let call = longest_call(&mut commands).await;
        assert!(!call.is_zero(), "every call is in the log");
        shortest = shortest.min(call);
    }
    assert!(shortest < Duration::from_millis(100), "{shortest:?}");
}

/// Breaks when a deleted stream is taken for a channel without earlier events, or when a client that has seen all
/// deleted events receives a gap.
#[tokio::test]
async fn a_deleted_stream_causes_a_gap_only_for_clients_that_miss_events() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let ids = redis.append_many("news", 10).await;
    let mut commands = redis.connect().await;
    commands
        .run(&format!("DEL {}", Redis::key("log", "news", 1)))
        .await;
    drop(gateway);
    let fresh = Gateway::start(&redis, "").await;
    let mut missed = Viewer::resume(&fresh, "channel=news", &ids[4].to_string()).await;
    let mut complete = Viewer::resume(&fresh, "channel=news", &ids[9].to_string()).await;
    // The gap arrives at once, not with the next event.
    let gap = missed.event().await;
    assert_told(&[gap], "news");
    redis.append("news", "end").await;
    assert_eq!(
        data(&missed.until("end").await),
        ["end"],
        "there is more than one gap"
    );
    assert_eq!(data(&complete.until("end").await), ["end"]);
}

/// Breaks when an expired channel is taken for a new one, or a new one for expired.
#[tokio::test]
async fn an_expired_channel_causes_a_gap_for_clients_that_were_away_too_long() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", SHORT_LIVED).await;
    let ids = redis.append_many("news", 3).await;
    expiry(&redis, "news").await;
    let fresh = Gateway::start_with(&redis, "", SHORT_LIVED).await;
    for replica in [&gateway, &fresh] {
        let id = ids[0].to_string();
        let mut away = Viewer::resume(replica, "channel=news", &id).await;
        // A first visit and a short reconnect. The channel is empty now and was empty then, so there is no gap.
        let recent = Viewer::open(replica, "channel=news").await;
        let mut recent = recent.reconnect(replica).await;
        let end = format!("end at {}", replica.public);
        redis.append("news", &end).await;
        let events = away.until(&end).await;
        assert_told(&events, "news");
        assert_rising(&events, ids[0]);
        assert_eq!(data(&recent.until(&end).await), [&*end]);
    }
}

/// Breaks when a client that begins without an id gets no gap although the beginning of the channel is gone, or gets
/// one although there was no earlier event.
#[tokio::test]
async fn each_way_to_start_causes_a_gap_only_for_lost_events() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let rules = "[[channels]]\nmatch = \"fleeting\"\nhistory = 0\n";
        let first = Gateway::start_with(&redis, &options, rules).await;
        redis.append_many("news", 30).await;
        redis.append_many("young", 3).await;
        let mut commands = redis.connect().await;
        let key = Redis::key("log", "news", partitions);
        commands.run(&format!("XTRIM {key} MAXLEN = 10")).await;
        let fresh = Gateway::start_with(&redis, &options, rules).await;
        let past =
            humantime::format_rfc3339_millis(SystemTime::now() - Duration::from_secs(864_000));
        let long_ago = format!("since={past}");
        for (query, gap, count) in [
            ("channel=news&since=start", true, 10),
            (&format!("channel=news&{long_ago}"), true, 10),
            ("channel=news&since=0-0", true, 10),
            ("channel=news&since=-11", true, 10),
            ("channel=news&since=-10", false, 10),
            ("channel=news&since=-2", false, 2),
            ("channel=young&since=start", false, 3),
            (&format!("channel=young&{long_ago}"), false, 3),
            ("channel=young&since=0-0", false, 3),
            ("channel=young&since=-4", false, 3),
            ("channel=young&since=-3", false, 3),
            ("channel=never&since=start", false, 0),
            ("channel=never&since=-4", false, 0),
            ("channel=fleeting&since=start", false, 0),
            (
                "channel=young&channel=never&channel=news&since=start",
                true,
                13,
            ),
            (
                "channel=young&channel=never&channel=news&since=-14",
                true,
                13,
            ),
            (
                "channel=young&channel=never&channel=news&since=-5",
                false,
                5,
            ),
        ] {
            // Two partitions may issue the same id, so that one more event is among the newest.
            if partitions > 1 && query.ends_with("since=-5") {
                continue;
            }
            for gateway in [&first, &fresh] {
                let told = page(gateway, query).await;
                let told = told["events"].as_array().unwrap();
                let is_gap = |event: &&Value| event["event"] == "gateway.gap";
                let gaps: Vec<_> = told.iter().filter(is_gap).collect();
                assert_eq!(gaps.len(), usize::from(gap), "{query}: {told:?}");
                assert_eq!(told.len() - gaps.len(), count, "{query}: {told:?}");
                let mut viewer = Viewer::open(gateway, query).await;
                for event in told {
                    assert_eq!(viewer.event().await.data, event["data"], "{query}");
                }
                if partitions == 1 && gap {
                    assert_eq!(told[0]["event"], "gateway.gap", "{query}");
                }
            }
        }
        // The first event of a channel is also the first one of a stream that was already waiting. No gap precedes it.
        let mut waiting = Viewer::open(&fresh, "channel=never&since=start").await;
        redis.append("never", "now").await;
        assert_eq!(waiting.event().await.data, "now");
    }
}

/// Breaks when a client that begins without an id gets no gap although older events are gone. The channel has expired
/// and begun again, or Redis has lost all channels.
#[tokio::test]
async fn a_channel_that_began_again_causes_a_gap_for_new_clients() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", SHORT_LIVED).await;
    let began = |told: Value| {
        let events = told["events"].as_array().unwrap().clone();
        let names = events.iter().map(|event| {
            let data: Result<Value, _> = serde_json::from_str(event["data"].as_str().unwrap());
            match data {
                Ok(gap) => gap["reason"].as_str().unwrap().to_owned(),
                Err(_) => event["data"].as_str().unwrap().to_owned(),
            }
        });
        names.collect::<Vec<_>>().join(" ")
    };
    redis.append("news", "old").await;
    expiry(&redis, "news").await;
    for query in ["channel=news", "channel=news&since=-2"] {
        assert_eq!(began(page(&gateway, query).await), "trimmed", "{query}");
    }
    // Until the event has reached the replica, its pages lack it.
    let with = async |event: &str, query: &str| {
        eventually("a page with the event", PATIENCE, async || {
            let told = began(page(&gateway, query).await);
            match told.ends_with(event) {
                true => Ok(told),
                false => Err(told),
            }
        })
        .await
    };
    // The event does not expire during the wait, even on a busy machine.
    let append = async |event: &str| {
        redis.append("news", event).await;
        let mut commands = redis.connect().await;
        for kind in ["log", "ids"] {
            let key = Redis::key(kind, "news", 1);
            assert_eq!(commands.run(&format!("PERSIST {key}")).await.integer(), 1);
        }
    };
    append("new").await;
    assert_eq!(with("new", "channel=news").await, "trimmed new");
    assert_eq!(with("new", "channel=news&since=-1").await, "new");

    redis.connect().await.run("FLUSHALL").await;
    append("after").await;
    assert_eq!(with("after", "channel=news").await, "forgotten after");
}

/// Breaks when a channel expires by the server's time while its ids are ahead of that time. This happens after a
/// failover to a server whose clock is slow. A cursor in such a channel would seem newer than all expired events.
#[tokio::test]
async fn a_channel_whose_ids_are_ahead_of_the_clock_expires_later() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut commands = redis.connect().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ahead = u64::try_from(now.as_millis()).unwrap() + 10_000;
    let clock = Redis::key("clock", "", 1);
    let clock = clock.trim_end_matches(':');
    commands
        .run(&format!("HSET {clock} id {ahead}-0 horizon 0-0"))
        .await;
    let gateway = Gateway::start_with(&redis, "", SHORT_LIVED).await;
    let ids = redis.append_many("news", 3).await;
    assert_eq!(ids[2].ms, ahead);
    expiry(&redis, "news").await;
    let mut away = Viewer::resume(&gateway, "channel=news", &ids[0].to_string()).await;
    redis.append("news", "end").await;
    assert_told(&away.until("end").await, "news");
}

/// Breaks when a longer `expire` is assumed for events that were appended under a shorter one. A client that missed
/// these events would get no gap.
#[tokio::test]
async fn a_longer_expiry_does_not_hide_events_that_a_shorter_one_expired() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let short = Gateway::start_with(&redis, "", SHORT_LIVED).await;
    let old = redis.append_many("old", 3).await;
    expiry(&redis, "old").await;
    let young = redis.append_many("young", 3).await;
    drop(short);
    let long = Gateway::start_with(&redis, "", KEEP_ALL).await;
    expiry(&redis, "young").await;
    for (channel, ids) in [("old", old), ("young", young)] {
        let query = format!("channel={channel}");
        let mut away = Viewer::resume(&long, &query, &ids[0].to_string()).await;
        let recent = Viewer::open(&long, &query).await;
        redis.append(channel, "end").await;
        assert_told(&away.until("end").await, channel);
        let mut recent = recent.reconnect(&long).await;
        assert_eq!(data(&recent.until("end").await), ["end"]);
    }
}

/// Waits until no key of a channel is left.
async fn expiry(redis: &Redis, channel: &str) {
    let mut commands = redis.connect().await;
    let keys = ["log", "ids"].map(|kind| Redis::key(kind, channel, 1));
    let exist = format!("EXISTS {}", keys.join(" "));
    eventually("the channel expires", PATIENCE, async || {
        match commands.run(&exist).await.integer() {
            0 => Ok(()),
            left => Err(format!("{left} of its keys exist")),
        }
    })
    .await;
}

/// Breaks when a client gets a gap because no entry precedes the first event, although the client was connected before
/// it.
#[tokio::test]
async fn the_first_event_of_a_channel_causes_no_gap() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let a = Gateway::start(&redis, &options).await;
        let b = Gateway::start(&redis, &options).await;
        recording([&a, &b], partitions).await;
        let query = "channel=new&channel=other";
        let mut live = Viewer::open(&a, query).await;
        let away = Viewer::open(&a, query).await;
        let id = away.open.id.clone();
        drop(away);
        // The other channel's events move the clock past the position.
        redis.append("other", "o1").await;
        let quiet = Viewer::resume(&b, "channel=new&channel=other", &id).await;
        redis.connect().await.publish("new", "first").await;
        let first = live.until("first").await;
        assert_eq!(data(&first), ["o1", "first"], "{partitions} partitions");
        let mut quiet = quiet.reconnect(&a).await;
        quiet.until("first").await;
        for replica in [&a, &b] {
            let mut back = Viewer::resume(replica, query, &id).await;
            let events = back.until("first").await;
            let mut seen = data(&events);
            seen.sort_unstable();
            assert_eq!(seen, ["first", "o1"], "{partitions} partitions");
            let mut later = Viewer::resume(replica, query, &first[0].id).await;
            assert_eq!(data(&later.until("first").await), ["first"]);
        }
    }
}

/// Breaks when retention by count is not applied, or removes more than it should.
#[tokio::test]
async fn history_is_kept_as_configured_and_ephemeral_channels_keep_none() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = r#"
        [[channels]]
        match = "cursor.*"
        history = 0

        [[channels]]
        match = "*"
        history = 200
        max_age = "1h"
        expire = "24h"
    "#;
    let gateway = Gateway::start_with(&redis, "", config).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    redis.append_many("news", 1000).await;
    viewer.until("n999").await;
    let kept = redis.log("news", 1).await.len();
    // Redis trims streams by whole nodes, which have a hundred entries by default.
    assert!((200..=400).contains(&kept), "{kept} entries are kept");

    let mut cursor = Viewer::open(&gateway, "channel=cursor.7").await;
    let before = cursor.client.last_event_id().to_owned();
    redis.connect().await.publish("cursor.7", "x=5").await;
    let event = cursor.event().await;
    assert_eq!(
        (&*event.data, event.id),
        ("x=5", before),
        "ephemeral events have no id"
    );
    assert_eq!(redis.log("cursor.7", 1).await, []);
}

/// Breaks when a very long retention is computed as a time before 1970.
#[tokio::test]
async fn history_may_be_kept_without_end() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = r#"
        [[channels]]
        match = "*"
        max_age = "100years"
        expire = "100years"
    "#;
    let gateway = Gateway::start_with(&redis, "", config).await;
    recording([&gateway], 1).await;
    let viewer = Viewer::open(&gateway, "channel=news").await;
    let mut commands = redis.connect().await;
    for text in ["one", "two"] {
        commands.publish("news", text).await;
    }
    let mut viewer = viewer.reconnect(&gateway).await;
    assert_eq!(data(&viewer.until("two").await), ["one", "two"]);
}

/// A page of history, as a client that polls requests it.
async fn page(gateway: &Gateway, query: &str) -> Value {
    let target = format!("/events?{query}");
    let answer = eventually("a page", PATIENCE, async || {
        let answer = gateway.get(&target, "Accept: application/json\r\n").await;
        // On a busy machine a channel may not be live in time. The answer is then 503.
        match answer.head.status {
            503 => Err(answer.body),
            _ => Ok(answer),
        }
    })
    .await;
    assert_eq!(answer.head.status, 200, "{}", answer.body);
    let kind = answer.head.field("content-type");
    assert_eq!(kind, Some("application/json"));
    serde_json::from_str(&answer.body).expect("JSON")
}

/// Polls page by page from `id` on. Returns all events and the last page.
async fn poll(gateway: &Gateway, query: &str, id: &str) -> (Vec<Value>, Value) {
    let (mut events, mut id) = (Vec::new(), id.to_owned());
    for _ in 0..2000 {
        let page = page(gateway, &format!("{query}&last_event_id={id}")).await;
        let some = page["events"].as_array().expect("events");
        assert!(
            !some.is_empty() || page["more"] == false,
            "a page of nothing: {page}"
        );
        events.extend(some.iter().cloned());
        id = page["last_event_id"].as_str().expect("an id").to_owned();
        if page["more"] == false {
            return (events, page);
        }
    }
    panic!("polling {query} does not come to an end");
}

/// The data of a gap without its beginning. A page that starts within a gap reports the rest of it.
fn without_beginning(data: &str) -> String {
    let Ok(Value::Object(mut gap)) = serde_json::from_str(data) else {
        return data.to_owned();
    };
    gap.remove("after");
    Value::Object(gap).to_string()
}

/// Breaks when polling returns other events than a stream, for any size of pages.
#[tokio::test]
async fn pages_hold_the_same_events_as_a_stream() {
    let _machine = among_others().await;
    for partitions in [1, 8] {
        let redis = Redis::start().await;
        let options = format!("--partitions {partitions}");
        let rules = "[[channels]]\nmatch = \"short.*\"\nhistory = 5\nmax_age = \"0s\"\n";
        let first = Gateway::start_with(&redis, &options, rules).await;
        let query = "channel=a&channel=b&channel=short.a&channel=short.b";
        let start = Viewer::open(&first, query).await.open.id;
        for number in 0..200 {
            for channel in ["a", "b", "short.a", "short.b"] {
                redis.append(channel, &format!("{channel} {number}")).await;
            }
        }
        let gateway = Gateway::start_with(&redis, &options, rules).await;
        let mut stream = Viewer::resume(&gateway, query, &start).await;
        let mut streamed = Vec::new();
        while streamed
            .iter()
            .filter(|(_, data): &&(String, String)| data.ends_with(" 199"))
            .count()
            < 4
        {
            let event = stream.event().await;
            streamed.push((event.event, without_beginning(&event.data)));
        }
        assert!(streamed.iter().any(|(event, _)| event == "gateway.gap"));
        streamed.sort();
        for limit in [1, 7, 1000] {
            let query = format!("{query}&limit={limit}");
            let (events, last) = poll(&gateway, &query, &start).await;
            let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
            let mut polled: Vec<_> = events
                .iter()
                .map(|event| {
                    (
                        text(event, "event"),
                        without_beginning(&text(event, "data")),
                    )
                })
                .collect();
            if partitions == 1 {
                let ids = events.iter().map(|event| text(event, "id").parse::<Id>());
                assert!(ids.map(Result::unwrap).is_sorted());
            }
            polled.sort();
            polled.dedup_by(|one, other| one == other && one.0 == "gateway.gap");
            assert_eq!(polled, streamed, "pages of {limit}");
            // A stream continues at the end of the pages.
            let id = text(&last, "last_event_id");
            let mut on = Viewer::resume(&gateway, "channel=a", &id).await;
            redis.append("a", "next").await;
            assert_eq!(on.event().await.data, "next");
            let (events, _) = poll(&gateway, &query, &id).await;
            assert_eq!(events.len(), 1, "{events:?}");
            streamed.push(("message".to_owned(), "next".to_owned()));
            streamed.sort();
        }
    }
}

/// Breaks when a page does not begin at the requested place, is too large, or does not report that a channel has ended.
/// Breaks also when a page is invented while Redis is down.
#[tokio::test]
async fn a_page_begins_and_ends_as_requested() {
    let _machine = among_others().await;
    let mut redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let empty = page(&gateway, "channel=nothing").await;
    assert_eq!(
        (&empty["events"], &empty["more"]),
        (&json!([]), &json!(false))
    );
    for number in 0..150 {
        redis.append("a", &number.to_string()).await;
    }
    let first = page(&gateway, "channel=a").await;
    assert_eq!(first["events"].as_array().unwrap().len(), 100);
    assert_eq!(
        (&first["events"][0]["data"], &first["more"]),
        (&json!("0"), &json!(true))
    );
    assert_eq!(first["last_event_id"], first["events"][99]["id"]);
    let newest = page(&gateway, "channel=a&since=-3").await;
    let data: Vec<_> = newest["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["data"])
        .collect();
    assert_eq!(data, ["147", "148", "149"]);
    // Together these events are larger than a page may be.
    let large = "x".repeat(1_000_000);
    for _ in 0..10 {
        redis.append("large", &large).await;
    }
    let half = page(&gateway, "channel=large&limit=1000").await;
    let count = half["events"].as_array().unwrap().len();
    assert!((4..=6).contains(&count) && half["more"] == true, "{count}");
    let (events, _) = poll(&gateway, "channel=large&limit=1000", "").await;
    assert_eq!(events.len(), 10);

    redis.append_end("done", r#"{"data":"x","end":true}"#).await;
    let (events, last) = poll(&gateway, "channel=done", "").await;
    assert_eq!((events.len(), &last["ended"]), (1, &json!(true)));
    assert_eq!(page(&gateway, "channel=a").await["ended"], false);

    let malformed = page(&gateway, "channel=a&last_event_id=rubbish").await;
    assert_eq!(malformed["events"][0]["event"], "gateway.gap");

    redis.stop().await;
    let json = "Accept: application/json\r\n";
    let answer = gateway.get("/events?channel=unknown", json).await;
    assert_eq!(refused(&answer, 503), "history_unavailable");
    assert!(answer.head.field("retry-after").is_some());
}

/// How long the longest call of a function or script blocked Redis since the last time this was called.
async fn longest_call(commands: &mut Commands) -> Duration {
    let log = commands.run("SLOWLOG GET -1").await;
    commands.run("SLOWLOG RESET").await;
    let calls = log.array().iter().map(Reply::array);
    let calls = calls.filter(|call| call[3].array()[0].text().starts_with("FCALL"));
    let longest = calls.map(|call| call[2].integer()).max();
    let microseconds = u64::try_from(longest.unwrap_or_default());
    Duration::from_micros(microseconds.expect("no negative time"))
}

/// Breaks when Redis reads the events of a channel to find where the newest N begin. Such a request costs its client
/// nothing, and blocks Redis.
#[tokio::test]
async fn the_newest_events_are_found_without_reading_them() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
    let filler = "x".repeat(20_000);
    for number in 0..100 {
        redis.append("big", &format!("{number} {filler}")).await;
    }
    // While the channel has a reader, it is not attached again.
    let _listening = Viewer::open(&gateway, "channel=big").await;
    let read = async || {
        let mut commands = redis.connect().await;
        let stats = commands.run("INFO commandstats").await.text();
        let calls = stats.lines().filter_map(|line| {
            let (name, rest) = line.split_once(":calls=")?;
            let count = rest.split(',').next()?.parse::<u64>().ok()?;
            (name == "cmdstat_xrevrange").then_some(count)
        });
        calls.sum::<u64>()
    };
    let before = read().await;
    for (count, first) in [(100, 0), (60, 40), (1, 99)] {
        let told = page(&gateway, &format!("channel=big&since=-{count}&limit=1")).await;
        let data = told["events"][0]["data"].as_str().unwrap();
        assert_eq!(data.split_once(' ').unwrap().0, first.to_string());
    }
    assert_eq!(read().await, before, "events were read backwards");
}

/// Breaks when one call reads as much as a client requests. Redis answers no other client during a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_do_not_block_redis_for_others() {
    /// A call that reads everything takes several times as long.
    const LONGEST: Duration = Duration::from_millis(100);
    const MANY: usize = 150;
    const CHANNELS: usize = 10;
    const EACH: usize = 18;
    let _machine = alone().await;
    let redis = Redis::start().await;
    let filling = Gateway::start_with(&redis, "", KEEP_ALL).await;
    redis.append("other", "handshake").await;
    let mut commands = redis.connect().await;
    let names: Vec<_> = (0..CHANNELS).map(|number| format!("c{number}")).collect();
    let all = names.iter().flat_map(|name| [name.as_str()].repeat(EACH));
    let filler = "x".repeat(1_000_000);
    for (number, channel) in ["big"].repeat(MANY).into_iter().chain(all).enumerate() {
        redis.append(channel, &format!("{number} {filler}")).await;
    }
    drop(filling);
    commands
        .run("CONFIG SET slowlog-log-slower-than 1000")
        .await;
    commands.run("CONFIG SET slowlog-max-len 10000").await;
    let first = async |viewer: &mut Viewer| {
        let event = viewer.event().await;
        let (number, _) = event.data.split_once(' ').expect("a number");
        number.parse::<usize>().expect("a number")
    };
    let mut longest = [Duration::MAX; 3];
    // Other load on the machine counts as well. So one fast call of three is enough.
    for _ in 0..3 {
        let gateway = Gateway::start_with(&redis, "", KEEP_ALL).await;
        commands.run("SLOWLOG RESET").await;
        // The newest events of ten channels at once.
        let query = format!("channel={}", names.join("&channel="));
        let mut viewer = Viewer::open(&gateway, &query).await;
        longest[0] = longest[0].min(longest_call(&mut commands).await);
        redis.append("c7", "live").await;
        assert_eq!(viewer.event().await.data, "live");
        // The newest events of one channel: all of them, and some.
        for (count, number) in [(10_000, 0), (MANY - 50, 50)] {
            let query = format!("channel=big&since=-{count}");
            let mut viewer = Viewer::open(&gateway, &query).await;
            assert_eq!(first(&mut viewer).await, number);
        }
        longest[1] = longest[1].min(longest_call(&mut commands).await);
        // The newest events of several channels together.
        let query = format!("{query}&channel=big&since=-{}", CHANNELS * EACH);
        let mut viewer = Viewer::open(&gateway, &query).await;
        let oldest = first(&mut viewer).await;
        assert!(oldest > MANY, "{oldest}");
        longest[2] = longest[2].min(longest_call(&mut commands).await);
        if longest.iter().all(|call| *call < LONGEST) {
            return;
        }
    }
    panic!("calls took {longest:?}");
}
