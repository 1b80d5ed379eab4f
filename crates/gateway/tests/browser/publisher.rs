//! A backend that uses only `redis-cli`, and starts it for each line.

use std::{net::SocketAddr, process::Command};

use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};

/// A running publisher.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Number of lines sent.
    progress: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Publisher {
    /// `redis-cli PUBLISH`: at most once, but the message must have a subscriber.
    pub(crate) fn publish(redis: SocketAddr, channel: &str, lines: &[String]) -> Self {
        let command = ["PUBLISH".to_owned(), format!("sse:{channel}")];
        Self::each(redis, command, lines, |reply| {
            reply.parse::<u32>().is_ok_and(|receivers| receivers > 0)
        })
    }

    /// `redis-cli FCALL sse_publish`: the answer is the id of the event.
    pub(crate) fn append(redis: SocketAddr, channel: &str, lines: &[String]) -> Self {
        let command = ["FCALL", "sse_publish", "0", channel].map(str::to_owned);
        Self::each(redis, command, lines, |reply| reply.contains('-'))
    }

    fn each(
        redis: SocketAddr,
        command: impl IntoIterator<Item = String>,
        lines: &[String],
        accept: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        let command: Vec<_> = command.into_iter().collect();
        let lines = lines.to_vec();
        let (sent, progress) = watch::channel(0);
        let task = spawn_blocking(move || {
            for line in lines {
                let mut cli = Command::new("redis-cli");
                cli.args(["-p", &redis.port().to_string()]);
                let output = cli.args(&command).arg(&line).output();
                let output = output.expect("redis-cli runs");
                let reply = String::from_utf8_lossy(&output.stdout);
                assert!(accept(reply.trim()), "{line:?} was answered {output:?}");
                sent.send_modify(|count| *count += 1);
            }
        });
        Self { progress, task }
    }

    /// Waits until this many lines have been sent.
    pub(crate) async fn reached(&mut self, count: usize) {
        let reached = self.progress.wait_for(|sent| *sent >= count).await;
        reached.expect("the publisher gets so far");
    }

    /// Waits until all lines have been sent.
    pub(crate) async fn finish(self) {
        self.task.await.expect("every line is accepted");
    }
}
