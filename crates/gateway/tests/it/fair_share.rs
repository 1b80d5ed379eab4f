//! One client takes all that it can get, and the others still get their share.

use serde_json::{Value, json};
use testkit::{Answer, Client, Event};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Backend, Gateway, PATIENCE, Redis, Viewer, among_others, assert_told, becomes, data,
    eventually, in_time, messages, recording, refused, shares, status,
    tokens::{bearer, claims, in_seconds, token, with_secret},
};

/// The names of `count` channels, with `bytes` bytes each.
fn names(count: usize, bytes: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{number:0bytes$}"))
        .collect()
}

/// The tickets that Redis keeps.
async fn tickets(redis: &Redis) -> usize {
    let keys = redis.connect().await.run("KEYS ssegw:*ticket:*").await;
    keys.array().len()
}

/// Breaks when a client that may only read can fill Redis with tickets, or when other clients are then refused tickets.
#[tokio::test]
async fn tickets_of_a_subject_are_limited_and_other_subjects_get_theirs() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = format!(
        "{}[[publish]]\ntoken = \"backend\"\nchannels = [\"*\"]\n",
        with_secret("")
    );
    let options = "--max-tickets-per-subject 5 --ticket-ttl 10m";
    let gateway = Gateway::start_with(&redis, options, &config).await;
    let issue = async |headers: &str, body: &str| gateway.post("/tickets", headers, body).await;
    let anna = bearer(&token(&claims(&["*"])));
    for _ in 0..5 {
        assert_eq!(issue(&anna, "").await.head.status, 201);
    }
    // Another token with the same subject counts for the same subject.
    let again = bearer(&token(&claims(&["b"])));
    for headers in [&anna, &again] {
        let answer = issue(headers, "").await;
        assert_eq!(refused(&answer, 429), "max_tickets");
        let wait = answer
            .head
            .field("retry-after")
            .expect("a time to reconnect");
        assert!(
            wait.parse::<u64>()
                .is_ok_and(|wait| (60..=120).contains(&wait))
        );
    }
    assert_eq!(tickets(&redis).await, 5);

    let of = |subject: &str| {
        let claims = json!({ "sub": subject, "exp": in_seconds(600), "subscribe": ["*"] });
        bearer(&token(&claims))
    };
    // A large ticket counts as several. A ticket that is too large is refused and does not count.
    let large = json!({ "channels": names(20, 200) }).to_string();
    assert_eq!(issue(&of("ben"), &large).await.head.status, 201);
    assert_eq!(refused(&issue(&of("ben"), "").await, 429), "max_tickets");
    let huge = json!({ "channels": names(100, 200) }).to_string();
    let answer = issue(&of("clara"), &huge).await;
    assert_eq!(refused(&answer, 400), "bad_ticket_request");
    assert_eq!(issue(&of("clara"), "").await.head.status, 201);
    // Tokens without a subject do not share one limit.
    for channel in ["a", "b"] {
        let nobody = json!({ "exp": in_seconds(600), "subscribe": [channel] });
        let nobody = bearer(&token(&nobody));
        for _ in 0..5 {
            assert_eq!(issue(&nobody, "").await.head.status, 201);
        }
        assert_eq!(refused(&issue(&nobody, "").await, 429), "max_tickets");
    }
    assert_eq!(tickets(&redis).await, 17);
    // The limit of a subject does not apply to a backend, which issues tickets for all of its users.
    for _ in 0..10 {
        let wanted = r#"{"channels":["a"],"subject":"anna"}"#;
        assert_eq!(issue(&bearer("backend"), wanted).await.head.status, 201);
    }
    Viewer::open_with(&gateway, "channel=a", &anna).await;
}

/// Headers that browsers add to the request of a page. The page cannot change them.
fn page(site: &str, mode: &str, origin: &str) -> String {
    let fields = [
        ("Sec-Fetch-Site", site),
        ("Sec-Fetch-Mode", mode),
        ("Origin", origin),
    ];
    let fields = fields.iter().filter(|(_, value)| !value.is_empty());
    fields
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect()
}

/// Requests of pages that use a cookie. The flag is true if the request is let in where https://app.example.com is
/// listed.
const PAGES: [(&str, &str, &str, bool); 16] = [
    ("cross-site", "cors", "https://evil.example", false),
    ("cross-site", "no-cors", "", false),
    ("cross-site", "navigate", "", false),
    ("cross-site", "cors", "null", false),
    ("same-site", "cors", "https://other.example.com", false),
    ("same-site", "no-cors", "", false),
    ("cross-site", "cors", "https://app.example.com", true),
    ("same-site", "cors", "https://app.example.com", true),
    ("same-origin", "cors", "", true),
    ("same-origin", "no-cors", "", true),
    ("none", "navigate", "", true),
    // Over plain HTTP, and from older browsers.
    ("", "", "https://evil.example", false),
    ("", "", "http://127.0.0.1", false),
    ("", "", "null", false),
    ("", "", "https://app.example.com", true),
    ("", "", "", true),
];

