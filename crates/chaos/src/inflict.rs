//! Applies faults to the system under test, each in its domain.

mod clients;
mod cluster;
mod filler;
mod network;
mod redis;
mod replicas;
mod sentinels;

use std::time::Duration;

use fastrand::Rng;
use testkit::{lab::Fleet, micros_since_epoch};
use tokio::time::sleep;

use crate::{
    fault::{Domain, Fault, Kind},
    site::{Site, Targets},
};

/// Two faults of a row begin within this time of each other, so one may find the damage of the other.
const APART: Duration = Duration::from_secs(4);
/// How long most faults last.
const HOLD: Duration = Duration::from_secs(3);

/// Applies these faults at about the same time, and returns when they are over.
pub(crate) async fn inflict(
    site: &mut Site,
    faults: &[Fault],
    targets: Targets,
    fleet: &Fleet,
    random: &mut Rng,
) -> Times {
    if faults.contains(&Fault::CutBus) {
        site.compares().await;
    }
    let spared = site.spare_the_first.then_some(0);
    let last = random.usize(..faults.len());
    let apart = APART.mul_f64(random.f64());
    let (isolated, stall) = (random.usize(..site.replicas.len()), random.f64());
    let (addresses, admins) = (site.addresses.clone(), site.admins.clone());
    // Returns the fault of a domain when it is due.
    let of = async |domain| {
        let mut numbered = faults.iter().copied().enumerate();
        let (number, fault) = numbered.find(|(_, fault)| fault.domain() == domain)?;
        if number == last && faults.len() > 1 {
            sleep(apart).await;
        }
        Some(fault)
    };
    let Site {
        replicas,
        links,
        flags,
        store,
        link,
        dir,
        ..
    } = site;
    let other = replicas[targets.other].gateway.public;
    let redis = store.redis.address();
    let on_replicas = async {
        let fault = of(Domain::Replicas).await?;
        let addresses = [&addresses, &admins];
        let times = replicas::inflict(fault, replicas, flags, dir, targets, spared, addresses);
        Some(times.await)
    };
    let on_redis = async {
        let fault = of(Domain::Redis).await?;
        match fault.kind() {
            Kind::Lone => {}
            Kind::Watched => {
                return Some(sentinels::inflict(fault, store, &links[isolated], stall).await);
            }
            Kind::Cluster => {
                let partitions = store.partitions();
                let cluster = store.cluster.as_mut().expect("the fault needs one");
                return Some(cluster::inflict(fault, cluster, partitions, stall).await);
            }
        }
        let links: Vec<_> = links.iter().flatten().chain(link.as_ref()).collect();
        Some(redis::inflict(fault, store, &links, fleet).await)
    };
    let on_network = async {
        let fault = of(Domain::Network).await?;
        Some(network::inflict(fault, links, targets, [other, redis]).await)
    };
    let on_clients = async {
        let fault = of(Domain::Clients).await?;
        Some(clients::inflict(fault, fleet, &addresses, redis).await)
    };
    let (a, b, c, d) = tokio::join!(on_replicas, on_redis, on_network, on_clients);
    [a, b, c, d].into_iter().flatten().collect()
}

/// When a fault began, and when it was over, in microseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) from: u64,
    pub(crate) over: u64,
}

/// The span of several faults at once.
impl FromIterator<Self> for Times {
    fn from_iter<I: IntoIterator<Item = Self>>(times: I) -> Self {
        let now = micros_since_epoch();
        let both = |all: Self, one: Self| Self {
            from: all.from.min(one.from),
            over: all.over.max(one.over),
        };
        times.into_iter().reduce(both).unwrap_or(Self {
            from: now,
            over: now,
        })
    }
}
