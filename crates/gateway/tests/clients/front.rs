//! A port per client, in front of the balancer: it counts requests, answers 503, and cuts streams before their end.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::Instant,
};

const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n\
    Content-Length: 12\r\nConnection: close\r\n\r\nunavailable\n";

/// How the requests of all clients are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They reach the balancer.
    Pass,
    /// Streams are cut. The first request of each client receives 503, as from a balancer without a replica.
    Unavailable,
    /// They reach the balancer, and streams are cut before `gateway.end`.
    CutEnd,
}

/// A client's port.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicUsize,
    refused: AtomicUsize,
    /// Whether a stream was cut before its end. Each client is cut once, because some have not read the last event by
    /// then.
    cut: AtomicBool,
    open: Mutex<Open>,
}

/// The client's connections.
#[derive(Debug, Default)]
struct Open {
    count: usize,
    /// When the last of them ended.
    ended: Option<Instant>,
}

impl Counts {
    fn connections(&self, change: impl FnOnce(&mut Open)) {
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Front {
    pub(crate) async fn to(balancer: SocketAddr, mode: watch::Receiver<Mode>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let counts = Arc::new(Counts::default());
        let count = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mode, count) = (mode.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    count.connections(|open| open.count += 1);
                    connection(client, balancer, mode, &count).await;
                    count.connections(|open| {
                        open.count -= 1;
                        open.ended = Some(Instant::now());
                    });
                });
            }
        });
        Self { address, counts }
    }

    /// How long the client has had no connection.
    pub(crate) fn apart(&self) -> Duration {
        let mut apart = Duration::ZERO;
        self.counts.connections(|open| {
            if let (0, Some(ended)) = (open.count, open.ended) {
                apart = ended.elapsed();
            }
        });
        apart
    }

    /// Number of requests that were passed on.
    pub(crate) fn passed(&self) -> usize {
        self.counts.passed.load(Ordering::Relaxed)
    }

    /// Number of all requests.
    pub(crate) fn asked(&self) -> usize {
        self.passed() + self.refused()
    }

    /// Number of requests that were answered 503.
    pub(crate) fn refused(&self) -> usize {
        self.counts.refused.load(Ordering::Relaxed)
    }
}

async fn connection(
    client: TcpStream,
    balancer: SocketAddr,
    mode: watch::Receiver<Mode>,
    counts: &Counts,
) {
    let is_unavailable = *mode.borrow() == Mode::Unavailable;
    if is_unavailable && counts.refused.load(Ordering::Relaxed) == 0 {
        refuse(client, counts).await;
        return;
    }
    let Ok(server) = TcpStream::connect(balancer).await else {
        return;
    };
    for socket in [&client, &server] {
        socket.set_nodelay(true).ok();
    }
    let ((from, to), (back, forth)) = (client.into_split(), server.into_split());
    let mut ends = mode.clone();
    // The first part that ends also ends the connection, like a crash of the balancer.
    tokio::select! {
        () = requests(from, forth, counts) => {}
        () = answers(back, to, mode, counts) => {}
        _ = ends.wait_for(|mode| *mode == Mode::Unavailable), if !is_unavailable => {}
    }
}

async fn refuse(mut client: TcpStream, counts: &Counts) {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match client.read_buf(&mut head).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    counts.refused.fetch_add(1, Ordering::Relaxed);
    client.write_all(UNAVAILABLE).await.ok();
    client.shutdown().await.ok();
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counts: &Counts) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // Clients write the whole head of a request at once.
        if buffer.starts_with(b"GET ") {
            counts.passed.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: watch::Receiver<Mode>,
    counts: &Counts,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..read];
        if *mode.borrow() == Mode::CutEnd
            && let Some(end) =
                find(bytes, b"event: gateway.end").or_else(|| find(bytes, b"event:gateway.end"))
            && !counts.cut.swap(true, Ordering::Relaxed)
        {
            to.write_all(&before_end(bytes, end)).await.ok();
            return;
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// The bytes before the block at `end`. The last chunk is made shorter, because a client may not read an incomplete
/// one.
fn before_end(bytes: &[u8], end: usize) -> Vec<u8> {
    let after = |bytes: &[u8], two: &[u8]| {
        let at = bytes.windows(2).rposition(|window| window == two);
        at.map_or(0, |at| at + 2)
    };
    let data = after(&bytes[..end], b"\r\n");
    let size = after(&bytes[..data.saturating_sub(2)], b"\r\n");
    let block = after(&bytes[data..end], b"\n\n");
    let mut shorter = bytes[..size].to_vec();
    if block > 0 {
        shorter.extend(format!("{block:x}\r\n").bytes());
        shorter.extend(&bytes[data..data + block]);
        shorter.extend(b"\r\n");
    }
    shorter
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
