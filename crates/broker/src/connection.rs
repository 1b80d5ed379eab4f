//! `Redis`: calls to the function library, with a time limit each.
//!
//! If a server was restarted, promoted or flushed, its answer to any call shows that. Then the library is loaded, the
//! handshake is completed, and the call is made again. Callers do not notice.

pub(crate) mod trust;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool_redis::{Manager, Pool, PoolError, Timeouts};
use hub::EventId;
use redis::{Client, Cmd, ConnectionInfo, FromRedisValue, RedisError, aio::MultiplexedConnection};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use self::trust::Trust;
use crate::{
    Config, Error, Rule, Server, Witness,
    call::{Call, Function, Plain},
    inspect::costly_settings,
    library,
    metrics::Metrics,
    names::{LIBRARY, Names, PARTITIONS},
    node::{TIMEOUT, connection_config, contains, field, is_master, open, run_at},
    seldom,
    server::Place,
    wire::Listener,
};

/// Connections for page reads, attaches and appends.
const POOL_SIZE: usize = 16;

/// An overlap of the lives of two servers counts if it is longer than this. Uptime is in whole seconds, and this
/// process may have read the last message of the other server late.
const RESTART: Duration = Duration::from_secs(3);

/// Longest wait for an old master to confirm that it refuses all calls.
const RETIRE: Duration = Duration::from_secs(1);
/// If an old master does not answer, the call that retires it is repeated for this long. The old master may be stalled,
/// or cut off.
const RETIRE_FOR: Duration = Duration::from_secs(60);
/// Between two attempts.
const RETIRE_PAUSE: Duration = Duration::from_millis(250);

/// A call to a new server process is made again after the library was loaded, and after the handshake.
const ATTEMPTS: usize = 4;

/// A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Redis(Arc<Shared>);

struct Shared {
    server: Server,
    /// The last known master; none before it was located.
    master: Mutex<Option<Arc<Master>>>,
    /// Names this process to the others.
    replica: String,
    names: Names,
    max_payload: usize,
    /// The function library as a plain script, which attaches. Its rules can be changed.
    script: RwLock<Arc<str>>,
    /// One per partition.
    seen: Vec<Mutex<Seen>>,
    witness: Option<Arc<dyn Witness>>,
    read_only: AtomicBool,
    /// The master has to be looked for.
    lost: Notify,
    /// This process has moved to another master.
    moved: Notify,
    metrics: Metrics,
}

/// A server at an address.
struct Master {
    /// The newest one with this address.
    place: Mutex<Place>,
    trust: Mutex<Trust>,
    /// Renewed with the certificates.
    ways: RwLock<Arc<Ways>>,
    /// How many there were before.
    moves: u64,
    /// The server process that was found there.
    run: OnceLock<String>,
    /// This process has left it for another master, and it has confirmed that it refuses all calls. All its answers are
    /// from before that.
    retired: AtomicBool,
    /// Another process has retired it. It has not accepted a handshake since.
    replaced: AtomicBool,
}

/// How new connections to a server are made.
struct Ways {
    client: Client,
    pool: Pool,
}

impl Ways {
    fn new(info: ConnectionInfo) -> Result<Self, RedisError> {
        let manager = Manager::new_with_config(info.clone(), connection_config())?;
        let pool = Pool::builder(manager)
            .max_size(POOL_SIZE)
            .runtime(deadpool_redis::Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(TIMEOUT),
                create: Some(TIMEOUT),
                recycle: Some(TIMEOUT),
            })
            .build()
            .expect("a pool with timeouts needs a runtime, which it has");
        Ok(Self {
            client: Client::open(info)?,
            pool,
        })
    }
}

impl Master {
    fn new(place: Place, moves: u64) -> Result<Self, RedisError> {
        let ways = Ways::new(place.info.clone())?;
        Ok(Self {
            place: Mutex::new(place),
            trust: Mutex::new(Trust::new(Instant::now())),
            ways: RwLock::new(Arc::new(ways)),
            moves,
            run: OnceLock::new(),
            retired: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
        })
    }

