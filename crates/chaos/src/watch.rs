//! Watches replicas while a fault lasts: whether they are ready, and their gauges.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use testkit::lab::{Gateway, Metrics, Replicas};
use tokio::time::{sleep, timeout};

use crate::row::Row;

/// How often replicas are asked.
const PACE: Duration = Duration::from_millis(100);
/// A replica that takes longer counts as not answering.
const ANSWER: Duration = Duration::from_millis(500);
/// The gauges to watch.
const GAUGES: [&str; 5] = [
    "sse_gateway_recorder_active",
    "sse_gateway_recorder_subscribed",
    "sse_gateway_recorder_in_sync",
    "sse_gateway_recorder_pending",
    "sse_gateway_redis_subscribed",
];

/// Asks all replicas at regular times.
pub(crate) struct Watch {
    admins: Replicas,
    replicas: usize,
}

impl Watch {
    /// Watches the replicas with these addresses for operators.
    pub(crate) fn new(admins: &Replicas) -> Self {
        Self {
            admins: admins.clone(),
            replicas: admins.all().len(),
        }
    }

    /// Notes the observations in the row until `done` is complete.
    pub(crate) async fn during<T>(&self, done: impl Future<Output = T>, row: &mut Row) -> T {
        row.ready = [self.replicas; 2];
        row.up = self.replicas;
        tokio::select! {
            done = done => done,
            never = self.look(row) => never,
        }
    }

    async fn look<T>(&self, row: &mut Row) -> T {
        loop {
            let (mut ready, mut up) = (0, 0);
            let mut sums = BTreeMap::new();
            for admin in self.admins.all() {
                ready += usize::from(timeout(ANSWER, Gateway::is_ready(admin)).await == Ok(true));
                let Some(metrics) = metrics(admin).await else {
                    continue;
                };
                up += 1;
                for gauge in GAUGES {
                    *sums.entry(gauge).or_default() += metrics.sum(gauge);
                }
            }
            row.ready[0] = row.ready[0].min(ready);
            row.up = row.up.min(up);
            for (gauge, sum) in sums {
                let range = row.gauges.entry(gauge).or_insert([sum, sum]);
                *range = [range[0].min(sum), range[1].max(sum)];
            }
            sleep(PACE).await;
        }
    }
}

async fn metrics(admin: SocketAddr) -> Option<Metrics> {
    timeout(ANSWER, Gateway::metrics_of(admin)).await.ok()?.ok()
}
