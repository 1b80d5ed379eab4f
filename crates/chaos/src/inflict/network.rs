//! Faults of the network between replicas and Redis.

use std::{io, net::SocketAddr, time::Duration};

use testkit::{
    Client,
    lab::{Commands, FaultyLink, PATIENCE, RedisClient},
    micros_since_epoch, report_progress,
};
use tokio::time::{sleep, timeout};

use super::{
    HOLD, Times,
    filler::{append, connect},
};
use crate::{channels::BURST, fault::Fault, site::Targets};

/// Applies this fault. `links` has those of each replica.
pub(super) async fn inflict(
    fault: Fault,
    links: &[Vec<FaultyLink>],
    targets: Targets,
    [replica, redis]: [SocketAddr; 2],
) -> Times {
    let from = micros_since_epoch();
    let met = match fault {
        Fault::CutRecorder
        | Fault::DelayRecorder
        | Fault::HalfOpenRecorder
        | Fault::BlackholeRecorder => &links[targets.recorder..=targets.recorder],
        _ => links,
    };
    match fault {
        Fault::Cut | Fault::CutRecorder => {
            for link in met.iter().flatten() {
                link.cut();
            }
            sleep(Duration::from_secs(2)).await;
        }
        Fault::Delay | Fault::DelayRecorder => {
            for link in met.iter().flatten() {
                link.slow_down(Duration::from_millis(200));
            }
            sleep(HOLD).await;
        }
        Fault::HalfOpen | Fault::HalfOpenRecorder => {
            for link in met.iter().flatten() {
                link.go_silent();
            }
        }
        Fault::Blackhole | Fault::BlackholeRecorder => {
            for link in met.iter().flatten() {
                link.drop_everything();
            }
            sleep(Duration::from_secs(5)).await;
        }
        Fault::OutputBuffer => {
            let filled = fill(&links[targets.other][0], replica, redis).await;
            // The rows show which other fault prevented it.
            filled.unwrap_or_else(|error| report_progress(format_args!("({error}) ")));
        }
        other => unreachable!("{other:?} is not done to the network"),
    }
    for link in links.iter().flatten() {
        link.restore();
    }
    let over = micros_since_epoch();
    Times { from, over }
}

/// Publishes more than Redis buffers for a replica that does not read.
///
/// # Errors
///
/// If another fault stops Redis or changes the subscribers at the same time.
async fn fill(link: &FaultyLink, replica: SocketAddr, redis: SocketAddr) -> io::Result<()> {
    // Makes sure that the replica is subscribed. If another fault keeps it away, Redis has no connection to cut.
    let mut client = Client::new(format!("/events?channel={BURST}"));
    client.connect(replica).await.map_err(io::Error::other)?;
    timeout(PATIENCE, client.next()).await.ok();
    let mut commands = connect(redis).await?;
    limit_output(&mut commands, "pubsub 262144 262144 1").await?;
    let before = subscribers(&mut commands).await?;
    link.hold();
    let filled = async {
        // This is more than Redis and all sockets on the way hold, but less than the history of the channel.
        for _ in 0..60 {
            if subscribers(&mut commands).await? < before {
                return Ok(());
            }
            append(&mut commands, BURST, 50).await?;
        }
        Err(io::Error::other("redis cut nobody off"))
    };
    let filled = filled.await;
    limit_output(&mut connect(redis).await?, "pubsub 33554432 8388608 60").await?;
    filled
}

async fn limit_output(commands: &mut Commands, limit: &str) -> io::Result<()> {
    let limit = limit.as_bytes();
    let words = [b"CONFIG", &b"SET"[..], b"client-output-buffer-limit", limit];
    commands.call(&words).await.map(drop)
}

async fn subscribers(commands: &mut Commands) -> io::Result<usize> {
    let list = commands.call(&[b"CLIENT", b"LIST"]).await?;
    let clients = RedisClient::read_all(&list.text()).into_iter();
    Ok(clients.filter(|client| client.subscriptions > 0).count())
}
