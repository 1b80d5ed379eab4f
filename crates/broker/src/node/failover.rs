//! Finding the master of a node, moving to another one, and deciding whether an answer is from the master.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};

use super::{Node, handshake::is_without_library, master::Master};
use crate::{
    Error,
    call::{Call, Function},
    partition_view::Left,
    process::{is_master, open},
    throttled,
};

/// Longest wait for an old master to confirm that it refuses all calls.
const RETIRE: Duration = Duration::from_secs(1);
/// If an old master does not answer, the call that retires it is repeated for this long. The old master may be stalled,
/// or cut off.
const RETIRE_FOR: Duration = Duration::from_secs(60);
/// Between two attempts.
const RETIRE_PAUSE: Duration = Duration::from_millis(250);

impl Node {
    /// Locates the master. If its address has changed, this process moves there.
    pub(super) async fn locate(&self) -> Result<Arc<Master>, Error> {
        loop {
            let old = self.master().clone();
            let generation = old.as_ref().map(|old| old.generation);
            let was = old.as_ref().map(|old| old.place().clone());
            let place = self.0.server.locate(was.as_ref()).await?;
            // Before the first call to the new master. If the old one does not answer, the call is repeated.
            if let (Some(old), Some(was)) = (&old, &was)
                && was.info.addr() != place.info.addr()
            {
                // The same server may have another name now.
                let run = self.run_at(&place.info).await?;
                if old.run.get() != Some(&run) {
                    self.retire(old, self.partitions(), place.epoch).await;
                }
            }
            let mut current = self.master();
            let generation = match &*current {
                Some(master) if master.place().info.addr() == place.info.addr() => {
                    *master.place() = place;
                    return Ok(Arc::clone(master));
                }
                // Another task has moved in between, and may know of a later failover.
                Some(master) if generation != Some(master.generation) => continue,
                Some(master) => {
                    let address = place.info.addr();
                    throttled!(warn, %address, "another redis is the master: moving there");
                    self.0.read_only.store(false, Ordering::Relaxed);
                    master.generation + 1
                }
                None => 0,
            };
            let master = Arc::new(Master::new(place, generation)?);
            *current = Some(Arc::clone(&master));
            self.0.moved.notify_waiters();
            return Ok(master);
        }
    }

    /// These partitions have gone to other nodes of the cluster, which own them since this config epoch.
    pub(crate) async fn retire_partitions(&self, partitions: &[u16], epoch: u64) {
        let master = self.master().clone();
        if let Some(master) = master {
            self.retire(&master, partitions.into(), epoch).await;
        }
    }

    /// Makes a server refuse all calls of partitions that another one has taken over. Otherwise it takes calls until it
    /// learns of that, seconds later, and replicas that have not noticed either would use it as the master. Its answer
    /// shows which events the other one has to have.
    pub(super) async fn retire(&self, old: &Arc<Master>, partitions: Arc<[u16]>, epoch: u64) {
        let (old, node) = (Arc::clone(old), self.clone());
        let names = self.deployment().names();
        let prefixes: Vec<_> = partitions.iter().map(|it| names.name(*it, "")).collect();
        let number = epoch.to_string();
        let first = partitions.first().copied().unwrap_or_default();
        let retire = self.deployment().new_call(Function::Retire, first);
        let retire = prefixes
            .iter()
            .fold(retire.arg(&number), Call::arg)
            .command();
        let end = Instant::now() + RETIRE_FOR;
        // Its own task, so that the timeout below does not cancel it.
        let call = tokio::spawn(async move {
            loop {
                let answer = async {
                    let mut connection = open(&old.connector().client).await?;
                    node.metrics().function(Function::Retire);
                    retire.query_async::<Vec<String>>(&mut connection).await
                };
                let error = match answer.await {
                    Ok(answer) => return node.has_retired(&old, &partitions, &answer),
                    Err(error) => error,
                };
                tracing::debug!(%error, "failed to retire the old master");
                // The server is a copy by now, or has just been started.
                let takes_nothing = error.code() == Some("READONLY") || is_without_library(&error);
                if takes_nothing || Instant::now() > end {
                    return;
                }
                sleep(RETIRE_PAUSE).await;
                let is_back = match node.0.cluster {
                    Some(_) => node.0.epoch.load(Ordering::Relaxed) >= epoch,
                    None => !node.has_replaced(&old),
                };
                if is_back {
                    return;
                }
            }
        });
        let _late = timeout(RETIRE, call).await;
    }

    /// A server has confirmed that it refuses all calls of these partitions. It answers its run id, and the newest
    /// event and the clock of each.
    fn has_retired(&self, master: &Master, partitions: &[u16], answer: &[String]) {
        match self.0.cluster {
            Some(_) => self.0.retired.lock().extend(partitions),
            None => master.retired_here.store(true, Ordering::Release),
        }
        let Some((run, ids)) = answer.split_first() else {
            return;
        };
        for (partition, ids) in partitions.iter().zip(ids.chunks_exact(2)) {
            if let [Ok(event), Ok(clock)] = [&ids[0], &ids[1]].map(|id| id.parse()) {
                let run = run.clone();
                self.deployment().view(*partition).left = Some(Left { run, event, clock });
            }
        }
    }

    /// Something may have changed: the master is looked for soon.
    pub(crate) fn look(&self) {
        match &self.0.cluster {
            Some(cluster) => cluster.look(),
            None => self.0.look.notify_one(),
        }
    }

