//! A replica that faults may end, and its log lines.

use testkit::lab::{Dir, Gateway};

use crate::publishers::TOKEN;

/// The replicas' configuration file.
pub(crate) const CONFIG: &str = "gateway.toml";

/// A replica, and its log lines.
pub(crate) struct Replica {
    pub(crate) gateway: Gateway,
    /// How it was ended, if it was.
    ended: Option<Ended>,
    /// How many bytes of its log have been read.
    seen: usize,
    /// Log lines of its earlier processes.
    lines: Vec<String>,
}

/// How a process was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Terminated,
    Killed,
}

impl Replica {
    /// Starts a replica with these flags about Redis. It listens, but may not be ready.
    pub(crate) async fn start(dir: &Dir, redis: &[String]) -> Self {
        Self {
            gateway: gateway(dir, redis).await,
            ended: None,
            seen: 0,
            lines: Vec::new(),
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.gateway.process().kill();
        self.ended = Some(Ended::Killed);
    }

    /// SIGTERM.
    pub(crate) fn terminate(&mut self) {
        self.gateway.process().signal("TERM");
        self.ended = Some(Ended::Terminated);
    }

    /// Whether it was ended and not replaced since.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The lines logged since the last call.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let log = self.gateway.process().log();
        let mut lines = std::mem::take(&mut self.lines);
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        lines.extend(log[self.seen.min(whole)..whole].lines().map(str::to_owned));
        self.seen = whole;
        lines
    }

    /// Starts a new process after the old one was ended.
    pub(crate) async fn replace(&mut self, dir: &Dir, redis: &[String]) {
        let status = self.gateway.process().exit().await;
        let ended = self.ended.take();
        // A killed process has no exit code.
        let expected = (ended == Some(Ended::Terminated)).then_some(0);
        assert_eq!(status.code(), expected, "a replica ended with {status}");
        self.lines = self.new_lines();
        self.seen = 0;
        self.gateway = gateway(dir, redis).await;
    }
}

async fn gateway(dir: &Dir, redis: &[String]) -> Gateway {
    let mut command = Gateway::command();
    command
        .args(redis)
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--workers", "1"])
        .args(["--retry", "500ms", "--heartbeat", "1s"])
        .args(["--drain-delay", "0s", "--drain-window", "1s"])
        .args(["--max-stream-rate", "0"])
        .args(["--max-channel-rate-per-address", "0"])
        // This is a second or two of events. A client that is away for longer, or slow, reads history.
        .args(["--channel-buffer-bytes", "4KiB"])
        .args(["--publish-token", TOKEN, "--log-format", "json"])
        .arg("--config")
        .arg(dir.path().join(CONFIG));
    Gateway::of(command).await
}
