//! The faults.

use std::collections::BTreeSet;

use clap::ValueEnum;

/// A fault of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Nothing. The other faults are compared with this.
    None,
    /// A replica that does not record receives SIGKILL.
    KillReplica,
    /// The replica that records receives SIGKILL.
    KillRecorder,
    /// A replica that does not record receives SIGTERM.
    TermReplica,
    /// The replica that records receives SIGTERM.
    TermRecorder,
    /// A replica that does not record receives SIGSTOP, and SIGCONT after 3 s.
    StopReplica,
    /// The replica that records receives SIGSTOP, and SIGCONT after 3 s.
    StopRecorder,
    /// Each replica in turn receives SIGTERM, when the one before is ready again.
    RollingRestart,
    /// A replica cannot open more files for 3 s.
    NoFiles,
    /// 50 clients request more than their sockets hold and never read.
    NeverReading,
    /// For 3 s, clients connect and leave as fast as they can, half of them with a reset.
    Churn,
    /// Half of all clients are cut at the same time.
    Stampede,
    /// CLIENT KILL closes all subscription connections.
    KillPubsub,
    /// CLIENT KILL closes the other connections of the gateways.
    KillCommands,
    /// CLIENT PAUSE stops all commands for 2 s.
    ClientPause,
    /// FUNCTION FLUSH and SCRIPT FLUSH delete all functions and scripts.
    ScriptFlush,
    /// XTRIM reduces each history to one entry, and DEL deletes one, while half of the clients are disconnected.
    Trim,
    /// FLUSHALL deletes all data.
    FlushAll,
    /// Redis is at its maxmemory for 3 s, with the policy noeviction.
    OutOfMemory,
    /// Redis is at its maxmemory for 3 s, with the policy allkeys-lru.
    Evict,
    /// Redis cannot write its AOF for 3 s, because the disk is full.
    DiskFull,
    /// Redis receives SIGSTOP, and SIGCONT after 3 s.
    StopRedis,
    /// Redis is shut down. It starts again from its AOF after 1 s.
    RestartRedis,
    /// Redis receives SIGKILL. It starts again from its AOF after 1 s.
    KillRedis,
    /// Redis is killed, and a copy replaces it. The copy lacks the last second, and its clock is 20 s behind.
    Promote,
    /// All connections between gateways and Redis are closed, and new ones too, for 2 s.
    Cut,
    /// All connections between the replica that records and Redis are closed, and new ones too, for 2 s.
    CutRecorder,
    /// Data between gateways and Redis is delayed by 200 ms in each direction, for 3 s.
    Delay,
    /// All connections between gateways and Redis become silent, but stay open. New ones work.
    HalfOpen,
    /// No data passes between gateways and Redis for 5 s, but connections stay open.
    Blackhole,
    /// Data between the replica that records and Redis is delayed by 200 ms in each direction, for 3 s.
    DelayRecorder,
    /// All connections between the replica that records and Redis become silent, but stay open. New ones work.
    HalfOpenRecorder,
    /// No data passes between the replica that records and Redis for 5 s, but connections stay open.
    BlackholeRecorder,
    /// A replica stops reading from Redis, until its output buffer in Redis is full and Redis closes the connection.
    OutputBuffer,
    /// SENTINEL FAILOVER promotes a copy. The old master takes writes until sentinels make it a copy, seconds later.
    FailOver,
    /// Like fail-over, but one replica cannot reach the sentinels until 3 s later.
    FailOverUnheard,
    /// Like fail-over, but one sentinel is stopped until 3 s later.
    FailOverLate,
    /// The master receives SIGSTOP, and SIGCONT after sentinels have replaced it.
    StallMaster,
    /// The master receives SIGKILL. It starts again, as a master, 3 s after sentinels have replaced it.
    KillMaster,
    /// Two sentinels are stopped for 6 s, and the master for 3 s. So the master cannot be replaced.
    LoseSentinels,
    /// CLUSTER FAILOVER lets a copy take the place of a master of a cluster.
    ClusterFailOver,
    /// A master of a cluster receives SIGSTOP, and SIGCONT after a copy has taken its place.
    ClusterStall,
    /// A master of a cluster receives SIGKILL. It starts again, as a copy, after a copy has taken its place.
    ClusterKill,
    /// A master of a cluster is killed, and a copy takes its place that lacks the last second.
    ClusterPromote,
    /// FLUSHALL deletes all data of one master of a cluster.
    ClusterFlush,
    /// A partition of a cluster moves to another master key by key, and back, in one step if Redis can.
    MoveSlot,
    /// A master joins a cluster, and each partition of another one moves there, in one step if Redis can.
    AddMaster,
    /// All links between the nodes of a cluster are cut for 0.3 s, again and again, for 3 s.
    CutBus,
    /// Each node of a cluster is shut down and started again from its AOF, one after another.
    RollingNodes,
}

