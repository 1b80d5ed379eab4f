//! The network between a gateway and its Redis, which can go silent.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Passes on what goes over each connection, both ways.
#[derive(Debug)]
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    /// Connections of an earlier age are silent: open, but nothing passes.
    age: Arc<AtomicU64>,
    /// Where new connections lead.
    server: Arc<Mutex<SocketAddr>>,
}

impl Cable {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let age = Arc::new(AtomicU64::new(0));
        let current = Arc::clone(&age);
        let server = Arc::new(Mutex::new(server));
        let target = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = *target.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(server) = TcpStream::connect(server).await else {
                    continue;
                };
                let born = current.load(Ordering::SeqCst);
                let ((from, to), (back, forth)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from, forth, born, Arc::clone(&current)));
                tokio::spawn(pass(back, to, born, Arc::clone(&current)));
            }
        });
        Self {
            address,
            age,
            server,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// As when an address is given to another machine: new connections lead there, and those that
    /// exist stay where they are.
    pub(crate) fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// As when a firewall forgets its connections: those that exist go silent for good, without
    /// being closed. New ones work.
    pub(crate) fn go_silent(&self) {
        self.age.fetch_add(1, Ordering::SeqCst);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, born: u64, age: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if age.load(Ordering::SeqCst) != born {
            // Neither side learns of it.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
