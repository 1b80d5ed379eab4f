//! HAProxy as it is deployed, with `deploy/haproxy.cfg`.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::{Dir, Gateway, PATIENCE, Process, eventually};

const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/haproxy.cfg");

/// A running HAProxy: `/events` goes to the gateways, the rest to a web site, so that the pages of
/// the site and their streams have one origin.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) public: SocketAddr,
    process: Process,
    /// Holds the rest of the configuration and the control socket.
    dir: Dir,
}

impl Proxy {
    pub(crate) async fn start(gateways: impl Iterator<Item = &Gateway>, site: SocketAddr) -> Self {
        let dir = Dir::new();
        let control = dir.path().join("control");
        let mut rest = format!(
            "global\n    stats socket {} level admin\n\
             backend site from web\n    server page {site}\n\
             backend gateway from replicas\n",
            control.display()
        );
        for (slot, gateway) in gateways.enumerate() {
            let (public, admin) = (gateway.public, gateway.admin.port());
            rest += &format!("    server gateway{slot} {public} port {admin}\n");
        }
        let rest = dir.write("rest.cfg", &rest);
        let (public, process) = listening("haproxy", |public| {
            let mut command = Command::new("haproxy");
            command
                .args(["-db", "-f", CONFIGURATION, "-f", &rest])
                .env("SSE_BIND", public.to_string())
                .env("SSE_STATS_BIND", free_address().to_string())
                .env("SSE_SITE", "site");
            command
        })
        .await;
        Self {
            public,
            process,
            dir,
        }
    }

    /// Makes `gateway` the one that is reached through a slot, in the place of a dead one.
    pub(crate) async fn point(&self, slot: usize, gateway: &Gateway) {
        let server = format!("set server gateway/gateway{slot}");
        let (ip, port) = (gateway.public.ip(), gateway.public.port());
        self.tell(&format!("{server} addr {ip} port {port}")).await;
        self.tell(&format!("{server} check-port {}", gateway.admin.port()))
            .await;
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn tell(&self, command: &str) {
        let control = self.dir.path().join("control");
        let answer = converse(&control, command).await;
        let answer = answer.expect("HAProxy answers on its control socket");
        // What it says of a success differs between versions, if it says anything.
        let fine = ["changed", "updated"].map(|word| answer.contains(word));
        let fine = fine.contains(&true) || answer.trim().is_empty();
        assert!(fine, "{command}: {answer}");
    }
}

async fn converse(control: &Path, command: &str) -> std::io::Result<String> {
    let mut socket = UnixStream::connect(control).await?;
    socket.write_all(format!("{command}\n").as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Starts a server that cannot be asked to choose a free port. One that was free a moment ago may be
/// taken now, in which case it ends at once, and is given another.
pub(super) async fn listening(
    name: &str,
    mut command: impl FnMut(SocketAddr) -> Command,
) -> (SocketAddr, Process) {
    let what = format!("{name} listens");
    loop {
        let public = free_address();
        let mut process = Process::start(name, &mut command(public));
        let started = eventually(&what, PATIENCE, async || {
            if process.exited().is_some() {
                let log = process.log();
                assert!(log.contains("in use"), "{name} does not start:\n{log}");
                return Ok(false);
            }
            let connected = TcpStream::connect(public).await;
            connected.map(|_| true).map_err(|error| error.to_string())
        });
        if started.await {
            return (public, process);
        }
    }
}

fn free_address() -> SocketAddr {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(any).and_then(|listener| listener.local_addr());
    listener.expect("a free port")
}
