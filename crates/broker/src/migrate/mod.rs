//! Moving a deployment to another Redis, while gateways run.
//!
//! A partition has phases at both ends (`library/migrate.lua`). Copies are made while the source works as usual.
//! Then this command, a recorder in sync, *closes* each partition: only it may append there, for some seconds. It records
//! the raw messages, copies the rest, and *commits*: no event is appended at the source any more. Only then it *opens* the
//! target, with the clocks of the source. So at no time do both take events. If the command ends before a commit, the
//! source is open again after a moment. If it ends after that, it has to be started again.
//!
//! The number of partitions at the target is a multiple of the one at the source. So each partition has channels of one
//! earlier partition only, and the position of a client in that one is its position here.

mod copy;
mod relay;
mod site;
mod switch;

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryFutureExt as _, TryStreamExt as _, stream};
use hub::Partitions;
use redis::Cmd;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, interval, sleep, timeout, timeout_at},
};

use self::{
    relay::{Reader, Relay, Relayed},
    site::{AT_ONCE, Facts, Look, Phase, Site, facts, patiently},
    switch::Switch,
};
use crate::{
    Config, Error, Recorders, Server, library,
    names::{CLOCK, Names, PARTITIONS},
    record::{Diversion, Diverted},
};

/// Between two reports of the relay.
const REPORT: Duration = Duration::from_secs(10);

/// Receives lines that report progress.
pub(crate) type Report<'a> = &'a (dyn Fn(&str) + Sync);

/// A deployment that moves to another Redis.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The Redis of the deployment.
    pub from: Server,
    /// The Redis that it moves to.
    pub to: Server,
    /// How many partitions it will have; as many as it has, if none are given.
    pub partitions: Option<Partitions>,
    /// Raw channels begin with this.
    pub prefix: String,
    /// Bytes of raw messages that may wait.
    pub max_pending: usize,
    /// The source is closed for no longer than this. If the rest takes longer to copy, it stays open.
    pub max_pause: Duration,
    /// The source is closed when this many gateways wait at the target.
    pub gateways: usize,
    /// The relay of raw messages ends when none has come for this time. Without it, it ends when it is stopped.
    pub quiet: Option<Duration>,
}

/// Why a deployment was not moved.
#[derive(Debug, thiserror::Error)]
pub enum NotMigrated {
    /// The Redis of the deployment failed.
    #[error("--from: {0}")]
    From(Error),
    /// The other Redis failed.
    #[error("--to: {0}")]
    To(Error),
    /// It cannot be moved like this.
    #[error("{0}")]
    Impossible(String),
    /// The source is closed for good, and the target is not open.
    #[error(
        "{0}. --from takes no events any more, and --to none yet: start the same command again to complete the migration"
    )]
    Between(String),
    /// It was stopped before anything had moved.
    #[error(
        "stopped: the deployment is where it was. The same command continues, and --abort ends the migration"
    )]
    Stopped,
}

/// An error of an end.
trait At<T> {
    fn from(self) -> Result<T, NotMigrated>;
    fn to(self) -> Result<T, NotMigrated>;
}

impl<T> At<T> for Result<T, Error> {
    fn from(self) -> Result<T, NotMigrated> {
        self.map_err(NotMigrated::From)
    }

    fn to(self) -> Result<T, NotMigrated> {
        self.map_err(NotMigrated::To)
    }
}

fn impossible<T>(text: impl Into<String>) -> Result<T, NotMigrated> {
    Err(NotMigrated::Impossible(text.into()))
}

/// Both ends of a migration that has begun.
struct Ends {
    source: Site,
    target: Site,
    migration: String,
    replica: String,
    /// The target had nothing.
    is_fresh: bool,
    max_payload: usize,
    /// By partition, when it began.
    before: Vec<Look>,
    there: Vec<Look>,
}

impl Migration {
    /// Moves the deployment, and relays raw messages until `stop` resolves or none come any more. `report` receives
    /// progress.
    ///
    /// # Errors
    /// When it is not moved. The error names the state of the deployment.
    pub async fn run(
        &self,
        report: &(dyn Fn(&str) + Sync),
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), NotMigrated> {
        let (stops, stopped) = watch::channel(false);
        let migrate = self.migrate(report, stopped);
        tokio::pin!(migrate, stop);
        tokio::select! {
            done = &mut migrate => return done,
            () = &mut stop => {}
        }
        stops.send_replace(true);
        migrate.await
    }

