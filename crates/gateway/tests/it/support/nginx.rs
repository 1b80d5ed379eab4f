//! nginx in front of a gateway, configured by a test.

use std::{net::SocketAddr, process::Command};

use super::{Dir, Gateway, Process, balancer::listening};

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx {
    pub(crate) public: SocketAddr,
    _process: Process,
    /// Keeps its configuration and temporary files.
    _dir: Dir,
}

impl Nginx {
    /// Starts nginx, which passes everything on to `gateway`, with these lines in its `location`.
    pub(crate) async fn before(gateway: &Gateway, lines: &str) -> Self {
        let dir = Dir::new();
        let upstream = gateway.public;
        let (public, process) = listening("nginx", |public| {
            let config = dir.write(
                "nginx.conf",
                &format!(
                    "daemon off; pid nginx.pid; worker_processes 1; error_log stderr;\n\
                     events {{}}\n\
                     http {{\n\
                         access_log off;\n\
                         server {{ listen {public}; location / {{ proxy_pass http://{upstream}; {lines} }} }}\n\
                     }}\n"
                ),
            );
            let mut command = Command::new("nginx");
            command.arg("-p").arg(dir.path()).args(["-c", &config]);
            command.args(["-e", "stderr"]);
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
