//! `Site`: one end of a migration: its nodes, and the phases of its partitions.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hub::Partitions;
use prometheus::Registry;
use redis::{Cmd, Value};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Config, Error, Server,
    backoff::Backoff,
    call::{Call, Function},
    inspect::find,
    metrics::Metrics,
    names::{LIBRARY, Names, PARTITIONS},
    process::field,
    topology::Topology,
};

/// Calls about partitions that are made at the same time.
pub(super) const AT_ONCE: usize = 16;
/// A server that does not answer is asked again for this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The facts that all servers of an end share, and the run ids of its masters.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Of the deployment; none if there is none.
    pub(super) partitions: Option<u16>,
    /// The text of the function library.
    pub(super) code: Option<String>,
    pub(super) runs: BTreeSet<String>,
}

/// The state of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) phase: Phase,
    /// The migration of that phase; empty without one.
    pub(super) migration: String,
    /// The migration by which it came here; empty without one.
    pub(super) filled: String,
    /// The session of its relay: empty before the first, '-' if it was ended in order.
    pub(super) relayed: String,
    /// Raw messages were recorded.
    pub(super) is_raw: bool,
    /// How many gateways wait until it is open.
    pub(super) waiting: usize,
    /// The facts that go with it. The first is its clock, empty if there is no partition.
    pub(super) facts: Vec<String>,
}

/// The phase of a migration in a partition, as the library has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    None,
    Copying,
    Closing,
    Closed,
    Moved,
    Filling,
}

impl Phase {
    /// No event will ever be appended there.
    pub(super) fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::Moved)
    }
}

/// One end of a migration.
pub(super) struct Site {
    pub(super) topology: Topology,
    pub(super) config: Config,
    /// Look for changes of the masters.
    _watches: JoinSet<()>,
}

/// Asks all masters.
pub(super) async fn facts(server: &Server) -> Result<Facts, Error> {
    let mut facts = Facts::default();
    for master in server.masters().await? {
        let mut connection = master.connect().await?;
        let mut info = Cmd::new();
        let info: String = info
            .arg("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        if !server.is_cluster() && field(&info, "redis_mode:") == Some("cluster") {
            return Err(Error::IsCluster);
        }
        let run = field(&info, "run_id:").ok_or(Error::Malformed)?;
        facts.runs.insert(run.to_owned());
        let mut list = Cmd::new();
        list.arg("FUNCTION").arg("LIST").arg("LIBRARYNAME");
        list.arg(LIBRARY).arg("WITHCODE");
        let list: Value = list.query_async(&mut connection).await?;
        let code = find(&list, b"#!lua");
        let code = code.and_then(|code| String::from_utf8(code.to_vec()).ok());
        facts.code = facts.code.or(code);
        let mut get = Cmd::new();
        get.arg("GET").arg(PARTITIONS);
        match get.query_async(&mut connection).await.map_err(Error::of) {
            Ok(partitions) => facts.partitions = facts.partitions.or(partitions),
            // Another master has it.
            Err(error) if error.is_elsewhere() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(facts)
}

/// Repeats a call while the server is away for a moment. Only for calls that may be repeated.
pub(super) async fn patiently<T>(
    mut call: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let (give_up, mut backoff) = (Instant::now() + PATIENCE, Backoff::default());
    loop {
        match call().await {
            Err(error) if is_passing(&error) && Instant::now() < give_up => {
                sleep(backoff.next()).await;
            }
            done => return done,
        }
    }
}

/// Whether the same call may succeed a moment later.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Unavailable(error) => error.is_io_error() || error.code() == Some("LOADING"),
        Error::Unreachable(error) if error.is_fatal() => false,
        Error::Connect { .. } | Error::Unreachable(_) | Error::Refused(_) | Error::Replaced => true,
        error => error.is_elsewhere(),
    }
}

impl Site {
    /// An end with these partitions, as one replica uses it. `library` is the text of its function library.
    pub(super) fn new(
        redis: &Server,
        replica: &str,
        partitions: Partitions,
        library: &str,
    ) -> Self {
        let config = Config {
            redis: redis.clone(),
            replica: replica.to_owned(),
            partitions,
            prefix: String::new(),
            recorders: 0,
            rules: Vec::new(),
            max_payload: 0,
            max_pending: 0,
            observer: None,
        };
        let metrics = Metrics::register(&Registry::new()).expect("names are registered once");
        let topology = Topology::new(&config, metrics);
        let script = library.split_once('\n').map_or("", |(_, script)| script);
        topology.deployment().set_script(script.to_owned());
        let mut watches = JoinSet::new();
        let watched = topology.clone();
        watches.spawn(async move {
            for node in watched.layout().nodes() {
                node.watch_sentinels().await;
            }
            let _fatal = watched.watch().await;
        });
        Self {
            topology,
            config,
            _watches: watches,
        }
    }

    pub(super) fn names(&self) -> &Names {
        self.topology.deployment().names()
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = u16> + use<> {
        self.names().partitions().all()
    }

    /// Carries out a step in one partition. It may be carried out more than once.
    pub(super) fn step(
        &self,
        partition: u16,
        migration: &str,
        step: &str,
        args: &[&str],
    ) -> impl Future<Output = Result<Vec<String>, Error>> {
        patiently(async move || self.step_once(partition, migration, step, args).await)
    }

    /// The same once.
    pub(super) async fn step_once(
        &self,
        partition: u16,
        migration: &str,
        step: &str,
        args: &[&str],
    ) -> Result<Vec<String>, Error> {
        let deployment = self.topology.deployment();
        let call = deployment.new_call(Function::Migrate, partition);
        let call = call.arg(migration).arg(step);
        let call = args.iter().fold(call, |call, arg| Call::arg(call, *arg));
        self.topology.call(&call).await
    }

    /// The state of each partition.
    pub(super) async fn look(&self) -> Result<Vec<Look>, Error> {
        // The first call loads the function library, if there is none.
        self.step(0, "", "look", &[]).await?;
        let looks = self.partitions().map(async |partition| {
            let answer = self.step(partition, "", "look", &[]).await?;
            Look::read(&answer).ok_or(Error::Malformed)
        });
        stream::iter(looks).buffered(AT_ONCE).try_collect().await
    }
}

impl Look {
    fn read(answer: &[String]) -> Option<Self> {
        let [phase, migration, filled, relayed, raw, waiting, facts @ ..] = answer else {
            return None;
        };
        Some(Self {
            phase: match phase.as_str() {
                "" => Phase::None,
                "copying" => Phase::Copying,
                "closing" => Phase::Closing,
                "closed" => Phase::Closed,
                "moved" => Phase::Moved,
                "filling" => Phase::Filling,
                _ => return None,
            },
            migration: migration.clone(),
            filled: filled.clone(),
            relayed: relayed.clone(),
            is_raw: raw == "1",
            waiting: waiting.parse().ok()?,
            facts: facts.to_vec(),
        })
    }

    /// Whether nothing is there, or only the mark of a migration that was aborted.
    pub(super) fn is_empty(&self) -> bool {
        match self.phase {
            Phase::None => self.facts.iter().all(String::is_empty) && self.filled.is_empty(),
            Phase::Filling => self.migration == "-",
            _ => false,
        }
    }
}
