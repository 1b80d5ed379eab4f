//! The faults, what each is to be, and what is promised while it lasts.

use clap::ValueEnum;

/// What is done to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Nothing: what the others are compared with.
    None,
    /// SIGKILL of a replica that does not record.
    KillReplica,
    /// SIGKILL of the replica that records.
    KillRecorder,
    /// SIGTERM of a replica that does not record.
    TermReplica,
    /// SIGTERM of the replica that records.
    TermRecorder,
    /// SIGSTOP of a replica that does not record, SIGCONT after 3 s.
    StopReplica,
    /// SIGSTOP of the replica that records, SIGCONT after 3 s.
    StopRecorder,
    /// SIGTERM of each replica in turn, the next one when the one before is ready again.
    RollingRestart,
    /// A replica may open no more files for 3 s.
    NoFiles,
    /// 100 clients ask for everything and never read.
    NeverReading,
    /// Clients come and go as fast as they can for 3 s, half of them with a reset.
    Churn,
    /// Half of all clients are cut at once.
    Stampede,
    /// CLIENT KILL of every subscription.
    KillPubsub,
    /// CLIENT KILL of the gateways' other connections.
    KillCommands,
    /// CLIENT PAUSE of everybody for 2 s.
    ClientPause,
    /// FUNCTION FLUSH and SCRIPT FLUSH.
    ScriptFlush,
    /// XTRIM of every history to one entry, DEL of one, while half of the clients are away.
    Trim,
    /// FLUSHALL.
    FlushAll,
    /// maxmemory is reached for 3 s, noeviction.
    OutOfMemory,
    /// maxmemory is reached for 3 s, allkeys-lru.
    Evict,
    /// The disk is full for the AOF for 3 s.
    DiskFull,
    /// SIGSTOP of Redis, SIGCONT after 3 s.
    StopRedis,
    /// Redis is shut down, and started again from its AOF after 1 s.
    RestartRedis,
    /// SIGKILL of Redis, and started again from its AOF after 1 s.
    KillRedis,
    /// Redis dies, and a copy takes its place that missed the last second and whose clock is 20 s behind.
    Promote,
    /// All connections between gateways and Redis are closed, and new ones for 2 s.
    Cut,
    /// The same for the replica that records alone.
    CutRecorder,
    /// What gateways and Redis say to each other takes 200 ms longer, each way, for 3 s.
    Delay,
    /// All connections between gateways and Redis go silent without being closed; new ones work.
    HalfOpen,
    /// Nothing passes between gateways and Redis for 5 s, and nothing is closed.
    Blackhole,
    /// A replica takes nothing from Redis any more, until Redis cuts it off because too much waits.
    OutputBuffer,
}

/// What a fault is done to. Two at once are of different domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Domain {
    Replicas,
    Clients,
    Redis,
    Network,
}

/// What is promised while a fault lasts. The rest always is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promises {
    /// Every raw PUBLISH that anybody heard is recorded: a warm seat survives, and Redis takes writes.
    pub(super) raw_recorded: bool,
    /// Redis forgets nothing that it stored, so no client is told a gap.
    pub(super) no_gaps: bool,
    /// Whoever lost something is told.
    pub(super) no_silence: bool,
}

impl Promises {
    /// What is promised while two faults last.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            raw_recorded: self.raw_recorded && other.raw_recorded,
            no_gaps: self.no_gaps && other.no_gaps,
            no_silence: self.no_silence && other.no_silence,
        }
    }
}

impl Fault {
    /// Every fault, in the order of the table.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// As on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        value.get_name().to_owned()
    }

    /// What is done, in words.
    pub fn what(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        let help = value.get_help().expect("each has a comment");
        help.to_string()
    }

    pub(super) fn domain(self) -> Domain {
        match self {
            Self::KillReplica
            | Self::KillRecorder
            | Self::TermReplica
            | Self::TermRecorder
            | Self::StopReplica
            | Self::StopRecorder
            | Self::RollingRestart
            | Self::NoFiles => Domain::Replicas,
            Self::None | Self::NeverReading | Self::Churn | Self::Stampede => Domain::Clients,
            Self::KillPubsub
            | Self::KillCommands
            | Self::ClientPause
            | Self::ScriptFlush
            | Self::Trim
            | Self::FlushAll
            | Self::OutOfMemory
            | Self::Evict
            | Self::DiskFull
            | Self::StopRedis
            | Self::RestartRedis
            | Self::KillRedis
            | Self::Promote => Domain::Redis,
            Self::Cut
            | Self::CutRecorder
            | Self::Delay
            | Self::HalfOpen
            | Self::Blackhole
            | Self::OutputBuffer => Domain::Network,
        }
    }

    pub(super) fn promises(self) -> Promises {
        let unheard = matches!(
            self,
            // Every seat has lost its subscription, or nobody can record.
            Self::KillPubsub
                | Self::RestartRedis
                | Self::KillRedis
                | Self::Promote
                | Self::Cut
                | Self::HalfOpen
                | Self::Blackhole
                | Self::OutOfMemory
                | Self::DiskFull
                | Self::Evict
        );
        let forgets = matches!(
            self,
            Self::Trim | Self::FlushAll | Self::Evict | Self::Promote
        );
        Promises {
            raw_recorded: !unheard,
            no_gaps: !forgets,
            // Which keys Redis evicts nobody is told.
            no_silence: self != Self::Evict,
        }
    }
}
