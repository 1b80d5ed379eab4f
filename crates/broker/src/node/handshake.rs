//! Making a server process ready: the number of partitions, the function library, and the handshake of each partition.

use std::sync::atomic::Ordering;

use redis::{Cmd, RedisError, aio::MultiplexedConnection};

use super::{Node, master::Master};
use crate::{
    Error,
    call::Function,
    inspect::costly_settings,
    library,
    names::LIBRARY,
    process::{ServerProcess, contains},
    throttled,
};

impl Node {
    /// Makes a server ready: checks the number of partitions, loads the library if it is another one, and completes the
    /// handshake with every partition.
    pub(crate) async fn prepare(&self) -> Result<(), Error> {
        let (mut connection, master) = self.connection().await?;
        let connection = &mut *connection;
        self.check_partitions(connection).await?;
        match self.introduce(&master, connection).await {
            // Each write that is refused logs this again. Until writes work, events are relayed.
            Err(Error::Refused(error)) => {
                tracing::error!(%error, "redis takes no writes: events are relayed, not recorded");
            }
            done => done?,
        }
        self.warn_of_settings(connection).await;
        Ok(())
    }

    /// Stores the number of partitions, if there is none.
    ///
    /// # Errors
    /// When another number is stored.
    pub(super) async fn check_partitions(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        let Some(cluster) = &self.0.cluster else {
            return self.deployment().check_partitions(connection).await;
        };
        // Another node keeps the number, and without that node the partitions of this one can be used all the same.
        let checked = async {
            let mut keeper = cluster.keeper().await?;
            self.deployment().check_partitions(&mut keeper).await
        };
        match checked.await {
            Err(error) if !error.is_fatal() => {
                tracing::debug!(%error, "failed to look at the number of partitions");
                Ok(())
            }
            checked => checked,
        }
    }

    /// Stores the number of partitions again if it is missing. Redis may have evicted it, and then the next replica with
    /// another number would not be refused.
    pub(crate) async fn keep_partitions(&self) {
        let kept = async {
            let (mut connection, _) = self.connection().await?;
            self.check_partitions(&mut connection).await
        };
        match kept.await {
            Err(error @ Error::Partitions { .. }) => {
                throttled!(error, %error, "another gateway has changed the number of partitions");
            }
            Err(error) => tracing::debug!(%error, "failed to look at the number of partitions"),
            Ok(()) => {}
        }
    }

    pub(super) async fn introduce(
        &self,
        master: &Master,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        self.load_if_other(connection).await?;
        for partition in &*self.partitions() {
            match self.handshake(master, connection, *partition).await {
                // The node does not hold it any more, or it is on its way.
                Err(error) if error.is_elsewhere() => self.look(),
                done => done?,
            }
        }
        Ok(())
    }

    /// Loads the library on a node of a cluster that holds no partition yet. So it is there before it is needed.
    pub(crate) async fn equip(&self) -> Result<(), Error> {
        let (mut connection, _) = self.connection().await?;
        self.load_if_other(&mut connection).await
    }

    /// Loads the library, unless the server has the same.
    async fn load_if_other(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let mut list = Cmd::new();
        list.arg("FUNCTION").arg("LIST");
        list.arg("LIBRARYNAME").arg(LIBRARY).arg("WITHCODE");
        let found: redis::Value = list.query_async(connection).await.map_err(Error::of)?;
        let own = library::library(&self.deployment().script());
        if contains(&found, own.as_bytes()) {
            return Ok(());
        }
        if contains(&found, LIBRARY.as_bytes()) {
            tracing::warn!(
                "redis holds a function library of another version or configuration: replacing it"
            );
        }
        self.load(connection).await
    }

    pub(super) async fn load(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let mut load = Cmd::new();
        load.arg("FUNCTION")
            .arg("LOAD")
            .arg("REPLACE")
            .arg(library::library(&self.deployment().script()));
        let () = load.query_async(connection).await.map_err(Error::of)?;
        tracing::info!("the function library was loaded");
        Ok(())
    }

    /// Sends the server the newest id that this process has seen, so that the library can detect lost events.
    pub(super) async fn handshake(
        &self,
        master: &Master,
        connection: &mut MultiplexedConnection,
        partition: u16,
    ) -> Result<(), Error> {
        let ServerProcess { run, uptime, .. } = self.server_process(connection).await?;
        // Before the handshake, because it does not cover events that arrive from another server process after this.
        self.adopt_server(master, &run);
        let (seen_run, met, left) = {
            let mut view = self.deployment().view(partition);
            let met = view.meet(&run, uptime);
            (view.run.clone(), met, view.left.clone())
        };
        let (left_run, left_event, left_clock) = left.map_or_else(Default::default, |left| {
            (left.run, left.event.to_string(), left.clock.to_string())
        });
        let in_cluster: &[u8] = if self.0.cluster.is_some() { b"1" } else { b"0" };
        let epoch = match self.0.cluster {
            Some(_) => self.0.epoch.load(Ordering::Relaxed),
            None => master.place().epoch,
        };
        let (watermark, expected) = (met.watermark.to_string(), met.expected_ms().to_string());
        let (overlaps, epoch) = (u8::from(met.overlaps).to_string(), epoch.to_string());
        let handshake = self.deployment().new_call(Function::Handshake, partition);
        let handshake = handshake
            .arg(self.deployment().replica())
            .arg(&run)
            .arg(&watermark)
            .arg(&seen_run);
        let handshake = handshake
            .arg(&expected)
            .arg(&overlaps)
            .arg(&epoch)
            .arg(&left_run)
            .arg(&left_event)
            .arg(&left_clock)
            .arg(in_cluster)
            .command();
        self.metrics().function(Function::Handshake);
        let clock: String = match handshake.query_async(connection).await {
            Ok(clock) => clock,
            Err(error) if is_without_library(&error) => {
                self.load(connection).await?;
                handshake.query_async(connection).await.map_err(Error::of)?
            }
            Err(error) => {
                let error = Error::of(error);
                if matches!(error, Error::Replaced) {
                    // A node of a cluster may still hold other partitions.
                    if self.0.cluster.is_none() {
                        master.retired_elsewhere.store(true, Ordering::Relaxed);
                    }
                    self.look();
                }
                return Err(error);
            }
        };
        let clock = clock.parse().map_err(|_| Error::Malformed)?;
        master.retired_elsewhere.store(false, Ordering::Relaxed);
        let mut view = self.deployment().view(partition);
        view.saw(clock);
        view.run = run;
        view.handshaken = true;
        view.met = None;
        view.left = None;
        Ok(())
    }

    /// Warns of settings of Redis that may cost events.
    async fn warn_of_settings(&self, connection: &mut MultiplexedConnection) {
        let settings = costly_settings(connection).await;
        for (setting, value, problem) in settings.costly {
            tracing::warn!(setting, value, "{problem}");
        }
        if !settings.hidden.is_empty() && self.deployment().warns_of_hidden_settings() {
            let settings = settings.hidden.join(", ");
            tracing::warn!(
                settings,
                "redis does not allow CONFIG GET: there is no warning if these settings cost events"
            );
        }
    }
}

/// Whether a call was refused because the server does not have the function library.
pub(super) fn is_without_library(error: &RedisError) -> bool {
    error.to_string().contains("Function not found")
}
