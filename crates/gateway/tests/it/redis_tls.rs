//! Redis over TLS: the traffic, the certificates that the gateway accepts, and its errors for others.

use std::net::Ipv4Addr;

use testkit::lab::free_port;

use crate::support::{
    Dir, Gateway, MASTER, PATIENCE, Redis, Sentinel, Viewer, among_others, certificate, data,
    eventually, recording,
};

/// A Redis with TLS on a port of its own, where it asks for a client certificate.
struct Secured {
    redis: Redis,
    port: u16,
    /// The TLS options of Redis.
    tls: [(&'static str, String); 3],
    server: Dir,
    client: Dir,
}

impl Secured {
    async fn start() -> Self {
        let (server, client) = (Dir::new(), Dir::new());
        let (server_certificate, server_key, of_server) = certificate(&server);
        let (_, _, of_client) = certificate(&client);
        let tls = [
            ("tls-cert-file", server_certificate),
            ("tls-key-file", server_key),
            (
                "tls-ca-cert-file",
                server.write("all.pem", &format!("{of_server}{of_client}")),
            ),
        ];
        let port = free_port(&[Ipv4Addr::LOCALHOST]);
        let mut redis = Redis::stopped(&["--tls-port", &port.to_string()]);
        for (name, value) in &tls {
            redis.add_options(&[&format!("--{name}"), value]);
        }
        redis.restart().await;
        Self {
            redis,
            port,
            tls,
            server,
            client,
        }
    }

    /// Flags that lead there, and accept its certificate.
    fn believing(&self) -> String {
        let ca = self.server.path().join("certificate.pem");
        let url = format!("--redis-url rediss://localhost:{}", self.port);
        format!("{url} --redis-ca {}", ca.display())
    }

    /// The same, and with a client certificate.
    fn options(&self) -> String {
        let file = |name| self.client.path().join(name).display().to_string();
        let [certificate, key] = [file("certificate.pem"), file("key.pem")];
        let believing = self.believing();
        format!("{believing} --redis-certificate {certificate} --redis-key {key}")
    }
}

/// Breaks when a part of the traffic bypasses TLS, or when the gateway does not reconnect over it.
#[tokio::test]
async fn all_traffic_with_redis_uses_tls() {
    let _machine = among_others().await;
    let mut secured = Secured::start().await;
    let options = secured.options();
    let a = Gateway::start(&secured.redis, &format!("{options} --publish-token t")).await;
    let b = Gateway::start(&secured.redis, &options).await;
    recording([&a, &b], 1).await;
    secured.redis.recorders(2).await;
    let mut viewer = Viewer::open(&b, "channel=news").await;
    let start = viewer.open.id.clone();
    // Many TLS records.
    let large = "x".repeat(60_000);
    let mut backend = secured.redis.connect().await;
    assert!(backend.publish("news", &large).await > 0);
    viewer.until(&large).await;
    let bearer = "Authorization: Bearer t\r\n";
    let posted = a.post("/events?channel=news", bearer, "posted").await;
    assert_eq!(posted.head.status, 201, "{}", posted.body);
    viewer.until("posted").await;
    let mut resumed = Viewer::resume(&a, "channel=news", &start).await;
    assert_eq!(data(&resumed.until("posted").await), [&large, "posted"]);

    let port = secured.port;
    let list = backend.run("CLIENT LIST").await.text();
    let others = list.lines().filter(|line| !line.contains(" name=test "));
    let others: Vec<_> = others.collect();
    assert!(others.len() >= 4, "{list}");
    for client in others {
        assert!(client.contains(&format!(":{port} ")), "{client}");
    }
    let mut command = Gateway::command();
    command.args(["revoke", "anna"]).args(options.split(' '));
    let output = command.output().expect("the binary runs");
    let heard = String::from_utf8_lossy(&output.stdout);
    assert_eq!(heard, "received by 2 replicas\n", "{output:?}");

    secured.redis.stop().await;
    secured.redis.restart().await;
    a.ready().await;
    b.ready().await;
    recording([&a, &b], 1).await;
    secured.redis.append("news", "after").await;
    viewer.until("after").await;
}

/// Breaks when a Redis is accepted although the handshake does not complete, or when the log has no reason for a
/// missing connection.
#[tokio::test]
async fn failures_of_tls_are_logged() {
    let _machine = among_others().await;
    let secured = Secured::start().await;
    let stranger = Dir::new();
    let (stranger, _, _) = certificate(&stranger);
    let url = format!("--redis-url rediss://localhost:{}", secured.port);
    let by_address = secured.options().replace("localhost", "127.0.0.1");
    for (options, said) in [
        (secured.believing(), "CertificateRequired"),
        (format!("{url} --redis-ca {stranger}"), "UnknownIssuer"),
        (by_address, "certificate not valid for name"),
        (
            format!(
                "--redis-url rediss://localhost:{}",
                secured.redis.address().port()
            ),
            "timed out",
        ),
        (
            format!("--redis-url redis://localhost:{}", secured.port),
            "reset by peer",
        ),
    ] {
        let mut gateway = Gateway::start_unready(&secured.redis, &options, "").await;
        eventually(said, PATIENCE, async || {
            let log = gateway.process().log();
            if log.contains(said) { Ok(()) } else { Err(log) }
        })
        .await;
        gateway.readiness(503).await;
    }
}

/// Breaks when renewed certificates need a restart of the gateway, which would cut its streams.
#[tokio::test]
async fn renewed_certificates_are_read_at_a_reload() {
    let _machine = among_others().await;
    let mut secured = Secured::start().await;
    let options = secured.options();
    let mut gateway = Gateway::start(&secured.redis, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;

    secured.redis.stop().await;
    let (_, _, of_server) = certificate(&secured.server);
    let (_, _, of_client) = certificate(&secured.client);
    let both = format!("{of_server}{of_client}");
    secured.server.write("all.pem", &both);
    secured.redis.restart().await;
    gateway.readiness(503).await;
    gateway.process().signal("HUP");
    gateway.ready().await;
    recording([&gateway], 1).await;
    secured.redis.append("news", "renewed").await;
    viewer.until("renewed").await;
}

/// Breaks when sentinels are not used over TLS, or when the master's certificate is not compared with the name that
/// they announce.
#[tokio::test]
async fn sentinels_are_used_over_tls() {
    let _machine = among_others().await;
    let secured = Secured::start().await;
    let lines = secured.tls.each_ref();
    let lines = lines.map(|(name, value)| format!("{name} {value}"));
    let sentinel = Sentinel::start_with_tls(secured.port, 1, &lines.join("\n")).await;
    let port = sentinel.address.port();
    let url = format!("rediss://localhost:{}", secured.port);
    let options = secured
        .options()
        .replace(&url, &format!("rediss://{MASTER}"));
    let options = format!("{options} --redis-sentinels rediss://localhost:{port}");
    let gateway = Gateway::start(&secured.redis, &options).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut backend = secured.redis.connect().await;
    assert!(backend.publish("news", "raw").await > 0);
    viewer.until("raw").await;
}
