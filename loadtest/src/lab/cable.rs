//! The network between a gateway and its Redis, which can go silent, slow, or away.

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

/// Passes on what goes over each connection, both ways.
#[derive(Debug)]
pub struct Cable {
    /// The near end.
    pub address: SocketAddr,
    state: watch::Sender<State>,
}

/// What the cable is like.
#[derive(Clone, Debug)]
struct State {
    /// Where new connections lead.
    server: SocketAddr,
    /// Connections of an earlier age are silent: open, but nothing passes.
    age: u64,
    /// New connections are silent as well.
    silent: bool,
    /// Nothing passes, and all connections are closed.
    cut: bool,
    /// Nothing is read, so that what is sent piles up at whoever sends it.
    held: bool,
    /// Whatever is read is passed on so much later.
    delay: Duration,
}

impl Cable {
    /// One that leads to this server.
    ///
    /// # Panics
    ///
    /// When there is no free port.
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

    /// Its near end, as a gateway's `--redis-url`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// As when an address is given to another machine: new connections lead there, and those that
    /// exist stay where they are.
    pub fn lead_to(&self, server: SocketAddr) {
        self.state.send_modify(|state| state.server = server);
    }

    /// As when a firewall forgets its connections: those that exist go silent for good, without
    /// being closed. New ones work.
    pub fn go_silent(&self) {
        self.state.send_modify(|state| state.age += 1);
    }

    /// As when a network drops everything: existing connections go silent for good, new ones are made
    /// and say nothing, until it is mended.
    pub fn drop_everything(&self) {
        self.state.send_modify(|state| {
            state.age += 1;
            state.silent = true;
        });
    }

    /// Closes every connection, and each new one, until it is mended.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cut = true);
    }

    /// Takes nothing any more from either side, until it is mended.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.held = true);
    }

    /// Passes everything on so much later, until it is mended.
    pub fn slow_down(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Works again.
    pub fn mend(&self) {
        self.state.send_modify(|state| {
            // Those that were made while it was silent stay so.
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
    // Commands are small, and answers are waited for.
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
        // One way may end before the other.
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
            // Neither side learns of it.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