/// Breaks when another site's page can open streams with its visitor's cookie, or a page that is listed cannot.
#[tokio::test]
async fn a_cookie_is_no_credential_for_another_sites_page() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = format!(
        "public_channels = [\"public\"]\n{}",
        with_secret("cookie = \"session\"")
    );
    let options = "--max-streams-per-subject 1 --cors-origins https://app.example.com";
    let gateway = Gateway::start_with(&redis, options, &config).await;
    let anna = token(&claims(&["*"]));
    let cookie = format!("Cookie: session={anna}\r\n");
    let denied = async |query: &str, headers: &str| {
        let answer = gateway.get(&format!("/events?{query}"), headers).await;
        assert_eq!(refused(&answer, 403), "cross_site", "{headers}");
    };
    for (site, mode, origin, is_let_in) in PAGES {
        let headers = page(site, mode, origin) + &cookie;
        if is_let_in {
            // The refused requests do not count as streams of the subject.
            Viewer::open_with(&gateway, "channel=a", &headers).await;
            becomes(&gateway, "sse_gateway_streams", "", 0.0).await;
        } else {
            denied("channel=a", &headers).await;
        }
    }
    // A page of the gateway's own origin.
    let headers = page("", "", &format!("http://{}", gateway.public)) + &cookie;
    Viewer::open_with(&gateway, "channel=a", &headers).await;
    becomes(&gateway, "sse_gateway_streams", "", 0.0).await;
    // A credential that the page itself has is accepted.
    for (query, headers) in [
        ("channel=a", bearer(&anna)),
        (&*format!("channel=a&access_token={anna}"), String::new()),
    ] {
        let headers = page("cross-site", "cors", "https://evil.example") + &headers;
        Viewer::open_with(&gateway, query, &headers).await;
        becomes(&gateway, "sse_gateway_streams", "", 0.0).await;
    }
    // Pages of every site may subscribe to public channels, except with requests whose answer they cannot read.
    let headers = page("cross-site", "cors", "https://other.example");
    Viewer::open_with(&gateway, "channel=public", &headers).await;
    denied("channel=public", &page("cross-site", "no-cors", "")).await;
}

/// Breaks when another site's page can make the gateway ask the backend with its visitor's cookie.
#[tokio::test]
async fn the_backend_is_not_asked_for_another_sites_page() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let backend = Backend::start(|_| status(200)).await;
    let config = format!("[forward_auth]\nurl = \"http://{}\"\n", backend.address);
    let options = "--cors-origins https://app.example.com";
    let gateway = Gateway::start_with(&redis, options, &config).await;
    for credential in ["Cookie: user=anna\r\n", "Authorization: Basic YW5uYTp4\r\n"] {
        for (site, mode, origin, is_let_in) in PAGES {
            let headers = page(site, mode, origin) + credential;
            if is_let_in {
                Viewer::open_with(&gateway, "channel=a", &headers).await;
            } else {
                let answer = gateway.get("/events?channel=a", &headers).await;
                assert_eq!(refused(&answer, 403), "cross_site", "{headers}");
            }
        }
    }
    // Without a credential, the backend decides.
    let headers = page("cross-site", "cors", "https://other.example");
    Viewer::open_with(&gateway, "channel=a", &headers).await;
}

/// Breaks when a publisher can use up the places of a subject by issuing tickets in its name.
#[tokio::test]
async fn tickets_of_a_publisher_do_not_use_the_places_of_the_subject() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let publishers = ["one", "two"].map(|token| format!("[[publish]]\ntoken = \"{token}\"\n"));
    let config = with_secret("") + &publishers.concat();
    let gateway = Gateway::start_with(&redis, "--max-streams-per-subject 2", &config).await;
    let ticket = async |publisher: &str| {
        let wanted = r#"{"channels":["a"],"subject":"anna"}"#;
        let answer = gateway.post("/tickets", &bearer(publisher), wanted).await;
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        let ticket = answer["ticket"].as_str().expect("a ticket");
        format!("channel=a&ticket={ticket}")
    };
    let mut viewers = Vec::new();
    for publisher in ["one", "two"] {
        for _ in 0..2 {
            viewers.push(Viewer::open(&gateway, &ticket(publisher).await).await);
        }
        let beyond = gateway
            .get(
                &format!("/events?{}", ticket(publisher).await),
                "Accept: application/json\r\n",
            )
            .await;
        assert_eq!(refused(&beyond, 503), "max_streams_per_subject");
    }
    let anna = bearer(&token(&claims(&["a"])));
    for _ in 0..2 {
        viewers.push(Viewer::open_with(&gateway, "channel=a", &anna).await);
    }
    // All of these streams belong to the subject, so a revocation ends them all.
    redis.connect().await.run("PUBLISH ssegw:revoke anna").await;
    for mut viewer in viewers {
        viewer.until_end().await;
    }
}

