//! The system under test: a Redis, replicas, and the network between them.

use std::ops::Range;

use fastrand::Rng;
use testkit::lab::{Dir, FaultyLink, MASTER, PATIENCE, Replicas, eventually, recording};
use tokio::time::sleep;

use crate::{
    fault::{Fault, Kind},
    publishers::Source,
    replica::{CONFIG, Replica},
    store::{AWAY, Store},
};

/// Files that an idle replica may have open beyond its first count: kept connections to Redis.
const KEPT_FILES: usize = 8;
/// The configuration of the replicas.
const HISTORY: &str = r#"
[[channels]]
match = "*"
history = 5000
max_age = "2m"
expire = "1h"
"#;

/// Redis and its replicas. Each replica has its own links.
pub(crate) struct Site {
    pub(crate) replicas: Vec<Replica>,
    /// The links of each replica: one to Redis, or one to each of the three sentinels. With a cluster there are none.
    pub(crate) links: Vec<Vec<FaultyLink>>,
    /// The flags of each replica about Redis.
    pub(crate) flags: Vec<Vec<String>>,
    pub(crate) store: Store,
    /// The link from the publishers to Redis. With sentinels or a cluster there is none.
    pub(crate) link: Option<FaultyLink>,
    /// How publishers find Redis.
    pub(crate) source: Source,
    /// The addresses that clients connect to.
    pub(crate) addresses: Replicas,
    /// The addresses for operators.
    pub(crate) admins: Replicas,
    /// Contains the replicas' configuration.
    pub(crate) dir: Dir,
    /// If set, the first replica is never ended, so its growth can be measured.
    pub(crate) spare_the_first: bool,
    /// The open files of the first replica before any client.
    idle_files: usize,
}

/// The replicas that a fault of one replica affects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) recorder: usize,
    /// A replica that does not record.
    pub(crate) other: usize,
    /// Whether it subscribes to raw messages all the same.
    pub(crate) other_has_recorder: bool,
}

impl Site {
    /// Starts this many replicas with this kind of Redis.
    pub(crate) async fn start(replicas: usize, kind: Kind) -> Self {
        let store = Store::start(kind).await;
        let redis = store.redis.address();
        let ends = match kind {
            Kind::Lone => vec![redis],
            Kind::Watched => {
                let sentinels = store.sentinels.as_ref().expect("they watch it");
                sentinels.addresses().to_vec()
            }
            Kind::Cluster => Vec::new(),
        };
        let dir = Dir::new();
        dir.write(CONFIG, HISTORY);
        let (mut started, mut links, mut flags) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..replicas {
            let mut own = Vec::new();
            for end in &ends {
                own.push(FaultyLink::to(*end).await);
            }
            let about_redis = flags_of(&store, &own);
            started.push(Replica::start(&dir, &about_redis).await);
            links.push(own);
            flags.push(about_redis);
        }
        let (addresses, admins) = (Replicas::default(), Replicas::default());
        publish_addresses(&started, &addresses, &admins);
        let (link, source) = match (kind, &store.cluster) {
            (_, Some(cluster)) => {
                let nodes = cluster.nodes.iter().map(|node| node.address());
                (None, Source::Cluster(nodes.collect()))
            }
            (Kind::Watched, None) => (None, Source::Sentinels(ends)),
            _ => {
                let link = FaultyLink::to(redis).await;
                let source = Source::At(link.address);
                (Some(link), source)
            }
        };
        let mut site = Self {
            replicas: started,
            links,
            flags,
            store,
            link,
            source,
            addresses,
            admins,
            dir,
            spare_the_first: false,
            idle_files: 0,
        };
        site.settle().await;
        site.idle_files = site.replicas[0].gateway.open_files();
        site
    }

    /// The kind of its Redis.
    pub(crate) fn kind(&self) -> Kind {
        match (&self.store.cluster, &self.store.sentinels) {
            (Some(_), _) => Kind::Cluster,
            (None, Some(_)) => Kind::Watched,
            (None, None) => Kind::Lone,
        }
    }

    /// Waits until the site works: all replicas ready, two recorders in sync, one of them active.
    pub(crate) async fn settle(&self) {
        for replica in &self.replicas {
            replica.gateway.ready().await;
        }
        let limit = 2 * PATIENCE;
        let partitions = self.store.partitions();
        let gateways = self.replicas.iter().map(|replica| &replica.gateway);
        recording(gateways, partitions).await;
        eventually("two recorders are in sync", limit, async || {
            // Redis may still count a recorder that is dead or has no subscription.
            let mut subscribed = 0.0;
            for replica in &self.replicas {
                let metrics = replica.gateway.metrics().await;
                subscribed += metrics.sum("sse_gateway_recorder_in_sync");
            }
            let in_sync = match self.store.cluster {
                // Each partition counts.
                Some(_) => 2,
                None => self.store.redis.in_sync_recorders().await,
            };
            match in_sync {
                2.. if subscribed >= 2.0 * f64::from(partitions) => Ok(()),
                some => Err(format!("{some}, of which {subscribed} are subscribed")),
            }
        })
        .await;
    }

