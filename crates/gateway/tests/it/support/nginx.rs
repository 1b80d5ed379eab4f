//! nginx in front of a gateway, configured as a test says.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
};

use tokio::net::TcpStream;

use super::{Dir, Gateway, PATIENCE, Process, eventually};

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx {
    pub(crate) public: SocketAddr,
    _process: Process,
    /// Holds its configuration and temporary files.
    _dir: Dir,
}

impl Nginx {
    /// One that passes everything on to `gateway`, with these lines in its `location`.
    pub(crate) async fn before(gateway: &Gateway, lines: &str) -> Self {
        // It cannot be asked to choose a free port. One that was free a moment ago may be taken now,
        // in which case it ends, and is given another.
        loop {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let public = TcpListener::bind(any).and_then(|listener| listener.local_addr());
            let public = public.expect("a free port");
            let dir = Dir::new();
            let upstream = gateway.public;
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
            let mut process = Process::start("nginx", &mut command);
            let started = eventually("nginx listens", PATIENCE, async || {
                if process.exited().is_some() {
                    let log = process.log();
                    assert!(log.contains("in use"), "nginx does not start:\n{log}");
                    return Ok(false);
                }
                let connected = TcpStream::connect(public).await;
                connected.map(|_| true).map_err(|error| error.to_string())
            });
            if started.await {
                return Self {
                    public,
                    _process: process,
                    _dir: dir,
                };
            }
        }
    }
}