    async fn migrate(
        &self,
        report: Report<'_>,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), NotMigrated> {
        let ends = self.begin().await?;
        let is_closed = |look: &&Look| look.phase.is_closed();
        let closed: BTreeSet<u16> = (0..)
            .zip(&ends.before)
            .filter(|(_, look)| is_closed(look))
            .map(|(partition, _)| partition)
            .collect();
        let is_open = ends.there.iter().all(|look| look.filled == ends.migration);
        let is_raw = ends.before.iter().any(|look| look.is_raw);
        let mut relay = Relay::new(&ends.target, &ends.replica, is_raw);
        let (stops_reading, stop_reading) = watch::channel(false);
        let max_pending = self.max_pending.min(Semaphore::MAX_PERMITS);
        let reader = Reader {
            prefix: self.prefix.as_str().into(),
            max_payload: ends.max_payload,
            names: ends.source.topology.clone(),
            partitions: ends.target.names().partitions(),
            max_pending,
            room: Arc::new(Semaphore::new(max_pending)),
            stop: stop_reading,
        };
        let (diversion, mut diverted) = Diversion::new(closed.clone());
        let recorders = Recorders::new(&self.config(&ends), &ends.source.topology);
        let recorders = recorders.diverted_by(diversion.clone());
        let (stops_recording, recording) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(recorders.run(async move {
            let mut recording = recording;
            let _stopped = recording.wait_for(|stopped| *stopped).await;
        }));
        let moved = async {
            if is_open {
                report("the target is open already: relaying raw messages");
                diversion.hold();
                self.divert(&ends, &mut relay, &reader, &mut diverted)
                    .await?;
                return Ok(());
            }
            let switch = Switch {
                migration: self,
                ends: &ends,
                closed: &closed,
                diversion: &diversion,
                report,
                stopped: stopped.clone(),
            };
            switch.run(&mut relay, &reader, &mut diverted).await
        };
        let moved = moved.await;
        if let Err(error) = moved {
            // The recorder steps down as that of any replica.
            stops_recording.send_replace(true);
            let ended = async { while tasks.join_next().await.is_some() {} };
            let _late = timeout(crate::HANDOVER, ended).await;
            return Err(error);
        }
        let begun = (0..).zip(&ends.there).map(|(partition, look)| {
            let was_open = look.filled == ends.migration;
            let is_lost = was_open && is_raw && !look.relayed.starts_with('-');
            relay.begin(partition, is_lost)
        });
        let begun = stream::iter(begun).buffer_unordered(AT_ONCE);
        begun.try_collect::<()>().await.to()?;
        let left = ends.source.partitions().map(|partition| {
            let step = ends.source.step(partition, &ends.migration, "leave", &[]);
            step.map_ok(drop)
        });
        let left = stream::iter(left).buffer_unordered(AT_ONCE);
        left.try_collect::<()>().await.from()?;
        self.relay(relay, stops_reading, report, stopped).await
    }

    /// The settings of a recorder at the source.
    fn config(&self, ends: &Ends) -> Config {
        Config {
            prefix: self.prefix.clone(),
            max_payload: ends.max_payload,
            max_pending: self.max_pending,
            ..ends.source.config.clone()
        }
    }

    /// Checks both ends, and marks them.
    async fn begin(&self) -> Result<Ends, NotMigrated> {
        let at_source = facts(&self.from).await.from()?;
        let at_target = facts(&self.to).await.to()?;
        if !at_source.runs.is_disjoint(&at_target.runs) {
            return impossible("--to is the same Redis as --from");
        }
        let (before, library) = deployment(&at_source)?;
        let after = self.partitions.unwrap_or(before);
        if !after.divide(before) {
            return impossible(format!(
                "--partitions {} is not a multiple of the {} partitions at --from: the ids of clients would not be valid. \
                 {} would be one",
                after.count(),
                before.count(),
                before.count() * (after.count() / before.count() + 1)
            ));
        }
        if let Some(stored) = at_target.partitions
            && stored != after.count()
        {
            return impossible(format!(
                "--to holds a deployment with {stored} partitions already: it has to be empty"
            ));
        }
        let max_payload = library::max_payload(library);
        let divided = library::divided(library, &Names::new(after));
        let Some((max_payload, divided)) = max_payload.zip(divided) else {
            return Err(NotMigrated::From(Error::Malformed));
        };
        let replica = new_name();
        let source = Site::new(&self.from, &replica, before, library);
        let target = Site::new(&self.to, &replica, after, &library::library(&divided));
        let (before, there) = (source.look().await.from()?, target.look().await.to()?);
        let (migration, is_fresh) = name(&before, &there)?;
        for (partition, look) in (0..).zip(&before) {
            if look.phase == Phase::Closing && look.migration == migration {
                continue;
            }
            let by = [replica.as_str()];
            let step = source.step(partition, &migration, "copy", &by);
            step.await.from()?;
        }
        for (partition, look) in (0..).zip(&there) {
            if look.filled != migration {
                let step = target.step(partition, &migration, "fill", &[]);
                step.await.to()?;
            }
        }
        keep_partitions(&target).await.to()?;
        Ok(Ends {
            source,
            target,
            migration,
            replica,
            is_fresh,
            max_payload,
            before,
            there,
        })
    }

