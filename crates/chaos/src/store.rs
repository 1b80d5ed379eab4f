//! A Redis, and the servers that may replace it.

use std::time::Duration;

use testkit::{
    lab::{PATIENCE, Redis, SLOW_CLOCK, Sentinels, eventually},
    micros_since_epoch,
};
use tokio::time::Instant;

/// How long Redis or a replica is away before it is started again.
pub(crate) const AWAY: Duration = Duration::from_secs(1);
/// Starts a Redis whose AOF can be limited in size. Without the trap, SIGXFSZ would end it.
const LIMITED: [&str; 4] = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
/// Redis writes before it answers, so a kill loses nothing.
const DURABLE: [&str; 6] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",
    "--repl-diskless-sync-delay",
    "0",
];
/// A copy of Redis runs for this long before it is promoted. No other fault blinds the replicas for longer.
const STANDBY: Duration = Duration::from_secs(10);
/// Sentinels regard a server as down after this many milliseconds without an answer.
const DOWN_AFTER: u32 = 1000;

/// A Redis, and the servers that may replace it.
pub(crate) struct Store {
    pub(crate) redis: Redis,
    /// Whether its clock is behind.
    pub(crate) behind: bool,
    /// The copy that is promoted next.
    pub(crate) standby: Option<Redis>,
    /// Sentinels, which promote a copy by themselves.
    pub(crate) sentinels: Option<Sentinels>,
}

impl Store {
    /// Starts one Redis. If `guarded`, starts a master with two copies and three sentinels.
    pub(crate) async fn start(guarded: bool) -> Self {
        let (redis, sentinels) = if guarded {
            let (master, sentinels) = Sentinels::start(&DURABLE, 2, DOWN_AFTER).await;
            (master, Some(sentinels))
        } else {
            let mut redis = Redis::stopped(&DURABLE).through(&LIMITED);
            redis.restart().await;
            (redis, None)
        };
        Self {
            redis,
            behind: false,
            standby: None,
            sentinels,
        }
    }

    /// Starts a copy with the other kind of clock. It is up to date when this returns.
    pub(crate) async fn stand_by(&mut self) {
        let clock: &[&str] = if self.behind { &[] } else { &SLOW_CLOCK };
        let mut copy = Redis::stopped(&DURABLE).through(clock).through(&LIMITED);
        copy.restart().await;
        let start = Instant::now();
        let mut replication = copy.connect().await;
        let time = replication.run("TIME").await.array()[0].text();
        let now = micros_since_epoch() / 1_000_000;
        let behind = now.saturating_sub(time.parse::<u64>().expect("seconds"));
        assert_eq!(
            behind > 10,
            !self.behind,
            "the clock is {behind} s behind: is libfaketime there?"
        );
        let port = self.redis.address().port();
        replication
            .run(&format!("REPLICAOF 127.0.0.1 {port}"))
            .await;
        eventually("the copy is complete", 2 * PATIENCE, async || {
            let link = copy.info("master_link_status").await.unwrap_or_default();
            if link == "up" && start.elapsed() > STANDBY {
                Ok(())
            } else {
                Err(link)
            }
        })
        .await;
        self.standby = Some(copy);
    }
}
