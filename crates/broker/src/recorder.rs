//! `Recorder`: gives each raw message one id, however many replicas are subscribed.
//!
//! A few replicas have a *recorder*, which receives every raw message. [`Machine`] is the protocol by which one of them
//! records. This file is its input and output.

mod machine;
mod unrecorded;

use std::{
    borrow::Cow,
    future::Future,
    io,
    pin::Pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, Partitions};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use self::{
    machine::{Effect, Machine, Outcome, Pending, Reply},
    unrecorded::{Lost, Owed, Unrecorded},
};
use crate::{
    Config, Error, Recorded,
    backoff::Backoff,
    call::{Call, Function},
    connection::{Connection, Redis},
    entry,
    metrics::{BAD_CHANNEL, Metrics},
    names::Subject,
    node::TIMEOUT,
    payload::Rejected,
    seldom,
    seldom::Seldom,
    serializer::{self, Serializer},
    times::{
        CANDIDACY, CLAIM, HANDOVER, LAST_APPENDS, LAST_PINGS, LEASE, MAX_SILENT, PART, PING, TICK,
    },
    wire::{Listener, Push, moved},
};

/// Prefix of the channel's name of a lost message, which is recorded as a gap. Names hold no control characters. The
/// library uses the same prefix.
const LOST: char = '\0';

/// Bytes of a rejected payload that are logged.
const BEGINNING: usize = 8;

/// Room for the longest notice: the digests of one append.
const NOTICE: usize = 64 << 10;

/// Claims a candidacy, and records while it is a candidate.
pub struct Recorder {
    redis: Redis,
    partitions: Partitions,
    prefix: String,
    recorders: u32,
    max_payload: usize,
    max_pending: usize,
    metrics: Metrics,
}

/// The results of a session's futures.
enum Done {
    /// The answer to an effect. The effect may have dropped messages: when the newest of them was received.
    Reply(u16, Reply, Option<SystemTime>),
    /// Clients have received gaps for all lost messages except these.
    Told(Owed),
    Connected(Result<Connection, Error>),
    Candidacy(Candidacy),
    /// The candidacy was released.
    SteppedDown,
    /// Redis answered on another connection, or did not.
    Alive(bool),
}

/// The answer to a claim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Candidacy {
    None,
    Granted,
    /// Granted, because a candidate always keeps its candidacy, but there are more candidates than `recorders`.
    Surplus,
}

/// For how long the connection has brought nothing, not even answers to pings. That means nothing while Redis itself is
/// silent, or while this process has not read the connection. If the recorder gave up such a connection, it would lose
/// the messages that are about to arrive.
#[derive(Default)]
struct Silence {
    pings: u32,
    /// Redis is being asked on another connection.
    asking: bool,
    /// Pings since it answered there.
    alive: Option<u32>,
}

impl Silence {
    /// The connection brought something.
    fn heard(&mut self) {
        self.pings = 0;
        self.alive = None;
    }

    /// Redis answered on another connection, or did not. If this connection has brought something since, the answer
    /// means nothing: the silence that caused the question is over.
    fn answered(&mut self, alive: bool) {
        self.asking = false;
        self.alive = (alive && self.pings > MAX_SILENT).then_some(0);
    }

    /// Another ping is due. Returns whether the connection is dead.
    fn grow(&mut self) -> bool {
        self.pings += 1;
        self.alive = self.alive.map(|pings| pings + 1);
        self.alive.is_some_and(|pings| pings > LAST_PINGS)
    }

    /// Whether the subscription may have stopped delivering: a ping was not answered until the next one was due.
    fn is_long(&self) -> bool {
        self.pings > 1
    }

    fn is_suspicious(&self) -> bool {
        self.pings > MAX_SILENT && !self.asking && self.alive.is_none()
    }
}