/// Breaks when a client can make the gateway and Redis keep any number of channels without readers.
#[tokio::test]
async fn channels_of_clients_that_have_left_are_kept_in_bounds() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    // The gateway looks for channels without readers only once in this time.
    let gateway = Gateway::start(&redis, "--heartbeat 10m").await;
    let subscribed = async || {
        let count = redis.info("pubsubshard_channels").await;
        count
            .and_then(|count| count.parse::<usize>().ok())
            .expect("a number")
    };
    let before = subscribed().await;
    for request in 0..30 {
        let names = (0..100).map(|number| format!("channel={request}.{number}"));
        let query = names.collect::<Vec<_>>().join("&");
        // The channels are subscribed once the stream is open.
        Viewer::open(&gateway, &query).await;
    }
    eventually("2,000 channels are left", PATIENCE, async || {
        let kept = gateway.metrics().await.sum("sse_gateway_channels");
        let subscribed = subscribed().await - before;
        match kept == 2000.0 && subscribed == 2000 {
            true => Ok(()),
            false => Err(format!("{kept} here, {subscribed} in Redis")),
        }
    })
    .await;
}

/// Breaks when requests from one address can name any number of channels, or when another address is refused for it.
#[tokio::test]
async fn channels_named_by_an_address_are_limited() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--max-channel-rate-per-address 1 --trusted-proxies 127.0.0.1";
    let gateway = Gateway::start(&redis, options).await;
    let names = (0..100).map(|number| format!("channel={number}"));
    let many = names.collect::<Vec<_>>().join("&");
    let from = |last: u8| format!("X-Forwarded-For: 192.0.2.{last}\r\n");
    // A request for more than one second's worth is accepted and counts. Here it uses up a hundred seconds.
    Viewer::open_with(&gateway, &many, &from(1)).await;
    let json = from(1) + "Accept: application/json\r\n";
    let answer = gateway.get("/events?channel=a", &json).await;
    assert_eq!(refused(&answer, 503), "max_channel_rate_per_address");
    let answer = gateway.get("/events?channel=a", &from(1)).await;
    assert!(
        answer.head.status == 200 && answer.body.starts_with("retry:"),
        "{}",
        answer.body
    );
    Viewer::open_with(&gateway, "channel=a", &from(2)).await;
}

/// Breaks when a flood on one channel makes another channel lose a message, or when dropped messages cause no gap.
#[tokio::test]
async fn a_flood_is_dropped_on_its_own_channel_with_a_gap() {
    let _machine = shares(2).await;
    let redis = Redis::start_with(&["--client-output-buffer-limit", "pubsub 0 0 0"]).await;
    let gateway = Gateway::start(&redis, "--max-pending 4MiB").await;
    recording([&gateway], 1).await;
    let mut flooded = Viewer::open(&gateway, "channel=flood").await;
    let mut other = Viewer::open(&gateway, "channel=other").await;
    let mut commands = redis.connect().await;
    // No recorder has the lease, so all published messages wait.
    commands.run("SET ssegw:{8209}:lease another:1-1").await;
    becomes(&gateway, "sse_gateway_recorder_active", "", 0.0).await;
    for number in 0..40 {
        let flood = format!("{number} {}", "x".repeat(200_000));
        assert_eq!(commands.publish("flood", &flood).await, 1);
        assert_eq!(commands.publish("other", &number.to_string()).await, 1);
    }
    becomes(&gateway, "sse_gateway_recorder_pending", "", 80.0).await;
    commands.run("DEL ssegw:{8209}:lease").await;

    let events = other.until("39").await;
    let all: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(data(&events), all);
    // The newest messages of the flood are kept: each time messages are dropped, at most an eighth of the limit is
    // freed.
    let newest = async |viewer: &mut Viewer| {
        let mut events = Vec::new();
        while !events
            .last()
            .is_some_and(|event: &Event| event.data.starts_with("39 "))
        {
            let event = viewer.event().await;
            if event.event != "gateway.position" {
                events.push(event);
            }
        }
        assert_told(&events, "flood");
        let kept = messages(&events);
        let first = 40 - kept.len();
        assert!((15..=21).contains(&kept.len()), "{}", kept.len());
        for (event, number) in kept.iter().zip(first..) {
            assert!(event.data.starts_with(&format!("{number} ")));
        }
        kept.len()
    };
    let kept = newest(&mut flooded).await;
    let dropped = gateway.metrics().await.sum("sse_gateway_raw_dropped_total");
    assert_eq!(dropped, (40 - kept) as f64);
    // A client that resumes receives the same gap.
    let id = flooded.open.id.clone();
    let mut again = Viewer::resume(&gateway, "channel=flood", &id).await;
    assert_eq!(newest(&mut again).await, kept);
}