    /// Takes over from the recorders of all nodes.
    async fn divert(
        &self,
        ends: &Ends,
        relay: &mut Relay,
        reader: &Reader,
        diverted: &mut mpsc::UnboundedReceiver<Diverted>,
    ) -> Result<(), NotMigrated> {
        let mut missing: BTreeSet<u16> = ends.source.partitions().collect();
        let give_up = Instant::now() + self.max_pause.max(Duration::from_secs(1));
        while let Some(first) = missing.first() {
            let Ok(Some(diverted)) = timeout_at(give_up, diverted.recv()).await else {
                return impossible(format!(
                    "partition {first} at --from has no recorder that could leave it: try again"
                ));
            };
            let Some(partition) = diverted.pending.keys().next().copied() else {
                continue;
            };
            let node = ends.source.topology.node(partition).from()?;
            for partition in diverted.pending.keys() {
                missing.remove(partition);
            }
            relay.take_over(reader, node, diverted);
        }
        Ok(())
    }

    /// Relays until that is to end.
    async fn relay(
        &self,
        relay: Relay,
        stops_reading: watch::Sender<bool>,
        report: Report<'_>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), NotMigrated> {
        report(match self.quiet {
            Some(_) => "relaying raw messages from --from until none come any more",
            None => "relaying raw messages from --from until this command is stopped (Ctrl-C)",
        });
        let progress = relay.progress();
        let started = Instant::now();
        let relay = relay.run();
        tokio::pin!(relay);
        let mut reports = interval(REPORT);
        reports.reset();
        let mut last = Relayed::default();
        loop {
            let now = *progress.borrow();
            let quiet = now.last.unwrap_or(started).max(started).elapsed();
            let is_over = self.quiet.is_some_and(|limit| quiet >= limit);
            let next = self
                .quiet
                .map_or(REPORT, |limit| limit.saturating_sub(quiet));
            tokio::select! {
                ended = &mut relay => return relayed(ended, report),
                _ = stopped.wait_for(|stop| *stop) => break,
                () = sleep(next), if !is_over => {}
                () = std::future::ready(()), if is_over => break,
                _ = reports.tick() => {
                    if now.messages != last.messages || now.interruptions != last.interruptions {
                        last = now;
                        report(&format!(
                            "relayed {} raw messages, the last one came {} s ago",
                            now.messages,
                            quiet.as_secs()
                        ));
                    }
                }
            }
        }
        stops_reading.send_replace(true);
        relayed(relay.await, report)
    }

    /// Ends a migration that has not closed the source. The target is emptied; gateways stay out of it.
    ///
    /// # Errors
    /// When the deployment has moved already, or a Redis cannot be reached.
    pub async fn abort(from: &Server, to: Option<&Server>) -> Result<String, NotMigrated> {
        let at_source = facts(from).await.from()?;
        let (before, library) = deployment(&at_source)?;
        let replica = new_name();
        let source = Site::new(from, &replica, before, library);
        let looks = source.look().await.from()?;
        let Some(look) = looks.iter().find(|look| look.phase != Phase::None) else {
            return impossible("--from: no migration has begun there");
        };
        if looks.iter().any(|look| look.phase.is_closed()) {
            return impossible(
                "--from: the deployment has moved, at least in part: start the migration again to complete it",
            );
        }
        let migration = look.migration.clone();
        if let Some(to) = to {
            let at_target = facts(to).await.to()?;
            let count = at_target.partitions.and_then(Partitions::new);
            if let Some((partitions, library)) = count.zip(at_target.code) {
                let target = Site::new(to, &replica, partitions, &library);
                let there = target.look().await.to()?;
                let is_its = |look: &Look| look.migration == migration || look.is_empty();
                if !there.iter().all(is_its) {
                    return impossible("--to: it is not filled by the migration of --from");
                }
                empty(&target).await.to()?;
                for partition in target.partitions() {
                    let step = target.step(partition, &migration, "forget", &[]);
                    step.await.to()?;
                }
            }
        }
        for partition in source.partitions() {
            let step = source.step(partition, &migration, "abort", &[]);
            step.await.from()?;
        }
        Ok(match to {
            Some(_) => "the migration has ended: the deployment is at --from, and --to is empty. Gateways stay out of --to \
                        until it is flushed or another migration has filled it"
                .to_owned(),
            None => "the migration has ended: the deployment is at --from".to_owned(),
        })
    }
}

