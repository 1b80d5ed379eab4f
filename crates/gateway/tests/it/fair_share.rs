//! One client takes what it can get; the others get what they need.

use serde_json::json;

use crate::support::{
    Gateway, Redis, Viewer, among_others, refused,
    tokens::{bearer, claims, in_seconds, token, with_secret},
};

/// Channels' names, so many of so many bytes.
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

/// Breaks when somebody who may only read can fill Redis with tickets, or when others are refused one because of it.
#[tokio::test]
async fn a_subject_is_issued_so_many_tickets_and_others_get_theirs() {
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
    // Another token of hers is no other subject.
    let again = bearer(&token(&claims(&["b"])));
    for headers in [&anna, &again] {
        let answer = issue(headers, "").await;
        assert_eq!(refused(&answer, 429), "max_tickets");
        let wait = answer.head.field("retry-after").expect("when to come back");
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
    // A large ticket is several, and one that is too large is none.
    let large = json!({ "channels": names(20, 200) }).to_string();
    assert_eq!(issue(&of("ben"), &large).await.head.status, 201);
    assert_eq!(refused(&issue(&of("ben"), "").await, 429), "max_tickets");
    let huge = json!({ "channels": names(100, 200) }).to_string();
    let answer = issue(&of("clara"), &huge).await;
    assert_eq!(refused(&answer, 400), "bad_ticket_request");
    assert_eq!(issue(&of("clara"), "").await.head.status, 201);
    // Tokens without a subject are not all one.
    for channel in ["a", "b"] {
        let nobody = json!({ "exp": in_seconds(600), "subscribe": [channel] });
        let nobody = bearer(&token(&nobody));
        for _ in 0..5 {
            assert_eq!(issue(&nobody, "").await.head.status, 201);
        }
        assert_eq!(refused(&issue(&nobody, "").await, 429), "max_tickets");
    }
    assert_eq!(tickets(&redis).await, 17);
    // A backend hands out tickets for everybody.
    for _ in 0..10 {
        let wanted = r#"{"channels":["a"],"subject":"anna"}"#;
        assert_eq!(issue(&bearer("backend"), wanted).await.head.status, 201);
    }
    Viewer::open_with(&gateway, "channel=a", &anna).await;
}