    /// Looks for the master whenever a sentinel announces another one, or the server that this process uses was
    /// retired. Never returns.
    pub(crate) async fn watch_sentinels(&self) {
        let watch = self.0.server.watch(|| self.0.look.notify_one());
        let look = async {
            loop {
                self.0.look.notified().await;
                self.look_for_master().await;
            }
        };
        tokio::join!(watch, look);
    }

    /// Whether this process has moved to another address since it used this master.
    pub(super) fn has_replaced(&self, master: &Master) -> bool {
        let current = self.master().clone();
        let Some(current) = current.filter(|current| current.generation != master.generation)
        else {
            return false;
        };
        // One lock at a time.
        let address = current.place().info.addr().clone();
        address != *master.place().info.addr()
    }

    /// Whether a message that arrives now over a subscription is from the master of these partitions.
    pub(crate) async fn is_current(&self, partitions: impl FnOnce() -> Arc<[u16]>) -> bool {
        if !self.is_watched() {
            return true;
        }
        let Some(master) = self.master().clone() else {
            return false;
        };
        let is_fresh = master.trust().answered(Instant::now());
        !self.has_replaced(&master) && (is_fresh || self.confirm(&master, &partitions()).await)
    }

    /// Whether to send a call to a server. A silent server may be stalled, and would carry the call out after another
    /// one has replaced it. So sentinels are asked first. Attaches are sent in any case, because they show that the
    /// server answers again.
    pub(super) async fn may_ask(
        &self,
        master: &Master,
        function: Function,
        partition: u16,
    ) -> bool {
        if !self.is_watched()
            || function == Function::Attach
            || master.trust().is_fresh(Instant::now())
        {
            return true;
        }
        self.ask_for(master, &[partition]).await == Some(true)
    }

    /// Asks the sentinels, or the masters of the cluster, whether a server is still the master of these partitions. None
    /// unless enough of them answer.
    async fn ask_for(&self, master: &Master, partitions: &[u16]) -> Option<bool> {
        if let (Some(cluster), Some(address)) = (&self.0.cluster, &self.0.address) {
            let names = self.deployment().names();
            let slots: Vec<_> = partitions.iter().map(|it| names.slot(*it)).collect();
            return cluster.confirms(address, &slots).await;
        }
        let place = master.place().clone();
        self.0.server.confirms(&place).await
    }

    /// A server has answered a call of this partition. Checks whether it was the master when it did.
    ///
    /// # Errors
    /// When it was not, or may not have been.
    pub(super) async fn believe(&self, master: &Master, partition: u16) -> Result<(), Error> {
        if !self.is_watched() {
            return Ok(());
        }
        // A master that was stalled carries out the calls in its sockets when it continues, although it was replaced.
        let is_fresh = master.trust().answered(Instant::now());
        let is_believed = if self.has_replaced(master) {
            // If it has confirmed that it is retired, it carried this call out before that.
            is_fresh && master.retired_here.load(Ordering::Acquire)
        } else if !self.holds(partition) {
            is_fresh && self.0.retired.lock().contains(&partition)
        } else {
            is_fresh || self.confirm(master, &[partition]).await
        };
        if is_believed {
            Ok(())
        } else {
            Err(Error::Replaced)
        }
    }

    /// Asks whether a server that was silent is still the master of these partitions.
    pub(super) async fn confirm(&self, master: &Master, partitions: &[u16]) -> bool {
        let is_confirmed = match self.ask_for(master, partitions).await {
            Some(true) => {
                master.trust().confirmed(Instant::now());
                true
            }
            Some(false) => false,
            None => master.trust().outlasts(Instant::now()),
        };
        if !is_confirmed {
            self.look();
        }
        is_confirmed && !self.has_replaced(master)
    }

    /// Looks for the master, and moves there. A demoted master still serves the clients that are connected to it, and
    /// sentinels demote it some time after they have chosen another one.
    pub(crate) async fn look_for_master(&self) {
        if self.0.cluster.is_some() {
            return;
        }
        let generation = self.generation();
        if !self.0.read_only.load(Ordering::Relaxed) {
            if let Err(error) = self.locate().await {
                tracing::debug!(%error, "the master is not found");
            }
            return;
        }
        let look = async {
            let master = self.locate().await?;
            let client = &master.connector().client;
            let run = self.run_at(client.get_connection_info()).await?;
            let is_same = master.run.get() == Some(&run);
            Ok::<_, Error>((is_master(client).await?, is_same))
        };
        match look.await {
            // It takes writes again.
            Ok((true, true)) => self.0.read_only.store(false, Ordering::Relaxed),
            Ok((true, false)) => self.move_on(generation),
            Ok((false, _)) => {}
            Err(error) => tracing::debug!(%error, "no other redis was found"),
        }
    }

    /// Makes all connections again, unless another task has done so since that generation.
    pub(super) fn move_on(&self, generation: u64) {
        let mut current = self.master();
        let Some(master) = current
            .as_ref()
            .filter(|master| master.generation == generation)
        else {
            return;
        };
        throttled!(
            warn,
            "redis became read-only, and there is another master: moving there"
        );
        self.0.read_only.store(false, Ordering::Relaxed);
        match master.anew() {
            Ok(master) => {
                *current = Some(Arc::new(master));
                self.0.moved.notify_waiters();
            }
            Err(error) => tracing::error!(%error, "redis cannot be reached as configured"),
        }
    }
}
