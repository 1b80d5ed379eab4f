//! `Switch`: from the first copy until the target is open and the source is closed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    At as _, Ends, Migration, NotMigrated, Report,
    copy::Copier,
    impossible,
    relay::{Reader, Relay},
    site::{Look, patiently},
};
use crate::{
    Error,
    call::Function,
    record::{Diversion, Diverted},
    times::{CLOSING, KEEP_CLOSED},
};

/// With fewer changes than this in a look, the source is closed.
const FEW: usize = 64;
/// Looks before it is closed in any case, and attempts to copy all channels.
const LOOKS: usize = 20;
const ATTEMPTS: usize = 5;
/// Longest wait for a recorder in sync.
const IN_SYNC: Duration = Duration::from_secs(30);
/// Between two looks whether ends wait for raw messages, and between two attempts to open the target.
const PAUSE: Duration = Duration::from_millis(10);
const AGAIN: Duration = Duration::from_secs(1);

/// Moves the deployment from one end to the other.
pub(super) struct Switch<'a> {
    pub(super) migration: &'a Migration,
    pub(super) ends: &'a Ends,
    /// Partitions that an earlier command has closed for good.
    pub(super) closed: &'a BTreeSet<u16>,
    pub(super) diversion: &'a Diversion,
    pub(super) report: Report<'a>,
    pub(super) stopped: watch::Receiver<bool>,
}

