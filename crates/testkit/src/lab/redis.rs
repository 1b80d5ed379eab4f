//! A real redis-server with its own port and directory, which can be stopped, paused, killed and restarted.

use std::{
    collections::BTreeSet,
    env,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use super::{Commands, Dir, PATIENCE, Process, Reply, append_call, eventually};
use crate::{Id, hash_tag, partition_of};

/// How long an in-sync mark is valid, in milliseconds: twice the recorder's lease.
const IN_SYNC_FOR: u64 = 4000;

/// A launcher for [`Redis::through`] that sets the clock 20 s back. Debian's Redis is linked with jemalloc, which does
/// not start with libfaketime (libfaketime's issue 130). So glibc's allocator is preloaded first. The command
/// `faketime` is not used, because its process would remain between this one and Redis.
pub const SLOW_CLOCK: [&str; 3] = [
    "env",
    "LD_PRELOAD=libc_malloc_debug.so.0:/usr/$LIB/faketime/libfaketime.so.1",
    "FAKETIME=-20s",
];

/// The program that every test starts as its Redis: `REDIS_SERVER`, or Debian's `redis-server`. Valkey is one too.
pub fn redis_server() -> String {
    env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A Redis.
#[derive(Debug)]
pub struct Redis {
    address: SocketAddr,
    /// The words that start it, before its own options.
    launcher: Vec<String>,
    options: Vec<String>,
    process: Option<Process>,
    dir: Dir,
}

impl Redis {
    /// Starts a Redis that stores nothing on disk.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a Redis with more options. A restart keeps them.
    pub async fn start_with(options: &[&str]) -> Self {
        Self::start_program(&redis_server(), options).await
    }

    /// The same, with another program than [`redis_server`].
    pub async fn start_program(program: &str, options: &[&str]) -> Self {
        let mut redis = Self::stopped_program(program, options);
        redis.restart().await;
        redis
    }

    /// A Redis that is not started yet.
    pub fn stopped(options: &[&str]) -> Self {
        Self::stopped_program(&redis_server(), options)
    }

    fn stopped_program(program: &str, options: &[&str]) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(&[Ipv4Addr::LOCALHOST]))),
            launcher: vec![program.to_owned()],
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            process: None,
            dir: Dir::new(),
        }
    }

    /// Adds options for all later starts.
    pub fn add_options(&mut self, options: &[&str]) {
        self.options
            .extend(options.iter().map(|option| (*option).to_owned()));
    }

    /// Puts these words before its command. They have to execute the rest.
    #[must_use]
    pub fn through(mut self, launcher: &[&str]) -> Self {
        let words = launcher.iter().map(|word| (*word).to_owned());
        self.launcher.splice(..0, words);
        self
    }

    /// The value of an option that it was given.
    pub fn option(&self, name: &str) -> &str {
        let place = self.options.iter().position(|option| option == name);
        &self.options[place.expect("it has the option") + 1]
    }

    /// Whether it was started and not stopped.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a gateway's `--redis-url`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Starts it after [`stop`](Self::stop) or [`kill`](Self::kill), with the same port and directory.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let mut command = Command::new(&self.launcher[0]);
        command
            .args(&self.launcher[1..])
            .args(["--bind", "127.0.0.1", "--save", ""])
            .args(["--port", &self.address.port().to_string()])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.options);
        self.process = Some(Process::start("redis-server", &mut command));
        eventually("Redis answers", PATIENCE, async || {
            let mut redis = Commands::connect(self.address)
                .await
                .map_err(|error| error.to_string())?;
            match redis.call(&[b"PING"]).await {
                Ok(Reply::Text(text)) if text == "PONG" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.signal("TERM");
        process.exit().await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGSTOP: connections stay open without answers.
    pub fn pause(&self) {
        self.process().signal("STOP");
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.process().signal("CONT");
    }

    /// Restarts with its own data on the port of `other`, which is stopped for good.
    pub async fn take_the_place_of(&mut self, other: &Self) {
        assert!(other.process.is_none(), "it runs");
        self.stop().await;
        self.address = other.address;
        self.restart().await;
    }

    /// Gives each of two stopped ones the port of the other one. Each keeps its data.
    pub fn swap_addresses(&mut self, other: &mut Self) {
        assert!(self.process.is_none() && other.process.is_none(), "it runs");
        std::mem::swap(&mut self.address, &mut other.address);
    }

    /// A connection, named `test`.
    pub async fn connect(&self) -> Commands {
        let mut commands = Commands::connect(self.address).await.expect("Redis runs");
        // The name distinguishes them from the connections of the gateways.
        commands.run("CLIENT SETNAME test").await;
        commands
    }

    /// The key of a channel. `kind` is `log` or `head`.
    pub fn key(kind: &str, channel: &str, partitions: u32) -> String {
        let tag = hash_tag(partition_of(channel, partitions), partitions);
        format!("ssegw:{{{tag}}}:{kind}:{channel}")
    }

    /// The history of a channel, oldest event first.
    pub async fn log(&self, channel: &str, partitions: u32) -> Vec<(Id, Vec<u8>)> {
        self.log_between(channel, partitions, ["-", "+"]).await
    }

    /// The history of a channel between two ids in the syntax of XRANGE, oldest event first.
    pub async fn log_between(
        &self,
        channel: &str,
        partitions: u32,
        [from, to]: [&str; 2],
    ) -> Vec<(Id, Vec<u8>)> {
        let key = Self::key("log", channel, partitions);
        let mut redis = self.connect().await;
        let words = ["XRANGE", &key, from, to].map(str::as_bytes);
        let reply = redis.call(&words).await.expect("Redis answers");
        reply.array().iter().map(entry).collect()
    }

    /// A field in the answer of INFO.
    pub async fn info(&self, field: &str) -> Option<String> {
        let info = self.connect().await.run("INFO all").await.text();
        let mut values = info
            .lines()
            .filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        values.next().map(|value| value.trim().to_owned())
    }

    /// Number of processed commands, including those in scripts.
    pub async fn commands_processed(&self) -> u64 {
        let count = self.info("total_commands_processed").await;
        count
            .and_then(|count| count.parse().ok())
            .expect("a number")
    }

    /// Waits until, in each partition, at least `count` recorders have renewed their in-sync marks since the last
    /// recorder subscribed or ended.
    pub async fn recorders(&self, count: usize) {
        let mut commands = self.connect().await;
        let (mut listening, mut since) = (BTreeSet::new(), 0);
        eventually("recorders are in sync", 2 * PATIENCE, async || {
            let clients = RedisClient::all(&mut commands).await.into_iter();
            let now: BTreeSet<_> = clients
                .filter(|client| client.patterns > 0)
                .map(|client| client.id)
                .collect();
            if now != listening {
                (listening, since) = (now, time_ms(&mut commands).await);
            }
            if listening.len() < count {
                return Err(format!("{} of {count} listen", listening.len()));
            }
            let Some(partitions) = partitions(&mut commands).await else {
                return Err("no gateway has made its handshake".to_owned());
            };
            for partition in 0..partitions {
                let tag = hash_tag(partition, partitions);
                let in_sync = in_sync_after(&mut commands, tag, since + IN_SYNC_FOR).await;
                if in_sync < count as i64 {
                    return Err(format!("{in_sync} of {count} in partition {partition}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Number of recorders that are in sync in the first partition. 0 before the first handshake.
    pub async fn in_sync_recorders(&self) -> i64 {
        let mut commands = self.connect().await;
        let now = time_ms(&mut commands).await;
        let Some(partitions) = partitions(&mut commands).await else {
            return 0;
        };
        in_sync_after(&mut commands, hash_tag(0, partitions), now).await
    }

    /// All connected clients.
    pub async fn clients(&self) -> Vec<RedisClient> {
        RedisClient::all(&mut self.connect().await).await
    }

    /// Number of calls of scripts and functions. The commands inside them do not count.
    pub async fn script_calls(&self) -> u64 {
        let mut sum = 0;
        for name in [
            "eval",
            "eval_ro",
            "evalsha",
            "evalsha_ro",
            "fcall",
            "fcall_ro",
        ] {
            let stats = self.info(&format!("cmdstat_{name}")).await;
            let calls = stats.and_then(|stats| {
                let calls = stats.split(',').next()?.strip_prefix("calls=")?;
                calls.parse::<u64>().ok()
            });
            sum += calls.unwrap_or_default();
        }
        sum
    }

    /// Publishes through the function. Waits until a gateway has made its handshake.
    pub async fn append(&self, channel: &str, payload: &str) -> Id {
        let answer = self.append_any(channel, payload).await;
        answer.parse().expect("an id")
    }

    /// The same for an end, which usually has no id yet.
    pub async fn append_end(&self, channel: &str, payload: &str) {
        let _answer = self.append_any(channel, payload).await;
    }

    async fn append_any(&self, channel: &str, payload: &str) -> String {
        let mut redis = self.connect().await;
        let words = append_call(channel, payload);
        let what = format!("sse_publish to {channel}");
        eventually(&what, PATIENCE, async || {
            match redis.call(&words).await.expect("Redis answers") {
                Reply::Error(error) if error.starts_with("NOTREADY") => Err(error),
                // The first gateway has not loaded the library yet.
                Reply::Error(error) if error.contains("unction not found") => Err(error),
                Reply::Error(error) => panic!("{what}: {error}"),
                reply => Ok(reply.text()),
            }
        })
        .await
    }

    /// Appends `n0`, `n1` and so on, and returns their ids.
    pub async fn append_many(&self, channel: &str, count: usize) -> Vec<Id> {
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(self.append(channel, &format!("n{number}")).await);
        }
        ids
    }
}

/// A connection to Redis, as CLIENT LIST shows it.
#[derive(Debug)]
pub struct RedisClient {
    /// Its id.
    pub id: u64,
    /// `test` for connections of [`Redis::connect`].
    pub name: String,
    /// Number of subscribed channels and patterns.
    pub subscriptions: u64,
    /// The patterns among them. Recorders subscribe to raw messages by pattern.
    pub patterns: u64,
}

impl RedisClient {
    /// All connected clients.
    async fn all(commands: &mut Commands) -> Vec<Self> {
        Self::read_all(&commands.run("CLIENT LIST").await.text())
    }

    /// Parses the answer of CLIENT LIST.
    pub fn read_all(list: &str) -> Vec<Self> {
        list.lines().map(Self::read).collect()
    }

    fn read(line: &str) -> Self {
        let field = |name: &str| {
            let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
            let found = fields.find(|(key, _)| *key == name);
            found.map_or("", |(_, value)| value)
        };
        let number = |name: &str| field(name).parse::<u64>().expect("a number");
        Self {
            id: number("id"),
            name: field("name").to_owned(),
            subscriptions: number("sub") + number("psub") + number("ssub"),
            patterns: number("psub"),
        }
    }
}

/// The number of partitions. None before a gateway has made its handshake, also after the data was lost.
async fn partitions(commands: &mut Commands) -> Option<u32> {
    match commands.run("GET ssegw:partitions").await {
        Reply::Nil => None,
        stored => Some(stored.text().parse().expect("a number")),
    }
}

/// How many recorders of a partition have an in-sync mark that ends after `until`.
async fn in_sync_after(commands: &mut Commands, tag: u32, until: u64) -> i64 {
    let count = format!("ZCOUNT ssegw:{{{tag}}}:in-sync ({until} +inf");
    commands.run(&count).await.integer()
}

/// The server's clock.
async fn time_ms(commands: &mut Commands) -> u64 {
    let time = commands.run("TIME").await;
    let [seconds, micros] = time.array() else {
        panic!("not a time: {time:?}");
    };
    let number = |part: &Reply| part.text().parse::<u64>().expect("a number");
    number(seconds) * 1000 + number(micros) / 1000
}

/// The id and the payload of a stream entry.
pub fn entry(entry: &Reply) -> (Id, Vec<u8>) {
    let [id, fields] = entry.array() else {
        panic!("not an entry: {entry:?}");
    };
    let payload =
        fields
            .array()
            .chunks(2)
            .find_map(|field| match (field[0].text().as_str(), &field[1]) {
                ("payload", Reply::Bytes(payload)) => Some(payload.clone()),
                _ => None,
            });
    let id = id.text().parse().expect("an id");
    (id, payload.expect("an entry has a payload"))
}

/// A port that is free at all these addresses. It is below the system's range for outgoing connections. Otherwise a
/// client could receive the port of a server that restarts.
pub fn free_port(ips: &[Ipv4Addr]) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that start one after the other begin far apart, so that they do not try the same ports at once.
    let start = std::process::id().wrapping_mul(7919) % 10_000;
    let start = u16::try_from(start).expect("below 10,000");
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (start + offset) % 10_000;
        if ips.iter().all(|ip| TcpListener::bind((*ip, port)).is_ok()) {
            return port;
        }
    }
}