/// The kind of Redis that a fault needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One server.
    Lone,
    /// A master that sentinels watch.
    Watched,
    /// A cluster.
    Cluster,
}

/// Parses one fault, or several at once with `+` between their names. Each has to be in a domain of its own.
///
/// # Errors
///
/// If a name is unknown, if two faults have the same domain, or if a network fault is combined with a fault that needs
/// sentinels.
pub fn parse_faults(names: &str) -> Result<Vec<Fault>, String> {
    let faults: Vec<_> = names
        .split('+')
        .map(|name| Fault::from_str(name, false))
        .collect::<Result<_, _>>()?;
    let domains: BTreeSet<_> = faults.iter().map(|fault| fault.domain()).collect();
    if domains.len() < faults.len() {
        return Err(
            "two of the faults affect the same part: replicas, clients, Redis, or the network"
                .to_owned(),
        );
    }
    if kind_of(&faults) != Kind::Lone && domains.contains(&Domain::Network) {
        return Err(
            "a network fault cannot be combined with a fault that needs sentinels or a cluster"
                .to_owned(),
        );
    }
    if kind_of(&faults) == Kind::Cluster && !faults.iter().all(|one| one.runs_with_a_cluster()) {
        return Err("one of the faults cannot be run with a cluster".to_owned());
    }
    Ok(faults)
}

/// The kind of Redis that these faults need.
pub fn kind_of(faults: &[Fault]) -> Kind {
    let kinds = faults.iter().map(|fault| fault.kind());
    kinds.max().unwrap_or(Kind::Lone)
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
        // clap removes the last period.
        format!("{help}.")
    }

    /// Redis forgets events that clients have not received yet, so some of them receive a gap.
    pub(crate) fn causes_gaps(self) -> bool {
        matches!(
            self,
            Self::Trim | Self::FlushAll | Self::Promote | Self::ClusterFlush | Self::ClusterPromote
        )
    }

    /// Redis may forget something that it stored.
    pub(crate) fn forgets(self) -> bool {
        matches!(self, Self::Evict | Self::KillMaster | Self::ClusterKill) || self.causes_gaps()
    }

    /// The fault affects a master that sentinels watch.
    pub(crate) fn needs_sentinels(self) -> bool {
        self.replaces_master() || self == Self::LoseSentinels
    }

    /// The kind of Redis that it needs.
    pub fn kind(self) -> Kind {
        match self {
            Self::ClusterFailOver
            | Self::ClusterStall
            | Self::ClusterKill
            | Self::ClusterPromote
            | Self::ClusterFlush
            | Self::MoveSlot
            | Self::AddMaster
            | Self::CutBus
            | Self::RollingNodes => Kind::Cluster,
            _ if self.needs_sentinels() => Kind::Watched,
            _ => Kind::Lone,
        }
    }

    /// Whether it can be run with a cluster.
    pub(crate) fn runs_with_a_cluster(self) -> bool {
        let is_elsewhere = matches!(self.domain(), Domain::Replicas | Domain::Clients);
        self.kind() == Kind::Cluster || is_elsewhere && self != Self::NeverReading
    }

    /// Whether the promises are known for both at once. Replicas that have just started do not notice what the bus of a
    /// cluster loses.
    pub(crate) fn combines_with(self, other: Self) -> bool {
        let pair = [self, other];
        self.domain() != other.domain()
            && !(pair.contains(&Self::CutBus) && pair.contains(&Self::RollingRestart))
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
            | Self::LoseSentinels
            | Self::ClusterFailOver
            | Self::ClusterStall
            | Self::ClusterKill
            | Self::ClusterPromote
            | Self::ClusterFlush
            | Self::MoveSlot
            | Self::AddMaster
            | Self::CutBus
            | Self::RollingNodes => Domain::Redis,
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