impl Switch<'_> {
    pub(super) async fn run(
        &self,
        relay: &mut Relay,
        reader: &Reader,
        diverted: &mut mpsc::UnboundedReceiver<Diverted>,
    ) -> Result<(), NotMigrated> {
        let Ends {
            source,
            target,
            migration,
            replica,
            is_fresh,
            ..
        } = self.ends;
        let mut there = self.ends.there.iter();
        if there.any(|look| look.filled == *migration) {
            // The source is closed, and all is copied.
            (self.report)("a part of --to is open already: opening the rest");
            self.diversion.hold();
            let divert = self.migration.divert(self.ends, relay, reader, diverted);
            divert.await?;
            return self.open().await;
        }
        let stopped = self.stopped.clone();
        let copier = Copier::new(source, target, migration, replica, *is_fresh, stopped);
        (self.report)("copying while --from is in use");
        self.copy_all(&copier).await?;
        self.copy(&copier).await?;
        self.wait_for_recorders().await?;
        self.wait_for_gateways(&copier).await?;
        self.copy(&copier).await?;
        let began = Instant::now();
        let rest = async {
            self.close_at_last().await?;
            (self.report)("--from takes no events until --to is open");
            tokio::select! {
                rest = self.rest(&copier, relay, reader, diverted) => rest,
                lost = self.keep_closed() => Err(lost),
            }
        };
        let rest = timeout(self.migration.max_pause + CLOSING, rest).await;
        let rest =
            rest.unwrap_or_else(|_| impossible("the rest was not copied within --max-pause"));
        if let Err(error) = rest {
            self.reopen(began).await;
            return Err(error);
        }
        self.commit().await?;
        self.open().await?;
        let (copied, pause) = (copier.copied(), began.elapsed());
        let left_out = match copied.left_out {
            0 => String::new(),
            count => format!(", {count} channels left out: see the warnings"),
        };
        (self.report)(&format!(
            "moved: {} channels, {} events, {} to {} partitions{left_out}; no events were taken for {} ms",
            copied.channels,
            copied.events,
            source.names().partitions().count(),
            target.names().partitions().count(),
            pause.as_millis()
        ));
        Ok(())
    }

    /// The partitions that still have to be closed.
    fn waiting(&self) -> impl Iterator<Item = u16> {
        let partitions = self.ends.source.partitions();
        partitions.filter(|partition| !self.closed.contains(partition))
    }

    /// Copies the changes, until there are few.
    async fn copy(&self, copier: &Copier<'_>) -> Result<(), NotMigrated> {
        for _ in 0..LOOKS {
            match copier.copy_changed().await? {
                None => self.copy_all(copier).await?,
                Some(count) if count < FEW => break,
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Copies all channels. Begins again if a Redis was away.
    async fn copy_all(&self, copier: &Copier<'_>) -> Result<(), NotMigrated> {
        let mut attempt = 1;
        loop {
            copier.trace().await?;
            match copier.copy_all(self.report).await {
                Err(NotMigrated::From(error) | NotMigrated::To(error)) if attempt < ATTEMPTS => {
                    tracing::warn!(%error, "failed to copy: beginning again with the missing part");
                    attempt += 1;
                    sleep(AGAIN).await;
                }
                done => return done,
            }
        }
    }

    async fn wait_for_recorders(&self) -> Result<(), NotMigrated> {
        let mut in_sync = self.diversion.in_sync();
        let all = in_sync.wait_for(|in_sync| self.waiting().all(|it| in_sync.contains(&it)));
        match timeout(IN_SYNC, all).await {
            Ok(_) => Ok(()),
            Err(_) => impossible(
                "--from: no recorder got in sync within 30 s. The logs of the gateways and of this command show why",
            ),
        }
    }

    /// Copies changes until enough gateways wait at the target. Otherwise no gateway would take events after the switch.
    async fn wait_for_gateways(&self, copier: &Copier<'_>) -> Result<(), NotMigrated> {
        let Migration { gateways, .. } = *self.migration;
        let mut is_reported = false;
        loop {
            if *self.stopped.borrow() && self.closed.is_empty() {
                return Err(NotMigrated::Stopped);
            }
            let looks = self.ends.target.look().await.to()?;
            let waiting = looks.iter().map(|look| look.waiting).max();
            let is_open = looks.iter().any(|look| look.filled == self.ends.migration);
            if waiting.unwrap_or_default() >= gateways || is_open {
                return Ok(());
            }
            if !is_reported {
                is_reported = true;
                (self.report)(&format!(
                    "all is copied; waiting until gateways wait at --to: {} of {gateways}. Changes are copied every second",
                    waiting.unwrap_or_default()
                ));
            }
            let mut stopped = self.stopped.clone();
            let _changed = timeout(AGAIN, stopped.wait_for(|stop| *stop)).await;
            self.copy(copier).await?;
        }
    }

    /// Keeps all others out. A command that was killed a moment ago may still do that.
    async fn close_at_last(&self) -> Result<(), NotMigrated> {
        let give_up = Instant::now() + CLOSING;
        loop {
            match self.close().await {
                Err(Error::Migration(_)) if Instant::now() < give_up => sleep(KEEP_CLOSED).await,
                done => return done.map(drop).from(),
            }
        }
    }

    /// Keeps all others out for some seconds more. Returns whether ends wait for raw messages.
    async fn close(&self) -> Result<bool, Error> {
        let Ends {
            source,
            migration,
            replica,
            ..
        } = self.ends;
        let closed = self
            .waiting()
            .map(async |partition| source.step(partition, migration, "close", &[replica]).await);
        let waits = try_join_all(closed).await?;
        Ok(waits.iter().flatten().any(|waits| waits == "1"))
    }

    /// Returns when others may have got in.
    async fn keep_closed(&self) -> NotMigrated {
        loop {
            sleep(KEEP_CLOSED).await;
            if let Err(error) = self.close().await {
                return NotMigrated::From(error);
            }
        }
    }

    /// Records what waits, takes over from the recorders, and copies the rest.
    async fn rest(
        &self,
        copier: &Copier<'_>,
        relay: &mut Relay,
        reader: &Reader,
        diverted: &mut mpsc::UnboundedReceiver<Diverted>,
    ) -> Result<(), NotMigrated> {
        while self.close().await.from()? {
            sleep(PAUSE).await;
        }
        if copier.copy_changed().await?.is_none() {
            self.copy_all(copier).await?;
        }
        self.diversion.hold();
        let divert = self.migration.divert(self.ends, relay, reader, diverted);
        divert.await?;
        loop {
            match copier.copy_changed().await? {
                Some(0) => break,
                Some(_) => {}
                None => self.copy_all(copier).await?,
            }
        }
        copier.copy_marks().await
    }

    /// Lets the recorders of the source continue. They have received the messages that this command has received. If
    /// there are none, clients receive a gap.
    async fn reopen(&self, began: Instant) {
        let Ends {
            source,
            migration,
            replica,
            ..
        } = self.ends;
        let age = began.elapsed().as_millis().to_string();
        for partition in self.waiting() {
            let reopened = async {
                source
                    .step_once(partition, migration, "reopen", &[replica])
                    .await?;
                let deployment = source.topology.deployment();
                let release = deployment.new_call(Function::Release, partition);
                let release = release.arg(replica).arg("").arg("1").arg("0");
                source.topology.call::<u8>(&release).await?;
                let forsake = deployment.new_call(Function::Forsake, partition);
                source
                    .topology
                    .call::<u8>(&forsake.arg(&age).arg("1"))
                    .await
            };
            if let Err(error) = reopened.await {
                tracing::warn!(partition, %error, "failed to open the partition again: it opens by itself");
            }
        }
    }

    /// From here on the source takes no events any more.
    async fn commit(&self) -> Result<(), NotMigrated> {
        let Ends {
            source,
            migration,
            replica,
            ..
        } = self.ends;
        let mut by_node = BTreeMap::<usize, Vec<u16>>::new();
        let layout = source.topology.layout();
        for partition in self.waiting() {
            let node = source.topology.node(partition).from()?;
            let place = layout.nodes().iter().position(|it| it.is(&node));
            by_node
                .entry(place.unwrap_or_default())
                .or_default()
                .push(partition);
        }
        for (node, partitions) in by_node {
            let node = &layout.nodes()[node];
            let committed = patiently(async || {
                let mut connection = node.connect().await?;
                for partition in &partitions {
                    let call = source.topology.deployment();
                    let call = call.new_call(Function::Migrate, *partition);
                    let call = call.arg(migration).arg("commit").arg(replica);
                    let _: Vec<String> = node.call_on(&mut connection, &call).await?;
                }
                node.settle(&mut connection).await
            });
            match committed.await {
                Ok(0) => {}
                Ok(copies) => tracing::warn!(
                    copies,
                    "copies of --from do not know yet that it is closed: it must not fail over now"
                ),
                Err(error) => return Err(NotMigrated::Between(format!("--from: {error}"))),
            }
        }
        Ok(())
    }

    /// Opens each partition at the target, with the clock of its source. There is no way back, so this is tried until it
    /// succeeds.
    async fn open(&self) -> Result<(), NotMigrated> {
        let Ends { source, target, .. } = self.ends;
        let between =
            |end: &str, error: &Error| Err(NotMigrated::Between(format!("{end}: {error}")));
        let looks = match source.look().await {
            Ok(looks) => looks,
            Err(error) => return between("--from", &error),
        };
        loop {
            let opened = target.partitions().map(|it| self.open_one(it, &looks));
            match try_join_all(opened).await {
                Ok(_) => return Ok(()),
                Err(error) if *self.stopped.borrow() || matches!(error, Error::Migration(_)) => {
                    return between("--to", &error);
                }
                Err(error) => {
                    (self.report)(&format!("--to cannot be opened, trying again: {error}"));
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn open_one(&self, partition: u16, looks: &[Look]) -> Result<(), Error> {
        let Ends {
            source,
            target,
            migration,
            there,
            ..
        } = self.ends;
        if there[usize::from(partition)].filled == *migration {
            return Ok(());
        }
        let from = partition % source.names().partitions().count();
        let look = &looks[usize::from(from)];
        // Nothing was recorded since the command ended that had closed it.
        let is_lost = self.closed.contains(&from) && look.is_raw;
        let mut args: Vec<_> = look.facts.iter().map(String::as_str).collect();
        args.push(if is_lost { "1" } else { "0" });
        target
            .step(partition, migration, "open", &args)
            .await
            .map(drop)
    }
}