/// Breaks when a client whose channel has lost all new messages gets the gap only with the channel's next event.
#[tokio::test]
async fn dropped_messages_cause_a_gap_though_no_event_follows() {
    let _machine = shares(2).await;
    let redis = Redis::start_with(&["--client-output-buffer-limit", "pubsub 0 0 0"]).await;
    let gateway = Gateway::start(&redis, "--max-pending 4MiB").await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=large").await;
    let mut commands = redis.connect().await;
    commands.run("SET ssegw:{8209}:lease another:1-1").await;
    becomes(&gateway, "sse_gateway_recorder_active", "", 0.0).await;
    let large = "x".repeat(1 << 20);
    commands.publish("large", &large).await;
    for channel in ["a", "b", "c", "d"] {
        commands.publish(channel, &large[..900_000]).await;
    }
    becomes(&gateway, "sse_gateway_recorder_pending", "", 5.0).await;
    commands.run("DEL ssegw:{8209}:lease").await;
    let mut event = viewer.event().await;
    while event.event == "gateway.position" {
        event = viewer.event().await;
    }
    assert_told(&[event], "large");
    for channel in ["a", "b", "c", "d"] {
        eventually("the others are recorded", PATIENCE, async || {
            match redis.log(channel, 1).await.len() {
                1 => Ok(()),
                count => Err(format!("{count} on {channel}")),
            }
        })
        .await;
    }
}

/// Breaks when all tokens without a subject count as one publisher. One could then use up the rate of others. Its
/// idempotency key could also make the gateway drop another's event.
#[tokio::test]
async fn tokens_without_a_subject_are_separate_publishers() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--max-publish-rate 2 --ticket-ttl 10m";
    let gateway = Gateway::start_with(&redis, options, &with_secret("")).await;
    let of = |claims: Value| bearer(&token(&claims));
    let exp = in_seconds(600);
    let reader = of(json!({ "exp": exp, "subscribe": ["*"] }));
    let [one, two] = ["1", "2"].map(|id| of(json!({ "exp": exp, "publish": ["*"], "jti": id })));
    let post = async |headers: &str| gateway.post("/events?channel=a", headers, "x").await;
    for number in 0..110 {
        let answer = gateway.post("/tickets", &reader, "").await;
        match number {
            0..100 => assert_eq!(answer.head.status, 201, "{}", answer.body),
            _ => assert_eq!(refused(&answer, 429), "max_tickets"),
        }
    }
    assert_eq!(post(&one).await.head.status, 201);
    let mut stored = 1;
    while post(&one).await.head.status == 201 {
        stored += 1;
        assert!(stored < 50, "there is no limit");
    }
    assert_eq!(post(&two).await.head.status, 201);
    // Without a subject, the gateway cannot recognize a renewed token as the same publisher.
    let key = "Idempotency-Key: k\r\n";
    let answer = post(&format!("{reader}{key}")).await;
    assert_eq!(refused(&answer, 403), "forbidden_channel");
    let keyed = of(json!({ "exp": exp, "publish": ["*"], "jti": "3" })) + key;
    assert_eq!(refused(&post(&keyed).await, 400), "bad_idempotency_key");
    let batch = format!("{keyed}Content-Type: application/x-ndjson\r\n");
    let line = r#"{"channel":"a","data":"x"}"#;
    let answer = gateway.post("/events", &batch, line).await;
    assert_eq!(refused(&answer, 400), "bad_idempotency_key");
    let mut ids = Vec::new();
    for subject in ["anna", "ben"] {
        let claims = json!({ "sub": subject, "exp": exp, "publish": ["*"] });
        let answer = post(&(of(claims) + key)).await;
        assert_eq!(answer.head.status, 201, "{}", answer.body);
        ids.push(answer.body);
    }
    assert_ne!(ids[0], ids[1]);
}

