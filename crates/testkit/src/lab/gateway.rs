//! A real gateway process: the binary, its ports, its metrics.

use std::{env, fs, net::SocketAddr, path::PathBuf, process::Command, thread, time::Duration};

use super::{Dir, PATIENCE, Process, Redis, eventually, in_time};
use crate::{Response, request};

/// A running replica.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    /// The address that serves `/events`.
    pub public: SocketAddr,
    /// The address for operators.
    pub admin: SocketAddr,
    /// Contains the configuration file.
    _dir: Dir,
}

impl Gateway {
    /// Starts a gateway and waits until it is ready. `options` are those of the command line,
    /// separated by spaces.
    pub async fn start(redis: &Redis, options: &str) -> Self {
        Self::start_with(redis, options, "").await
    }

    /// Like [`start`](Self::start), with a configuration file.
    pub async fn start_with(redis: &Redis, options: &str, config: &str) -> Self {
        let gateway = Self::start_unready(redis, options, config).await;
        gateway.ready().await;
        gateway
    }

    /// Starts a gateway that listens, but may not be ready.
    pub async fn start_unready(redis: &Redis, options: &str, config: &str) -> Self {
        let dir = Dir::new();
        let mut command = Self::command();
        command.args(options.split_whitespace());
        for flag in ["--listen", "--admin-listen"] {
            if !options.split_whitespace().any(|option| option == flag) {
                command.args([flag, "127.0.0.1:0"]);
            }
        }
        if !options.contains("--redis-url") {
            command.args(["--redis-url", &redis.url()]);
        }
        if !options.contains("--drain-delay") {
            command.args(["--drain-delay", "0s"]);
        }
        if !options.contains("--workers") {
            command.args(["--workers", "1"]);
        }
        if !config.is_empty() {
            command.args(["--config", &dir.write("gateway.toml", config)]);
        }
        Self::of_in(command, dir).await
    }

    /// Starts a gateway by this command and reads its addresses from its output.
    pub async fn of(command: Command) -> Self {
        Self::of_in(command, Dir::new()).await
    }

    async fn of_in(mut command: Command, dir: Dir) -> Self {
        let options = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let mut process = Process::start("sse-gateway", &mut command);
        let (public, admin) = eventually("a gateway says where it listens", PATIENCE, async || {
            if let Some(status) = process.exited() {
                panic!(
                    "a gateway with {options} ended: {status}\n{}",
                    process.log()
                );
            }
            let output = process.output();
            let address = |name: &str| {
                let line = output.split_inclusive('\n').find_map(|line| {
                    let url = line.strip_suffix('\n')?.strip_prefix(name)?;
                    let (_scheme, address) = url.split_once("://")?;
                    Some(address)
                });
                line.and_then(|address| address.parse::<SocketAddr>().ok())
            };
            let addresses = address("public").zip(address("admin"));
            addresses.ok_or_else(|| format!("printed {output:?}"))
        })
        .await;
        Self {
            process,
            public,
            admin,
            _dir: dir,
        }
    }

