//! `PartitionView`: the ids that this process has seen in a partition, and the server process under which it saw them.

use std::time::{Duration, Instant};

use hub::EventId;

/// An overlap of the lives of two servers counts if it is longer than this. Uptime is in whole seconds, and this
/// process may have read the last message of the other server late.
const RESTART: Duration = Duration::from_secs(3);

/// The ids that this process has seen in a partition, and the server process under which it saw them.
#[derive(Default)]
pub(crate) struct PartitionView {
    /// The greatest id that it has seen. Ids never go back below it.
    pub(crate) watermark: EventId,
    /// When that id was seen.
    pub(crate) at: Option<Instant>,
    /// When any id was last seen, whether or not it was greater. The server process was running then.
    pub(crate) last_seen: Option<Instant>,
    /// The server process under which the ids were seen.
    pub(crate) run: String,
    /// That server process has accepted a handshake.
    pub(crate) handshaken: bool,
    /// The server process that has refused all calls since another one took the partition over.
    pub(crate) left: Option<Left>,
    /// A server process that has not accepted the handshake yet.
    pub(crate) met: Option<PendingHandshake>,
}

/// A server process that refuses all calls of the partition.
#[derive(Clone)]
pub(crate) struct Left {
    pub(crate) run: String,
    /// The newest event that it has appended, or that it had from the one before it.
    pub(crate) event: EventId,
    /// Its clock, which clients may have seen.
    pub(crate) clock: EventId,
}

/// A server process, and the state of the partition when this process first met it.
#[derive(Default, Clone)]
pub(crate) struct PendingHandshake {
    pub(crate) run: String,
    pub(crate) watermark: EventId,
    pub(crate) at: Option<Instant>,
    /// It ran beside the server that was seen last. So it is another server in the same place, not a restart.
    pub(crate) overlaps: bool,
}

impl PartitionView {
    pub(crate) fn saw(&mut self, id: EventId) {
        self.last_seen = Some(Instant::now());
        if id > self.watermark {
            self.watermark = id;
            self.at = self.last_seen;
        }
    }

    /// This process has reached a server process with this uptime in seconds. The values of the first meeting are kept
    /// until the handshake is accepted. Until then, events that other replicas have appended may arrive from the server
    /// process. The handshake must not report them as its past.
    pub(crate) fn meet(&mut self, run: &str, uptime: Option<u64>) -> PendingHandshake {
        // No id was seen yet, so the first ids count as seen under this server process.
        if self.watermark == EventId::default() {
            run.clone_into(&mut self.run);
            self.handshaken = false;
        }
        if let Some(met) = self.met.as_ref().filter(|met| met.run == run) {
            return met.clone();
        }
        let met = PendingHandshake {
            run: run.to_owned(),
            watermark: self.watermark,
            at: self.at,
            overlaps: self.is_overlapped_by(uptime),
        };
        let is_known = self.run == run && self.handshaken;
        self.met = (!is_known).then(|| met.clone());
        met
    }

    /// Whether a server with this uptime in seconds was running beside the server that was seen last.
    fn is_overlapped_by(&self, uptime: Option<u64>) -> bool {
        let (Some(last_seen), Some(uptime)) = (self.last_seen, uptime) else {
            return false;
        };
        Duration::from_secs(uptime) > last_seen.elapsed() + RESTART
    }
}

impl PendingHandshake {
    /// The present time, or a little more, on the clock that made the watermark.
    pub(crate) fn expected_ms(&self) -> u64 {
        let since = self.at.map_or(0, |at| at.elapsed().as_millis());
        let since = u64::try_from(since).unwrap_or_default();
        self.watermark.ms.saturating_add(since)
    }
}
