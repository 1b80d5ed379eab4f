//! Access control: tokens, tickets and the backend allow the channels that they name, and nothing else.

use std::{collections::BTreeSet, process::Command, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use testkit::{Answer, Client, End, Received, Response};
use tokio::time::Instant;

use crate::support::{
    Backend, Balancer, Dir, Gateway, Kind, PATIENCE, Place, Redis, Viewer, among_others,
    eventually, gaps, in_time, refused, status,
    tokens::{
        ED25519, P256, P384, RSA, RSA2, SECRET, bearer, claims, in_seconds, key_set, signed, token,
        with_key, with_secret,
    },
    with,
};

/// Sends a request that must not open a stream. Returns its status and error code.
async fn denied(gateway: &Gateway, query: &str, headers: &str) -> (u16, String) {
    let answer = gateway.get(&format!("/events?{query}"), headers).await;
    let status = answer.head.status;
    (status, refused(&answer, status))
}

fn is((answered, told): (u16, String), status: u16, code: &str) {
    assert_eq!((answered, told), (status, code.to_owned()));
}

/// Breaks when a channel can be read that no rule allows, or when one allowed channel opens another.
#[tokio::test]
async fn channels_without_a_rule_cannot_be_read() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = format!(
        "public_channels = [\"news\", \"p.*\", \"!p.not\"]\n{}",
        with_secret("")
    );
    let gateway = Gateway::start_with(&redis, "", &config).await;
    for channel in ["news", "p.a", "a.x", "b.x"] {
        redis.append(channel, "hello").await;
    }
    let json = "Accept: application/json\r\n";
    let anna = bearer(&token(&claims(&["a.*", "!a.secret"])));
    let nobody = bearer(&token(&json!({ "exp": in_seconds(60) })));

    for query in ["channel=news", "channel=p.a", "channel=news&channel=p.b"] {
        Viewer::open(&gateway, query).await;
        // A bad token does not take away access to public channels.
        Viewer::open_with(&gateway, query, "Authorization: Bearer rubbish\r\n").await;
    }
    for query in [
        "channel=a.x",
        "channel=p.not",
        "channel=news&channel=a.x",
        "channel=a.x&channel=news&since=start",
        "channel=newsx",
        "channel=*",
    ] {
        is(denied(&gateway, query, "").await, 401, "unauthorized");
        is(denied(&gateway, query, json).await, 401, "unauthorized");
        is(
            denied(&gateway, query, &nobody).await,
            403,
            "forbidden_channel",
        );
    }
    for query in ["channel=a.x", "channel=a.x&channel=news&channel=p.a"] {
        Viewer::open_with(&gateway, query, &anna).await;
    }
    for query in [
        "channel=b.x",
        "channel=a.x&channel=b.x",
        "channel=b.x&channel=a.x&since=start",
        "channel=a.secret",
        "channel=p.not",
        "channel=a",
    ] {
        is(
            denied(&gateway, query, &anna).await,
            403,
            "forbidden_channel",
        );
        let both = format!("{anna}{json}");
        is(
            denied(&gateway, query, &both).await,
            403,
            "forbidden_channel",
        );
    }
    let refusals = gateway.metrics().await;
    let refusals = refusals.labelled("sse_gateway_refused_total", "reason=\"forbidden_channel\"");
    assert_eq!(refusals, 18.0);
}

/// Breaks when a client receives a byte of a channel that its token does not name. The byte could arrive live, from
/// history, in a gap event, or after the client changes its channels and keeps its id.
#[tokio::test]
async fn a_client_never_receives_a_byte_of_another_channel() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let rules = "[[channels]]\nmatch = \"*\"\nhistory = 10\nmax_age = \"0s\"\n";
    let config = format!("{rules}{}", with_secret(""));
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let anna = bearer(&token(&claims(&["a.*"])));
    let ben = bearer(&token(&claims(&["b.*"])));
    let mut live = Viewer::open_with(&gateway, "channel=a.1&channel=a.2", &anna).await;
    let start = live.open.id.clone();
    // Enough events to be trimmed in all channels, so that there are gaps on both sides.
    for number in 0..300 {
        for channel in ["a.1", "b.1", "a.2", "b.2"] {
            redis.append(channel, &format!("{channel} {number}")).await;
        }
    }
    redis.append("a.1", "last").await;
    let seen = live.until("last").await;
    assert_eq!(seen.len(), 601);
    // This replica has to read history.
    let fresh = Gateway::start_with(&redis, "", &config).await;
    let mut texts = BTreeSet::new();
    for (headers, query, own) in [
        (&anna, "channel=a.1&channel=a.2", "a."),
        (&ben, "channel=b.1&channel=b.2", "b."),
    ] {
        let mut client = Client::resuming(format!("/events?{query}"), start.clone());
        client.set_headers(headers.as_str());
        let mut replay = Viewer::over(fresh.public, client).await;
        let last = if own == "a." { "last" } else { "b.2 299" };
        let events = replay.until(last).await;
        assert!(!gaps(&events).is_empty(), "nothing was trimmed");
        for event in &events {
            let own_gap = event.event == "gateway.gap" && event.data.contains(&format!("\"{own}"));
            assert!(
                own_gap || event.data.starts_with(own) || event.data == "last",
                "{event:?}"
            );
            texts.insert(event.data.clone());
        }
        // The same id with another channel.
        let id = replay.client.last_event_id();
        let other = if own == "a." { "b.1" } else { "a.1" };
        let cursor = format!("{headers}Last-Event-ID: {id}\r\n");
        for query in [
            format!("channel={other}"),
            format!("{query}&channel={other}"),
        ] {
            is(
                denied(&gateway, &query, &cursor).await,
                403,
                "forbidden_channel",
            );
            let page = format!("{cursor}Accept: application/json\r\n");
            is(
                denied(&gateway, &query, &page).await,
                403,
                "forbidden_channel",
            );
        }
    }
    assert!(texts.len() > 20, "{texts:?}");
}

