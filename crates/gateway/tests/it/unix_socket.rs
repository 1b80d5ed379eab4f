//! Unix sockets: a balancer on the same machine connects over one.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use testkit::{Client, lab::Metrics};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::support::{
    Balancer, Dir, Gateway, PATIENCE, Process, Redis, Viewer, among_others, eventually, in_time,
};

/// A replica on a Unix socket.
struct Replica {
    process: Process,
    socket: PathBuf,
    admin: std::net::SocketAddr,
}

fn start(redis: &Redis, dir: &Dir, options: &str) -> Process {
    let socket = dir.path().join("public.sock");
    let mut command = Gateway::command();
    command
        .arg("--listen")
        .arg(format!("unix:{}", socket.display()));
    command.args(["--admin-listen", "127.0.0.1:0", "--workers", "2"]);
    command.args(["--redis-url", &redis.url(), "--public-channels", "*"]);
    command.args(options.split_whitespace());
    Process::start("sse-gateway", &mut command)
}

impl Replica {
    async fn start(redis: &Redis, dir: &Dir, options: &str) -> Self {
        let process = start(redis, dir, options);
        let socket = dir.path().join("public.sock");
        let admin = eventually("the replica listens", PATIENCE, async || {
            let output = process.output();
            let public = format!("public unix:{}\n", socket.display());
            let admin = output
                .lines()
                .find_map(|line| line.strip_prefix("admin http://"));
            match admin.filter(|_| output.contains(&public)) {
                Some(admin) => Ok(admin.parse().expect("an address")),
                None => Err(format!("{output:?}\n{}", process.log())),
            }
        })
        .await;
        eventually(
            "the replica is ready",
            PATIENCE,
            async || match Gateway::is_ready(admin).await {
                true => Ok(()),
                false => Err("it is not".to_owned()),
            },
        )
        .await;
        Self {
            process,
            socket,
            admin,
        }
    }

    async fn metrics(&self) -> Metrics {
        Gateway::metrics_of(self.admin).await.expect("it answers")
    }

    /// The beginning of the answer to this client's request for a stream. The connection stays open.
    async fn stream_of(&self, client: &str) -> (UnixStream, String) {
        let mut socket = UnixStream::connect(&self.socket)
            .await
            .expect("the replica listens");
        let request = format!(
            "GET /events?channel=a HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {client}\r\n\r\n"
        );
        socket
            .write_all(request.as_bytes())
            .await
            .expect("it reads");
        let mut answer = Vec::new();
        in_time("the beginning of a stream", async {
            let is_read = |answer: &[u8]| {
                let answer = String::from_utf8_lossy(answer);
                answer.contains("gateway.open") || answer.contains("max_streams_per_address")
            };
            while !is_read(&answer) {
                assert_ne!(socket.read_buf(&mut answer).await.expect("it writes"), 0);
            }
        })
        .await;
        (socket, String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Breaks when a stream over a Unix socket is different, or when all its clients count as one.
#[tokio::test]
async fn a_balancer_connects_over_a_unix_socket() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let options = "--max-streams-per-address 1 --canary-interval 100ms --drain-delay 0s";
    let mut replica = Replica::start(&redis, &dir, options).await;
    let mode = replica.socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    // Each client counts by the address that the balancer names.
    let (_first, answer) = replica.stream_of("192.0.2.1").await;
    assert!(answer.contains("gateway.open"), "{answer}");
    let (_refused, answer) = replica.stream_of("192.0.2.1").await;
    assert!(answer.contains("max_streams_per_address"), "{answer}");
    let (_second, answer) = replica.stream_of("192.0.2.2").await;
    assert!(answer.contains("gateway.open"), "{answer}");

    for balancer in Balancer::of_socket(&replica.socket, replica.admin).await {
        let mut viewer = Viewer::over(balancer.public, Client::new("/events?channel=a")).await;
        let large = "x".repeat(900_000);
        for text in ["one", &large, "two"] {
            redis.append("a", text).await;
        }
        let events = viewer.until("two").await;
        assert!(
            events.iter().any(|event| event.data == large),
            "{balancer:?}"
        );
    }
    eventually("the canary returns", PATIENCE, async || {
        match replica
            .metrics()
            .await
            .sum("sse_gateway_canary_received_total")
        {
            0.0 => Err("nothing".to_owned()),
            _ => Ok(()),
        }
    })
    .await;

    replica.process.signal("TERM");
    assert!(
        replica
            .process
            .exit_within(Duration::from_secs(30))
            .await
            .success()
    );
    assert!(!replica.socket.exists());
}

/// Breaks when the socket of a killed replica prevents the next one from starting, or when a replica takes the socket
/// of a running one.
#[tokio::test]
async fn a_unix_socket_belongs_to_one_replica() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let dir = Dir::new();
    let mut replica = Replica::start(&redis, &dir, "").await;
    let mut other = start(&redis, &dir, "");
    assert!(!other.exit().await.success());
    let log = other.log();
    assert!(log.contains("public.sock: Address already in use"), "{log}");
    let (_stream, _) = replica.stream_of("192.0.2.1").await;

    replica.process.kill();
    assert!(replica.socket.exists());
    let replica = Replica::start(&redis, &dir, "").await;
    let (_stream, answer) = replica.stream_of("192.0.2.1").await;
    assert!(answer.contains("gateway.open"), "{answer}");

    // A file that is no socket is never removed.
    let dir = Dir::new();
    dir.write("public.sock", "precious");
    let mut other = start(&redis, &dir, "");
    assert!(!other.exit().await.success());
    assert!(dir.path().join("public.sock").exists());
}