    /// The same address, with new connections only.
    fn anew(&self) -> Result<Self, RedisError> {
        Self::new(self.place().clone(), self.moves + 1)
    }

    /// Held for a comparison only.
    fn trust(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ways(&self) -> Arc<Ways> {
        Arc::clone(&self.ways.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Held for a comparison or a copy only.
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is not shared through the pool.
#[derive(Clone)]
pub(crate) struct Connection {
    redis: MultiplexedConnection,
    /// The server that it is connected to.
    master: Arc<Master>,
}

/// The ids that this process has seen in a partition, and the server process under which it saw them.
#[derive(Default)]
struct Seen {
    /// The greatest id that it has seen. Ids never go back below it.
    watermark: EventId,
    /// When that id was seen.
    at: Option<Instant>,
    /// When any id was last seen, whether or not it was greater. The server process was running then.
    heard: Option<Instant>,
    /// The server process under which the ids were seen.
    run: String,
    /// That server process has accepted a handshake.
    handshaken: bool,
    /// A server process that has not accepted the handshake yet.
    met: Option<Met>,
}

/// A server process, and the state of the partition when this process first met it.
#[derive(Default, Clone)]
struct Met {
    run: String,
    watermark: EventId,
    at: Option<Instant>,
    /// It ran beside the server that was seen last. So it is another server in the same place, not a restart.
    overlaps: bool,
}

impl Seen {
    fn saw(&mut self, id: EventId) {
        self.heard = Some(Instant::now());
        if id > self.watermark {
            self.watermark = id;
            self.at = self.heard;
        }
    }

    /// This process has reached a server process with this uptime in seconds. The values of the first meeting are kept
    /// until the handshake is accepted. Until then, events that other replicas have appended may arrive from the server
    /// process. The handshake must not report them as its past.
    fn meet(&mut self, run: &str, uptime: Option<u64>) -> Met {
        // No id was seen yet, so the first ids count as seen under this server process.
        if self.watermark == EventId::default() {
            run.clone_into(&mut self.run);
            self.handshaken = false;
        }
        if let Some(met) = self.met.as_ref().filter(|met| met.run == run) {
            return met.clone();
        }
        let met = Met {
            run: run.to_owned(),
            watermark: self.watermark,
            at: self.at,
            overlaps: self.is_overlapped_by(uptime),
        };
        let is_known = self.run == run && self.handshaken;
        self.met = (!is_known).then(|| met.clone());
        met
    }

    /// Whether a server with this uptime in seconds was running beside the server that was seen last.
    fn is_overlapped_by(&self, uptime: Option<u64>) -> bool {
        let (Some(heard), Some(uptime)) = (self.heard, uptime) else {
            return false;
        };
        Duration::from_secs(uptime) > heard.elapsed() + RESTART
    }
}

impl Connection {
    /// Whether the server answers.
    pub(crate) async fn pongs(&mut self) -> bool {
        let ping = Cmd::new().arg("PING").to_owned();
        ping.query_async::<()>(&mut self.redis).await.is_ok()
    }

    /// The count of moves when the connection was made.
    pub(crate) fn moves(&self) -> u64 {
        self.master.moves
    }
}

impl Met {
    /// The present time, or a little more, on the clock that made the watermark.
    fn expected_ms(&self) -> u64 {
        let since = self.at.map_or(0, |at| at.elapsed().as_millis());
        let since = u64::try_from(since).unwrap_or_default();
        self.watermark.ms.saturating_add(since)
    }
}

impl Redis {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let partitions = config.partitions;
        let names = Names::new(partitions);
        Self(Arc::new(Shared {
            server: config.redis.clone(),
            master: Mutex::default(),
            replica: config.replica.clone(),
            witness: config.witness.clone(),
            max_payload: config.max_payload,
            script: RwLock::new(script(&names, &config.rules, config.max_payload)),
            names,
            seen: partitions.all().map(|_| Mutex::default()).collect(),
            read_only: AtomicBool::new(false),
            lost: Notify::new(),
            moved: Notify::new(),
            metrics,
        }))
    }

    fn script(&self) -> Arc<str> {
        Arc::clone(&self.0.script.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the rules of the library. The server gets them with the next connection, or when it is
    /// [prepared](Self::prepare).
    pub(crate) fn set_rules(&self, rules: &[Rule]) {
        let script = script(&self.0.names, rules, self.0.max_payload);
        *self
            .0
            .script
            .write()
            .unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// From now on new connections use the certificates of `server`. Existing connections stay.
    pub(crate) fn renew(&self, server: &Server) -> Result<(), RedisError> {
        self.0.server.renew(server);
        let Some(master) = self.master().clone() else {
            return Ok(());
        };
        let info = self.0.server.renewed(&master.place().info);
        let ways = Ways::new(info.clone())?;
        master.place().info = info;
        *master.ways.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ways);
        Ok(())
    }

    pub(crate) fn replica(&self) -> &str {
        &self.0.replica
    }

    pub(crate) fn has_sentinels(&self) -> bool {
        self.0.server.has_sentinels()
    }

    pub(crate) fn partitions(&self) -> hub::Partitions {
        self.0.names.partitions()
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    /// A call without arguments yet, which touches no keys of channels.
    pub(crate) fn new_call(&self, function: Function, partition: u16) -> Call<'_> {
        Call::new(&self.0.names, function, partition)
    }

    /// Sends a plain command on any connection.
    pub(crate) async fn command<T: FromRedisValue>(
        &self,
        name: Plain,
        command: &Cmd,
    ) -> Result<T, Error> {
        let (mut connection, _) = self.connection().await?;
        self.0.metrics.command(name);
        command
            .query_async(&mut connection)
            .await
            .map_err(Error::of)
    }

    /// The greatest id that this process has seen in a partition.
    pub(crate) fn watermark(&self, partition: u16) -> EventId {
        self.lock(partition).watermark
    }

    /// Notes an id.
    pub(crate) fn saw(&self, partition: u16, id: EventId) {
        self.lock(partition).saw(id);
    }

    /// Notes an id that was read from the server to which this process was connected after that many moves. Returns
    /// whether it is still connected to that server.
    pub(crate) fn read_at(&self, moves: u64, partition: u16, id: EventId) -> bool {
        let master = self.master().clone();
        let Some(master) = master.filter(|master| master.moves == moves) else {
            return false;
        };
        let mut seen = self.lock(partition);
        // Ids of a server process are noted only after its handshake, because the handshake reports ids of earlier
        // ones.
        if master.run.get() == Some(&seen.run) {
            seen.saw(id);
        }
        true
    }

    /// Receives each event that this process appends.
    pub(crate) fn witness(&self) -> Option<&dyn Witness> {
        self.0.witness.as_deref()
    }

    /// Held for a comparison or a copy only.
    fn lock(&self, partition: u16) -> MutexGuard<'_, Seen> {
        self.0.seen[usize::from(partition)]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of the caller's own, on which commands keep their order.
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        let master = self.locate().await?;
        let ways = master.ways();
        let redis = open(&ways.client).await;
        let redis =
            redis.map_err(|error| Error::connecting(ways.client.get_connection_info(), &error))?;
        Ok(Connection { redis, master })
    }

    /// A connection that only receives messages, and the server process to which it is connected. Messages count only
    /// while this process [`is_at`](Self::is_at) that server process. Payloads of more than `max_payload` bytes are
    /// skipped.
    pub(crate) async fn listen(&self, max_payload: usize) -> Result<(Listener, String), Error> {
        let master = self.locate().await?;
        let ways = master.ways();
        let info = ways.client.get_connection_info();
        let listener = Listener::connect(&self.0.server, info, max_payload);
        let failed = |error| Error::connecting(info, &error);
        let mut listener = listener.await.map_err(failed)?;
        let info = listener.info("server").await.map_err(failed)?;
        let info = std::str::from_utf8(&info).map_err(|_| Error::Malformed)?;
        let run = field(info, "run_id:").ok_or(Error::Malformed)?;
        if self.moves() == master.moves {
            self.arrive(run);
        }
        Ok((listener, run.to_owned()))
    }

    /// Whether this process uses that server process. If not, messages from there must not be shown any more. This
    /// process may have completed the handshake with another one already, and that handshake covers only what was seen
    /// until then.
    pub(crate) fn is_at(&self, run: &str) -> bool {
        let current = self.master();
        current.as_ref().is_some_and(|master| {
            let is_replaced = master.replaced.load(Ordering::Relaxed);
            !is_replaced && master.run.get().is_some_and(|met| met == run)
        })
    }

    /// A server process answers at the master's address. If it is another one than before, the address points to a new
    /// server, and some connections may still be to the old one.
    fn arrive(&self, run: &str) {
        let mut current = self.master();
        let Some(master) = &*current else {
            return;
        };
        if master.run.get_or_init(|| run.to_owned()) == run {
            return;
        }
        match master.anew() {
            Ok(master) => {
                master.run.get_or_init(|| run.to_owned());
                *current = Some(Arc::new(master));
            }
            Err(error) => tracing::error!(%error, "redis cannot be reached as configured"),
        }
    }

    /// A connection of the pool.
    async fn connection(&self) -> Result<(deadpool_redis::Connection, Arc<Master>), Error> {
        let master = self.master().clone();
        let master = match master {
            Some(master) => master,
            None => self.locate().await?,
        };
        let ways = master.ways();
        let connection = ways.pool.get().await.map_err(|error| {
            let info = ways.client.get_connection_info();
            match &error {
                PoolError::Backend(error) => Error::connecting(info, error),
                PoolError::Timeout(_) => Error::connecting(info, &"timed out"),
                error => Error::connecting(info, error),
            }
        })?;
        Ok((connection, master))
    }

    /// Locates the master. If its address has changed, this process moves there.
    async fn locate(&self) -> Result<Arc<Master>, Error> {
        loop {
            let old = self.master().clone();
            let moves = old.as_ref().map(|old| old.moves);
            let was = old.as_ref().map(|old| old.place().clone());
            let place = self.0.server.locate(was.as_ref()).await?;
            // Before the first call to the new master. If the old one does not answer, the call is repeated.
            if let (Some(old), Some(was)) = (&old, &was)
                && was.info.addr() != place.info.addr()
            {
                // The same server may have another name now.
                let run = run_at(&place.info).await?;
                if old.run.get() != Some(&run) {
                    self.retire(old, place.epoch).await;
                }
            }
            let mut current = self.master();
            let moves = match &*current {
                Some(master) if master.place().info.addr() == place.info.addr() => {
                    *master.place() = place;
                    return Ok(Arc::clone(master));
                }
                // Another task has moved in between, and may know of a later failover.
                Some(master) if moves != Some(master.moves) => continue,
                Some(master) => {
                    let address = place.info.addr();
                    seldom!(warn, %address, "another redis is the master: moving there");
                    self.0.read_only.store(false, Ordering::Relaxed);
                    master.moves + 1
                }
                None => 0,
            };
            let master = Arc::new(Master::new(place, moves)?);
            *current = Some(Arc::clone(&master));
            self.0.moved.notify_waiters();
            return Ok(master);
        }
    }

    /// Makes a replaced master refuse all calls. Otherwise it takes calls until sentinels make a copy of it, seconds
    /// later, and gateways that have not noticed the failover would use it as the master.
    async fn retire(&self, old: &Arc<Master>, epoch: u64) {
        let (old, redis) = (Arc::clone(old), self.clone());
        let epoch = epoch.to_string();
        let retire = self.new_call(Function::Retire, 0).arg(&epoch).command();
        let end = Instant::now() + RETIRE_FOR;
        // Its own task, so that the timeout below does not cancel it.
        let call = tokio::spawn(async move {
            loop {
                let answer = async {
                    let mut connection = open(&old.ways().client).await?;
                    redis.0.metrics.function(Function::Retire);
                    retire.query_async::<()>(&mut connection).await
                };
                let error = match answer.await {
                    Ok(()) => return old.retired.store(true, Ordering::Release),
                    Err(error) => error,
                };
                tracing::debug!(%error, "failed to retire the old master");
                // The server is a copy by now, or has just been started.
                let takes_nothing = error.code() == Some("READONLY") || is_without_library(&error);
                if takes_nothing || Instant::now() > end {
                    return;
                }
                sleep(RETIRE_PAUSE).await;
                if !redis.has_left(&old) {
                    return;
                }
            }
        });
        let _late = timeout(RETIRE, call).await;
    }

    /// Resolves when this process has moved to another master.
    pub(crate) async fn has_moved(&self) {
        self.0.moved.notified().await;
    }

    /// Looks for the master whenever a sentinel announces another one, or the server that this process uses was
    /// retired. Never returns.
    pub(crate) async fn watch_sentinels(&self) {
        let watch = self.0.server.watch(|| self.0.lost.notify_one());
        let look = async {
            loop {
                self.0.lost.notified().await;
                self.look_for_master().await;
            }
        };
        tokio::join!(watch, look);
    }

    /// Whether this process has moved to another address since it used this master.
    fn has_left(&self, master: &Master) -> bool {
        let current = self.master().clone();
        let Some(current) = current.filter(|current| current.moves != master.moves) else {
            return false;
        };
        // One lock at a time.
        let address = current.place().info.addr().clone();
        address != *master.place().info.addr()
    }

    /// Whether a message that arrives now over a subscription is from the master.
    pub(crate) async fn is_current(&self) -> bool {
        if !self.has_sentinels() {
            return true;
        }
        let master = self.master().clone();
        match master {
            Some(master) => self.believe(&master).await.is_ok(),
            None => false,
        }
    }

    /// Whether to send a call to a server. A silent server may be stalled, and would carry the call out after another
    /// one has replaced it. So sentinels are asked first. Attaches are sent in any case, because they show that the
    /// server answers again.
    async fn may_ask(&self, master: &Master, function: Function) -> bool {
        if !self.has_sentinels()
            || function == Function::Attach
            || master.trust().is_fresh(Instant::now())
        {
            return true;
        }
        let place = master.place().clone();
        self.0.server.confirms(&place).await == Some(true)
    }

    /// A server has answered. Checks whether it was the master when it did.
    ///
    /// # Errors
    /// When it was not, or may not have been.
    async fn believe(&self, master: &Master) -> Result<(), Error> {
        if !self.has_sentinels() {
            return Ok(());
        }
        // A master that was stalled carries out the calls in its sockets when it continues, although it was replaced.
        let is_fresh = master.trust().answered(Instant::now());
        let is_believed = match self.has_left(master) {
            // If it has confirmed that it is retired, it carried this call out before that.
            true => is_fresh && master.retired.load(Ordering::Acquire),
            false => is_fresh || self.confirm(master).await,
        };
        if is_believed {
            Ok(())
        } else {
            Err(Error::Left)
        }
    }

    /// Asks the sentinels whether a server that was silent is still the master.
    async fn confirm(&self, master: &Master) -> bool {
        let place = master.place().clone();
        let confirms = self.0.server.confirms(&place).await;
        let is_confirmed = match confirms {
            Some(true) => {
                master.trust().confirmed(Instant::now());
                true
            }
            Some(false) => false,
            None => master.trust().outlasts(Instant::now()),
        };
        if !is_confirmed {
            self.0.lost.notify_one();
        }
        is_confirmed && !self.has_left(master)
    }

    /// Held for a comparison or a copy only.
    fn master(&self) -> MutexGuard<'_, Option<Arc<Master>>> {
        let master = self.0.master.lock();
        master.unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function on any connection.
    pub(crate) async fn call<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Error> {
        let (mut connection, master) = self.connection().await?;
        self.call_at(&master, &mut connection, call).await
    }

    /// Calls a function on this connection.
    pub(crate) async fn call_on<T: FromRedisValue>(
        &self,
        connection: &mut Connection,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let Connection { redis, master } = connection;
        self.call_at(master, redis, call).await
    }

    /// Calls a function that only reads, or publishes the data that it reads. A Redis that takes no writes runs a plain
    /// script instead, which does the same.
    pub(crate) async fn read<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Error> {
        let (mut connection, master) = self.connection().await?;
        match self.call_at(&master, &mut connection, call).await {
            Err(Error::Refused(_)) => {}
            done => return done,
        }
        let eval = call.script(&self.script());
        self.0.metrics.command(Plain::Eval);
        let answer = eval.query_async(&mut connection).await;
        let answer = answer.map_err(Error::of)?;
        self.believe(&master).await?;
        Ok(answer)
    }

    /// How often this process has moved to another server. A task that keeps a connection of its own, and does not
    /// subscribe, makes a new one when this changes.
    pub(crate) fn moves(&self) -> u64 {
        self.master().as_ref().map_or(0, |master| master.moves)
    }

    /// Looks for the master, and moves there. A demoted master still serves the clients that are connected to it, and
    /// sentinels demote it some time after they have chosen another one.
    pub(crate) async fn look_for_master(&self) {
        let moves = self.moves();
        if !self.0.read_only.load(Ordering::Relaxed) {
            if let Err(error) = self.locate().await {
                tracing::debug!(%error, "the master is not found");
            }
            return;
        }
        let look = async {
            let master = self.locate().await?;
            let client = &master.ways().client;
            let run = run_at(client.get_connection_info()).await?;
            let is_same = master.run.get() == Some(&run);
            Ok::<_, Error>((is_master(client).await?, is_same))
        };
        match look.await {
            // It takes writes again.
            Ok((true, true)) => self.0.read_only.store(false, Ordering::Relaxed),
            Ok((true, false)) => self.move_on(moves),
            Ok((false, _)) => {}
            Err(error) => tracing::debug!(%error, "no other redis was found"),
        }
    }

    /// Makes all connections again, unless another task has done so since that count of moves.
    fn move_on(&self, moves: u64) {
        let mut current = self.master();
        let Some(master) = current.as_ref().filter(|master| master.moves == moves) else {
            return;
        };
        seldom!(
            warn,
            "redis became read-only, and there is another master: moving there"
        );
        self.0.read_only.store(false, Ordering::Relaxed);
        match master.anew() {
            Ok(master) => *current = Some(Arc::new(master)),
            Err(error) => tracing::error!(%error, "redis cannot be reached as configured"),
        }
    }

    /// Whether Redis answers on a new connection.
    pub(crate) async fn is_alive(&self) -> bool {
        let ping = async {
            let mut connection = self.connect().await?.redis;
            let pong = Cmd::new().arg("PING").query_async(&mut connection).await;
            Ok::<(), Error>(pong?)
        };
        // A Redis that takes no writes may refuse a ping, but it is alive.
        matches!(ping.await, Ok(()) | Err(Error::Refused(_)))
    }

    /// Calls a function on this connection to this master. An answer that may be from a replaced master is an error.
    async fn call_at<T: FromRedisValue>(
        &self,
        master: &Master,
        connection: &mut MultiplexedConnection,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let (function, partition, command) = (call.function, call.partition, call.command());
        if !self.may_ask(master, function).await {
            return Err(Error::Unreachable(Box::new(Error::Left)));
        }
        let mut attempt = 1;
        loop {
            self.0.metrics.function(function);
            let timer = self.0.metrics.call(function);
            let answer = command.query_async(connection).await;
            drop(timer);
            let error = match answer {
                Ok(answer) => {
                    self.believe(master).await?;
                    if !function.only_reads() {
                        self.0.read_only.store(false, Ordering::Relaxed);
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let is_left = self.has_left(master);
            if error.code() == Some("READONLY") && !is_left {
                self.0.read_only.store(true, Ordering::Relaxed);
                self.0.lost.notify_one();
            }
            attempt += 1;
            if error.code() == Some("NOTREADY") && is_left {
                return Err(Error::Unreachable(Box::new(Error::Left)));
            } else if attempt > ATTEMPTS || is_left {
                return Err(Error::of(error));
            } else if error.code() == Some("NOTREADY") {
                let handshaken = self.handshake(master, connection, partition).await;
                // The call itself was refused.
                handshaken.map_err(|error| Error::Unreachable(Box::new(error)))?;
                // A FLUSHALL removes the number, too.
                let checked = self.check_partitions(connection).await;
                checked.map_err(|error| Error::Unreachable(Box::new(error)))?;
            } else if is_without_library(&error) {
                self.load(connection).await?;
            } else {
                return Err(Error::of(error));
            }
        }
    }

    /// Makes a server ready: checks the number of partitions, loads the library if it is another one, and completes the
    /// handshake with every partition.
    pub(crate) async fn prepare(&self) -> Result<(), Error> {
        let (mut connection, master) = self.connection().await?;
        let connection = &mut *connection;
        self.check_partitions(connection).await?;
        let mut list = Cmd::new();
        list.arg("FUNCTION").arg("LIST");
        list.arg("LIBRARYNAME").arg(LIBRARY).arg("WITHCODE");
        let found: redis::Value = list.query_async(connection).await.map_err(Error::of)?;
        let load = !contains(&found, library::library(&self.script()).as_bytes());
        if load && contains(&found, LIBRARY.as_bytes()) {
            tracing::warn!(
                "redis holds a function library of another version or configuration: replacing it"
            );
        }
        match self.introduce(&master, connection, load).await {
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
    async fn check_partitions(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let configured = self.partitions().count();
        let mut set = Cmd::new();
        set.arg("SET").arg(PARTITIONS).arg(configured).arg("NX");
        let stored: Option<u16> = match set.arg("GET").query_async(connection).await {
            Ok(stored) => stored,
            Err(error) => match Error::of(error) {
                // It takes no writes now. The next connection stores the number.
                Error::Refused(_) => {
                    let mut get = Cmd::new();
                    let stored = get.arg("GET").arg(PARTITIONS).query_async(connection);
                    stored.await.map_err(Error::of)?
                }
                error => return Err(error),
            },
        };
        match stored.filter(|stored| *stored != configured) {
            Some(stored) => Err(Error::Partitions { stored, configured }),
            None => Ok(()),
        }
    }

    async fn introduce(
        &self,
        master: &Master,
        connection: &mut MultiplexedConnection,
        load: bool,
    ) -> Result<(), Error> {
        if load {
            self.load(connection).await?;
        }
        for partition in self.partitions().all() {
            self.handshake(master, connection, partition).await?;
        }
        Ok(())
    }

    async fn load(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let mut load = Cmd::new();
        load.arg("FUNCTION")
            .arg("LOAD")
            .arg("REPLACE")
            .arg(library::library(&self.script()));
        let () = load.query_async(connection).await.map_err(Error::of)?;
        tracing::info!("the function library was loaded");
        Ok(())
    }

    /// Sends the server the newest id that this process has seen, so that the library can detect lost events.
    async fn handshake(
        &self,
        master: &Master,
        connection: &mut MultiplexedConnection,
        partition: u16,
    ) -> Result<(), Error> {
        let info: String = Cmd::new()
            .arg("INFO")
            .arg("server")
            .query_async(connection)
            .await?;
        let run = field(&info, "run_id:").ok_or(Error::Malformed)?.to_owned();
        // Negative if the clock was set back. Missing if a program other than Redis answers.
        let uptime = field(&info, "uptime_in_seconds:").and_then(|uptime| uptime.parse().ok());
        // Before the handshake, because it does not cover events that arrive from another server process after this.
        self.arrive(&run);
        let (seen, met) = {
            let mut seen = self.lock(partition);
            let met = seen.meet(&run, uptime);
            (seen.run.clone(), met)
        };
        let epoch = master.place().epoch;
        let (watermark, expected) = (met.watermark.to_string(), met.expected_ms().to_string());
        let (overlaps, epoch) = (u8::from(met.overlaps).to_string(), epoch.to_string());
        let handshake = self.new_call(Function::Handshake, partition);
        let handshake = handshake
            .arg(self.replica())
            .arg(&run)
            .arg(&watermark)
            .arg(&seen);
        let handshake = handshake
            .arg(&expected)
            .arg(&overlaps)
            .arg(&epoch)
            .command();
        self.0.metrics.function(Function::Handshake);
        let clock: String = match handshake.query_async(connection).await {
            Ok(clock) => clock,
            Err(error) if is_without_library(&error) => {
                self.load(connection).await?;
                handshake.query_async(connection).await.map_err(Error::of)?
            }
            Err(error) => {
                let error = Error::of(error);
                if matches!(error, Error::Left) {
                    master.replaced.store(true, Ordering::Relaxed);
                    self.0.lost.notify_one();
                }
                return Err(error);
            }
        };
        let clock = clock.parse().map_err(|_| Error::Malformed)?;
        master.replaced.store(false, Ordering::Relaxed);
        let mut seen = self.lock(partition);
        seen.saw(clock);
        seen.run = run;
        seen.handshaken = true;
        seen.met = None;
        Ok(())
    }

    /// Warns of settings of Redis that may cost events.
    async fn warn_of_settings(&self, connection: &mut MultiplexedConnection) {
        for (setting, value, problem) in costly_settings(connection).await {
            tracing::warn!(setting, value, "{problem}");
        }
    }

    /// Publishes all these messages to a Redis that takes no writes, unless another recorder holds the lease. Returns
    /// whether it published them.
    pub(crate) async fn relay(
        &self,
        connection: &mut Connection,
        partition: u16,
        token: &str,
        refusal: &redis::RedisError,
        messages: &[(String, Vec<u8>)],
    ) -> Result<bool, Error> {
        let mut eval = Cmd::new();
        eval.arg("EVAL").arg(RELAY).arg(1);
        eval.arg(self.0.names.lease(partition)).arg(token);
        // Redis writes leases even when it is out of memory. So a lease that is gone was evicted, and another recorder
        // may have held it since.
        eval.arg(u8::from(refusal.code() != Some("OOM")));
        for (channel, message) in messages {
            eval.arg(channel).arg(message);
        }
        self.0.metrics.command(Plain::Eval);
        let answer = eval.query_async(&mut connection.redis).await;
        answer.map_err(Error::of)
    }
}

/// A plain script, because Redis refuses functions that may publish whenever it refuses writes. KEYS: the lease. ARGV:
/// a token, 1 if no recorder can acquire the lease, then channels and messages. If no recorder can acquire it, a lease
/// that expired because it could not be renewed still belongs to this recorder.
const RELAY: &str = "\
    local holder = redis.call('GET', KEYS[1])
    if holder ~= ARGV[1] and (holder or ARGV[2] ~= '1') then return 0 end
    for i = 3, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end
    return 1";

fn script(names: &Names, rules: &[Rule], max_payload: usize) -> Arc<str> {
    library::script(names, rules, max_payload).into()
}

/// Whether a call was refused because the server does not have the function library.
fn is_without_library(error: &RedisError) -> bool {
    error.to_string().contains("Function not found")
}
