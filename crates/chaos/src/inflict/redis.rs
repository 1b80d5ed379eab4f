//! Faults of a Redis without sentinels.

use std::time::Duration;

use testkit::{
    lab::{FaultyLink, Fleet, PATIENCE, Redis, eventually, in_time},
    micros_since_epoch,
};
use tokio::time::sleep;

use super::{HOLD, Times, clients::cut_half, filler::append};
use crate::{
    channels::CHANNELS,
    fault::Fault,
    store::{AWAY, Store},
};

/// Applies this fault. The links lead to Redis.
pub(super) async fn inflict(
    fault: Fault,
    store: &mut Store,
    links: &[&FaultyLink],
    fleet: &Fleet,
) -> Times {
    let from = micros_since_epoch();
    let mut commands = store.redis.connect().await;
    match fault {
        Fault::KillPubsub => _ = commands.run("CLIENT KILL TYPE pubsub").await,
        Fault::KillCommands => {
            for client in store.redis.clients().await {
                if client.subscriptions == 0 && client.name != "test" {
                    // It may have closed by itself.
                    let id = client.id.to_string();
                    in_time(
                        "CLIENT KILL",
                        commands.call(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]),
                    )
                    .await
                    .expect("Redis answers");
                }
            }
        }
        Fault::ClientPause => {
            commands.run("CLIENT PAUSE 2000 ALL").await;
            sleep(Duration::from_secs(2)).await;
        }
        Fault::ScriptFlush => {
            commands.run("SCRIPT FLUSH").await;
            commands.run("FUNCTION FLUSH").await;
        }
        Fault::Trim => {
            cut_half(fleet, Duration::from_secs(2)).await;
            sleep(Duration::from_secs(1)).await;
            for channel in CHANNELS {
                let log = Redis::key("log", channel, 1);
                commands.run(&format!("XTRIM {log} MAXLEN 1")).await;
            }
            let log = Redis::key("log", CHANNELS[0], 1);
            commands.run(&format!("DEL {log}")).await;
        }
        Fault::FlushAll => _ = commands.run("FLUSHALL").await,
        Fault::OutOfMemory => {
            commands.run("CONFIG SET maxmemory 1").await;
            sleep(HOLD).await;
            commands.run("CONFIG SET maxmemory 0").await;
        }
        Fault::Evict => {
            // Adds enough data for an eviction.
            let appended = in_time("ballast", append(&mut commands, "ballast", 500)).await;
            appended.expect("Redis answers");
            let used = store.redis.info("used_memory").await;
            let used: u64 = used.and_then(|used| used.parse().ok()).expect("a number");
            let least = used - (2 << 20);
            let set = format!("CONFIG SET maxmemory-policy allkeys-lru maxmemory {least}");
            commands.run(&set).await;
            sleep(HOLD).await;
            eventually("a key is evicted", PATIENCE, async || {
                match store.redis.info("evicted_keys").await.as_deref() {
                    None | Some("0") => Err("none is".to_owned()),
                    Some(_) => Ok(()),
                }
            })
            .await;
            let set = "CONFIG SET maxmemory-policy noeviction maxmemory 0";
            commands.run(set).await;
        }
        Fault::DiskFull => {
            // The next write exceeds the limit.
            store.redis.process().limit("fsize", Some(1));
            sleep(HOLD).await;
            store.redis.process().limit("fsize", None);
        }
        Fault::StopRedis => {
            store.redis.pause();
            sleep(HOLD).await;
            store.redis.go_on();
        }
        Fault::RestartRedis => {
            store.redis.stop().await;
            sleep(AWAY).await;
            store.redis.restart().await;
        }
        Fault::KillRedis => {
            store.redis.kill();
            sleep(AWAY).await;
            store.redis.restart().await;
        }
        Fault::Promote => return promote(store, links).await,
        other => unreachable!("{other:?} is not done to Redis"),
    }
    let over = micros_since_epoch();
    Times { from, over }
}

/// The copy misses a second. Then the Redis dies, and the copy replaces it.
async fn promote(store: &mut Store, links: &[&FaultyLink]) -> Times {
    let copy = store.standby.take().expect("it was made before");
    let from = micros_since_epoch();
    copy.connect().await.run("REPLICAOF NO ONE").await;
    sleep(Duration::from_secs(1)).await;
    store.redis.kill();
    store.redis = copy;
    store.behind = !store.behind;
    for link in links {
        link.redirect_to(store.redis.address());
    }
    let over = micros_since_epoch();
    Times { from, over }
}
