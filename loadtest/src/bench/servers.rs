//! Starts the measured servers, each with a fresh Redis and a core of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use testkit::lab::redis_server;

use crate::{Setup, Way};

/// The core that the server has to itself.
const SERVER_CORE: &str = "0";
/// The core of Redis and the load.
pub(super) const LOAD_CORE: &str = "1";
/// Longest wait until a server listens.
const START: Duration = Duration::from_secs(20);
/// Bytes per payload.
pub(super) const BYTES: usize = 100;

/// A measured server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    /// One write() per event and client. The other servers are compared with this one.
    ReferenceEach,
    /// One write() per client for all events of one read from Redis.
    ReferenceBatch,
    /// This gateway.
    Gateway,
    /// nginx with its module nchan.
    Nchan,
    /// axum's own `Sse` over a tokio broadcast channel.
    Axum,
    /// express and ioredis.
    Node,
}

impl Contender {
    pub(super) const BASE: Self = Self::ReferenceEach;

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ReferenceEach => "reference, one write per event",
            Self::ReferenceBatch => "reference, one write per read",
            Self::Gateway => "sse-gateway",
            Self::Nchan => "nginx + nchan",
            Self::Axum => "axum Sse + tokio broadcast",
            Self::Node => "Node, express + ioredis",
        }
    }

    /// Whether it must deliver everything in time: a reference server, or this gateway.
    pub(super) fn has_to_be_exact(self) -> bool {
        matches!(
            self,
            Self::ReferenceEach | Self::ReferenceBatch | Self::Gateway
        )
    }
}

/// Paths of the programs.
#[derive(Clone, Debug)]
pub struct Places {
    /// The `sse-gateway` binary.
    pub gateway: PathBuf,
    /// The directory with the files that start the other servers.
    pub contenders: PathBuf,
    /// The directory for Redis and logs during a run.
    pub dir: PathBuf,
}

/// A contender and its Redis. Both end when this is dropped.
pub(super) struct Servers {
    pub(super) server: SocketAddr,
    pub(super) redis: SocketAddr,
    /// The gateway's second listener.
    admin: Option<SocketAddr>,
    pub(super) pids: Vec<u32>,
    way: Way,
    _processes: [Process; 2],
}

impl Servers {
    pub(super) fn admin(&self) -> Result<SocketAddr> {
        self.admin.context("this is no gateway")
    }

    pub(super) fn setup(&self, connections: usize, channels: usize) -> Setup {
        Setup {
            servers: vec![self.server],
            target: "/events?channel={channel}".to_owned(),
            connections,
            channels,
            way: self.way.clone(),
            bytes: BYTES,
            connect_rate: None,
            slow: 0,
            slow_bytes_per_second: 0,
            pids: self.pids.clone(),
        }
    }
}

impl Places {
    /// Starts a fresh Redis, and the contender on the first core.
    pub(super) fn start(&self, contender: Contender) -> Result<Servers> {
        let redis = self.redis()?;
        let server = free_address()?;
        let listen = server.to_string();
        let upstream = redis.0.to_string();
        let mut way = Way::Redis {
            address: redis.0,
            prefix: "sse:".to_owned(),
        };
        let here = std::env::current_exe()?;
        let mut command = match contender {
            Contender::Gateway => return self.gateway(redis, SERVER_CORE, 1),
            Contender::ReferenceEach | Contender::ReferenceBatch => {
                let each = contender == Contender::ReferenceEach;
                let mut command = pinned(SERVER_CORE, &here);
                command.args(["reference", "--writes", if each { "each" } else { "batch" }]);
                command.args(["--listen", &listen, "--redis", &upstream]);
                command
            }
            Contender::Axum => {
                let program = here.with_file_name("examples").join("axum_broadcast");
                let mut command = pinned(SERVER_CORE, &program);
                command.args([&listen, &upstream]);
                command
            }
            Contender::Node => {
                let mut command = pinned(SERVER_CORE, Path::new("node"));
                command.arg(self.contenders.join("node/server.mjs"));
                command.args([&listen, &upstream]);
                command.env("NODE_ENV", "production");
                command
            }
            Contender::Nchan => {
                // nchan does not subscribe to raw PUBLISH, so messages are posted over HTTP.
                way = Way::Http {
                    address: server,
                    target: "/publish?channel={channel}".to_owned(),
                    token: None,
                };
                let config = fs::read_to_string(self.contenders.join("nchan.conf"))?;
                let config = config
                    .replace("@listen@", &listen)
                    .replace("@redis@", &upstream);
                let path = self.dir.join("nchan.conf");
                fs::write(&path, config)?;
                let mut command = pinned(SERVER_CORE, Path::new("nginx"));
                command.arg("-p").arg(&self.dir).arg("-c").arg(&path);
                command
            }
        };
        let log = self.log("contender")?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = Process::spawn(command)?;
        await_streaming(server)?;
        Ok(Servers {
            server,
            redis: redis.0,
            admin: None,
            pids: family(process.0.id())?,
            way,
            _processes: [process, redis.1],
        })
    }

