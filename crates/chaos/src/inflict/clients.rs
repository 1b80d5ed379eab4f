//! Clients that cause trouble.

use std::{io, net::SocketAddr, time::Duration};

use testkit::{
    lab::{Fleet, PATIENCE, Replicas, eventually},
    micros_since_epoch, report_progress,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    HOLD, Times,
    filler::{append, connect},
};
use crate::{
    channels::{BURST, CHANNELS},
    fault::Fault,
};

/// This many payloads of [`append`] are more than all sockets on the way to a client hold.
const TOO_MUCH: usize = 400;

/// Applies this fault.
pub(super) async fn inflict(
    fault: Fault,
    fleet: &Fleet,
    addresses: &Replicas,
    redis: SocketAddr,
) -> Times {
    let from = micros_since_epoch();
    match fault {
        Fault::None => sleep(HOLD).await,
        Fault::Stampede => cut_half(fleet, Duration::ZERO).await,
        Fault::NeverReading => {
            let filled = async { append(&mut connect(redis).await?, BURST, TOO_MUCH).await };
            // Another fault may keep Redis away, or read-only.
            filled
                .await
                .unwrap_or_else(|error| report_progress(format_args!("({error}) ")));
            let mut sockets = Vec::new();
            for turn in 0..50 {
                // Another fault may keep the replica away.
                sockets.extend(ask_for_everything(addresses.at(turn)).await.ok());
            }
            sleep(HOLD).await;
        }
        Fault::Churn => {
            let deadline = Instant::now() + HOLD;
            let mut clients = JoinSet::new();
            for first in 0..8 {
                let addresses = addresses.clone();
                clients.spawn(async move {
                    let mut turn = first;
                    while Instant::now() < deadline {
                        connect_and_leave(addresses.at(turn), turn % 2 == 0).await;
                        turn += 1;
                    }
                });
            }
            clients.join_all().await;
        }
        other => unreachable!("{other:?} is not done to clients"),
    }
    let over = micros_since_epoch();
    Times { from, over }
}

/// Cuts half of the clients. When this returns, each of them has been disconnected, except clients that stall.
pub(super) async fn cut_half(fleet: &Fleet, spread: Duration) {
    let ordered = || fleet.counts()[2];
    let before = ordered();
    fleet.cut_some(0.5, spread);
    let least = fleet.len() as u64 / 4;
    eventually("half are cut", PATIENCE, async || {
        match ordered() - before {
            enough if enough >= least => Ok(()),
            few => Err(format!("{few} of {}", fleet.len())),
        }
    })
    .await;
}

/// A client that asks for all events and never reads.
async fn ask_for_everything(replica: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut socket = socket.connect(replica).await?;
    let channels = CHANNELS.join("&channel=");
    let head = format!(
        "GET /events?channel={BURST}&channel={channels}&since=start HTTP/1.1\r\nHost: localhost\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    Ok(socket)
}

/// A client that leaves before the answer or right after it.
async fn connect_and_leave(replica: SocketAddr, with_reset: bool) {
    // The client leaves in any case, so it ignores a refusal.
    let Ok(mut socket) = TcpStream::connect(replica).await else {
        return sleep(Duration::from_millis(1)).await;
    };
    let head = b"GET /events?channel=c0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    if with_reset {
        // Closing sends a reset, so no port remains in TIME_WAIT.
        socket.set_zero_linger().ok();
        socket.write_all(head).await.ok();
    } else if socket.write_all(head).await.is_ok() {
        socket.readable().await.ok();
    }
}
