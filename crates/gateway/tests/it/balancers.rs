//! Load balancers with their files in `deploy`, while one of two replicas dies or drains.

use std::net::SocketAddr;

use testkit::{Answer, Client, Received};

use crate::support::{
    Balancer, Gateway, Kind, PATIENCE, Place, Redis, Viewer, among_others, eventually, in_time,
};

/// With rare heartbeats, because a failure has to be noticed without them.
const OPTIONS: &str = "--publish-token t --heartbeat 1m --drain-window 2s";

#[tokio::test]
async fn one_of_two_replicas_is_enough_behind_haproxy() {
    one_of_two_is_enough(Kind::HaProxy).await;
}

#[tokio::test]
async fn one_of_two_replicas_is_enough_behind_nginx() {
    one_of_two_is_enough(Kind::Nginx).await;
}

#[tokio::test]
async fn one_of_two_replicas_is_enough_behind_caddy() {
    one_of_two_is_enough(Kind::Caddy).await;
}

#[tokio::test]
async fn one_of_two_replicas_is_enough_behind_envoy() {
    one_of_two_is_enough(Kind::Envoy).await;
}

/// Breaks when a replica does not notice that a client has left. Breaks when the balancer answers for a dead or
/// draining replica although another one is ready. Breaks when a publish fails for longer than the balancer needs to
/// notice.
async fn one_of_two_is_enough(kind: Kind) {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let places = Place::some::<2>();
    let a = places[0].start(&redis, OPTIONS).await;
    let b = places[1].start(&redis, OPTIONS).await;
    let balancer = Balancer::start(kind, &places, &[b.admin]).await;
    let viewers = both_serve(balancer.public, [&a, &b]).await;
    drop(viewers);
    eventually(
        "both have noticed that clients left",
        PATIENCE,
        async || match [streams(&a).await, streams(&b).await] {
            [0.0, 0.0] => Ok(()),
            open => Err(format!("{open:?}")),
        },
    )
    .await;

    a.kill();
    // The balancer has not yet noticed that this replica is dead.
    let failed = publishes(balancer.public).await;
    assert!(failed.len() <= 3, "{failed:?}");
    let opened = opens(balancer.public).await;
    assert!(opened >= 15, "{opened} of 20");

    let mut a = places[0].start(&redis, OPTIONS).await;
    let _viewers = both_serve(balancer.public, [&a, &b]).await;
    a.process().signal("TERM");
    let opened = opens(balancer.public).await;
    assert!(opened >= 15, "{opened} of 20");
}

async fn streams(gateway: &Gateway) -> f64 {
    gateway.metrics().await.sum("sse_gateway_streams")
}

/// Opens streams until each replica has one.
async fn both_serve(balancer: SocketAddr, replicas: [&Gateway; 2]) -> Vec<Viewer> {
    let mut viewers = Vec::new();
    eventually("both replicas serve", PATIENCE, async || {
        let client = Client::new("/events?channel=a".to_owned());
        viewers.push(Viewer::over(balancer, client).await);
        let open = [streams(replicas[0]).await, streams(replicas[1]).await];
        match open.iter().all(|count| *count > 0.0) {
            true => Ok(()),
            false => Err(format!("{open:?}")),
        }
    })
    .await;
    viewers
}

/// Opens twenty streams, one after the other, and returns how many of them a replica serves. The others only receive a
/// time to reconnect, and none is refused.
async fn opens(balancer: SocketAddr) -> usize {
    let mut opened = 0;
    for _ in 0..20 {
        let mut client = Client::new("/events?channel=a".to_owned());
        let answer = in_time("an answer", client.connect(balancer)).await;
        assert_eq!(answer.expect("an answer"), Answer::Stream);
        let first = in_time("a beginning or an end", client.next()).await;
        opened += usize::from(matches!(first, Received::Event(_)));
    }
    opened
}

/// Publishes twenty times, and returns the failures.
async fn publishes(balancer: SocketAddr) -> Vec<String> {
    let mut failed = Vec::new();
    for number in 0..20 {
        let request = format!(
            "POST /events?channel=a HTTP/1.1\r\nHost: {balancer}\r\nAuthorization: Bearer t\r\nConnection: close\r\n\
             Content-Length: 2\r\n\r\n{number:02}"
        );
        let answer = in_time("an answer", testkit::request(balancer, request.as_bytes())).await;
        let answer = answer.expect("an answer");
        if answer.head.status != 201 {
            failed.push(format!("{answer:?}"));
        }
    }
    failed
}
