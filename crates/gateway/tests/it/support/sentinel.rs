//! A real sentinel.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use loadtest::lab::free_port;
use tokio::net::TcpStream;

use super::{Dir, PATIENCE, Process, eventually};

/// What sentinels call the master.
pub(crate) const MASTER: &str = "events";

/// A sentinel that listens on a port of its own, and ends with this.
pub(crate) struct Sentinel {
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
    _dir: Dir,
}

impl Sentinel {
    /// One that watches [`MASTER`] there, which so many have to agree is down, with more lines of configuration.
    pub(crate) async fn start(master: SocketAddr, quorum: u32, lines: &str) -> Self {
        let monitor = format!("{} {}", master.ip(), master.port());
        Self::on("port", &monitor, quorum, lines).await
    }

    /// The same over TLS, to a master that is known by its host name.
    pub(crate) async fn start_with_tls(port: u16, quorum: u32, lines: &str) -> Self {
        let names =
            "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\ntls-replication yes";
        let lines = format!("port 0\n{lines}");
        let monitor = format!("localhost {port}");
        Self::on(&format!("{names}\ntls-port"), &monitor, quorum, &lines).await
    }

    async fn on(port_is: &str, monitor: &str, quorum: u32, lines: &str) -> Self {
        let port = free_port(&[Ipv4Addr::LOCALHOST]);
        let dir = Dir::new();
        let config = format!(
            "{port_is} {port}\nbind 127.0.0.1\ndir {}\n\
             sentinel monitor {MASTER} {monitor} {quorum}\n{lines}\n",
            dir.path().display()
        );
        // It writes into this what it learns.
        let config = dir.write("sentinel.conf", &config);
        let mut command = Command::new("redis-server");
        command.args([&config, "--sentinel"]);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let process = Process::start("sentinel", &mut command);
        eventually("a sentinel listens", PATIENCE, async || {
            let connected = TcpStream::connect(address).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Self {
            address,
            process,
            _dir: dir,
        }
    }
}
