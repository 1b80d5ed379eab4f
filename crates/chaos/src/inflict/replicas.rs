//! Faults of one replica, or of each in turn.

use testkit::{
    lab::{Dir, Replicas},
    micros_since_epoch,
};
use tokio::{net::TcpStream, time::sleep};

use super::{HOLD, Times};
use crate::{
    fault::Fault,
    replica::Replica,
    site::{Targets, publish_addresses},
};

/// Applies this fault. The replica with the number `spared` is never ended.
pub(super) async fn inflict(
    fault: Fault,
    replicas: &mut [Replica],
    flags: &[Vec<String>],
    dir: &Dir,
    targets: Targets,
    spared: Option<usize>,
    [addresses, admins]: [&Replicas; 2],
) -> Times {
    let from = micros_since_epoch();
    let target = match fault {
        Fault::KillRecorder | Fault::TermRecorder | Fault::StopRecorder => targets.recorder,
        _ => targets.other,
    };
    let over = match fault {
        Fault::KillReplica | Fault::KillRecorder => {
            replicas[target].kill();
            micros_since_epoch()
        }
        Fault::TermReplica | Fault::TermRecorder => {
            replicas[target].terminate();
            micros_since_epoch()
        }
        Fault::RollingRestart => {
            let mut over = from;
            for number in (0..replicas.len()).filter(|number| Some(*number) != spared) {
                let replica = &mut replicas[number];
                replica.terminate();
                over = micros_since_epoch();
                replica.replace(dir, &flags[number]).await;
                replica.gateway.ready().await;
                publish_addresses(replicas, addresses, admins);
            }
            over
        }
        Fault::StopReplica | Fault::StopRecorder => {
            let gateway = &replicas[target].gateway;
            gateway.pause();
            sleep(HOLD).await;
            gateway.go_on();
            micros_since_epoch()
        }
        Fault::NoFiles => {
            let gateway = &mut replicas[target].gateway;
            // The limit is below the current count, so a client that leaves makes no room.
            gateway.process().limit("nofile", Some(1));
            // Other clients connect at random times, and this one now.
            let _newcomer = TcpStream::connect(gateway.public).await;
            sleep(HOLD).await;
            gateway.process().limit("nofile", None);
            micros_since_epoch()
        }
        other => unreachable!("{other:?} is not done to replicas"),
    };
    Times { from, over }
}
