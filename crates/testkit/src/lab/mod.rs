//! Real servers for experiments: Redis, gateways, the network between them, and many clients; and how to wait for them.
//!
//! Tests and the fault suite use them. A failure of a server ends the run, so functions panic instead of returning
//! errors. The message names the awaited condition. A process that is dropped during a panic prints the end of its log.

mod cluster;
mod commands;
mod dir;
mod faulty_link;
mod fleet;
mod gateway;
mod process;
mod redis;
mod replicas;
mod sentinel;

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

pub use self::{
    cluster::Cluster,
    commands::{Commands, Reply, append_call},
    dir::Dir,
    faulty_link::FaultyLink,
    fleet::{Fleet, Plan, Report, assert_exact},
    gateway::{Gateway, Metrics, recording},
    process::Process,
    redis::{Redis, RedisClient, SLOW_CLOCK, entry, free_port, redis_server},
    replicas::Replicas,
    sentinel::{MASTER, Sentinel, Sentinels, copied, promoted},
};

/// The limit of every wait without a limit of its own. It is generous, because machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Repeats `probe` until it returns `Ok`.
///
/// # Panics
///
/// With the last `Err`, after `limit`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(last) if Instant::now() > deadline => {
                panic!("not within {limit:?}: {what} ({last})")
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Waits for the answer.
///
/// # Panics
///
/// If it takes longer than [`PATIENCE`].
pub async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A panic elsewhere fails its own test. The data is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
