//! The standard set: every contender in turn, round after round, on the same two cores.
//!
//! The contender has the first core to itself; Redis and this program share the second. What is
//! compared was measured in the same run, so that a noisy machine is noisy for all.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{Outcome, Session, Setup, Way};

/// The core that the contender has to itself.
const SERVER_CORE: &str = "0";
/// The core of everything else.
const LOAD_CORE: &str = "1";
/// Longest wait for a server to listen.
const START: Duration = Duration::from_secs(20);
/// Bytes of a payload.
const BYTES: usize = 100;

/// What to run.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The `sse-gateway` binary.
    pub gateway: PathBuf,
    /// How often each contender takes its turn.
    pub rounds: usize,
    /// Seconds of each load.
    pub seconds: f64,
    /// Idle streams.
    pub idle: usize,
    /// Where Redis and logs live meanwhile.
    pub dir: PathBuf,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// What the others are compared with.
    ReferenceEach,
    ReferenceBatch,
    Gateway,
}

/// One figure of the set: its name, its unit, and whether less is better.
const FIGURES: [(&str, &str); 8] = [
    ("idle_kib", "KiB of memory per idle stream"),
    ("connects", "connects/s"),
    (
        "cpu_one",
        "us of CPU per delivery, 1 channel x 1,000 streams x 20 messages/s",
    ),
    ("p50", "ms, median, 1 x 1,000 x 100 messages/s"),
    ("p99", "ms, 99th percentile, 1 x 1,000 x 100 messages/s"),
    (
        "cpu_many",
        "us of CPU per delivery, 100 x 50 x 10 messages/s",
    ),
    ("p99_many", "ms, 99th percentile, 100 x 50 x 10 messages/s"),
    (
        "sustained",
        "deliveries/s, 1 x 1,000, greatest that is kept up with",
    ),
];

impl Contender {
    const ALL: [Self; 3] = [Self::ReferenceEach, Self::ReferenceBatch, Self::Gateway];

    fn name(self) -> &'static str {
        match self {
            Self::ReferenceEach => "reference: one write per event",
            Self::ReferenceBatch => "reference: one write per read",
            Self::Gateway => "sse-gateway",
        }
    }
}

impl Bench {
    /// Runs the set and answers every figure of every round.
    ///
    /// # Errors
    /// When a server does not start, or loses something.
    pub fn run(&self) -> Result<Value> {
        let mut results = json!({});
        for round in 1..=self.rounds {
            for contender in Contender::ALL {
                eprintln!("round {round}: {}", contender.name());
                let figures = self
                    .measure(contender)
                    .with_context(|| contender.name().to_owned())?;
                for (name, value) in figures {
                    eprintln!("  {name}: {value:.2}");
                    let of_contender = &mut results[contender.name()][name];
                    match of_contender {
                        Value::Array(values) => values.push(json!(value)),
                        absent => *absent = json!([value]),
                    }
                }
            }
        }
        Ok(results)
    }

    fn measure(&self, contender: Contender) -> Result<Vec<(&'static str, f64)>> {
        let mut figures = Vec::new();
        {
            let servers = self.start(contender)?;
            let mut session = Session::open(servers.setup(self.idle, 1))?;
            session.wait(Duration::from_secs(2))?;
            figures.push(("idle_kib", session.bytes_per_connection()? / 1024.0));
            figures.push(("connects", session.connects_per_second()));
        }
        let seconds = Duration::from_secs_f64(self.seconds);
        let patience = Duration::from_secs(5);
        let servers = self.start(contender)?;
        {
            let mut session = Session::open(servers.setup(1000, 1))?;
            session.load(20.0, Duration::from_secs(1), patience)?;
            let outcome = session.load(20.0, seconds, patience)?;
            exact(&outcome)?;
            figures.push(("cpu_one", outcome.cpu_per_delivery()));
            let outcome = session.load(100.0, seconds, patience)?;
            exact(&outcome)?;
            figures.push(("p50", outcome.latency(0.5)));
            figures.push(("p99", outcome.latency(0.99)));
        }
        {
            let mut session = Session::open(servers.setup(5000, 100))?;
            session.load(1000.0, Duration::from_secs(1), patience)?;
            let outcome = session.load(1000.0, seconds, patience)?;
            exact(&outcome)?;
            figures.push(("cpu_many", outcome.cpu_per_delivery()));
            figures.push(("p99_many", outcome.latency(0.99)));
        }
        let mut session = Session::open(servers.setup(1000, 1))?;
        let (sustained, _) = session.saturate(150.0, Duration::from_secs(3))?;
        figures.push(("sustained", sustained));
        Ok(figures)
    }