    /// Starts the gateway with this many workers on these cores, for this Redis.
    pub(super) fn gateway(
        &self,
        redis: (SocketAddr, Process),
        cores: &str,
        workers: usize,
    ) -> Result<Servers> {
        let config = self.dir.join("gateway.toml");
        fs::write(
            &config,
            "[[channels]]\nmatch = \"*\"\nhistory = 100000\nmax_age = \"1m\"\n",
        )?;
        let mut command = pinned(cores, &self.gateway);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        // All clients have one address, and by default one address may use only half of the rate.
        command.args(["--max-stream-rate", "0"]);
        command.args(["--workers", &workers.to_string(), "--redis-url"]);
        command.arg(format!("redis://{}", redis.0));
        command.arg("--config").arg(&config);
        command
            .stdout(Stdio::piped())
            .stderr(self.log("contender")?);
        let mut process = Process::spawn(command)?;
        let output = process.0.stdout.take().context("no output")?;
        let mut lines = BufReader::new(output).lines();
        let mut address = |name: &str| -> Result<SocketAddr> {
            let line = lines.next().context("the gateway ended")??;
            let address = line.strip_prefix(name).context("not an address")?;
            Ok(address.parse()?)
        };
        let server = address("public http://")?;
        let admin = address("admin http://")?;
        await_ready(admin)?;
        Ok(Servers {
            server,
            redis: redis.0,
            admin: Some(admin),
            pids: vec![process.0.id()],
            way: Way::Redis {
                address: redis.0,
                prefix: "sse:".to_owned(),
            },
            _processes: [process, redis.1],
        })
    }

    /// Starts a fresh Redis on the core of the load.
    pub(super) fn redis(&self) -> Result<(SocketAddr, Process)> {
        fs::create_dir_all(&self.dir)?;
        let address = free_address()?;
        let mut command = pinned(LOAD_CORE, Path::new(&redis_server()));
        command.args(["--save", "", "--bind", "127.0.0.1", "--port"]);
        command.arg(address.port().to_string());
        command.current_dir(&self.dir).stdout(self.log("redis")?);
        let process = Process::spawn(command)?;
        await_listening(address)?;
        Ok((address, process))
    }

    fn log(&self, name: &str) -> Result<fs::File> {
        Ok(fs::File::create(self.dir.join(format!("{name}.log")))?)
    }
}

/// A process that is ended when this is dropped.
pub(super) struct Process(Child);

impl Process {
    fn spawn(mut command: Command) -> Result<Self> {
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("{command:?}"))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ends its children first, because no other code does. A child that has already ended is no
        // error.
        for pid in family(self.0.id()).unwrap_or_default().into_iter().skip(1) {
            let _status = Command::new("kill").arg(pid.to_string()).status();
        }
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// The process and its children.
fn family(pid: u32) -> Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().map(str::parse);
    Ok(std::iter::once(Ok(pid))
        .chain(children)
        .collect::<Result<_, _>>()?)
}

pub(super) fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", cores]).arg(program);
    command
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn await_listening(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + START;
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < deadline, "nobody listens on {address}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits for a stream, because a server may listen before it is connected to Redis.
fn await_streaming(address: SocketAddr) -> Result<()> {
    await_listening(address)?;
    let deadline = Instant::now() + START;
    loop {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(
            b"GET /events?channel=ready HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
        )?;
        let mut status = [0; 12];
        if socket.read_exact(&mut status).is_ok() && status == *b"HTTP/1.1 200" {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{address} gives no stream");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the gateway is ready and records.
fn await_ready(admin: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let ready = get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
        if ready && metric(admin, "sse_gateway_recorder_active").is_ok_and(|active| active == 1.0) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the gateway is not ready");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The sum of a metric over its labels.
pub(super) fn metric(admin: SocketAddr, name: &str) -> Result<f64> {
    let metrics = get(admin, "/metrics")?;
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with(' ') || rest.starts_with('{')).then(|| rest.rsplit(' ').next())?
    });
    let values: Vec<f64> = values.map(str::parse).collect::<Result<_, _>>()?;
    ensure!(!values.is_empty(), "no metric {name}");
    Ok(values.iter().sum())
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address)?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}
