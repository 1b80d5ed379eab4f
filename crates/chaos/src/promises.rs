//! The promises that hold while a fault lasts.

use crate::fault::{Fault, Kind};

/// The promises that depend on the fault, as they are while it lasts. All other promises always hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promises {
    /// The recorders that may lose messages that they have received. There are two recorders.
    lose: Losers,
    /// All recorders may lose such messages. Recording is interrupted, and clients receive a gap if anything is lost.
    pub(crate) interrupts: bool,
    /// Redis takes writes.
    pub(crate) writes: bool,
    /// Redis forgets nothing that it stored, so no client receives a gap.
    pub(crate) no_gaps: bool,
    /// Redis is also the same node as before, so no gap has the reason `forgotten`.
    pub(crate) remembers: bool,
    /// No replica ends, so no connection ends.
    pub(crate) no_cuts: bool,
    /// No replica is stopped, so each connection receives something, at least heartbeats.
    pub(crate) beats: bool,
    /// Each PUBLISH is carried out before later ones, or never. A node of a cluster that was stopped carries out what was
    /// sent to it when it continues.
    pub(crate) punctual: bool,
    /// Every node of a cluster delivers each raw message, or the next moment after a stall. Otherwise it may be recorded
    /// later than messages after it, and equal messages may be lost.
    pub(crate) bus_delivers: bool,
    /// Redis keeps or loses all its data as a whole. So a gap reports every loss, and no event arrives twice.
    pub(crate) exact: bool,
}

/// A set of replicas.
#[derive(Clone, Copy, Debug, Default)]
struct Losers {
    recorder: bool,
    other: bool,
    /// Each replica in turn. Together with another fault, both recorders may lose messages.
    one_by_one: bool,
}

impl Losers {
    fn count(self) -> usize {
        let lost = [self.recorder, self.other, self.one_by_one];
        lost.into_iter().filter(|lost| *lost).count()
    }
}

impl Promises {
    /// Whether every raw PUBLISH that had a subscriber is recorded.
    pub(crate) fn raw_recorded(self) -> bool {
        self.writes && self.is_heard()
    }

    /// Whether unrecorded messages reach connected clients: Redis takes no writes, but a recorder is subscribed.
    pub(crate) fn relays(self) -> bool {
        !self.writes && self.is_heard()
    }

    /// Whether one recorder is subscribed all the time.
    fn is_heard(self) -> bool {
        self.lose.count() < 2
    }

    /// The promises while two faults last.
    pub(crate) fn and(self, other: Self) -> Self {
        let lose = Losers {
            recorder: self.lose.recorder || other.lose.recorder,
            other: self.lose.other || other.lose.other,
            one_by_one: self.lose.one_by_one || other.lose.one_by_one,
        };
        let both_lose = self.lose.count() > 0 && other.lose.count() > 0;
        // Each of the two faults leaves one recorder. Together they leave none, and clients receive a gap.
        let interrupts = self.interrupts || other.interrupts || both_lose && lose.count() > 1;
        Self {
            lose,
            interrupts,
            writes: self.writes && other.writes,
            no_gaps: self.no_gaps && other.no_gaps && !interrupts,
            remembers: self.remembers && other.remembers && !interrupts,
            no_cuts: self.no_cuts && other.no_cuts,
            beats: self.beats && other.beats,
            punctual: self.punctual && other.punctual,
            bus_delivers: self.bus_delivers && other.bus_delivers,
            exact: self.exact && other.exact,
        }
    }
}

impl Fault {
    /// The promises while the fault lasts. `other_has_recorder`: whether the other replica that it may affect has a
    /// recorder. Without one, that replica has received nothing that it could lose.
    pub(crate) fn promises(self, other_has_recorder: bool) -> Promises {
        // The active recorder continues, and no other one is in sync until it has settled at the new node.
        let moves = matches!(
            self,
            Self::MoveSlot | Self::AddMaster | Self::ClusterFailOver
        );
        let everybody = matches!(
            self,
            Self::KillPubsub
                | Self::RestartRedis
                | Self::KillRedis
                | Self::Promote
                | Self::Cut
                | Self::HalfOpen
                | Self::Blackhole
        ) || self.kind() != Kind::Lone && !moves && self != Self::CutBus;
        let forgets = matches!(
            self,
            Self::FlushAll
                | Self::Evict
                | Self::Promote
                | Self::ClusterFlush
                | Self::ClusterPromote
        );
        Promises {
            interrupts: everybody,
            lose: Losers {
                recorder: everybody
                    || matches!(
                        self,
                        Self::KillRecorder
                            | Self::TermRecorder
                            | Self::CutRecorder
                            | Self::HalfOpenRecorder
                            | Self::BlackholeRecorder
                    ),
                other: everybody
                    || moves
                    || other_has_recorder
                        && matches!(
                            self,
                            Self::KillReplica | Self::TermReplica | Self::OutputBuffer
                        ),
                one_by_one: self == Self::RollingRestart,
            },
            writes: !matches!(self, Self::OutOfMemory | Self::DiskFull | Self::Evict),
            no_gaps: !forgets && !everybody && self != Self::Trim,
            remembers: !forgets && !everybody,
            no_cuts: !matches!(
                self,
                Self::KillReplica
                    | Self::KillRecorder
                    | Self::TermReplica
                    | Self::TermRecorder
                    | Self::RollingRestart
            ),
            beats: !matches!(self, Self::StopReplica | Self::StopRecorder),
            punctual: self != Self::ClusterStall,
            bus_delivers: self != Self::CutBus,
            // Redis does not report which keys it evicts: history, or keys that recorders coordinate with.
            exact: self != Self::Evict,
        }
    }
}
