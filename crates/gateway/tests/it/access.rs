//! Who may read what: tokens, tickets, the backend's word; and that nobody else may.

use std::{collections::BTreeSet, process::Command, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use loadtest::{Answer, Client, End, Received, Response};
use serde_json::{Value, json};
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

/// What a request that must not be answered with a stream is refused with.
async fn denied(gateway: &Gateway, query: &str, headers: &str) -> (u16, String) {
    let answer = gateway.get(&format!("/events?{query}"), headers).await;
    let status = answer.head.status;
    (status, refused(&answer, status))
}

fn is((answered, told): (u16, String), status: u16, code: &str) {
    assert_eq!((answered, told), (status, code.to_owned()));
}

/// Breaks when something is readable that no rule allows, by whichever way in, or when one channel
/// that is allowed opens another.
#[tokio::test]
async fn nothing_is_readable_that_no_rule_allows() {
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
        // A bad token does not take away what is everybody's.
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

/// Breaks when a client is given a byte of a channel that its token does not name: live, from
/// history, after it changes its channels under the same id, or in gaps.
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
    // Enough to be trimmed, so that there are gaps to tell, on both sides.
    for number in 0..300 {
        for channel in ["a.1", "b.1", "a.2", "b.2"] {
            redis.append(channel, &format!("{channel} {number}")).await;
        }
    }
    redis.append("a.1", "last").await;
    let seen = live.until("last").await;
    assert_eq!(seen.len(), 601);
    // One that has to read history.
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
        // The same id, another channel.
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

/// Breaks when a token is taken that is not good, or when it is not told what is wrong with it.
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
        // A key has one name here: none.
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
    // The public key, which everybody knows, taken for a shared secret.
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
        // Good, but for its size.
        (but("more", json!("x".repeat(9000))), "token_malformed"),
    ];
    for (token, code) in cases {
        let answer = gateway.get("/events?channel=a", &bearer(&token)).await;
        assert_eq!(refused(&answer, 401), code, "{token}");
        let challenge = answer.head.field("www-authenticate").unwrap();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        // Not in what is said of it, either.
        assert!(token.len() < 10 || !answer.body.contains(&token));
    }
    // A token that is for somebody is not for who does not know his own name.
    let config = with_key(&dir, RSA[1], "");
    let nameless = Gateway::start_with(&redis, "", &config).await;
    let token = sign(Algorithm::RS256, RSA[0]);
    is(
        denied(&nameless, "channel=a", &bearer(&token)).await,
        401,
        "token_audience",
    );
    // Whatever type the audience has.
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

/// Breaks when an algorithm that is promised is not taken, or a key of one kind takes another's.
#[tokio::test]
async fn every_algorithm_is_taken_with_its_own_key_alone() {
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

/// Breaks when a token is not found where it may stand, or is found where it may not.
#[tokio::test]
async fn a_token_comes_in_a_header_a_cookie_or_the_url() {
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
    // The first that there is counts, and no other saves it.
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

    // What another site's page could make a browser send is not enough to publish.
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

/// Breaks when what opens something is written down where others read it.
#[tokio::test]
async fn no_secret_gets_into_a_log() {
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
    // Nor does a load balancer in front write them down, whether a replica answers or not.
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
                // Caddy sorts them. Envoy leaves all of them out.
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
    assert!(log.contains("TRACE"), "there is no log to look at");
    for secret in [&*good, "publish-5113", SECRET, &ticket] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}

/// Breaks when a rotation of keys needs a restart, locks out who has a good token, or lets in who
/// has not.
#[tokio::test]
async fn keys_rotate_without_a_restart() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let old = signed(Algorithm::RS256, RSA[0], Some("old"), &claims(&["a"]));
    let new = signed(Algorithm::ES256, P256[0], Some("new"), &claims(&["a"]));
    // The new key under the old one's name is not the old one.
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
    // Of one key everybody knows which is meant.
    Viewer::open_with(&gateway, "channel=a", &bearer(&unnamed)).await;
    is(
        denied(&gateway, "channel=a", &bearer(&forged)).await,
        401,
        "token_algorithm",
    );

    // An issuer is not asked again for each token that somebody made up: whether it has a new key is
    // found out a little later.
    for _ in 0..20 {
        let answer = json_page(&gateway, &bearer(&new)).await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
        come_back(&gateway.get("/events?channel=a", &bearer(&new)).await);
    }
    assert!(issuer.requests() < 8, "asked {} times", issuer.requests());

    issuer.answer(move |_| with(200, &[], &both));
    eventually("the new key is taken", PATIENCE, async || {
        let answer = json_page(&gateway, &bearer(&new)).await;
        if answer.head.status == 200 {
            Ok(())
        } else {
            Err(answer.body)
        }
    })
    .await;
    Viewer::open_with(&gateway, "channel=a", &bearer(&old)).await;

    // A key that the issuer does not have either is no key, once it has been asked.
    let unknown = signed(Algorithm::RS256, RSA2[0], Some("other"), &claims(&["a"]));
    eventually(
        "it is told that there is no such key",
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

    // While the issuer is away the keys that are known stay good.
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
    eventually("the other key is taken", PATIENCE, async || {
        let answer = json_page(&gateway, &bearer(&unknown)).await;
        if answer.head.status == 200 {
            Ok(())
        } else {
            Err(answer.body)
        }
    })
    .await;
    // The one that went is not.
    let answer = json_page(&gateway, &bearer(&new)).await;
    assert_ne!(answer.head.status, 200);
    // Which of the two would it be?
    let answer = json_page(&gateway, &bearer(&unnamed)).await;
    assert_ne!(answer.head.status, 200);
}

async fn json_page(gateway: &Gateway, headers: &str) -> Response {
    let headers = format!("{headers}Accept: application/json\r\n");
    gateway.get("/events?channel=a", &headers).await
}

/// Breaks when an issuer that cannot be reached lets anybody in, or makes an EventSource give up.
#[tokio::test]
async fn without_keys_nobody_is_let_in() {
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

/// An answer that an EventSource comes back after: nothing but when to, and a comment that says why.
fn come_back(answer: &Response) {
    assert_eq!(answer.head.status, 200, "{}", answer.body);
    assert_eq!(
        answer.head.field("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let retry = answer
        .body
        .strip_prefix("retry:")
        .expect("a time to come back");
    let (retry, why) = retry.split_once('\n').expect("a line");
    let retry: u64 = retry.trim().parse().expect("nothing but a number");
    assert!((1000..60_000).contains(&retry), "{retry}");
    let is_comment = why.starts_with(": ") && why.lines().count() == 1;
    assert!(is_comment, "{why:?}");
}

/// Breaks when a file with a new key is not read, or one that cannot be read takes the old key away.
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
    eventually("the new key is taken", 2 * PATIENCE, async || {
        let answer = json_page(&gateway, &new).await;
        if answer.head.status == 200 {
            return Ok(());
        }
        if !written {
            // Still good, for the file is not.
            assert_eq!(json_page(&gateway, &old).await.head.status, 200);
            dir.write(&name, &set);
            written = true;
        }
        Err(answer.body)
    })
    .await;
    // The answer is that for an algorithm that no key has.
    assert_eq!(json_page(&gateway, &old).await.head.status, 401);
}

/// Breaks when a stream outlives its token, or ends so that a page does not come back.
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
    // With a new token it goes on where it was.
    brief.client.set_headers(bearer(&token(&claims(&["a"]))));
    let mut again = Viewer::over(gateway.public, brief.client).await;
    assert_eq!(again.event().await.data, "after");
    let closed = gateway.metrics().await;
    assert_eq!(closed.labelled("sse_gateway_closed_total", "expired"), 1.0);
}

/// Breaks when somebody who was put out stays on some replica, or others go with them.
#[tokio::test]
async fn a_revoked_subject_is_put_out_everywhere() {
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
    // Each time with a channel of its own: nothing of the one before is still on its way.
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
                "heard by 2 replicas\n"
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
    // A token cannot be for a subject that is too long to be revoked.
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

/// Breaks when a ticket is good for more than one connection, for longer than it should be, or for
/// more than who asked for it may hand out.
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
        // It is used up whatever was asked of it.
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
    // It says whose it is.
    redis.connect().await.run("PUBLISH ssegw:revoke anna").await;
    viewer.until_end().await;

    // Of many who come with it, one is let in.
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

    // It ends with the token, or before.
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
    // Whoever only looks does not use it up.
    let one = ticket(&a.post("/tickets", &anna, "").await);
    let head = format!(
        "HEAD /events?channel=b&ticket={one} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(a.send(head.as_bytes()).await.unwrap().head.status, 401);
    Viewer::open(&a, &format!("channel=b&ticket={one}")).await;
    // Nobody may name a key of Redis.
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

/// Breaks when the backend's no is not one, its yes says more than it does, or its silence lets
/// anybody in.
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
    // A plain yes is one to what was asked.
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
        "what is public is nobody's business"
    );
    let (_, end) = anna.until_end().await;
    assert_eq!(end, End::Whole, "it has expired");

    // What is neither yes nor no.
    for name in ["broken", "moved", "500"] {
        let answer = gateway.get("/events?channel=b", &user(name)).await;
        come_back(&answer);
        let headers = format!("{}Accept: application/json\r\n", user(name));
        let answer = gateway.get("/events?channel=b", &headers).await;
        assert_eq!(refused(&answer, 503), "authorization_unavailable");
    }

    // Asked once for the same, and again for anything else.
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

    // It is told what it has to know, and by us alone.
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

    // What was said of somebody who is put out is not believed any more.
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

/// Breaks when what the backend said before somebody was put out is believed after.
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
        eventually("the backend says yes", PATIENCE, async || {
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

/// Breaks when another site's page may read with its visitors' cookies, or one that is listed may
/// not.
#[tokio::test]
async fn pages_of_listed_sites_may_read_and_no_others() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let options = "--cors-origins https://*.example.com,http://localhost:3000 --publish-token t";
    let gateway = Gateway::start(&redis, options).await;
    let closed = Gateway::start(&redis, "").await;
    redis.append("done", r#"{"data":"x","end":true}"#).await;
    let origin = |name: &str| format!("Origin: {name}\r\n");
    let allowed = |head: &loadtest::Head| {
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
        // The end and a mistake have to be read, too.
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
    // 204 without the header would be a failed request, after which a browser comes back for ever.
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

/// Breaks when the backend does not receive a parameter that it reads, when an answer of any size is kept, or when an
/// invalid answer lets a client in.
#[tokio::test]
async fn what_the_backend_reads_and_says_is_bounded() {
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
    // A small answer is remembered, a large one is asked for again.
    for (bytes, again) in [(50, 0), (200, 1)] {
        let names = (0..20).map(|number| format!("channel={number:0bytes$}"));
        let query = names.collect::<Vec<_>>().join("&") + "&session=anna";
        Viewer::open(&gateway, &query).await;
        let asked = backend.requests();
        Viewer::open(&gateway, &query).await;
        assert_eq!(backend.requests(), asked + again, "{bytes}");
    }
}

/// Breaks when an empty list of channels allows a publisher anything.
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