    /// Waits until the recorders of a cluster would notice that a node has missed a raw message.
    pub(crate) async fn compares(&self) {
        eventually("the recorders compare", 2 * PATIENCE, async || {
            let [mut in_sync, mut compared] = [0.0; 2];
            for replica in &self.replicas {
                let metrics = replica.gateway.metrics().await;
                in_sync += metrics.sum("sse_gateway_recorder_in_sync");
                compared += metrics.sum("sse_gateway_recorder_compared");
            }
            match compared == in_sync && compared > 0.0 {
                true => Ok(()),
                false => Err(format!("{compared} of {in_sync} partitions")),
            }
        })
        .await;
    }

    /// Waits until the first replica has released everything of departed clients, if it lived through all faults.
    pub(crate) async fn at_rest(&self) {
        if !self.spare_the_first {
            return;
        }
        let most = self.idle_files + KEPT_FILES;
        eventually(
            "nothing is left of clients",
            PATIENCE,
            async || match self.replicas[0].gateway.open_files() {
                few if few <= most => Ok(()),
                many => Err(format!("{many} open files, {most} expected")),
            },
        )
        .await;
    }

    /// Chooses the replicas that a fault affects.
    pub(crate) async fn targets(&self, random: &mut Rng) -> Targets {
        let recorder = self.recorder().await;
        let spared = self.spare_the_first.then_some(0);
        let others: Vec<_> = (0..self.replicas.len())
            .filter(|number| *number != recorder && Some(*number) != spared)
            .collect();
        let other = *random.choice(&others).expect("several replicas");
        let metrics = self.replicas[other].gateway.metrics().await;
        Targets {
            recorder,
            other,
            other_has_recorder: metrics.sum("sse_gateway_recorder_subscribed") > 0.0,
        }
    }

    /// Restarts the replicas that have ended, after a while. If there is a new master, all other nodes become its
    /// copies.
    pub(crate) async fn repair(&mut self) {
        if let Some(sentinels) = &mut self.store.sentinels {
            sentinels.settle(&mut self.store.redis).await;
        }
        if let Some(cluster) = &self.store.cluster {
            cluster.settle().await;
        }
        if self.replicas.iter().all(|replica| !replica.has_ended()) {
            return;
        }
        sleep(AWAY).await;
        for (replica, flags) in self.replicas.iter_mut().zip(&self.flags) {
            if replica.has_ended() {
                replica.replace(&self.dir, flags).await;
            }
        }
        publish_addresses(&self.replicas, &self.addresses, &self.admins);
    }

    /// Prepares the site for these faults.
    pub(crate) async fn prepare(&mut self, faults: &[Fault]) {
        if faults.contains(&Fault::Promote) {
            self.store.stand_by().await;
        }
        if self.spare_the_first && faults.iter().any(|fault| fault.ends_recorder()) {
            self.relieve_the_first().await;
        }
    }

    /// Makes sure that the spared replica does not record.
    async fn relieve_the_first(&self) {
        if self.recorder().await != 0 {
            return;
        }
        let gateway = &self.replicas[0].gateway;
        gateway.pause();
        self.recorder_among(1..self.replicas.len()).await;
        gateway.go_on();
        self.settle().await;
    }

    /// Which replica records.
    async fn recorder(&self) -> usize {
        self.recorder_among(0..self.replicas.len()).await
    }

    /// Waits until one of these replicas records.
    async fn recorder_among(&self, numbers: Range<usize>) -> usize {
        eventually("a replica records", PATIENCE, async || {
            for number in numbers.clone() {
                let replica = &self.replicas[number];
                let metrics = replica.gateway.try_metrics().await;
                let active = metrics.map(|metrics| metrics.sum("sse_gateway_recorder_active"));
                if active.is_ok_and(|active| active >= 1.0) {
                    return Ok(number);
                }
            }
            Err("none does".to_owned())
        })
        .await
    }
}

/// The flags of a replica that reaches Redis, or sentinels, over these links, or a cluster.
fn flags_of(store: &Store, links: &[FaultyLink]) -> Vec<String> {
    if let Some(cluster) = &store.cluster {
        let partitions = store.partitions().to_string();
        vec![
            "--redis-cluster".to_owned(),
            cluster.seeds(),
            "--partitions".to_owned(),
            partitions,
        ]
    } else if let [redis] = links {
        vec!["--redis-url".to_owned(), redis.url()]
    } else {
        let sentinels = links.iter().map(|link| link.address.to_string());
        let sentinels = sentinels.collect::<Vec<_>>().join(",");
        let url = format!("redis://{MASTER}");
        vec![
            "--redis-url".to_owned(),
            url,
            "--redis-sentinels".to_owned(),
            sentinels,
        ]
    }
}

/// Gives clients and operators the current addresses.
pub(crate) fn publish_addresses(replicas: &[Replica], addresses: &Replicas, admins: &Replicas) {
    let gateways = replicas.iter().map(|replica| &replica.gateway);
    admins.set_addresses(gateways.clone().map(|gateway| gateway.admin).collect());
    addresses.set(gateways);
}