/// The number of partitions and the library of the deployment at the source.
fn deployment(found: &Facts) -> Result<(Partitions, &str), NotMigrated> {
    let partitions = found.partitions.and_then(Partitions::new);
    let Some((partitions, library)) = partitions.zip(found.code.as_deref()) else {
        return impossible("--from holds no deployment: no gateway has used it");
    };
    if !library::is_of_this_version(library.as_bytes()) {
        return impossible(format!(
            "--from: the gateways there are of another version. Update them to this one first, {}",
            env!("CARGO_PKG_VERSION")
        ));
    }
    Ok((partitions, library))
}

/// The name of the migration, and whether it begins now.
fn name(before: &[Look], there: &[Look]) -> Result<(String, bool), NotMigrated> {
    let bound = before
        .iter()
        .find(|look| matches!(look.phase, Phase::Closing | Phase::Closed | Phase::Moved));
    let begun = before.iter().find(|look| look.phase == Phase::Copying);
    let Some(name) = bound.or(begun).map(|look| &look.migration) else {
        return match there.iter().all(Look::is_empty) {
            true => Ok((new_name(), true)),
            false => impossible(occupied(there)),
        };
    };
    let is_its = |look: &Look| look.migration == *name || look.filled == *name;
    if there.iter().any(is_its) && there.iter().all(|look| is_its(look) || look.is_empty()) {
        return Ok((name.clone(), false));
    }
    match bound {
        Some(_) => {
            impossible("--from: the deployment moves or has moved to another Redis than --to")
        }
        None if there.iter().all(Look::is_empty) => Ok((new_name(), true)),
        None => impossible(occupied(there)),
    }
}

fn occupied(there: &[Look]) -> &'static str {
    match there.iter().any(|look| look.phase == Phase::Filling) {
        true => {
            "--to: another migration has begun to fill it. End that one with --abort, or flush --to"
        }
        false => {
            "--to holds a deployment already: it has to be empty. Stop the gateways there and flush it"
        }
    }
}

/// Names a migration, or a replica.
fn new_name() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Stores the number of partitions, so that gateways with another one are refused.
async fn keep_partitions(target: &Site) -> Result<(), Error> {
    patiently(async || {
        let (mut done, mut failed) = (false, Error::NoOwner);
        for master in target.config.redis.masters().await? {
            let mut connection = master.connect().await?;
            let deployment = target.topology.deployment();
            match deployment.check_partitions(&mut connection).await {
                Ok(()) => done = true,
                Err(error) if error.is_elsewhere() => failed = error,
                Err(error) => return Err(error),
            }
        }
        if done { Ok(()) } else { Err(failed) }
    })
    .await
}

/// Deletes all keys of a deployment but the marks of the migration.
async fn empty(target: &Site) -> Result<(), Error> {
    for master in target.config.redis.masters().await? {
        let mut connection = master.connect().await?;
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = Cmd::new();
            scan.arg("SCAN").arg(&cursor).arg("MATCH").arg("ssegw:{*");
            scan.arg("COUNT").arg(1000);
            let (next, keys): (String, Vec<Vec<u8>>) = scan.query_async(&mut connection).await?;
            for key in keys {
                let names = target.names().split(&key);
                if key != PARTITIONS.as_bytes()
                    && names.is_some_and(|(_, rest)| rest != CLOCK.as_bytes())
                {
                    let mut delete = Cmd::new();
                    let () = delete
                        .arg("DEL")
                        .arg(key)
                        .query_async(&mut connection)
                        .await?;
                }
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
    }
    Ok(())
}

fn relayed(ended: Result<Relayed, Error>, report: Report<'_>) -> Result<(), NotMigrated> {
    let relayed = ended.to()?;
    let Relayed {
        messages,
        interruptions,
        ..
    } = relayed;
    let gaps = match interruptions {
        0 => String::new(),
        count => format!(", interrupted {count} times: clients received a gap"),
    };
    report(&format!("done: {messages} raw messages were relayed{gaps}"));
    Ok(())
}
