//! One subscription to raw messages, from its beginning to its end.

use std::{
    future::{self, Future},
    io,
    pin::Pin,
    sync::Arc,
};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    Recorder,
    bus_links::links_to,
    candidacy::Candidacy,
    carried::Carried,
    carriers::Request,
    divert::Diverted,
    executor::Executor,
    handover::announce,
    machine::Machine,
    raw_subscription::{Done, RawSubscription},
    silence::Silence,
    unrecorded::Unrecorded,
};
use crate::{
    backoff::Backoff,
    call::Function,
    process::TIMEOUT,
    throttled,
    times::{CANDIDACY, CLAIM, LEASE, PART, PING, TICK},
    wire::{Listener, moved},
};

/// Room for the longest notice: the digests of one append.
const NOTICE: usize = 64 << 10;
/// Room for the channel of a message that is published again.
const REPUBLISHED: usize = 1 << 10;

impl Recorder {
    /// Subscribes and records. Ends when the candidacy is lost, or released because `stop` has resolved.
    ///
    /// # Errors
    /// When messages were or may have been missed.
    pub(super) async fn listen(
        &self,
        subscription: &mut RawSubscription,
        unrecorded: &mut Unrecorded,
        backoff: &mut Backoff,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<()> {
        let listen = self.node.listen(NOTICE.max(self.max_payload + REPUBLISHED));
        let listen = tokio::select! {
            () = &mut stop => {
                subscription.step_down();
                return Ok(());
            }
            listen = listen => listen,
        };
        let (mut listener, run) = listen.map_err(io::Error::other)?;
        unrecorded.begins(&run);
        subscription.run.clone_from(&run);
        // Notices first: a raw message whose notice was missed would be recorded twice.
        let deployment = self.node.deployment();
        for partition in subscription.machines.keys() {
            self.subscribe_notices(&mut listener, *partition, &run)
                .await?;
        }
        let machines = subscription.machines.iter_mut();
        let barriers = machines.map(|(partition, machine)| {
            let (notice, ttl) = (machine.begin(), LEASE.as_millis().to_string());
            deployment.metrics().function(Function::Listen);
            let call = deployment.new_call(Function::Listen, *partition);
            let call = call.arg(deployment.replica()).arg(&notice).arg(&ttl);
            call.command().get_packed_command()
        });
        let barriers: Vec<_> = barriers.collect();
        deployment.metrics().function(Function::Subscribe);
        let call = deployment.new_call(Function::Subscribe, 0);
        let call = call.arg(deployment.replica()).arg(&subscription.name);
        let call = call.arg(&run).command().get_packed_command();
        listener.subscribe_prefix(&self.prefix, &call).await?;
        listener.call(&barriers).await?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut claim = interval(CLAIM);
        claim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silence = Silence::default();
        // If there are too many candidates, one releases its candidacy at a time, and after the others are in sync.
        let (mut surplus, patience) = (0, fastrand::u32(10..20));
        let mut pushes = Vec::new();
        let is_held = async {
            match &self.diversion {
                Some(diversion) => diversion.is_due().await,
                None => future::pending().await,
            }
        }
        .fuse();
        tokio::pin!(is_held);
        let mut partitions = self.node.watch_partitions();
        partitions.mark_changed();
        loop {
            let mut has_ticked = false;
            tokio::select! {
                Ok(()) = partitions.changed() => {
                    let held = Arc::clone(&partitions.borrow_and_update());
                    self.hold(subscription, unrecorded, &mut listener, &held).await?;
                }
                Some(Request { partition, reply }) = subscription.requests.recv() => {
                    if let Some(carried) = subscription.carried.get_mut(&partition) {
                        carried.ask(reply);
                    }
                }
                () = &mut is_held => {}
                () = &mut stop, if subscription.stops_at.is_none() => {
                    subscription.step_down();
                    // Another replica may become a candidate.
                    subscription.give_up(self.give_up_candidacy());
                }
                read = listener.read(&mut pushes) => {
                    read?;
                    silence.end();
                    for push in pushes.drain(..) {
                        self.push(subscription, push)?;
                    }
                    if !self.node.uses(&run) {
                        return Err(self.part(subscription, &mut listener).await);
                    }
                    if !subscription.ended.is_empty() {
                        // Messages published since are missed, even if the partition has moved back.
                        let held = self.node.partitions();
                        self.hold(subscription, unrecorded, &mut listener, &held).await?;
                    }
                    backoff.reset();
                }
                Some(done) = subscription.under_way.next() => match done {
                    Done::CandidacyReleased => {}
                    Done::Reported(rest) => unrecorded.put_back(rest),
                    Done::Candidacy(candidacy) if subscription.stops_at.is_some() => {
                        // The claim was under way, and Redis may have carried it out after the call that released the
                        // candidacy.
                        if candidacy != Candidacy::None {
                            subscription.give_up(self.give_up_candidacy());
                        }
                    }
                    Done::Candidacy(Candidacy::None) => return Ok(()),
                    Done::Candidacy(Candidacy::Granted) => surplus = 0,
                    Done::Candidacy(Candidacy::Surplus) => {
                        surplus += 1;
                        if surplus > patience && !subscription.records() {
                            return Ok(());
                        }
                    }
                    Done::Alive(alive) => {
                        silence.answered(alive);
                    }
                    Done::Connected(connection) => {
                        // This subscription is to another server, which sends no notices of these appends.
                        if !self.node.uses(&run) {
                            return Err(self.part(subscription, &mut listener).await);
                        }
                        subscription.connecting = false;
                        subscription.connection = connection.ok();
                    }
                    Done::Located { partition, at } => {
                        if let Some(carried) = subscription.carried.get_mut(&partition) {
                            carried.located(at.ok());
                        }
                    }
                    Done::Republished(republished) => {
                        self.have_republished(subscription, republished);
                    }
                    Done::BusLinks(links) => {
                        if let Some(ear) = &mut subscription.ear {
                            ear.links.answered(&self.node, links);
                        }
                    }
                    Done::Left(partition, handover) => {
                        self.take_over(subscription, partition, handover);
                    }
                    Done::Performed(performed) => unrecorded.lose(subscription.performed(performed)),
                },
                _ = tick.tick() => {
                    has_ticked = true;
                    self.ask_for_carried(subscription);
                    subscription.carried.values_mut().for_each(Carried::tick);
                    subscription.machines.values_mut().for_each(Machine::tick);
                    if subscription.machines.values().any(Machine::is_stuck) {
                        return Err(io::Error::other("a fence did not arrive"));
                    }
                }
                _ = ping.tick() => {
                    if silence.grow() {
                        return Err(io::Error::other("no sign of life, and redis is alive"));
                    }
                    if silence.is_suspicious() {
                        silence.asking = true;
                        let node = self.node.clone();
                        let ask = async move { Done::Alive(node.is_alive().await) };
                        subscription.under_way.push(ask.boxed());
                    }
                    if !self.node.uses(&run) {
                        return Err(self.part(subscription, &mut listener).await);
                    }
                    listener.ping().await?;
                    if let Some(ear) = &mut subscription.ear {
                        ear.pulse.ping(Instant::now());
                        if !ear.links.is_refused {
                            let links = links_to(self.node.clone()).map(Done::BusLinks);
                            subscription.under_way.push(links.boxed());
                        }
                    }
                }
                _ = claim.tick(), if subscription.stops_at.is_none() => {
                    for (partition, confirmed) in &mut subscription.arriving {
                        // The node may not have known yet that it holds the partition.
                        *confirmed = 0;
                        self.subscribe_notices(&mut listener, *partition, &run).await?;
                    }
                    let claim = self.claim(CANDIDACY, Candidacy::Granted);
                    // Without an answer the candidacy is kept. If Redis is away, the subscription fails too.
                    let claim = claim.map(|claimed| Done::Candidacy(claimed.unwrap_or(Candidacy::Granted)));
                    subscription.under_way.push(claim.boxed());
                    if let Some(owed) = unrecorded.take() {
                        subscription.under_way.push(self.report(owed).map(Done::Reported).boxed());
                    }
                }
            }
            let hears = subscription.listening && !silence.is_long();
            if hears
                && let Some(diversion) = &self.diversion
                && let Some(pending) = diversion.divert(subscription)
            {
                subscription.is_diverted = true;
                diversion.give(Diverted { listener, pending });
                return Ok(());
            }
            // A recorder whose subscription is silent sends no commands. Its in-sync mark would claim that it has
            // received every message, and another recorder may step down because of that.
            if hears || subscription.closing {
                self.act(subscription);
                self.act_for_carried(subscription, unrecorded);
            }
            if has_ticked && hears && !subscription.closing {
                self.republish_missed(subscription, unrecorded);
            }
            // Partitions of one Redis do not move.
            if self.node.address().is_some() {
                announce(subscription);
            }
            subscription.measure(hears);
            if subscription.holds_nothing() && partitions.borrow().is_empty() {
                return Err(moved());
            }
            if subscription.has_stepped_down() {
                return Ok(());
            }
            if subscription.is_last() && !subscription.closing {
                subscription.closing = true;
                listener.unsubscribe_prefix(&self.prefix).await?;
            }
        }
    }

    async fn subscribe_notices(
        &self,
        listener: &mut Listener,
        partition: u16,
        run: &str,
    ) -> io::Result<()> {
        let names = self.node.deployment().names();
        let mut notices = vec![names.recorded(partition, run), names.ends(partition, run)];
        if self.node.address().is_some() {
            notices.push(names.republished(partition, run));
        }
        listener.subscribe(notices.iter().map(|it| &**it)).await
    }

    /// The node holds these partitions now.
    async fn hold(
        &self,
        subscription: &mut RawSubscription,
        unrecorded: &mut Unrecorded,
        listener: &mut Listener,
        held: &[u16],
    ) -> io::Result<()> {
        subscription
            .arriving
            .retain(|partition, _| held.contains(partition));
        let ended = std::mem::take(&mut subscription.ended);
        let stays = |partition: &u16| held.contains(partition) && !ended.contains(partition);
        subscription
            .successors
            .retain(|partition, _| stays(partition));
        let left: Vec<_> = (subscription.machines.keys().copied())
            .filter(|partition| !stays(partition))
            .collect();
        for partition in left {
            Self::carry(subscription, unrecorded, partition);
        }
        for partition in held {
            if !subscription.has(*partition) {
                subscription.arriving.insert(*partition, 0);
                let run = subscription.run.clone();
                self.subscribe_notices(listener, *partition, &run).await?;
            }
        }
        Ok(())
    }

    /// This process has moved to another master, and the old one may be alive. Ends the subscription there. Until then
    /// Redis counts it in its answers to PUBLISH, so it receives these messages. They are lost, and clients receive a
    /// gap.
    async fn part(&self, subscription: &mut RawSubscription, listener: &mut Listener) -> io::Error {
        let end = async {
            listener.unsubscribe_prefix(&self.prefix).await?;
            let mut pushes = Vec::new();
            while subscription.listening {
                listener.read(&mut pushes).await?;
                for push in pushes.drain(..) {
                    self.push(subscription, push)?;
                }
            }
            io::Result::Ok(())
        };
        match timeout(PART, end).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the old subscription has failed"),
            Err(_) => tracing::debug!("the old master does not answer"),
        }
        moved()
    }

