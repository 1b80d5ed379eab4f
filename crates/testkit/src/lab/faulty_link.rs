//! The network between a gateway and its Redis, which can become silent, slow or unreachable.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};

/// Forwards bytes in both directions of each connection.
#[derive(Debug)]
pub struct FaultyLink {
    /// The end that the gateway connects to.
    pub address: SocketAddr,
    state: watch::Sender<State>,
}

/// The state of the link.
#[derive(Clone, Debug)]
struct State {
    /// The server of new connections.
    server: SocketAddr,
    /// Connections of an earlier age are silent: they are open, but no bytes pass.
    age: u64,
    /// New connections are silent as well.
    silent: bool,
    /// No bytes pass, and all connections are closed.
    cut: bool,
    /// No bytes are read, so data fills the sender's buffers.
    held: bool,
    /// Bytes are forwarded after this delay.
    delay: Duration,
}

impl FaultyLink {
    /// A link to this server.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (state, current) = watch::channel(State {
            server,
            age: 0,
            silent: false,
            cut: false,
            held: false,
            delay: Duration::ZERO,
        });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, current.clone()));
            }
        });
        Self { address, state }
    }

    /// The address of the link as a gateway's `--redis-url`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Like an address that moves to another machine: new connections reach `server`, existing ones stay where they
    /// are.
    pub fn redirect_to(&self, server: SocketAddr) {
        self.state.send_modify(|state| state.server = server);
    }

    /// Like a firewall that forgets its connections: existing ones become silent forever, but stay open. New ones work.
    pub fn go_silent(&self) {
        self.state.send_modify(|state| state.age += 1);
    }

    /// Like a network that drops all packets: existing connections become silent forever. Connections that are made
    /// before `restore` open, but are silent too.
    pub fn drop_everything(&self) {
        self.state.send_modify(|state| {
            state.age += 1;
            state.silent = true;
        });
    }

    /// Closes all connections, and each new one, until `restore`.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cut = true);
    }

    /// Reads nothing from either side until `restore`.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.held = true);
    }

    /// Forwards bytes with this delay until `restore`.
    pub fn slow_down(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Works as before.
    pub fn restore(&self) {
        self.state.send_modify(|state| {
            // Connections that were made during the silence stay silent.
            state.age += u64::from(state.silent);
            state.silent = false;
            state.cut = false;
            state.held = false;
            state.delay = Duration::ZERO;
        });
    }
}

async fn connection(client: TcpStream, state: watch::Receiver<State>) {
    let now = state.borrow().clone();
    if now.cut {
        return;
    }
    let Ok(server) = TcpStream::connect(now.server).await else {
        return;
    };
    // Commands are small, and each waits for its answer.
    for socket in [&client, &server] {
        if socket.set_nodelay(true).is_err() {
            return;
        }
    }
    let ((from, to), (back, forth)) = (client.into_split(), server.into_split());
    let born = if now.silent {
        now.age.wrapping_sub(1)
    } else {
        now.age
    };
    let mut ends = state.clone();
    tokio::select! {
        // One direction may end before the other.
        _ = async { tokio::join!(pass(from, forth, born, state.clone()), pass(back, to, born, state)) } => {}
        _ = ends.wait_for(|state| state.cut) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    born: u64,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|state| !state.held).await.is_err() {
            return;
        }
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if state.borrow().age != born {
            // Neither side notices.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
