//! Publishers: raw PUBLISH at a steady rate, or the function with an answer to each call.

use std::{io, net::SocketAddr, time::Duration};

use testkit::{Goal, Message, lab::append_call};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use testkit::lab::entry;

use super::{Commands, PATIENCE, Redis, Reply};

/// How often a publisher wakes up. It sends all due messages in one pipeline.
const TICK: Duration = Duration::from_millis(10);
/// How often the function is called.
const APPEND_PACE: Duration = Duration::from_millis(5);

/// A running publisher with one connection.
#[derive(Debug)]
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    task: JoinHandle<Goal>,
}

impl Load {
    /// Raw PUBLISH: `per_second` messages of `bytes`, to the `channels` in turn.
    pub(crate) async fn publish(
        redis: &Redis,
        name: &str,
        channels: &[String],
        per_second: u32,
        bytes: usize,
    ) -> Self {
        let redis = redis.connect().await;
        let (stop, stopped) = watch::channel(false);
        let (name, channels) = (name.to_owned(), channels.to_vec());
        let task = tokio::spawn(publish(redis, name, channels, per_second, bytes, stopped));
        Self { stop, task }
    }

    /// The function: one call after the other, to the `channels` in turn. It survives faults of
    /// Redis, and repeats a call until the message is stored.
    pub(crate) fn append(redis: &Redis, name: &str, channels: &[String]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (name, channels) = (name.to_owned(), channels.to_vec());
        let task = tokio::spawn(append(redis.address(), name, channels, stopped));
        Self { stop, task }
    }

    /// Stops it, and returns the messages that it has sent.
    pub(crate) async fn stop(self) -> Goal {
        self.stop.send_replace(true);
        self.task.await.expect("a publisher does not fail")
    }
}

async fn publish(
    mut redis: Commands,
    name: String,
    channels: Vec<String>,
    per_second: u32,
    bytes: usize,
    stopped: watch::Receiver<bool>,
) -> Goal {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = Goal::new();
    let mut turn = channels.iter().cycle();
    let mut due = 0.0;
    while !*stopped.borrow() {
        ticks.tick().await;
        due += f64::from(per_second) * TICK.as_secs_f64();
        let mut batch = Vec::new();
        while due >= 1.0 {
            due -= 1.0;
            let channel = turn.next().expect("at least one channel");
            let seq = next_number(&mut sent, &name, channel);
            let payload = Message::now(&name, channel, seq).padded(bytes);
            batch.push((channel.clone(), payload));
        }
        redis.publish_all(&batch).await;
    }
    sent
}

/// Counts another message of `publisher` on `channel`.
pub(crate) fn next_number(sent: &mut Goal, publisher: &str, channel: &str) -> u64 {
    let key = (channel.to_owned(), publisher.to_owned());
    *sent.entry(key).and_modify(|last| *last += 1).or_default()
}

async fn append(
    redis: SocketAddr,
    name: String,
    channels: Vec<String>,
    stopped: watch::Receiver<bool>,
) -> Goal {
    let mut pace = interval(APPEND_PACE);
    let mut sent = Goal::new();
    let mut turn = channels.iter().cycle();
    let mut connection = None;
    while !*stopped.borrow() {
        pace.tick().await;
        let channel = turn.next().expect("at least one channel");
        let seq = next_number(&mut sent, &name, channel);
        let payload = Message::now(&name, channel, seq).to_string();
        while let Err(error) = store(&mut connection, redis, channel, &payload).await {
            assert!(
                !*stopped.borrow(),
                "stopped before {payload:?} is stored: {error}"
            );
            connection = None;
            sleep(APPEND_PACE).await;
        }
    }
    sent
}

/// Appends `payload`, unless it is stored already. The answer to an earlier call may be lost.
async fn store(
    connection: &mut Option<Commands>,
    redis: SocketAddr,
    channel: &str,
    payload: &str,
) -> io::Result<()> {
    let commands = match connection {
        Some(commands) => commands,
        None => {
            let commands = connection.insert(Commands::connect(redis).await?);
            if newest(commands, channel).await?.as_deref() == Some(payload) {
                return Ok(());
            }
            commands
        }
    };
    match timeout(PATIENCE, commands.call(&append_call(channel, payload))).await?? {
        Reply::Bytes(_) | Reply::Text(_) => Ok(()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

/// The newest stored payload of a channel, in a deployment with one partition.
async fn newest(commands: &mut Commands, channel: &str) -> io::Result<Option<String>> {
    let key = Redis::key("log", channel, 1);
    let call = [b"XREVRANGE", key.as_bytes(), b"+", b"-", b"COUNT", b"1"];
    match commands.call(&call).await? {
        Reply::Array(entries) => Ok(entries.first().map(|newest| {
            let (_, payload) = entry(newest);
            String::from_utf8_lossy(&payload).into_owned()
        })),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}
