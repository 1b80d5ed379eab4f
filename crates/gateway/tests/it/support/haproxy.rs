//! HAProxy without the settings in `deploy`.

use std::{net::SocketAddr, process::Command};

use super::{Dir, Process, balancer::listening};

/// A running HAProxy.
#[derive(Debug)]
pub(crate) struct HaProxy {
    pub(crate) public: SocketAddr,
    _process: Process,
    /// Keeps its configuration.
    _dir: Dir,
}

impl HaProxy {
    /// Starts HAProxy, which sends requests to these servers in turn. It asks no other server if one is gone. `options`
    /// are those of each server.
    pub(crate) async fn before(servers: &[SocketAddr], options: &str) -> Self {
        let dir = Dir::new();
        let servers: String = servers
            .iter()
            .map(|server| {
                let port = server.port();
                format!("    server replica{port} {server} {options}\n")
            })
            .collect();
        let (public, process) = listening("haproxy", |public| {
            let config = format!(
                "global\n    fd-hard-limit 1000\n\
                 defaults\n    mode http\n    timeout connect 2s\n    timeout client 60s\n    timeout server 60s\n    \
                 retries 0\n\
                 frontend public\n    bind {public}\n    default_backend replicas\n\
                 backend replicas\n    balance roundrobin\n{servers}"
            );
            let mut command = Command::new("haproxy");
            command.args(["-db", "-f", &dir.write("haproxy.cfg", &config)]);
            command
        })
        .await;
        Self {
            public,
            _process: process,
            _dir: dir,
        }
    }
}