    /// A fresh Redis and the contender before it.
    fn start(&self, contender: Contender) -> Result<Servers> {
        fs::create_dir_all(&self.dir)?;
        let redis = free_address()?;
        let mut command = pinned(LOAD_CORE, Path::new("redis-server"));
        command.args(["--save", "", "--bind", "127.0.0.1", "--port"]);
        command.arg(redis.port().to_string());
        let redis_process = self.spawn(command, "redis")?;
        await_listening(redis)?;
        let (server, process) = match contender {
            Contender::ReferenceEach | Contender::ReferenceBatch => {
                let server = free_address()?;
                let writes = match contender {
                    Contender::ReferenceEach => "each",
                    _ => "batch",
                };
                let mut command = pinned(SERVER_CORE, &std::env::current_exe()?);
                command.args(["reference", "--writes", writes, "--listen"]);
                command.arg(server.to_string());
                command.args(["--redis", &redis.to_string()]);
                let process = self.spawn(command, "reference")?;
                await_listening(server)?;
                (server, process)
            }
            Contender::Gateway => {
                let config = self.dir.join("gateway.toml");
                fs::write(
                    &config,
                    "[[channels]]\nmatch = \"*\"\nhistory = 100000\nmax_age = \"1m\"\n",
                )?;
                let mut command = pinned(SERVER_CORE, &self.gateway);
                command.args(["--workers", "1", "--listen", "127.0.0.1:0"]);
                command.args(["--admin-listen", "127.0.0.1:0", "--redis-url"]);
                command.arg(format!("redis://{redis}"));
                command.arg("--config").arg(&config);
                command.stdout(Stdio::piped());
                let mut process = self.spawn(command, "gateway")?;
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
                (server, process)
            }
        };
        Ok(Servers {
            server,
            redis,
            pid: process.0.id(),
            _processes: [process, redis_process],
        })
    }

    fn spawn(&self, mut command: Command, name: &str) -> Result<Process> {
        let log = fs::File::create(self.dir.join(format!("{name}.log")))?;
        command.current_dir(&self.dir);
        command.stderr(log.try_clone()?);
        if name != "gateway" {
            command.stdout(log);
        }
        let child = command.spawn();
        Ok(Process(child.with_context(|| format!("{command:?}"))?))
    }
}

/// What a session needs to know, for as long as it lasts.
struct Servers {
    server: SocketAddr,
    redis: SocketAddr,
    pid: u32,
    _processes: [Process; 2],
}

impl Servers {
    fn setup(&self, connections: usize, channels: usize) -> Setup {
        Setup {
            servers: vec![self.server],
            target: "/events?channel={channel}".to_owned(),
            connections,
            channels,
            way: Way::Redis {
                address: self.redis,
                prefix: "sse:".to_owned(),
            },
            bytes: BYTES,
            connect_rate: None,
            pids: vec![self.pid],
        }
    }
}

/// Killed when it is no longer needed.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Nothing may be lost where figures are compared.
fn exact(outcome: &Outcome) -> Result<()> {
    let tally = &outcome.tally;
    let lost = tally.missing + tally.repeated + tally.gaps + tally.ended + outcome.outstanding;
    ensure!(lost == 0, "not exact: {:#}", outcome.to_json());
    Ok(())
}

fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", core]).arg(program);
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

/// Ready, and for long enough that it records.
fn await_ready(admin: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let ready = get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
        let metrics = get(admin, "/metrics").unwrap_or_default();
        if ready && metrics.contains("\nsse_gateway_recorder_active 1") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the gateway is not ready");
        thread::sleep(Duration::from_millis(50));
    }
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut socket = TcpStream::connect(address)?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The medians as a table, each with its ratio to the first contender's of the same rounds.
///
/// # Errors
/// When the results are not those of [`Bench::run`].
pub fn table(results: &Value) -> Result<String> {
    let mut text = String::new();
    let base = Contender::ALL[0].name();
    for (figure, unit) in FIGURES {
        writeln!(text, "{figure}: {unit}")?;
        for contender in Contender::ALL {
            let values = |name: &str| -> Result<Vec<f64>> {
                let values = results[name][figure].as_array().context("no figures")?;
                Ok(values.iter().filter_map(Value::as_f64).collect())
            };
            let own = values(contender.name())?;
            let ratios = own.iter().zip(values(base)?).map(|(own, base)| own / base);
            writeln!(
                text,
                "    {:32} {:>14.2}   x {:.2}",
                contender.name(),
                median(own.clone())?,
                median(ratios.collect())?
            )?;
        }
    }
    Ok(text)
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    if values.is_empty() {
        bail!("no figures");
    }
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}