/// Breaks when tickets that Redis did not store count as issued.
#[tokio::test]
async fn a_ticket_that_is_not_stored_does_not_count() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--max-tickets-per-subject 2 --ticket-ttl 10m";
    let gateway = Gateway::start_with(&redis, options, &with_secret("")).await;
    let anna = bearer(&token(&claims(&["*"])));
    let mut commands = redis.connect().await;
    commands.run("ACL SETUSER default -set").await;
    for _ in 0..5 {
        let answer = gateway.post("/tickets", &anna, "").await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
    }
    commands.run("ACL SETUSER default +set").await;
    for _ in 0..2 {
        let answer = gateway.post("/tickets", &anna, "").await;
        assert_eq!(answer.head.status, 201, "{}", answer.body);
    }
    let answer = gateway.post("/tickets", &anna, "").await;
    assert_eq!(refused(&answer, 429), "max_tickets");
}

/// Breaks when a client can make the gateway check any number of bad tokens, or when others are refused for it.
#[tokio::test]
async fn refused_tokens_count_for_the_address_that_sends_them() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--trusted-proxies 127.0.0.0/8 --publish-token backend";
    let gateway = Gateway::start_with(&redis, options, &with_secret("")).await;
    let from = |last: u8| format!("X-Forwarded-For: 192.0.2.{last}\r\n");
    let bad = bearer(&format!("{}x", token(&claims(&["*"])))) + &from(1);
    let request =
        format!("POST /events?channel=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{bad}");
    let requests = format!("{request}\r\n").repeat(1500);
    let last = format!("{request}Connection: close\r\n\r\n");
    let mut socket = TcpStream::connect(gateway.public).await.unwrap();
    let (mut answers, mut to_gateway) = socket.split();
    let mut text = Vec::new();
    let all = [requests, last].concat();
    let (sent, read) = in_time("all answers", async {
        tokio::join!(
            to_gateway.write_all(all.as_bytes()),
            answers.read_to_end(&mut text)
        )
    })
    .await;
    sent.unwrap();
    read.unwrap();
    let text = String::from_utf8_lossy(&text);
    let count = |part: &str| text.matches(part).count();
    assert!(count("HTTP/1.1 401 ") >= 1000, "{}", count("HTTP/1.1 401 "));
    assert!(count("\"max_refused_tokens_per_address\"") >= 1, "no limit");
    assert_eq!(count("HTTP/1.1 "), 1501);

    let good = bearer(&token(&claims(&["*"])));
    Viewer::open_with(&gateway, "channel=a", &format!("{good}{}", from(2))).await;
    // Configured tokens are only compared, which takes almost no time.
    let backend = bearer("backend") + &from(1);
    let answer = gateway.post("/events?channel=a", &backend, "x").await;
    assert_eq!(answer.head.status, 201, "{}", answer.body);
}

/// Breaks when the requests of one address keep those of others from the backend.
#[tokio::test]
async fn one_address_does_not_occupy_the_whole_backend() {
    let _machine = shares(2).await;
    let redis = Redis::start().await;
    let backend = Backend::start(|_| status(200)).await;
    let config = format!("[forward_auth]\nurl = \"http://{}/\"\n", backend.address);
    let options = "--trusted-proxies 127.0.0.0/8 --workers 1";
    let gateway = Gateway::start_with(&redis, options, &config).await;
    let held = backend.hold().await;
    let connect = |last: u8, user: usize| {
        let public = gateway.public;
        let mut client = Client::new("/events?channel=a");
        client.set_headers(format!(
            "X-Forwarded-For: 192.0.2.{last}\r\nCookie: user={user}\r\n"
        ));
        async move {
            let answer = client.connect(public).await;
            answer.map(|answer| (answer, client))
        }
    };
    let greedy: Vec<_> = (0..1500)
        .map(|user| tokio::spawn(connect(1, user)))
        .collect();
    // One address may have half of the requests that wait. Its further requests are refused.
    let unavailable = "reason=\"authorization_unavailable\"";
    eventually("many are refused", PATIENCE, async || {
        let metrics = gateway.metrics().await;
        match metrics.labelled("sse_gateway_refused_total", unavailable) {
            refused if refused > 400.0 => Ok(()),
            refused => Err(refused.to_string()),
        }
    })
    .await;
    let other = tokio::spawn(connect(2, 0));
    drop(held);
    let (answer, mut client) = in_time("an answer", other).await.unwrap().unwrap();
    assert_eq!(answer, Answer::Stream);
    match in_time("an event", client.next()).await {
        testkit::Received::Event(event) => assert_eq!(event.event, "gateway.open"),
        other => panic!("{other:?}"),
    }
    for one in greedy {
        one.abort();
    }
}
