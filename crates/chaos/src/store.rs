//! A Redis, and the servers that may replace it.

use std::time::Duration;

use testkit::{
    lab::{Cluster, PATIENCE, Redis, SLOW_CLOCK, Sentinels, eventually},
    micros_since_epoch,
};
use tokio::time::Instant;

use crate::fault::Kind;

/// Partitions with a cluster.
const CLUSTER_PARTITIONS: u32 = 6;
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
    /// A cluster, in place of the one Redis, which is not started then.
    pub(crate) cluster: Option<Cluster>,
}

impl Store {
    /// Starts one Redis; or a master with two copies and three sentinels; or a cluster of three masters with a copy each.
    pub(crate) async fn start(kind: Kind) -> Self {
        let (mut sentinels, mut cluster) = (None, None);
        let redis = match kind {
            Kind::Lone => {
                let mut redis = Redis::stopped(&DURABLE).through(&LIMITED);
                redis.restart().await;
                redis
            }
            Kind::Watched => {
                let (master, watching) = Sentinels::start(&DURABLE, 2, DOWN_AFTER).await;
                sentinels = Some(watching);
                master
            }
            Kind::Cluster => {
                cluster = Some(Cluster::start_linked(3, 1, 1500, &DURABLE[..4]).await);
                Redis::stopped(&[])
            }
        };
        Self {
            redis,
            behind: false,
            standby: None,
            sentinels,
            cluster,
        }
    }

    /// How many partitions the deployment has.
    pub(crate) fn partitions(&self) -> u32 {
        match self.cluster {
            Some(_) => CLUSTER_PARTITIONS,
            None => 1,
        }
    }

    /// The server that holds a channel.
    pub(crate) async fn holder(&self, channel: &str) -> &Redis {
        match &self.cluster {
            Some(cluster) => {
                let holder = cluster.holder(channel, CLUSTER_PARTITIONS).await;
                &cluster.nodes[holder]
            }
            None => &self.redis,
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
