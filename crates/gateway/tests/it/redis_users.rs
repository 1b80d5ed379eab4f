//! The users in the documentation have all the rights that they need.

use serde_json::Value;

use crate::support::{Commands, Gateway, Redis, Reply, Viewer, among_others, data, recording};

const DOCUMENT: &str = include_str!("../../../../docs/redis.md");

/// Creates the users of the documentation.
pub(crate) async fn make_users(commands: &mut Commands) {
    let lines = DOCUMENT
        .lines()
        .filter(|line| line.starts_with("ACL SETUSER"));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        assert_eq!(commands.run(line).await.text(), "OK");
    }
}

/// The commands that users were denied.
pub(crate) async fn denied(commands: &mut Commands) -> Vec<String> {
    let what = |entry: &Reply| {
        let fields = entry.array();
        let object = fields
            .iter()
            .position(|field| matches!(field, Reply::Bytes(name) if name == b"object"));
        fields[object.expect("what was denied") + 1].text()
    };
    let denied = commands.run("ACL LOG").await;
    let denied = denied.array().iter().map(what);
    // The client library sends its name with CLIENT SETINFO. The gateway does not need that right.
    denied.filter(|what| what != "client|setinfo").collect()
}

/// Breaks when a part of the gateway uses a command, a key or a channel that the documented user may not.
#[tokio::test]
async fn the_documented_users_are_enough() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let mut commands = redis.connect().await;
    make_users(&mut commands).await;
    let options = format!(
        "--redis-url redis://gateway:SECRET@{} --publish-token t",
        redis.address()
    );
    let a = Gateway::start(&redis, &options).await;
    let b = Gateway::start(&redis, &options).await;
    recording([&a, &b], 1).await;
    redis.recorders(2).await;
    let mut backend = redis.connect().await;
    assert_eq!(backend.run("AUTH backend SECRET").await.text(), "OK");
    let mut viewer = Viewer::open(&b, "channel=news").await;
    let start = viewer.open.id.clone();
    assert!(backend.publish("news", "raw").await > 0);
    viewer.until("raw").await;
    let bearer = "Authorization: Bearer t\r\nIdempotency-Key: k\r\n";
    let posted = a.post("/events?channel=news", bearer, "posted").await;
    assert_eq!(posted.head.status, 201);
    viewer.until("posted").await;
    let mut appender = redis.connect().await;
    assert_eq!(appender.run("AUTH appender SECRET").await.text(), "OK");
    for key in ["", "k"] {
        let call = ["FCALL", "sse_publish", "0", "news", "by function", key];
        let id = appender.call(&call.map(str::as_bytes)).await.unwrap();
        assert!(id.text().contains('-'), "{id:?}");
        viewer.until("by function").await;
    }
    // From history, with more events than a tail holds.
    let mut resumed = Viewer::resume(&a, "channel=news", &start).await;
    let all = ["raw", "posted", "by function"];
    assert_eq!(data(&resumed.until("by function").await), all);
    let json = "Accept: application/json\r\n";
    let page = a.get("/events?channel=news&since=-2", json).await;
    assert_eq!(page.head.status, 200, "{}", page.body);
    let wanted = r#"{"channels":["news"],"subject":"anna"}"#;
    let ticket = a.post("/tickets", bearer, wanted).await;
    assert_eq!(ticket.head.status, 201, "{}", ticket.body);
    let ticket: Value = serde_json::from_str(&ticket.body).expect("JSON");
    let query = format!("channel=news&ticket={}", ticket["ticket"].as_str().unwrap());
    Viewer::open(&b, &query).await;
    // Another replica takes over, and the first one stops in an orderly way.
    let mut gateways = [a, b];
    for gateway in &mut gateways {
        gateway.process().signal("TERM");
        gateway.process().exit().await;
    }
    let c = Gateway::start(&redis, &options).await;
    recording([&c], 1).await;
    let denied = denied(&mut commands).await;
    assert_eq!(denied, [""; 0]);
    let refused = [
        "XRANGE ssegw:{8209}:log:news - +",
        "SET ssegw:{8209}:ticket:x y",
        "SET ssegw:{8209}:lease x",
        "PUBLISH ssegw:revoke anna",
        "FCALL ssegw_newest 1 ssegw:{8209}:clock news 5",
        "FCALL ssegw_subscribe 0 a a:1 x",
        "FCALL ssegw_process 1 ssegw:{8209}:clock x",
        "FCALL ssegw_retire 0 9 ssegw:{8209}:",
        "FCALL ssegw_acquire 1 ssegw:{8209}:clock a a:1-1 1000 1",
    ];
    for command in refused {
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        let answer = appender.call(&words).await.unwrap();
        let text = format!("{answer:?}");
        let is_refused = ["NOPERM", "ACL failure", "can't access", "can't run"];
        let is_refused = is_refused.iter().any(|words| text.contains(words));
        assert!(is_refused, "{command}: {text}");
    }
    for words in [["GET", "ssegw:{8209}:clock"], ["PUBLISH", "ssegw:revoke"]] {
        let mut call: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        call.resize(if words[0] == "PUBLISH" { 3 } else { 2 }, b"");
        let answer = backend.call(&call).await.unwrap();
        assert!(format!("{answer:?}").contains("NOPERM"), "{answer:?}");
    }
}