/// Breaks when a bad token is accepted, or when the error code does not name the fault.
#[tokio::test]
async fn each_bad_token_is_refused() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let lines = "audience = \"sse\"\nissuer = \"https://issuer\"\nleeway = \"0s\"\nalgorithms = [\"RS256\", \"RS384\"]";
    let config = with_key(&dir, RSA[1], lines);
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let good = json!({
        "sub": "anna", "subscribe": ["a"], "exp": in_seconds(60), "nbf": in_seconds(-60),
        "aud": ["other", "sse"], "iss": "https://issuer",
    });
    let but = |name: &str, value: Value| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        signed(Algorithm::RS256, RSA[0], None, &claims)
    };
    let sign = |algorithm, key| signed(algorithm, key, None, &good);
    for token in [
        sign(Algorithm::RS256, RSA[0]),
        sign(Algorithm::RS384, RSA[0]),
        but("nbf", Value::Null),
        but("aud", json!("sse")),
        but("exp", json!(in_seconds(60) as f64 + 0.5)),
        but("subscribe", json!("a")),
        // A PEM key has no name, so a `kid` in the token does not matter.
        signed(Algorithm::RS256, RSA[0], Some("any"), &good),
    ] {
        Viewer::open_with(&gateway, "channel=a", &bearer(&token)).await;
    }

    let parts = sign(Algorithm::RS256, RSA[0]);
    let parts: Vec<_> = parts.split('.').collect();
    let url = |text: &str| base64url(text.as_bytes());
    let [header, claims, signature] = parts[..] else {
        panic!("three parts")
    };
    let none = |header: &str| format!("{}.{claims}.", url(header));
    // The public key, which is not a secret, used as a shared secret.
    let secret = |algorithm, key: &str| {
        let key = EncodingKey::from_secret(key.as_bytes());
        encode(&Header::new(algorithm), &good, &key).unwrap()
    };
    let mut critical = Header::new(Algorithm::RS256);
    critical.crit = Some(vec!["exp".to_owned()]);
    let key = EncodingKey::from_rsa_pem(RSA[0].as_bytes()).unwrap();
    let critical = encode(&critical, &good, &key).unwrap();
    let cases = [
        (none(r#"{"alg":"none"}"#), "token_malformed"),
        (none(r#"{"alg":"None","typ":"JWT"}"#), "token_malformed"),
        (none(r#"{"typ":"JWT"}"#), "token_malformed"),
        (format!("{header}.{claims}."), "token_signature"),
        (secret(Algorithm::HS256, RSA[1]), "token_algorithm"),
        (secret(Algorithm::HS256, RSA[1].trim()), "token_algorithm"),
        (secret(Algorithm::HS512, ""), "token_algorithm"),
        (sign(Algorithm::ES256, P256[0]), "token_algorithm"),
        (sign(Algorithm::EdDSA, ED25519[0]), "token_algorithm"),
        (sign(Algorithm::RS512, RSA[0]), "token_algorithm"),
        (sign(Algorithm::PS256, RSA[0]), "token_algorithm"),
        (sign(Algorithm::RS256, RSA2[0]), "token_signature"),
        (
            format!(
                "{header}.{}.{signature}",
                url(&good.to_string().replace("anna", "ben"))
            ),
            "token_signature",
        ),
        (but("exp", json!(in_seconds(-1))), "token_expired"),
        (but("exp", Value::Null), "token_malformed"),
        (but("exp", json!("tomorrow")), "token_malformed"),
        (but("nbf", json!(in_seconds(30))), "token_not_yet_valid"),
        (but("aud", json!("somebody")), "token_audience"),
        (but("aud", json!([])), "token_audience"),
        (but("aud", Value::Null), "token_audience"),
        (but("iss", json!("https://issuer.evil")), "token_issuer"),
        (but("iss", Value::Null), "token_issuer"),
        (but("subscribe", json!({ "a": 1 })), "token_malformed"),
        (critical, "token_malformed"),
        ("rubbish".to_owned(), "token_malformed"),
        ("a.b.c".to_owned(), "token_malformed"),
        ("..".to_owned(), "token_malformed"),
        (format!("{header}.{claims}"), "token_malformed"),
        (
            format!("{header}.{claims}.{signature}.x"),
            "token_malformed",
        ),
        ("x".repeat(9000), "token_malformed"),
        // Valid except for its size.
        (but("more", json!("x".repeat(9000))), "token_malformed"),
    ];
    for (token, code) in cases {
        let answer = gateway.get("/events?channel=a", &bearer(&token)).await;
        assert_eq!(refused(&answer, 401), code, "{token}");
        let challenge = answer.head.field("www-authenticate").unwrap();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        // The answer does not contain the token either.
        assert!(token.len() < 10 || !answer.body.contains(&token));
    }
    // A gateway without a configured audience refuses a token that has one.
    let config = with_key(&dir, RSA[1], "");
    let nameless = Gateway::start_with(&redis, "", &config).await;
    let token = sign(Algorithm::RS256, RSA[0]);
    is(
        denied(&nameless, "channel=a", &bearer(&token)).await,
        401,
        "token_audience",
    );
    // The type of the audience does not matter.
    for audience in [json!(5), json!({ "name": "somebody" }), json!([7])] {
        let token = but("aud", audience);
        let answer = nameless.get("/events?channel=a", &bearer(&token)).await;
        assert_eq!(refused(&answer, 401), "token_audience", "{token}");
    }
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let padded = [
            0,
            three[0],
            three.get(1).copied().unwrap_or(0),
            three.get(2).copied().unwrap_or(0),
        ];
        let bits = u32::from_be_bytes(padded);
        for place in 0..=three.len() {
            let digit = bits >> (18 - 6 * place) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}

/// Breaks when a promised algorithm is refused, or when a key accepts signatures of another kind of key.
#[tokio::test]
async fn each_algorithm_is_accepted_only_with_its_own_key() {
    use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, RS256, RS384, RS512};
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let sign = |algorithm: Algorithm| match algorithm {
        HS256 | HS384 | HS512 => {
            let key = EncodingKey::from_secret(SECRET.as_bytes());
            encode(&Header::new(algorithm), &claims(&["a"]), &key).unwrap()
        }
        ES256 => signed(algorithm, P256[0], None, &claims(&["a"])),
        ES384 => signed(algorithm, P384[0], None, &claims(&["a"])),
        EdDSA => signed(algorithm, ED25519[0], None, &claims(&["a"])),
        _ => signed(algorithm, RSA[0], None, &claims(&["a"])),
    };
    let all = [
        HS256, HS384, HS512, RS256, RS384, RS512, PS256, ES256, ES384, EdDSA,
    ];
    for (config, taken) in [
        (with_secret(""), &[HS256, HS384, HS512][..]),
        (with_key(&dir, RSA[1], ""), &[RS256, RS384, RS512, PS256]),
        (with_key(&dir, P256[1], ""), &[ES256]),
        (with_key(&dir, P384[1], ""), &[ES384]),
        (with_key(&dir, ED25519[1], ""), &[EdDSA]),
    ] {
        let gateway = Gateway::start_with(&redis, "", &config).await;
        for algorithm in all {
            let headers = bearer(&sign(algorithm));
            if taken.contains(&algorithm) {
                Viewer::open_with(&gateway, "channel=a", &headers).await;
            } else {
                let (status, code) = denied(&gateway, "channel=a", &headers).await;
                let expected = ["token_algorithm", "token_signature", "token_malformed"];
                assert!(
                    status == 401 && expected.contains(&&*code),
                    "{algorithm:?} {code}"
                );
            }
        }
    }
}

/// Breaks when a token is not found in a place where it is allowed, or is accepted in any other place.
#[tokio::test]
async fn a_token_is_read_from_a_header_a_cookie_or_the_url() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = with_secret("cookie = \"session\"");
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let mut rights = claims(&["a"]);
    rights["publish"] = json!(["a"]);
    let good = token(&rights);
    let cookie = format!("Cookie: theme=dark; session={good}; x=y\r\n");
    for (query, headers) in [
        ("channel=a".to_owned(), bearer(&good)),
        ("channel=a".to_owned(), cookie.clone()),
        (format!("channel=a&access_token={good}"), String::new()),
    ] {
        Viewer::open_with(&gateway, &query, &headers).await;
    }
    // Only the first credential counts. A valid second one does not help.
    let bad = format!("Authorization: Bearer rubbish\r\n{cookie}");
    is(
        denied(&gateway, "channel=a", &bad).await,
        401,
        "token_malformed",
    );
    let both = "channel=a&access_token=rubbish";
    is(
        denied(&gateway, both, &cookie).await,
        401,
        "token_malformed",
    );
    let wrong = format!("Cookie: sessions={good}\r\n");
    is(
        denied(&gateway, "channel=a", &wrong).await,
        401,
        "unauthorized",
    );

    // Another site's page can make a browser send a cookie or a URL. Neither is enough to publish.
    let answer = gateway.post("/events?channel=a", &bearer(&good), "x").await;
    assert_eq!(answer.head.status, 201, "{}", answer.body);
    for target in [
        "/events?channel=a".to_owned(),
        format!("/events?channel=a&access_token={good}"),
    ] {
        let answer = gateway.post(&target, &cookie, "x").await;
        assert_eq!(refused(&answer, 401), "unauthorized");
    }
    for target in [
        "/tickets".to_owned(),
        format!("/tickets?access_token={good}"),
    ] {
        let answer = gateway.post(&target, &cookie, "").await;
        assert_eq!(refused(&answer, 401), "unauthorized");
    }
    let answer = gateway.post("/events?channel=b", &bearer(&good), "x").await;
    assert_eq!(refused(&answer, 403), "forbidden_channel");
    let reader = bearer(&token(&claims(&["a"])));
    let answer = gateway.post("/events?channel=a", &reader, "x").await;
    assert_eq!(refused(&answer, 403), "forbidden_channel");
}

/// Breaks when a secret is written to a log.
#[tokio::test]
async fn no_secret_is_logged() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = with_secret("cookie = \"session\"");
    let dir = Dir::new();
    let mut command = Gateway::command();
    command
        .env("RUST_LOG", "trace")
        .env("SSE_GATEWAY_PUBLISH_TOKEN", "publish-5113")
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--redis-url", &redis.url(), "--workers", "1"])
        .args(["--config", &dir.write("gateway.toml", &config)]);
    let mut gateway = Gateway::of(command).await;
    gateway.ready().await;
    let good = token(&claims(&["a"]));
    let curl = |args: &[&str]| {
        let url = format!(
            "http://{}/events?channel=a&access_token={good}&_",
            gateway.public
        );
        let ran = Command::new("curl")
            .args(["-s", "-m", "3"])
            .args(args)
            .arg(&url)
            .output();
        let text = String::from_utf8(ran.expect("curl is there").stdout).unwrap();
        assert!(text.contains("gateway.open"), "{args:?}: {text}");
    };
    curl(&["-N"]);
    curl(&["-N", "--http2-prior-knowledge"]);
    Viewer::open_with(&gateway, "channel=a", &bearer(&good)).await;
    Viewer::open_with(
        &gateway,
        "channel=a",
        &format!("Cookie: session={good}\r\n"),
    )
    .await;
    let ticket = ticket(&gateway.post("/tickets", &bearer(&good), "").await);
    Viewer::open(&gateway, &format!("channel=a&ticket={ticket}")).await;
    let publisher = bearer("publish-5113");
    let answer = gateway.post("/events?channel=a", &publisher, "x").await;
    assert_eq!(answer.head.status, 201);
    // Load balancers do not log secrets either, whether a replica answers or not.
    let asked = format!("/events?channel=a&ticket={ticket}&access_token={good}&_last");
    let dead = Place::some::<1>()[0];
    for kind in [Kind::HaProxy, Kind::Nginx, Kind::Caddy, Kind::Envoy] {
        for place in [Place::of(&gateway), dead] {
            let balancer = Balancer::start(kind, &[place], &[gateway.admin]).await;
            let mut client = Client::new(&asked);
            let answer = in_time("an answer", client.connect(balancer.public)).await;
            let is_refused = matches!(answer, Ok(Answer::Refused(401)));
            assert_eq!(is_refused, place.public != dead.public, "{answer:?}");
            client.cut();
            eventually("the balancer writes a line", PATIENCE, async || {
                let log = balancer.written();
                // Caddy sorts the parameters. Envoy logs none of them.
                let tokens =
                    log.matches("ticket=...").count() + log.matches("access_token=...").count();
                let written = match kind {
                    Kind::Envoy => log.contains("\"GET /events HTTP/1.1\" "),
                    _ => tokens == 2,
                };
                if written { Ok(()) } else { Err(log) }
            })
            .await;
            let log = balancer.written();
            assert!(!log.contains(&ticket) && !log.contains(&good), "{log}");
        }
    }
    let log = gateway.process().log();
    assert!(log.contains("TRACE"), "the log has no TRACE lines");
    for secret in [&*good, "publish-5113", SECRET, &ticket] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}

/// Breaks when a rotation of keys needs a restart, refuses a valid token, or accepts an invalid one.
#[tokio::test]
async fn keys_rotate_without_a_restart() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let old = signed(Algorithm::RS256, RSA[0], Some("old"), &claims(&["a"]));
    let new = signed(Algorithm::ES256, P256[0], Some("new"), &claims(&["a"]));
    // The new key under the name of the old one must not pass for the old one.
    let forged = signed(Algorithm::ES256, P256[0], Some("old"), &claims(&["a"]));
    let unnamed = signed(Algorithm::RS256, RSA[0], None, &claims(&["a"]));
    let first = key_set(&[(Algorithm::RS256, RSA[0], "old")]);
    let both = key_set(&[
        (Algorithm::RS256, RSA[0], "old"),
        (Algorithm::ES256, P256[0], "new"),
    ]);
    let twice = key_set(&[
        (Algorithm::RS256, RSA[0], "old"),
        (Algorithm::RS256, RSA2[0], "other"),
    ]);
    let served = first.clone();
    let issuer = Backend::start(move |asked| {
        assert_eq!(asked.uri, "/keys");
        with(200, &[], &served)
    })
    .await;
    let config = format!("[jwt]\njwks_url = \"http://{}/keys\"\n", issuer.address);
    let gateway = Gateway::start_with(&redis, "", &config).await;
    Viewer::open_with(&gateway, "channel=a", &bearer(&old)).await;
    // With a single key, a token needs no `kid`.
    Viewer::open_with(&gateway, "channel=a", &bearer(&unnamed)).await;
    is(
        denied(&gateway, "channel=a", &bearer(&forged)).await,
        401,
        "token_algorithm",
    );

    // The gateway does not ask the issuer again for each invented token. So it notices a new key a little later.
    for _ in 0..20 {
        let answer = json_page(&gateway, &bearer(&new)).await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
        come_back(&gateway.get("/events?channel=a", &bearer(&new)).await);
    }
    assert!(issuer.requests() < 8, "asked {} times", issuer.requests());

    issuer.answer(move |_| with(200, &[], &both));
    eventually("the new key is accepted", PATIENCE, async || {
        let answer = json_page(&gateway, &bearer(&new)).await;
        if answer.head.status == 200 {
            Ok(())
        } else {
            Err(answer.body)
        }
    })
    .await;
    Viewer::open_with(&gateway, "channel=a", &bearer(&old)).await;

    // After the issuer was asked, a key that it does not have either is unknown.
    let unknown = signed(Algorithm::RS256, RSA2[0], Some("other"), &claims(&["a"]));
    eventually(
        "a token with an unknown key is refused",
        PATIENCE,
        async || {
            let answer = json_page(&gateway, &bearer(&unknown)).await;
            match answer.head.status {
                401 => Ok(refused(&answer, 401)),
                _ => Err(answer.body),
            }
        },
    )
    .await;

    // While the issuer is down, the known keys stay valid.
    issuer.answer(|_| status(500));
    let asked = issuer.requests();
    eventually("the issuer was asked again", PATIENCE, async || {
        let answer = json_page(&gateway, &bearer(&unknown)).await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
        if issuer.requests() > asked {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    Viewer::open_with(&gateway, "channel=a", &bearer(&new)).await;

    issuer.answer(move |_| with(200, &[], &twice));
    eventually("the other key is accepted", PATIENCE, async || {
        let answer = json_page(&gateway, &bearer(&unknown)).await;
        if answer.head.status == 200 {
            Ok(())
        } else {
            Err(answer.body)
        }
    })
    .await;
    // The removed key is no longer accepted.
    let answer = json_page(&gateway, &bearer(&new)).await;
    assert_ne!(answer.head.status, 200);
    // Without `kid`, the gateway cannot know which of the two keys is meant.
    let answer = json_page(&gateway, &bearer(&unnamed)).await;
    assert_ne!(answer.head.status, 200);
}

async fn json_page(gateway: &Gateway, headers: &str) -> Response {
    let headers = format!("{headers}Accept: application/json\r\n");
    gateway.get("/events?channel=a", &headers).await
}

/// Breaks when a client is let in while the issuer cannot be reached, or when an EventSource gives up.
#[tokio::test]
async fn no_client_is_let_in_without_keys() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let issuer = Backend::start(|_| with(200, &[], "{\"keys\":[]}")).await;
    let config = format!("[jwt]\njwks_url = \"http://{}/keys\"\n", issuer.address);
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let good = signed(Algorithm::RS256, RSA[0], Some("k"), &claims(&["a"]));
    let headers = bearer(&good);
    let (answer, page) = tokio::join!(
        gateway.get("/events?channel=a", &headers),
        json_page(&gateway, &headers)
    );
    come_back(&answer);
    assert_eq!(refused(&page, 503), "authorization_unavailable");
    assert!(page.head.field("retry-after").is_some());
}

/// Asserts an answer after which an EventSource reconnects: the time until then, and one comment with the reason.
fn come_back(answer: &Response) {
    assert_eq!(answer.head.status, 200, "{}", answer.body);
    assert_eq!(
        answer.head.field("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let retry = answer
        .body
        .strip_prefix("retry:")
        .expect("a time to reconnect");
    let (retry, why) = retry.split_once('\n').expect("a line");
    let retry: u64 = retry.trim().parse().expect("nothing but a number");
    assert!((1000..60_000).contains(&retry), "{retry}");
    let is_comment = why.starts_with(": ") && why.lines().count() == 1;
    assert!(is_comment, "{why:?}");
}

/// Breaks when a new key file is not read, or when an unreadable file removes the old key.
#[tokio::test]
async fn a_key_file_is_read_again() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let config = with_key(&dir, RSA[1], "");
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let old = bearer(&signed(Algorithm::RS256, RSA[0], None, &claims(&["a"])));
    let new = bearer(&signed(
        Algorithm::EdDSA,
        ED25519[0],
        Some("k"),
        &claims(&["a"]),
    ));
    Viewer::open_with(&gateway, "channel=a", &old).await;
    let name = format!("key{}", RSA[1].len());
    dir.write(&name, "half a key");
    let set = key_set(&[(Algorithm::EdDSA, ED25519[0], "k")]);
    let mut written = false;
    eventually("the new key is accepted", 2 * PATIENCE, async || {
        let answer = json_page(&gateway, &new).await;
        if answer.head.status == 200 {
            return Ok(());
        }
        if !written {
            // The file is invalid, so the old key stays in use.
            assert_eq!(json_page(&gateway, &old).await.head.status, 200);
            dir.write(&name, &set);
            written = true;
        }
        Err(answer.body)
    })
    .await;
    // The answer is the same as for an algorithm without a key.
    assert_eq!(json_page(&gateway, &old).await.head.status, 401);
}

/// Breaks when a stream outlives its token, or when its end stops a page from reconnecting.
#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = with_secret("leeway = \"0s\"");
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let ends = in_seconds(12);
    let brief = token(&json!({ "sub": "anna", "exp": ends, "subscribe": ["a"] }));
    let mut brief = Viewer::open_with(&gateway, "channel=a", &bearer(&brief)).await;
    let mut long = Viewer::open_with(&gateway, "channel=a", &bearer(&token(&claims(&["a"])))).await;
    redis.append("a", "before").await;
    let (events, end) = brief.until_end().await;
    assert_eq!((events.len(), end), (1, End::Whole));
    let late = in_seconds(0) - ends;
    assert!((0..=5).contains(&late), "{late} s late");
    assert!(brief.client.retry().is_some());
    redis.append("a", "after").await;
    long.until("after").await;
    assert_eq!(
        brief.client.connect(gateway.public).await.unwrap(),
        Answer::Refused(401)
    );
    // With a new token, the stream continues from its position.
    brief.client.set_headers(bearer(&token(&claims(&["a"]))));
    let mut again = Viewer::over(gateway.public, brief.client).await;
    assert_eq!(again.event().await.data, "after");
    let closed = gateway.metrics().await;
    assert_eq!(closed.labelled("sse_gateway_closed_total", "expired"), 1.0);
}

/// Breaks when a revoked subject keeps a stream on some replica, or when other subjects lose theirs.
#[tokio::test]
async fn a_revoked_subject_loses_its_streams_on_all_replicas() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = with_secret("");
    let a = Gateway::start_with(&redis, "--workers 2", &config).await;
    let b = Gateway::start_with(&redis, "", &config).await;
    let of = |subject: &str| {
        let mut claims = claims(&["one", "two"]);
        claims["sub"] = json!(subject);
        bearer(&token(&claims))
    };
    // Each round has a channel of its own, so that no event of the round before arrives late.
    for (channel, by_hand) in [("one", false), ("two", true)] {
        let query = format!("channel={channel}");
        let mut annas = Vec::new();
        for gateway in [&a, &a, &a, &b] {
            annas.push(Viewer::open_with(gateway, &query, &of("anna")).await);
        }
        let mut ben = Viewer::open_with(&a, &query, &of("annabel")).await;
        if by_hand {
            let mut redis = redis.connect().await;
            assert_eq!(redis.run("PUBLISH ssegw:revoke anna").await.integer(), 2);
        } else {
            let mut command = Gateway::command();
            command.args(["revoke", "anna", "--redis-url", &redis.url()]);
            let output = command.output().expect("the binary runs");
            assert!(output.status.success(), "{output:?}");
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "received by 2 replicas\n"
            );
        }
        for mut anna in annas {
            let (events, end) = anna.until_end().await;
            assert_eq!((events.len(), end), (0, End::Whole));
        }
        redis.append(channel, "still here").await;
        ben.until("still here").await;
    }
    let closed = a
        .metrics()
        .await
        .labelled("sse_gateway_closed_total", "revoked");
    assert_eq!(closed, 6.0);
    // A subject that is too long to be revoked is refused in a token.
    let longest = "x".repeat(256);
    let mut viewer = Viewer::open_with(&b, "channel=one", &of(&longest)).await;
    let mut commands = redis.connect().await;
    commands
        .run(&format!("PUBLISH ssegw:revoke {longest}x"))
        .await;
    commands
        .run(&format!("PUBLISH ssegw:revoke {longest}"))
        .await;
    assert_eq!(viewer.until_end().await.1, End::Whole);
    let longer = longest + "x";
    let answer = b.get("/events?channel=one", &of(&longer)).await;
    assert_eq!(refused(&answer, 401), "token_subject");
    let mut command = Gateway::command();
    command.args(["revoke", &longer, "--redis-url", &redis.url()]);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

fn ticket(answer: &Response) -> String {
    assert_eq!(answer.head.status, 201, "{}", answer.body);
    assert_eq!(answer.head.field("cache-control"), Some("no-store"));
    let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert!(answer["expires_in"].as_u64().is_some());
    answer["ticket"].as_str().expect("a ticket").to_owned()
}

/// Breaks when a ticket opens more than one connection, stays valid too long, or allows more than its requester may
/// hand out.
#[tokio::test]
async fn a_ticket_is_good_once_on_any_replica() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = format!(
        "{}[[publish]]\ntoken = \"backend\"\nchannels = [\"a.*\"]\n",
        with_secret("leeway = \"0s\"")
    );
    let options = "--partitions 4 --ticket-ttl 10s";
    let a = Gateway::start_with(&redis, options, &config).await;
    let b = Gateway::start_with(&redis, options, &config).await;
    let backend = bearer("backend");
    let anna = bearer(&token(&claims(&["a.*", "b"])));

    let wanted = r#"{"channels":["a.1","a.2"],"subject":"anna"}"#;
    let one = ticket(&a.post("/tickets", &backend, wanted).await);
    for channel in ["b", "a.3", "a.*"] {
        // Each request uses the ticket up, also when it is refused.
        let other = ticket(&a.post("/tickets", &backend, wanted).await);
        let query = format!("channel=a.1&channel={channel}&ticket={other}");
        is(denied(&b, &query, "").await, 403, "forbidden_channel");
        let query = format!("channel=a.1&ticket={other}");
        is(denied(&b, &query, "").await, 401, "bad_ticket");
    }
    let query = format!("channel=a.1&channel=a.2&ticket={one}");
    let mut viewer = Viewer::open(&b, &query).await;
    for gateway in [&a, &b] {
        is(denied(gateway, &query, "").await, 401, "bad_ticket");
    }
    // The stream belongs to the subject of the ticket.
    redis.connect().await.run("PUBLISH ssegw:revoke anna").await;
    viewer.until_end().await;

    // Of many clients with the same ticket, one is let in.
    let one = ticket(&a.post("/tickets", &anna, "").await);
    let mut clients = Vec::new();
    for number in 0..20 {
        let target = format!("/events?channel=a.9&channel=b&ticket={one}");
        let address = if number % 2 == 0 { a.public } else { b.public };
        clients.push(tokio::spawn(async move {
            let mut client = Client::new(target);
            let answer = client.connect(address).await.unwrap();
            (answer, client)
        }));
    }
    let mut kept = Vec::new();
    for client in clients {
        let (answer, client) = client.await.unwrap();
        match answer {
            Answer::Stream => kept.push(client),
            other => assert_eq!(other, Answer::Refused(401)),
        }
    }
    assert_eq!(kept.len(), 1);

    // The stream ends when the token expires, or earlier.
    let brief = bearer(&token(
        &json!({ "exp": in_seconds(12), "subscribe": ["b"] }),
    ));
    for (headers, wanted) in [
        (&brief, r#"{"expires_in": 3600}"#),
        (&anna, r#"{"expires_in": 8}"#),
        (&backend, r#"{"expires_in": 8, "channels": ["a.1"]}"#),
    ] {
        let channel = if wanted.contains("a.1") { "a.1" } else { "b" };
        let one = ticket(&a.post("/tickets", headers, wanted).await);
        let mut viewer = Viewer::open(&b, &format!("channel={channel}&ticket={one}")).await;
        let start = Instant::now();
        assert_eq!(viewer.until_end().await.1, End::Whole);
        assert!(start.elapsed() < Duration::from_secs(17));
    }

    for (headers, wanted, status, code) in [
        (&*backend, "", 400, "bad_ticket_request"),
        (&backend, r#"{"channels":[]}"#, 400, "bad_ticket_request"),
        (&backend, r#"{"channels":["b"]}"#, 403, "forbidden_channel"),
        (
            &backend,
            r#"{"channels":["a.1"],"expires_in":0}"#,
            400,
            "bad_ticket_request",
        ),
        (
            &backend,
            r#"{"channels":["a.1"],"subjekt":"x"}"#,
            400,
            "bad_ticket_request",
        ),
        (&backend, "rubbish", 400, "bad_ticket_request"),
        (&anna, r#"{"channels":["c"]}"#, 403, "forbidden_channel"),
        (&anna, r#"{"subject":"ben"}"#, 400, "bad_ticket_request"),
        (&anna, r#"{"channels":[]}"#, 400, "bad_ticket_request"),
        ("", "", 401, "unauthorized"),
        (
            "Authorization: Bearer rubbish\r\n",
            "",
            401,
            "token_malformed",
        ),
    ] {
        let answer = a.post("/tickets", headers, wanted).await;
        assert_eq!(refused(&answer, status), code, "{wanted}");
    }
    // A HEAD request does not use the ticket up.
    let one = ticket(&a.post("/tickets", &anna, "").await);
    let head = format!(
        "HEAD /events?channel=b&ticket={one} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(a.send(head.as_bytes()).await.unwrap().head.status, 401);
    Viewer::open(&a, &format!("channel=b&ticket={one}")).await;
    // A ticket cannot name another key of Redis.
    for ticket in ["", "x", "..", &"0".repeat(32), &"g".repeat(32), "%2a"] {
        let query = format!("channel=a.1&ticket={ticket}");
        is(denied(&a, &query, "").await, 401, "bad_ticket");
    }
    let old = ticket(&a.post("/tickets", &anna, "").await);
    let key = format!("ssegw:*ticket:{old}");
    eventually("the ticket is too old", PATIENCE, async || {
        let keys = redis.connect().await.run(&format!("KEYS {key}")).await;
        if keys.array().is_empty() {
            Ok(())
        } else {
            Err("it is there".to_owned())
        }
    })
    .await;
    is(
        denied(&a, &format!("channel=b&ticket={old}"), "").await,
        401,
        "bad_ticket",
    );
}

/// Breaks when the backend's refusal is ignored, when its approval allows too much, or when its silence lets a client
/// in.
#[tokio::test]
async fn the_backend_decides() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let backend = Backend::start(|asked| match asked.header("cookie") {
        "user=anna" => with(
            200,
            &[
                ("X-SSE-Subscribe", "a.*, news"),
                ("X-SSE-Subject", "anna"),
                ("X-SSE-Expires-In", "8"),
            ],
            "",
        ),
        "user=ben" => status(204),
        "user=nobody" => with(200, &[("X-SSE-Subscribe", "")], ""),
        "user=eve" => status(403),
        "user=broken" => with(200, &[("X-SSE-Expires-In", "soon")], ""),
        "user=moved" => with(302, &[("Location", "/login")], ""),
        "user=500" => status(500),
        "user=over" => with(200, &[("X-SSE-Expires-In", "0")], ""),
        _ => status(401),
    })
    .await;
    let config = format!(
        "public_channels = [\"p\"]\n[forward_auth]\nurl = \"http://{}/auth?x=y\"\ncache = \"60s\"\n",
        backend.address
    );
    let gateway = Gateway::start_with(&redis, "", &config).await;
    let user = |name: &str| format!("Cookie: user={name}\r\n");

    let mut anna = Viewer::open_with(
        &gateway,
        "channel=a.1&channel=news&channel=p",
        &user("anna"),
    )
    .await;
    is(
        denied(&gateway, "channel=a.1&channel=b", &user("anna")).await,
        403,
        "forbidden_channel",
    );
    // An approval without a list of channels covers the requested channels.
    Viewer::open_with(&gateway, "channel=b&channel=c*", &user("ben")).await;
    is(
        denied(&gateway, "channel=b", &user("nobody")).await,
        403,
        "forbidden_channel",
    );
    is(
        denied(&gateway, "channel=b", &user("eve")).await,
        403,
        "backend_forbidden",
    );
    is(
        denied(&gateway, "channel=b", "").await,
        401,
        "backend_unauthorized",
    );
    is(
        denied(&gateway, "channel=b", &user("over")).await,
        401,
        "backend_unauthorized",
    );
    let asked = backend.requests();
    Viewer::open(&gateway, "channel=p").await;
    assert_eq!(
        backend.requests(),
        asked,
        "the backend was asked about a public channel"
    );
    let (_, end) = anna.until_end().await;
    assert_eq!(end, End::Whole, "it has expired");

    // Answers that neither allow nor refuse.
    for name in ["broken", "moved", "500"] {
        let answer = gateway.get("/events?channel=b", &user(name)).await;
        come_back(&answer);
        let headers = format!("{}Accept: application/json\r\n", user(name));
        let answer = gateway.get("/events?channel=b", &headers).await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
    }

    // The gateway asks once for the same request, and again for any other.
    let asked = backend.requests();
    for _ in 0..5 {
        Viewer::open_with(&gateway, "channel=d", &user("ben")).await;
    }
    assert_eq!(backend.requests(), asked + 1);
    is(
        denied(&gateway, "channel=d", &user("eve")).await,
        403,
        "backend_forbidden",
    );
    Viewer::open_with(&gateway, "channel=e", &user("ben")).await;
    assert_eq!(backend.requests(), asked + 3);

    // The gateway fills in the headers that the backend reads. A client cannot set them.
    backend.answer(|asked| {
        let told = [
            asked.uri.to_string(),
            asked.header("x-forwarded-uri").to_owned(),
            asked.header("x-forwarded-method").to_owned(),
            asked.header("x-forwarded-for").to_owned(),
            asked.header("authorization").to_owned(),
            asked.header("x-other").to_owned(),
            asked.header("x-sse-channels").to_owned(),
        ];
        let expected = [
            "/auth?x=y",
            "/events?channel=f&channel=g%2ch",
            "GET",
            "127.0.0.1",
            "Bearer t",
            "",
            "f,g%2Ch",
        ];
        status(if told == expected { 200 } else { 403 })
    });
    let headers = "Authorization: Bearer t\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Uri: /events?channel=g\r\nX-Sse-Channels: f\r\nX-Other: o\r\n";
    Viewer::open_with(&gateway, "channel=f&channel=g%2ch", headers).await;

    // After a revocation, a remembered answer about that subject no longer counts.
    backend.answer(|_| with(200, &[("X-SSE-Subject", "ben")], ""));
    let mut ben = Viewer::open_with(&gateway, "channel=r", &user("ben")).await;
    backend.answer(|_| status(403));
    let mut again = Client::new("/events?channel=r");
    again.set_headers(user("ben"));
    assert_eq!(
        again.connect(gateway.public).await.unwrap(),
        Answer::Stream,
        "it is remembered"
    );
    redis.connect().await.run("PUBLISH ssegw:revoke ben").await;
    ben.until_end().await;
    assert_eq!(
        again.connect(gateway.public).await.unwrap(),
        Answer::Refused(403)
    );

    drop(backend);
    come_back(&gateway.get("/events?channel=x", &user("ben")).await);
    let refusals = gateway.metrics().await;
    let unavailable = "reason=\"authorization_unavailable\"";
    assert_eq!(
        refusals.labelled("sse_gateway_refused_total", unavailable),
        7.0
    );
}

/// Breaks when an answer that the backend gave before a revocation is used after it.
#[tokio::test]
async fn an_answer_from_before_a_revocation_is_not_remembered() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let backend = Backend::start(|_| with(200, &[("X-SSE-Subject", "anna")], "")).await;
    let config = format!(
        "[forward_auth]\nurl = \"http://{}/\"\ncache = \"60s\"\n",
        backend.address
    );
    let gateway = Gateway::start_with(&redis, "--workers 1", &config).await;
    let mut before = Viewer::open(&gateway, "channel=a").await;
    let held = backend.hold().await;
    let mut client = Client::new("/events?channel=b");
    let connecting = async {
        let answer = client.connect(gateway.public).await;
        assert_eq!(answer.unwrap(), Answer::Stream);
        client
    };
    let revoking = async {
        eventually("the backend is asked", PATIENCE, async || {
            let asked = backend.requests();
            if asked == 2 {
                Ok(())
            } else {
                Err(asked.to_string())
            }
        })
        .await;
        backend.answer(|_| status(403));
        redis.connect().await.run("PUBLISH ssegw:revoke anna").await;
        before.until_end().await;
        drop(held);
    };
    let (client, ()) = tokio::join!(connecting, revoking);
    let mut client = client;
    while let Received::Event(event) = in_time("the end", client.next()).await {
        assert_eq!(event.event, "gateway.open");
    }
    let again = client.connect(gateway.public).await.unwrap();
    assert_eq!(again, Answer::Refused(403));
}

/// Breaks when another site's page can read with its visitors' cookies, or when a listed page cannot.
#[tokio::test]
async fn only_pages_of_listed_sites_can_read() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--cors-origins https://*.example.com,http://localhost:3000 --publish-token t";
    let gateway = Gateway::start(&redis, options).await;
    let closed = Gateway::start(&redis, "").await;
    redis.append_end("done", r#"{"data":"x","end":true}"#).await;
    let origin = |name: &str| format!("Origin: {name}\r\n");
    let allowed = |head: &testkit::Head| {
        let origin = head.field("access-control-allow-origin").map(str::to_owned);
        let credentials = head
            .field("access-control-allow-credentials")
            .map(str::to_owned);
        (origin, credentials)
    };
    let yes = |name: &str| (Some(name.to_owned()), Some("true".to_owned()));
    let preflight = async |gateway: &Gateway, name: &str| {
        let head = format!(
            "OPTIONS /events?channel=a HTTP/1.1\r\nHost: localhost\r\n{}Access-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: last-event-id,traceparent,x-requested-with\r\nConnection: close\r\n\r\n",
            origin(name)
        );
        gateway.send(head.as_bytes()).await.unwrap().head
    };
    for name in ["https://app.example.com", "http://localhost:3000"] {
        let viewer = Viewer::open_with(&gateway, "channel=a", &origin(name)).await;
        let head = viewer.client.head().unwrap();
        assert_eq!(allowed(head), yes(name));
        assert!(head.field("vary").unwrap().contains("origin"));
        // A page must also be able to read the end of a channel and an error.
        for target in [
            "/events?channel=done&since=start",
            "/events",
            "/events?channel=a&since=x",
        ] {
            let json = format!("{}Accept: application/json\r\n", origin(name));
            let answer = gateway.get(target, &json).await;
            assert_eq!(allowed(&answer.head), yes(name), "{target}");
        }
        let head = preflight(&gateway, name).await;
        assert_eq!((head.status, allowed(&head)), (200, yes(name)));
        let headers = head.field("access-control-allow-headers").unwrap();
        assert_eq!(headers, "last-event-id,traceparent,x-requested-with");
    }
    // A browser treats 204 without the header as a failed request, and reconnects without end.
    let mut done = Viewer::open_with(
        &gateway,
        "channel=done&since=start",
        &origin("https://app.example.com"),
    )
    .await;
    done.until_end().await;
    let id = done.client.last_event_id();
    let headers = format!(
        "{}Last-Event-ID: {id}\r\n",
        origin("https://app.example.com")
    );
    let answer = gateway.get("/events?channel=done", &headers).await;
    assert_eq!(answer.head.status, 204);
    assert_eq!(allowed(&answer.head), yes("https://app.example.com"));

    for (gateway, name) in [
        (&gateway, "https://example.com.evil.com"),
        (&gateway, "https://evil.com"),
        (&gateway, "null"),
        (&closed, "https://app.example.com"),
    ] {
        let viewer = Viewer::open_with(gateway, "channel=a", &origin(name)).await;
        assert_eq!(allowed(viewer.client.head().unwrap()).0, None, "{name}");
        assert_eq!(allowed(&preflight(gateway, name).await).0, None, "{name}");
    }
    in_time("an end", async { drop(closed) }).await;
}

/// Breaks when the backend does not receive a parameter that it reads, when the cache keeps an answer of any size, or
/// when an invalid answer lets a client in.
#[tokio::test]
async fn parameters_and_answers_of_the_backend_are_bounded() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let backend = Backend::start(|asked| {
        let query = asked.header("x-forwarded-uri").to_owned();
        let long = "x".repeat(257);
        if query.contains("session=anna") {
            status(200)
        } else if query.contains("session=long") {
            with(200, &[("X-SSE-Subject", &long)], "")
        } else if query.contains("session=unknown") {
            with(200, &[("X-SSE-Expires", "60")], "")
        } else {
            status(401)
        }
    })
    .await;
    let config = format!(
        "[forward_auth]\nurl = \"http://{}/\"\nparameters = [\"session\"]\ncache = \"60s\"\n",
        backend.address
    );
    let gateway = Gateway::start_with(&redis, "", &config).await;
    Viewer::open(&gateway, "channel=a&session=anna").await;
    is(
        denied(&gateway, "channel=a&session=ben", "").await,
        401,
        "backend_unauthorized",
    );
    is(
        denied(&gateway, "channel=a&sesion=anna", "").await,
        400,
        "unknown_parameter",
    );
    let json = "Accept: application/json\r\n";
    for session in ["long", "unknown"] {
        is(
            denied(&gateway, &format!("channel=a&session={session}"), json).await,
            503,
            "authorization_unavailable",
        );
    }
    // A small answer is remembered. A large one is requested again.
    for (bytes, again) in [(50, 0), (200, 1)] {
        let names = (0..20).map(|number| format!("channel={number:0bytes$}"));
        let query = names.collect::<Vec<_>>().join("&") + "&session=anna";
        Viewer::open(&gateway, &query).await;
        let asked = backend.requests();
        Viewer::open(&gateway, &query).await;
        assert_eq!(backend.requests(), asked + again, "{bytes}");
    }
}

/// Breaks when a publisher with an empty list of channels may publish.
#[tokio::test]
async fn a_publisher_without_channels_publishes_nothing() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let config = "public_channels = [\"*\"]\n[[publish]]\ntoken = \"none\"\nchannels = []\n";
    let gateway = Gateway::start_with(&redis, "", config).await;
    let none = bearer("none");
    let line = r#"{"channel":"a","data":"x"}"#;
    let batch = format!("{none}Content-Type: application/x-ndjson\r\n");
    let ticket = r#"{"channels":["a"]}"#;
    for (target, headers, body) in [
        ("/events?channel=a", &none, "x"),
        ("/events", &batch, line),
        ("/tickets", &none, ticket),
    ] {
        let answer = gateway.post(target, headers, body).await;
        assert_eq!(refused(&answer, 403), "forbidden_channel", "{target}");
    }
}
