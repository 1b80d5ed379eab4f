//! The faults.

use std::collections::BTreeSet;

use clap::ValueEnum;

/// A fault of the system.
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
    /// 50 clients ask for more than their sockets hold and never read.
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
    /// What the replica that records and Redis say to each other takes 200 ms longer, each way, for 3 s.
    DelayRecorder,
    /// The connections between the replica that records and Redis go silent without being closed; new ones work.
    HalfOpenRecorder,
    /// Nothing passes between the replica that records and Redis for 5 s, and nothing is closed.
    BlackholeRecorder,
    /// A replica takes nothing from Redis any more, until Redis cuts it off because too much waits.
    OutputBuffer,
    /// SENTINEL FAILOVER makes a copy the master. The old master takes writes until they make it a copy, seconds later.
    FailOver,
    /// The same, while one replica cannot reach the sentinels until 3 s later.
    FailOverUnheard,
    /// The same, while one sentinel is stopped until 3 s later.
    FailOverLate,
    /// SIGSTOP of the master, SIGCONT when sentinels have replaced it.
    StallMaster,
    /// SIGKILL of the master. It is started again, as a master, 3 s after sentinels have replaced it.
    KillMaster,
    /// SIGSTOP of two sentinels for 6 s, and of the master for 3 s: it cannot be replaced.
    LoseSentinels,
}

/// Parses one fault, or several at once with `+` between their names. Each has to be in a domain of its own.
///
/// # Errors
///
/// If a name is unknown, two faults have the same domain, or a network fault is combined with one that needs
/// sentinels.
pub fn parse_faults(names: &str) -> Result<Vec<Fault>, String> {
    let faults: Vec<_> = names
        .split('+')
        .map(|name| Fault::from_str(name, false))
        .collect::<Result<_, _>>()?;
    let domains: BTreeSet<_> = faults.iter().map(|fault| fault.domain()).collect();
    if domains.len() < faults.len() {
        return Err(
            "two of them are done to the same thing: replicas, clients, Redis or network"
                .to_owned(),
        );
    }
    let needs_sentinels = faults.iter().any(|fault| fault.needs_sentinels());
    if needs_sentinels && domains.contains(&Domain::Network) {
        return Err("with sentinels there is no network to do something to".to_owned());
    }
    Ok(faults)
}

/// The part of the system that a fault affects. Two faults at once are in different domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Domain {
    Replicas,
    Clients,
    Redis,
    Network,
}

impl Fault {
    /// Every fault, in the order of the table.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        value.get_name().to_owned()
    }

    /// The fault's description.
    pub fn what(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        let help = value.get_help().expect("each has a comment");
        help.to_string()
    }

    /// Redis forgets something that clients have not received yet, so some of them receive a gap.
    pub(crate) fn tells_gaps(self) -> bool {
        matches!(self, Self::Trim | Self::FlushAll | Self::Promote)
    }

    /// Redis may forget something that it stored.
    pub(crate) fn forgets(self) -> bool {
        matches!(self, Self::Evict | Self::KillMaster) || self.tells_gaps()
    }

    /// The fault affects a master that sentinels watch.
    pub fn needs_sentinels(self) -> bool {
        self.replaces_master() || self == Self::LoseSentinels
    }

    /// Another node becomes the master, while the old master may still run.
    pub(crate) fn replaces_master(self) -> bool {
        matches!(
            self,
            Self::FailOver
                | Self::FailOverUnheard
                | Self::FailOverLate
                | Self::StallMaster
                | Self::KillMaster
        )
    }

    /// The replica with the active recorder ends.
    pub(crate) fn ends_recorder(self) -> bool {
        matches!(self, Self::KillRecorder | Self::TermRecorder)
    }

    pub(crate) fn domain(self) -> Domain {
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
            | Self::Promote
            | Self::FailOver
            | Self::FailOverUnheard
            | Self::FailOverLate
            | Self::StallMaster
            | Self::KillMaster
            | Self::LoseSentinels => Domain::Redis,
            Self::Cut
            | Self::CutRecorder
            | Self::Delay
            | Self::HalfOpen
            | Self::Blackhole
            | Self::DelayRecorder
            | Self::HalfOpenRecorder
            | Self::BlackholeRecorder
            | Self::OutputBuffer => Domain::Network,
        }
    }
}
