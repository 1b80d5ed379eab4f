//! Faults of a Redis Cluster.

use std::time::Duration;

use testkit::{
    lab::{Cluster, Commands, FaultyLink},
    micros_since_epoch,
};
use tokio::time::{Instant, sleep};

use super::{HOLD, Times};
use crate::{channels::CHANNELS, fault::Fault};

/// A stalled master continues at most this long after its replacement.
const MOVED: Duration = Duration::from_secs(3);
/// A copy that takes a master's place lacks this much.
const LAG: Duration = Duration::from_secs(1);

/// How long the bus is cut each time. A node makes its links again ten times a second.
const CUT: Duration = Duration::from_millis(300);
/// A message that the bus has lost is recorded by then.
const LATE: Duration = Duration::from_secs(6);

/// Applies this fault to the master of a channel, or to all nodes. `random` is between 0 and 1.
pub(super) async fn inflict(
    fault: Fault,
    cluster: &mut Cluster,
    partitions: u32,
    random: f64,
) -> Times {
    let channel = CHANNELS[(random * CHANNELS.len() as f64) as usize % CHANNELS.len()];
    let master = cluster.holder(channel, partitions).await;
    let mut slots = Vec::new();
    for partition in 0..partitions {
        let slot = cluster.slot(partition, partitions).await;
        if cluster.owner(slot).await == master {
            slots.push(slot);
        }
    }
    let from = micros_since_epoch();
    match fault {
        Fault::ClusterFailOver => _ = cluster.fail_over(master).await,
        Fault::ClusterStall => {
            cluster.nodes[master].pause();
            cluster.replaced(slots[0], master).await;
            sleep(MOVED.mul_f64(random)).await;
            cluster.nodes[master].go_on();
        }
        Fault::ClusterKill => {
            cluster.nodes[master].kill();
            cluster.replaced(slots[0], master).await;
            sleep(HOLD).await;
            cluster.nodes[master].restart().await;
        }
        Fault::ClusterPromote => {
            let copy = cluster.copy_of(master).await;
            let mut at_copy = cluster.nodes[copy].connect().await;
            // A master without a password refuses this, so the copy cannot connect again.
            at_copy.run("CONFIG SET masterauth wrong").await;
            let mut at_master = cluster.nodes[master].connect().await;
            at_master.run("CLIENT KILL TYPE replica").await;
            sleep(LAG).await;
            cluster.nodes[master].kill();
            cluster.replaced(slots[0], master).await;
            clear_password(&mut at_copy).await;
            sleep(HOLD).await;
            cluster.nodes[master].restart().await;
        }
        Fault::ClusterFlush => {
            cluster.nodes[master].connect().await.run("FLUSHALL").await;
        }
        Fault::MoveSlot => {
            let to = other_master(cluster, partitions, master).await;
            cluster.move_slot(slots[0], to).await;
            sleep(HOLD / 2).await;
            move_at_once(cluster, slots[0], master).await;
        }
        Fault::AddMaster => {
            cluster.add_master().await;
            let to = cluster.nodes.len() - 1;
            for slot in slots {
                move_at_once(cluster, slot, to).await;
            }
        }
        Fault::CutBus => {
            let start = Instant::now();
            while start.elapsed() < HOLD {
                cluster.buses.iter().for_each(FaultyLink::cut);
                sleep(CUT).await;
                cluster.buses.iter().for_each(FaultyLink::restore);
                sleep(CUT).await;
            }
            sleep(LATE).await;
        }
        Fault::RollingNodes => {
            for node in 0..cluster.nodes.len() {
                cluster.nodes[node].stop().await;
                cluster.nodes[node].restart().await;
                cluster.settle().await;
            }
        }
        other => unreachable!("{other:?} needs no cluster"),
    }
    let over = micros_since_epoch();
    Times { from, over }
}

/// Moves a slot with one command if the servers have one, or key by key.
async fn move_at_once(cluster: &Cluster, slot: u32, to: usize) {
    if !cluster.move_slot_at_once(slot, to).await {
        cluster.move_slot(slot, to).await;
    }
}

async fn clear_password(commands: &mut Commands) {
    let words = [&b"CONFIG"[..], b"SET", b"masterauth", b""];
    commands.call(&words).await.expect("it answers");
}

/// A master of partitions that is another one.
async fn other_master(cluster: &Cluster, partitions: u32, master: usize) -> usize {
    for partition in 0..partitions {
        let slot = cluster.slot(partition, partitions).await;
        let owner = cluster.owner(slot).await;
        if owner != master {
            return owner;
        }
    }
    panic!("one master holds all partitions");
}