    /// The command for the binary, without environment variables that would configure it.
    pub fn command() -> Command {
        let mut command = Command::new(binary());
        for (name, _) in env::vars() {
            if name.starts_with("SSE_GATEWAY_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Waits until it is subscribed and connected to Redis.
    pub async fn ready(&self) {
        self.readiness(200).await;
    }

    /// Waits until `/readyz` answers `status`.
    pub async fn readiness(&self, status: u16) {
        let what = format!("/readyz answers {status}");
        eventually(&what, PATIENCE, async || {
            match get(self.admin, "/readyz").await {
                Ok(response) if response.head.status == status => Ok(()),
                Ok(response) => Err(format!("{} {}", response.head.status, response.body)),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
    }

    /// Whether the replica with this address for operators is ready.
    pub async fn is_ready(admin: SocketAddr) -> bool {
        let answer = get(admin, "/readyz").await;
        answer.is_ok_and(|answer| answer.head.status == 200)
    }

    /// Sends any bytes to the public port, over a new connection.
    pub async fn send(&self, bytes: &[u8]) -> anyhow::Result<Response> {
        in_time("an answer", request(self.public, bytes)).await
    }

    /// GET of a target whose answer is not a stream. Each of `headers` ends with CR LF.
    pub async fn get(&self, target: &str, headers: &str) -> Response {
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\n{headers}Connection: close\r\n\r\n",
            self.public
        );
        let answer = self.send(head.as_bytes()).await;
        answer.unwrap_or_else(|error| panic!("{target}: {error:#}"))
    }

    /// POST. Each of `headers` ends with CR LF.
    pub async fn post(&self, target: &str, headers: &str, body: &str) -> Response {
        let length = body.len();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n{body}",
            self.public
        );
        let answer = self.send(head.as_bytes()).await;
        answer.unwrap_or_else(|error| panic!("{target}: {error:#}"))
    }

    /// The answer of `/metrics`.
    pub async fn metrics(&self) -> Metrics {
        let metrics = self.try_metrics().await;
        metrics.unwrap_or_else(|error| panic!("/metrics: {error:#}"))
    }

    /// The answer of `/metrics`, if there is one.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub async fn try_metrics(&self) -> anyhow::Result<Metrics> {
        Self::metrics_of(self.admin).await
    }

    /// The answer of `/metrics` at a replica's address for operators.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub async fn metrics_of(admin: SocketAddr) -> anyhow::Result<Metrics> {
        let response = get(admin, "/metrics").await?;
        anyhow::ensure!(response.head.status == 200, "{}", response.body);
        Ok(Metrics(response.body))
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.expect("the process runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.expect("a line VmRSS").trim();
        let kib: u64 = resident
            .strip_suffix(" kB")
            .and_then(|kib| kib.parse().ok())
            .expect("a number of kB");
        kib * 1024
    }

    /// Number of its open files and sockets.
    pub fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.process.pid()));
        files.expect("the process runs").count()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.process.signal("CONT");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // No gateway may panic in any test.
        if !thread::panicking() {
            let log = self.process.log();
            assert!(!log.contains("panicked at"), "a gateway panicked:\n{log}");
        }
    }
}

/// The gateway's binary: in the directory of this program or, for tests, in the one above it.
fn binary() -> PathBuf {
    let here = env::current_exe().expect("the system knows where this program is");
    let found = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("sse-gateway"));
    let found = found.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no sse-gateway beside {}: build it first", here.display()))
}

/// Waits until `gateways` record all partitions, and returns how many each records.
pub async fn recording<'a>(
    gateways: impl IntoIterator<Item = &'a Gateway> + Clone,
    partitions: u32,
) -> Vec<u32> {
    let what = format!("{partitions} partitions are recorded");
    eventually(&what, PATIENCE, async || {
        let mut held = Vec::new();
        for gateway in gateways.clone() {
            let active = gateway.metrics().await.sum("sse_gateway_recorder_active");
            held.push(active as u32);
        }
        if held.iter().sum::<u32>() == partitions {
            Ok(held)
        } else {
            Err(format!("the replicas hold {held:?}"))
        }
    })
    .await
}

/// An answer of `/metrics`.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum over all series of a metric; 0 if there is none.
    pub fn sum(&self, name: &str) -> f64 {
        self.labelled(name, "")
    }

    /// The sum over the series of a metric that have `label`, as in `source="tail"`.
    pub fn labelled(&self, name: &str, label: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_series = rest.starts_with(['{', ' ']) && rest.contains(label);
            let value = rest.rsplit(' ').next()?;
            is_series.then(|| value.parse::<f64>().expect("a number"))
        });
        values.sum()
    }

    /// Every series as it is written, with its value.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name, value.parse().ok()?))
        })
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

async fn get(address: SocketAddr, target: &str) -> anyhow::Result<Response> {
    let head = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = request(address, head.as_bytes());
    tokio::time::timeout(Duration::from_secs(5), answer).await?
}