    /// Starts the effects that the machines ask for.
    pub(super) fn act(&self, subscription: &mut RawSubscription) {
        let Some(connection) = &subscription.connection else {
            if !subscription.connecting {
                subscription.connecting = true;
                let node = self.node.clone();
                let connect = async move {
                    let connection = node.connect().await;
                    if let Err(error) = &connection {
                        throttled!(warn, %error, "the recorder cannot connect");
                        sleep(TICK).await;
                    }
                    Done::Connected(connection)
                };
                subscription.under_way.push(connect.boxed());
            }
            return;
        };
        for (partition, machine) in &mut subscription.machines {
            let diversion = self.diversion.as_ref();
            if diversion.is_some_and(|it| it.holds(*partition, machine)) {
                continue;
            }
            while let Some(effect) = machine.next() {
                let executor = Executor::new(self.node.clone(), connection.clone(), *partition);
                let perform = executor.perform(effect).map(Done::Performed);
                subscription.under_way.push(perform.boxed());
            }
        }
    }

    /// Releases the leases, so that another recorder need not wait for them to expire, and the candidacy if `candidacy`
    /// is true. Also removes the in-sync marks, because a recorder that is not subscribed is not in sync.
    pub(super) async fn give_back(
        &self,
        mut subscription: RawSubscription,
        unrecorded: &mut Unrecorded,
        candidacy: bool,
    ) {
        let stopping = subscription.stops_at.is_some();
        let give_back = async {
            // Calls under way may still record, so they are awaited and not cancelled.
            while let Some(done) = subscription.under_way.next().await {
                match done {
                    Done::Reported(rest) => unrecorded.put_back(rest),
                    Done::Performed(performed) => {
                        unrecorded.lose(subscription.performed(performed))
                    }
                    _ => {}
                }
            }
            let closed = subscription.closing && !subscription.listening;
            for (partition, machine) in &subscription.machines {
                if machine.token().is_none() && machine.has_stepped_down() {
                    continue;
                }
                let token = machine.token().unwrap_or_default();
                let is_complete = closed && machine.pending() == 0;
                let [for_good, complete] =
                    [stopping, is_complete].map(|yes| if yes { &b"1"[..] } else { b"0" });
                let call = self
                    .node
                    .deployment()
                    .new_call(Function::Release, *partition);
                let call = call.arg(self.node.deployment().replica()).arg(token);
                let call = call.arg(for_good).arg(complete);
                // Without an answer the lease expires by itself.
                let _expires = self.node.call::<u8>(&call).await;
            }
            if candidacy {
                let _expires = self.claim(Duration::ZERO, Candidacy::Granted).await;
            }
        };
        let _late = timeout(2 * TIMEOUT, give_back).await;
    }
}