/// The state of one subscription.
struct Session {
    /// The server process that it is subscribed to; empty before it is subscribed.
    run: String,
    machines: Vec<Machine>,
    /// The raw subscription is confirmed and has not ended.
    listening: bool,
    connection: Option<Connection>,
    connecting: bool,
    /// When this replica stops at the latest, if it is to stop.
    leaving: Option<Instant>,
    /// The raw subscription has been given up, or is about to be.
    closing: bool,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Recorder {
    pub(crate) fn new(config: &Config, redis: Redis, metrics: Metrics) -> Self {
        Self {
            redis,
            partitions: config.partitions,
            prefix: config.prefix.clone(),
            recorders: config.recorders,
            max_payload: config.max_payload,
            max_pending: config.max_pending,
            metrics,
        }
    }

    /// Claims a candidacy and records until `stop` resolves. Then it steps down and releases its candidacy. Until
    /// another recorder has received all messages that are not recorded, it continues, but for [`HANDOVER`] at most.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut backoff = Backoff::default();
        let mut unrecorded = Unrecorded::default();
        loop {
            // A replica without a candidacy reports its lost messages too.
            if !self.redis.is_at(unrecorded.run()) {
                unrecorded.moved();
            }
            if let Some(owed) = unrecorded.take() {
                unrecorded.put_back(self.tell(owed).await);
            }
            let claim = self.claim(CANDIDACY, Candidacy::None);
            let pause = tokio::select! {
                () = &mut stop => return,
                claimed = claim => match claimed {
                    Ok(Candidacy::None) => Some(CLAIM),
                    Ok(Candidacy::Granted | Candidacy::Surplus) => None,
                    // The subscriber logs that Redis is away.
                    Err(_) => Some(backoff.next()),
                },
            };
            if let Some(pause) = pause {
                tokio::select! {
                    () = &mut stop => return,
                    () = sleep(pause) => continue,
                }
            }
            self.metrics.candidacy.set(1);
            let mut session = Session::new(self.redis.replica(), self.partitions, self.max_pending);
            let listen = self.listen(&mut session, &mut unrecorded, &mut backoff, stop.as_mut());
            let ended = listen.await;
            self.drain(&mut session, &mut unrecorded).await;
            let stopping = session.leaving.is_some();
            // After a failure the candidacy is kept: the replica may be connected again soon.
            let candidacy = stopping || ended.is_ok();
            self.give_back(session, &mut unrecorded, candidacy).await;
            self.metrics.candidacy.set(0);
            self.metrics.in_sync.set(0);
            self.metrics.active.set(0);
            self.metrics.pending.set(0);
            match ended {
                _ if stopping => return,
                Ok(()) => tracing::info!("the candidacy went to another replica"),
                Err(error) => {
                    self.metrics.recorder_reconnects.inc();
                    seldom!(warn, %error, "the recorder's connection is down");
                    tokio::select! {
                        () = &mut stop => return,
                        () = sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }

    /// Subscribes and records. Ends when the candidacy is lost, or released because `stop` has resolved.
    ///
    /// # Errors
    /// When messages were or may have been missed.
    async fn listen(
        &self,
        session: &mut Session,
        unrecorded: &mut Unrecorded,
        backoff: &mut Backoff,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<()> {
        let listen = self.redis.listen(self.max_payload.max(NOTICE));
        let listen = tokio::select! {
            () = &mut stop => {
                session.leave();
                return Ok(());
            }
            listen = listen => listen,
        };
        let (mut listener, run) = listen.map_err(io::Error::other)?;
        unrecorded.begins(&run);
        session.run.clone_from(&run);
        // Notices first: a raw message whose notice was missed would be recorded twice.
        let notices: Vec<_> = self
            .partitions
            .all()
            .map(|partition| self.redis.names().recorded(partition))
            .collect();
        // In one step with the barriers, so the order of barriers is the order of subscriptions.
        let machines = self.partitions.all().zip(&mut session.machines);
        let barriers = machines.map(|(partition, machine)| {
            let (notice, ttl) = (machine.begin(), LEASE.as_millis().to_string());
            self.metrics.function(Function::Listen);
            let call = self.redis.new_call(Function::Listen, partition);
            let call = call.arg(self.redis.replica()).arg(&notice).arg(&ttl);
            call.command().get_packed_command()
        });
        let barriers: Vec<_> = barriers.collect();
        let subscribed = listener.subscribe_and_call(&notices, &self.prefix, &barriers);
        if !subscribed.await? {
            session.without_barriers();
        }
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
        loop {
            tokio::select! {
                () = &mut stop, if session.leaving.is_none() => {
                    session.leave();
                    // Another replica may become a candidate.
                    session.under_way.push(self.give_up_candidacy());
                }
                read = listener.read(&mut pushes) => {
                    read?;
                    silence.heard();
                    for push in pushes.drain(..) {
                        self.push(session, push)?;
                    }
                    if !self.redis.is_at(&run) {
                        return Err(self.part(session, &mut listener).await);
                    }
                    backoff.reset();
                }
                Some(done) = session.under_way.next() => match done {
                    Done::SteppedDown => {}
                    Done::Told(rest) => unrecorded.put_back(rest),
                    Done::Candidacy(candidacy) if session.leaving.is_some() => {
                        // The claim was under way, and Redis may have carried it out after the call that released the
                        // candidacy.
                        if candidacy != Candidacy::None {
                            session.under_way.push(self.give_up_candidacy());
                        }
                    }
                    Done::Candidacy(Candidacy::None) => return Ok(()),
                    Done::Candidacy(Candidacy::Granted) => surplus = 0,
                    Done::Candidacy(Candidacy::Surplus) => {
                        surplus += 1;
                        if surplus > patience && !session.records() {
                            return Ok(());
                        }
                    }
                    Done::Alive(alive) => {
                        silence.answered(alive);
                    }
                    Done::Connected(connection) => {
                        // This subscription is to another server, which sends no notices of these appends.
                        if !self.redis.is_at(&run) {
                            return Err(self.part(session, &mut listener).await);
                        }
                        session.connecting = false;
                        session.connection = connection.ok();
                    }
                    Done::Reply(partition, reply, dropped) => {
                        let lost = session.reply(partition, reply);
                        unrecorded.lose(partition, dropped.max(lost));
                    }
                },
                _ = tick.tick() => {
                    for machine in &mut session.machines {
                        machine.tick();
                    }
                    if session.machines.iter().any(Machine::is_stuck) {
                        return Err(io::Error::other("a fence did not arrive"));
                    }
                }
                _ = ping.tick() => {
                    if silence.grow() {
                        return Err(io::Error::other("no sign of life, and redis is alive"));
                    }
                    if silence.is_suspicious() {
                        silence.asking = true;
                        let redis = self.redis.clone();
                        let ask = async move { Done::Alive(redis.is_alive().await) };
                        session.under_way.push(ask.boxed());
                    }
                    if !self.redis.is_at(&run) {
                        return Err(self.part(session, &mut listener).await);
                    }
                    listener.ping().await?;
                }
                _ = claim.tick(), if session.leaving.is_none() => {
                    let claim = self.claim(CANDIDACY, Candidacy::Granted);
                    // Without an answer the candidacy is kept. If Redis is away, the subscription fails too.
                    let claim = claim.map(|claimed| Done::Candidacy(claimed.unwrap_or(Candidacy::Granted)));
                    session.under_way.push(claim.boxed());
                    if let Some(owed) = unrecorded.take() {
                        session.under_way.push(self.tell(owed).map(Done::Told).boxed());
                    }
                }
            }
            let hears = session.listening && !silence.is_long();
            // A recorder whose subscription is silent sends no commands. Its in-sync mark would claim that it has
            // received every message, and another recorder may step down because of that.
            if hears || session.closing {
                self.act(session);
            }
            self.count(session, hears);
            if session.has_left() {
                return Ok(());
            }
            if session.is_last() && !session.closing {
                session.closing = true;
                listener.unsubscribe_prefix(&self.prefix).await?;
            }
        }
    }

    /// This process has moved to another master, and the old one may be alive. Ends the subscription there. Until then
    /// Redis counts it in its answers to PUBLISH, so it receives these messages. They are lost, and clients receive a
    /// gap.
    async fn part(&self, session: &mut Session, listener: &mut Listener) -> io::Error {
        let end = async {
            listener.unsubscribe_prefix(&self.prefix).await?;
            let mut pushes = Vec::new();
            while session.listening {
                listener.read(&mut pushes).await?;
                for push in pushes.drain(..) {
                    self.push(session, push)?;
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

    /// The subscription was lost. Records the messages that were received, as long as the lease is held.
    async fn drain(&self, session: &mut Session, unrecorded: &mut Unrecorded) {
        session.machines.iter_mut().for_each(Machine::cut);
        let is_draining = |session: &Session| session.machines.iter().any(Machine::is_draining);
        let drain = async {
            while is_draining(session) {
                self.act(session);
                match session.under_way.next().await {
                    Some(Done::Reply(partition, reply, dropped)) => {
                        let lost = session.reply(partition, reply);
                        unrecorded.lose(partition, dropped.max(lost));
                    }
                    Some(Done::Told(rest)) => unrecorded.put_back(rest),
                    Some(Done::Connected(connection)) => {
                        session.connecting = false;
                        session.connection = connection.ok();
                    }
                    Some(Done::Candidacy(_) | Done::SteppedDown | Done::Alive(_)) => {}
                    None => break,
                }
            }
        };
        // The lease is not renewed any more.
        let _late = timeout(LEASE, drain).await;
        let machines = || self.partitions.all().zip(&session.machines);
        if !session.run.is_empty() {
            let pending = machines()
                .filter_map(|(partition, machine)| Some((partition, machine.newest_heard()?)));
            unrecorded.ended(&session.run, pending);
        }
        // Another recorder that has received these messages records them.
        let held = machines().filter(|(_, machine)| machine.held() > 0);
        for (partition, machine) in held {
            let messages = machine.held();
            self.metrics.dropped.inc_by(messages as u64);
            seldom!(
                warn,
                partition,
                messages,
                "the subscription was cut, and the lease was lost before all raw messages were recorded"
            );
            if let Some(heard) = machine.newest_heard() {
                let shared = true;
                unrecorded.owe(partition, Lost { heard, shared });
            }
        }
    }

    /// Sends clients gaps for lost messages. Returns the messages for which that failed.
    fn tell(&self, mut owed: Owed) -> impl Future<Output = Owed> + Send + use<> {
        let (redis, metrics) = (self.redis.clone(), self.metrics.clone());
        async move {
            while let Some((&partition, lost)) = owed.first_key_value() {
                // If the clock was set back, they may be new, so their age is taken to be zero.
                let age = lost.heard.elapsed().unwrap_or_default();
                let age = age.as_millis().to_string();
                let shared: &[u8] = if lost.shared { b"1" } else { b"0" };
                let call = redis.new_call(Function::Forsake, partition);
                match redis.call(&call.arg(&age).arg(shared)).await {
                    Ok(0) => {}
                    Ok(_) => {
                        metrics.interruptions.inc();
                        seldom!(
                            warn,
                            partition,
                            "raw messages that were received cannot be recorded any more: clients receive a gap"
                        );
                    }
                    Err(error) => {
                        tracing::debug!(partition, %error, "failed to send a gap for lost messages; trying again");
                        break;
                    }
                }
                owed.pop_first();
            }
            owed
        }
    }

    fn push(&self, session: &mut Session, push: Push) -> io::Result<()> {
        match push {
            Push::Message { channel, payload } => match self.redis.names().subject(&channel) {
                Some((partition, Subject::Recorded)) => {
                    // A machine only acts on words that recorders publish. Any other text matches nothing.
                    if let Some(machine) = session.machines.get_mut(usize::from(partition))
                        && let Ok(notice) = std::str::from_utf8(&payload)
                    {
                        machine.notice(notice);
                    }
                    Ok(())
                }
                _ => self.raw(session, &channel, &payload),
            },
            Push::Oversized { channel } => {
                self.reject(session, &channel, Rejected::TooLarge.as_str(), &[]);
                Ok(())
            }
            Push::Subscribed { channel } => {
                let notice = matches!(
                    self.redis.names().subject(&channel),
                    Some((_, Subject::Recorded))
                );
                session.listening |= !notice;
                Ok(())
            }
            Push::Unsubscribed { .. } => {
                session.listening = false;
                Ok(())
            }
            Push::Refused { error } => {
                let error = error.escape_ascii();
                tracing::debug!(%error, "a barrier was refused");
                session.without_barriers();
                Ok(())
            }
            Push::Pong => Ok(()),
        }
    }

    /// A raw message has arrived. A payload that cannot be an event never becomes pending, at any recorder.
    fn raw(&self, session: &mut Session, raw: &[u8], payload: &[u8]) -> io::Result<()> {
        let Some(name) = raw.strip_prefix(self.prefix.as_bytes()) else {
            return Ok(());
        };
        let Ok(channel) = self.partitions.channel_from_bytes(name) else {
            self.reject(session, raw, BAD_CHANNEL, &[]);
            return Ok(());
        };
        match serializer::examine(payload, self.max_payload) {
            Ok(None) => {}
            Ok(Some(serializer)) => self.suspect(session, raw, serializer),
            Err(reason) => {
                self.reject(session, raw, reason.as_str(), payload);
                return Ok(());
            }
        }
        let machine = &mut session.machines[usize::from(channel.partition())];
        // Copied, because otherwise a few bytes would keep alive everything that was read with them.
        machine
            .raw(channel, Bytes::copy_from_slice(payload))
            // Messages that the holder of the lease cannot record are counted when it drains. On other recorders they
            // are not lost, because the holder has them as well.
            .map_err(io::Error::other)
    }

    /// Counted and logged once in the deployment, by the active recorder.
    fn reject(&self, session: &Session, channel: &[u8], reason: &str, payload: &[u8]) {
        if !session.records() {
            return;
        }
        static SELDOM: Seldom = Seldom::new();
        self.metrics.rejected(reason);
        let serializer = Serializer::of(payload);
        serializer.inspect(|serializer| self.metrics.serialized(*serializer));
        if let Some(suppressed) = SELDOM.pass() {
            let channel = channel.escape_ascii();
            let begins = payload[..payload.len().min(BEGINNING)].escape_ascii();
            let advice = serializer.map(Serializer::advice);
            tracing::warn!(%channel, reason, %begins, advice, suppressed, "a raw message was rejected");
        }
    }

    /// The message is recorded, but is most likely not what its publisher meant. Counted and logged like a rejected
    /// message.
    fn suspect(&self, session: &Session, channel: &[u8], serializer: Serializer) {
        if session.records() {
            self.metrics.serialized(serializer);
            seldom!(
                warn,
                channel = %channel.escape_ascii(),
                advice = serializer.advice(),
                "a raw message looks serialized, and is recorded as it is"
            );
        }
    }

    /// Starts the effects that the machines ask for.
    fn act(&self, session: &mut Session) {
        let Some(connection) = &session.connection else {
            if !session.connecting {
                session.connecting = true;
                let redis = self.redis.clone();
                let connect = async move {
                    let connection = redis.connect().await;
                    if let Err(error) = &connection {
                        seldom!(warn, %error, "the recorder cannot connect");
                        sleep(TICK).await;
                    }
                    Done::Connected(connection)
                };
                session.under_way.push(connect.boxed());
            }
            return;
        };
        for (partition, machine) in self.partitions.all().zip(&mut session.machines) {
            while let Some(effect) = machine.next() {
                let call = Executor {
                    redis: self.redis.clone(),
                    connection: connection.clone(),
                    metrics: self.metrics.clone(),
                    partition,
                    dropped: None,
                };
                session.under_way.push(call.perform(effect).boxed());
            }
        }
    }

    fn count(&self, session: &Session, hears: bool) {
        let machines = || session.machines.iter();
        let in_sync = machines().filter(|machine| hears && machine.is_in_sync());
        let in_sync = in_sync.count();
        let active = machines().filter(|machine| machine.active().is_some());
        let active = active.count();
        let pending: usize = machines().map(Machine::pending).sum();
        if self.metrics.active.get() != active as i64 {
            tracing::info!(partitions = active, "recording");
        }
        self.metrics.in_sync.set(in_sync as i64);
        self.metrics.active.set(active as i64);
        self.metrics.pending.set(pending as i64);
    }

    /// Claims a candidacy for the duration `ttl`. Zero releases it.
    fn claim(
        &self,
        ttl: Duration,
        has: Candidacy,
    ) -> impl Future<Output = Result<Candidacy, Error>> + Send + use<> {
        let redis = self.redis.clone();
        let (recorders, ttl) = (self.recorders.to_string(), ttl.as_millis().to_string());
        let has: &[u8] = if has == Candidacy::None { b"0" } else { b"1" };
        async move {
            let call = redis.new_call(Function::Candidacy, 0).arg(redis.replica());
            let call = call.arg(&recorders).arg(&ttl).arg(has);
            Ok(match redis.call(&call).await? {
                0 => Candidacy::None,
                1 => Candidacy::Granted,
                _ => Candidacy::Surplus,
            })
        }
    }

    fn give_up_candidacy(&self) -> BoxFuture<'static, Done> {
        let claim = self.claim(Duration::ZERO, Candidacy::Granted);
        claim.map(|_expires| Done::SteppedDown).boxed()
    }

    /// Releases the leases, so that another recorder need not wait for them to expire, and the candidacy if `candidacy`
    /// is true. Also removes the in-sync marks, because a recorder that is not subscribed is not in sync.
    async fn give_back(&self, mut session: Session, unrecorded: &mut Unrecorded, candidacy: bool) {
        let stopping = session.leaving.is_some();
        let give_back = async {
            // Calls under way may still record, so they are awaited and not cancelled.
            while let Some(done) = session.under_way.next().await {
                if let Done::Told(rest) = done {
                    unrecorded.put_back(rest);
                }
            }
            let closed = session.closing && !session.listening;
            for (partition, machine) in self.partitions.all().zip(&session.machines) {
                if machine.token().is_none() && machine.has_left() {
                    continue;
                }
                let token = machine.token().unwrap_or_default();
                let is_complete = closed && machine.pending() == 0;
                let [for_good, complete] =
                    [stopping, is_complete].map(|yes| if yes { &b"1"[..] } else { b"0" });
                let call = self.redis.new_call(Function::Release, partition);
                let call = call.arg(self.redis.replica()).arg(token);
                let call = call.arg(for_good).arg(complete);
                // Without an answer the lease expires by itself.
                let _expires = self.redis.call::<u8>(&call).await;
            }
            if candidacy {
                let _expires = self.claim(Duration::ZERO, Candidacy::Granted).await;
            }
        };
        let _late = timeout(2 * TIMEOUT, give_back).await;
    }
}

impl Session {
    fn new(replica: &str, partitions: Partitions, max_pending: usize) -> Self {
        Self {
            run: String::new(),
            machines: partitions
                .all()
                .map(|_| Machine::new(replica, fastrand::u64(..)).limited(max_pending))
                .collect(),
            listening: false,
            connection: None,
            connecting: false,
            leaving: None,
            closing: false,
            under_way: FuturesUnordered::new(),
        }
    }

    /// An effect was answered. If this recorder cannot record some messages any more because of it, returns when the
    /// newest of them was received.
    fn reply(&mut self, partition: u16, reply: Reply) -> Option<SystemTime> {
        if reply.outcome() == Outcome::Unknown {
            self.connection = None;
        }
        let machine = &mut self.machines[usize::from(partition)];
        machine.reply(reply);
        machine.take_lost()
    }

    /// The barriers of this subscription may not have been published with it. They are published later.
    fn without_barriers(&mut self) {
        for machine in &mut self.machines {
            machine.reply(Reply::Ask(Outcome::Refused));
        }
    }

    /// This replica is to stop.
    fn leave(&mut self) {
        self.leaving = Some(Instant::now() + HANDOVER);
        self.machines.iter_mut().for_each(Machine::leave);
    }

    /// Whether no other recorder will record the messages that arrive here: there is no other replica, or none became a
    /// candidate in time.
    fn is_last(&self) -> bool {
        let may_go = |machine: &Machine| machine.has_left() || machine.is_alone();
        self.leaving.is_some_and(|end| {
            Instant::now() + LAST_APPENDS > end || self.machines.iter().all(may_go)
        })
    }

    /// Whether this recorder may stop: it is not needed any more, or its time is over.
    fn has_left(&self) -> bool {
        let Some(end) = self.leaving else {
            return false;
        };
        // It has recorded all messages that were published to it, and receives no more.
        let is_empty =
            !self.listening && self.machines.iter().all(|machine| machine.pending() == 0);
        is_empty || self.machines.iter().all(Machine::has_left) || Instant::now() > end
    }

    /// Whether this replica holds the lease of some partition.
    fn records(&self) -> bool {
        let mut machines = self.machines.iter();
        machines.any(|machine| machine.active().is_some())
    }
}

/// Carries out one effect.
struct Executor {
    redis: Redis,
    connection: Connection,
    metrics: Metrics,
    partition: u16,
    /// When the newest of the messages was received that were dropped while Redis took no writes.
    dropped: Option<SystemTime>,
}

impl Executor {
    async fn perform(mut self, effect: Effect) -> Done {
        let reply = match effect {
            Effect::Acquire {
                token,
                in_sync,
                preemption,
            } => self.acquire(&token, in_sync, preemption).await,
            Effect::Renew { token } => Reply::Renew(self.renew(&token).await),
            Effect::Append {
                token,
                number,
                batch,
            } => Reply::Append(self.append(&token, number, &batch).await),
            Effect::Leave { notice } => self.leave(&notice).await,
            Effect::Ask { notice } => {
                let redis = self.redis.clone();
                let ttl = LEASE.as_millis().to_string();
                let call = redis.new_call(Function::Listen, self.partition);
                let call = call.arg(redis.replica()).arg(&notice).arg(&ttl);
                Reply::Ask(match self.lease(&call).await {
                    Ok(_) => Outcome::Done,
                    Err(outcome) => outcome,
                })
            }
        };
        Done::Reply(self.partition, reply, self.dropped)
    }

    /// Asks for the lease. The answer to an out-of-sync recorder may also be that the recording was interrupted.
    async fn acquire(&mut self, token: &str, in_sync: bool, preemption: Option<u64>) -> Reply {
        let redis = self.redis.clone();
        let ttl = LEASE.as_millis().to_string();
        let in_sync: &[u8] = if in_sync { b"1" } else { b"0" };
        let preemption = preemption.map_or_else(String::new, |appends| appends.to_string());
        let call = redis.new_call(Function::Acquire, self.partition);
        let call = call.arg(redis.replica()).arg(token).arg(&ttl);
        Reply::Acquire(
            match self.lease(&call.arg(in_sync).arg(&preemption)).await {
                Ok(0) => Outcome::Denied,
                Ok(1) => Outcome::Done,
                Ok(3) => {
                    seldom!(
                        warn,
                        partition = self.partition,
                        "another replica began to record without raw messages that this one had received: clients receive a gap"
                    );
                    return Reply::Late;
                }
                Ok(_) => {
                    self.metrics.interruptions.inc();
                    tracing::warn!(
                        partition = self.partition,
                        "recording was interrupted: no replica was subscribed throughout; \
                     where raw messages were recorded before, clients receive a gap"
                    );
                    Outcome::Done
                }
                Err(outcome) => outcome,
            },
        )
    }

    async fn renew(&mut self, token: &str) -> Outcome {
        let redis = self.redis.clone();
        let ttl = LEASE.as_millis().to_string();
        let call = redis.new_call(Function::Renew, self.partition);
        let call = call.arg(redis.replica()).arg(token).arg(&ttl);
        match self.lease(&call).await {
            Ok(0) => Outcome::Denied,
            Ok(_) => Outcome::Done,
            Err(outcome) => outcome,
        }
    }

    async fn leave(&mut self, notice: &str) -> Reply {
        let redis = self.redis.clone();
        let call = redis.new_call(Function::Leave, self.partition);
        let call = call.arg(redis.replica()).arg(notice);
        match redis.call_on(&mut self.connection, &call).await {
            Ok(0) => Reply::Leave(Outcome::Denied),
            Ok(1) => Reply::Leave(Outcome::Done),
            Ok(_) => Reply::Alone,
            Err(Error::Refused(error)) => {
                tracing::debug!(partition = self.partition, %error, "the lease stays as it is");
                Reply::Leave(Outcome::Refused)
            }
            Err(error) => {
                seldom!(warn, partition = self.partition, %error, "the lease cannot be given back");
                Reply::Leave(Outcome::Unknown)
            }
        }
    }

    async fn lease(&mut self, call: &Call<'_>) -> Result<u8, Outcome> {
        let called = self.redis.call_on(&mut self.connection, call);
        called.await.map_err(|error| match error {
            // Nothing was written, so the lease has not changed.
            Error::Refused(error) => {
                tracing::debug!(partition = self.partition, %error, "the lease stays as it is");
                Outcome::Refused
            }
            error => {
                seldom!(warn, partition = self.partition, %error, "the lease is in doubt");
                Outcome::Unknown
            }
        })
    }

    async fn append(&mut self, token: &str, number: u64, batch: &[Pending]) -> Outcome {
        let redis = self.redis.clone();
        let watermark = redis.watermark(self.partition).to_string();
        let name = |pending: &'_ Pending| match &pending.channel {
            Some(channel) if pending.is_lost => format!("{LOST}{channel}").into(),
            _ => Cow::Borrowed(""),
        };
        let lost: Vec<Cow<'_, str>> = batch.iter().map(name).collect();
        let number = number.to_string();
        let channels = batch.iter().filter_map(|pending| pending.channel.as_ref());
        let mut call = redis
            .new_call(Function::Record, self.partition)
            .of_channels(channels.map(Channel::as_str))
            .arg(redis.replica())
            .arg(&watermark)
            .arg(token)
            .arg(&number);
        for (pending, lost) in batch.iter().zip(&lost) {
            let channel = match &pending.channel {
                Some(channel) if !pending.is_lost => channel.as_str(),
                _ => lost,
            };
            call = call.arg(channel).arg(&pending.payload).arg(&pending.digest);
        }
        let sent = SystemTime::now();
        let ids: Vec<String> = match redis.call_on(&mut self.connection, &call).await {
            Ok(ids) => ids,
            Err(Error::Fenced) => return Outcome::Denied,
            Err(Error::Refused(error)) => return self.relay(token, batch, &error).await,
            Err(error) => {
                seldom!(warn, partition = self.partition, %error, "an append is in doubt");
                return Outcome::Unknown;
            }
        };
        let events = batch
            .iter()
            .filter_map(|pending| Some((pending, pending.channel.as_ref()?)));
        for (id, (pending, channel)) in ids.iter().zip(events) {
            if let Some(error) = id.strip_prefix('!') {
                static SELDOM: Seldom = Seldom::new();
                self.metrics.unrecorded.inc();
                if let Some(suppressed) = SELDOM.pass() {
                    let partition = self.partition;
                    tracing::error!(
                        partition,
                        error,
                        suppressed,
                        "an event could not be recorded"
                    );
                }
                continue;
            }
            if pending.is_lost {
                self.lost(channel);
            } else {
                self.metrics.recorded.inc();
            }
            let Ok(id) = id.parse() else {
                continue;
            };
            self.redis.saw(self.partition, id);
            if pending.is_lost {
                continue;
            }
            if let Some(witness) = self.redis.witness() {
                let asked = pending.heard;
                witness.recorded(&Recorded {
                    channel,
                    id,
                    asked,
                    sent,
                });
            }
        }
        Outcome::Done
    }

    /// Counts and logs a message that was dropped. Clients of its channel receive a gap.
    fn lost(&self, channel: &Channel) {
        static SELDOM: Seldom = Seldom::new();
        self.metrics.dropped.inc();
        if let Some(suppressed) = SELDOM.pass() {
            let partition = self.partition;
            tracing::error!(
                partition,
                %channel,
                suppressed,
                "dropped a raw message: more than --max-pending waited to be recorded. Clients receive a gap"
            );
        }
    }

    /// Redis takes no writes: passes the messages on without ids.
    async fn relay(
        &mut self,
        token: &str,
        batch: &[Pending],
        refusal: &redis::RedisError,
    ) -> Outcome {
        let channels = batch.iter().filter(|pending| !pending.is_lost);
        let channels = channels.filter_map(|pending| {
            let channel = pending.channel.as_ref()?;
            Some((
                self.redis.names().live(channel),
                entry::unrecorded(&pending.payload),
            ))
        });
        let mut messages: Vec<_> = channels.collect();
        let relayed = messages.len();
        let digests: Vec<_> = batch.iter().map(|pending| &*pending.digest).collect();
        messages.push((
            self.redis.names().recorded(self.partition),
            digests.join(" ").into_bytes(),
        ));
        let relay = self.redis.relay(
            &mut self.connection,
            self.partition,
            token,
            refusal,
            &messages,
        );
        match relay.await {
            Ok(true) => {
                for pending in batch.iter().filter(|pending| pending.is_lost) {
                    pending
                        .channel
                        .iter()
                        .for_each(|channel| self.lost(channel));
                    self.dropped = Some(pending.heard);
                }
            }
            Ok(false) => return Outcome::Denied,
            Err(error) => {
                seldom!(warn, partition = self.partition, %error, "a relay is in doubt");
                return Outcome::Unknown;
            }
        }
        self.metrics.unrecorded.inc_by(relayed as u64);
        static SELDOM: Seldom = Seldom::new();
        if let Some(suppressed) = SELDOM.pass() {
            tracing::error!(partition = self.partition, relayed, %refusal, suppressed, "redis takes no writes: relayed without an id");
        }
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A silence that lasts until Redis is asked on another connection.
    fn suspicious() -> Silence {
        let mut silence = Silence::default();
        while !silence.is_suspicious() {
            assert!(!silence.grow());
        }
        silence.asking = true;
        silence
    }

    #[test]
    fn a_connection_is_dead_only_if_redis_answers_on_another() {
        let mut silence = suspicious();
        silence.answered(false);
        assert!(
            (0..100).all(|_| !silence.grow()),
            "the connection is dead, although redis is silent too"
        );
        silence.answered(true);
        assert!((0..LAST_PINGS).all(|_| !silence.grow()) && silence.grow());
    }

    /// Redis stalls, answers on both connections for a moment, and stalls again.
    #[test]
    fn an_answer_after_the_end_of_a_silence_is_ignored() {
        let mut silence = suspicious();
        silence.heard();
        silence.answered(true);
        assert!((0..100).all(|_| !silence.grow()));
    }
}
