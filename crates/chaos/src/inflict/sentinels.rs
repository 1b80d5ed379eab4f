//! Faults of a master that sentinels watch: they replace it, or cannot.

use std::time::Duration;

use testkit::{lab::FaultyLink, micros_since_epoch};
use tokio::time::sleep;

use super::{HOLD, Times};
use crate::{fault::Fault, store::Store};

/// A stalled master continues between these times after its replacement. By then, replicas have moved.
const MOVED: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(5)];

/// Applies this fault. The links lead from one replica to the sentinels. `random` is between 0 and 1.
pub(super) async fn inflict(
    fault: Fault,
    store: &mut Store,
    links: &[FaultyLink],
    random: f64,
) -> Times {
    let master = &mut store.redis;
    let sentinels = store.sentinels.as_ref().expect("sentinels watch it");
    let [first, second, third] = &sentinels.all;
    let from = micros_since_epoch();
    match fault {
        Fault::FailOver => {
            first.fail_over().await;
            sentinels.replaced(master).await;
        }
        Fault::FailOverUnheard => {
            links.iter().for_each(FaultyLink::drop_everything);
            first.fail_over().await;
            sentinels.replaced(master).await;
            sleep(HOLD).await;
            links.iter().for_each(FaultyLink::restore);
        }
        Fault::FailOverLate => {
            // Publishers ask the sentinels in order, starting with this one.
            first.process.signal("STOP");
            second.fail_over().await;
            sentinels.replaced(master).await;
            sleep(HOLD).await;
            first.process.signal("CONT");
        }
        Fault::StallMaster => {
            master.pause();
            sentinels.replaced(master).await;
            let [least, most] = MOVED;
            sleep(least + (most - least).mul_f64(random)).await;
            master.go_on();
        }
        Fault::KillMaster => {
            master.kill();
            sentinels.replaced(master).await;
            sleep(HOLD).await;
            master.restart().await;
        }
        Fault::LoseSentinels => {
            for sentinel in [second, third] {
                sentinel.process.signal("STOP");
            }
            master.pause();
            sleep(HOLD).await;
            master.go_on();
            sleep(HOLD).await;
            for sentinel in [second, third] {
                sentinel.process.signal("CONT");
            }
        }
        other => unreachable!("{other:?} needs no sentinels"),
    }
    let over = micros_since_epoch();
    Times { from, over }
}
