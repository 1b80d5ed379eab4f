//! Real servers, real gateways, many clients, and how to wait for what they do.

mod backend;
mod cable;
mod commands;
mod dir;
mod fleet;
mod gateway;
mod load;
mod process;
mod proxy;
mod redis;
pub(crate) mod tokens;
mod viewer;

use std::{future::Future, time::Duration};

use tokio::{
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Instant, sleep, timeout},
};

pub(crate) use backend::{Backend, status, with};
pub(crate) use cable::Cable;
pub(crate) use commands::{Commands, Reply};
pub(crate) use dir::Dir;
pub(crate) use fleet::{Fleet, Plan, Replicas, Report, assert_exact};
pub(crate) use gateway::{Gateway, recording, refused};
pub(crate) use load::{Load, next_number};
pub(crate) use process::Process;
pub(crate) use proxy::Proxy;
pub(crate) use redis::Redis;
pub(crate) use viewer::{Viewer, assert_rising, assert_told, data, gaps, messages, texts};

/// How long anything may take that has no time limit of its own. Generous: machines are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A history that no test outgrows.
pub(crate) const KEEP_ALL: &str = r#"
[[channels]]
match = "*"
history = 100000
max_age = "1h"
expire = "24h"
"#;

/// Two cores are shared by everything: what measures, or loads the machine, runs alone.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Keeps every other test off the machine.
pub(crate) async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// Keeps the heavy tests off the machine.
pub(crate) async fn among_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// Asks again until the answer is `Ok`; panics with the last `Err` when `limit` has passed.
pub(crate) async fn eventually<T>(
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
pub(crate) async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
