//! Real servers to experiment on: Redis, gateways, the network between them, many clients, and how to wait
//! for what they do.
//!
//! Made for tests and for the fault suite, which have the same needs: what does not work here ends
//! the run. So instead of answering errors these panic, with a word on what was waited for, and
//! whoever is dropped meanwhile shows the end of its log.

mod cable;
mod commands;
mod dir;
mod fleet;
mod gateway;
mod process;
mod redis;
mod sentinel;

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

pub use self::{
    cable::Cable,
    commands::{Commands, Reply, append_call},
    dir::Dir,
    fleet::{Fleet, Plan, Replicas, Report, assert_exact},
    gateway::{Gateway, Metrics, recording},
    process::Process,
    redis::{Redis, RedisClient, SLOW_CLOCK, entry, free_port},
    sentinel::{MASTER, Sentinel, Sentinels, copied, promoted},
};

/// How long anything may take that has no time limit of its own. Generous: machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again until the answer is `Ok`.
///
/// # Panics
///
/// With the last `Err`, when `limit` has passed.
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

/// The answer, which must come in time.
///
/// # Panics
///
/// When it does not come within [`PATIENCE`].
pub async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
