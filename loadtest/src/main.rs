//! The `loadtest` binary: measures a gateway, or any server of event streams, and the reference servers. It also runs
//! the fault suite.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use chaos::{Chaos, Fault, Mutation, parse_faults};
use clap::{Args, Parser, Subcommand, ValueEnum as _};
use loadtest::{
    Bench, Contender, Limits, Load, Opened, Outcome, Part, Places, Publisher, Session, Setup, Way,
    Writes, latency_chart, reference,
};
use serde_json::Value;
use testkit::print;
use tokio::signal::unix::{SignalKind, signal};

/// Faults at the same time.
type Faults = Vec<Fault>;

fn fault_help() -> String {
    let known = Fault::all()
        .iter()
        .map(|fault| format!("\n  {}: {}", fault.name(), fault.what()));
    let known: String = known.collect();
    format!(
        "A fault to run, or several at once, as in trim+kill-recorder. May be repeated. By default, each fault is run alone:{known}"
    )
}

/// Measures servers of event streams: a steady load, the greatest load, a reconnect storm.
///
/// Messages carry their number and their send time. For every stream, missing, repeated and reordered messages are
/// counted. The exit status is 1 if there were any.
#[derive(Parser, Debug)]
#[command(name = "loadtest", version, max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Opens streams, publishes at a rate, and measures deliveries and latencies.
    Run {
        #[command(flatten)]
        target: Target,
        /// Messages a second over all channels; 0 only opens the streams.
        #[arg(long, value_name = "N", default_value_t = 20.0)]
        rate: f64,
        /// Duration of the load.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
    },
    /// Opens streams and finds the greatest rate at which they keep up.
    Saturate {
        #[command(flatten)]
        target: Target,
        /// Messages a second of the first step.
        #[arg(long, value_name = "N", default_value_t = 100.0)]
        rate: f64,
        /// Duration of each step.
        #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
        seconds: f64,
    },
    /// Cuts all streams, publishes messages, reconnects all streams at once with their last ids, and checks that each
    /// receives the messages it missed.
    Storm {
        #[command(flatten)]
        target: Target,
        /// Messages published while the streams are cut.
        #[arg(long, value_name = "N", default_value_t = 100)]
        missed: u64,
    },
    /// Publishes to channels "load0", "load1"..., for streams that another program holds.
    Publish {
        #[command(flatten)]
        to: To,
        /// Messages a second over all channels.
        #[arg(long, value_name = "N", default_value_t = 20.0)]
        rate: f64,
        /// Duration.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
    },
    /// Runs the standard set against the gateway and other servers, in turn, pinned to two cores.
    Bench {
        #[command(flatten)]
        site: Site,
        /// Only this server; all unless given.
        #[arg(long = "contender", value_name = "NAME")]
        contenders: Vec<Contender>,
        /// How often each server is measured.
        #[arg(long, value_name = "N", default_value_t = 3)]
        rounds: usize,
        /// Duration of each load.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
        /// Number of idle streams.
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        idle: usize,
    },
    /// Prints the table and draws the chart from the figures of `bench`.
    Report {
        /// The figures that `bench` wrote.
        #[arg(value_name = "FILE", default_value = ".dev/bench/figures.json")]
        figures: PathBuf,
        /// The chart, an SVG image.
        #[arg(long, value_name = "FILE", default_value = ".dev/bench/chart.svg")]
        chart: PathBuf,
    },
    /// Measures the limits of one gateway: raw messages, channels, a stampede, workers, churn.
    Limits {
        #[command(flatten)]
        site: Site,
        /// Only this part; all unless given.
        #[arg(long = "part", value_name = "NAME")]
        parts: Vec<Part>,
        /// Total duration of the load with clients that connect and leave.
        #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
        churn: f64,
    },
    /// Applies all known faults to gateways and their Redis, and checks the events that clients receive.
    Chaos {
        /// Number of clients.
        #[arg(long, value_name = "N", default_value_t = 300)]
        clients: usize,
        /// Messages a second of each way to publish.
        #[arg(long, value_name = "N", default_value_t = 50.0)]
        rate: f64,
        #[arg(long = "fault", value_name = "NAME", value_parser = parse_faults, help = fault_help())]
        faults: Vec<Faults>,
        /// Afterwards, applies random faults, up to two at once, for this long.
        #[arg(long, value_name = "N", default_value_t = 0.0)]
        minutes: f64,
        /// Equal seeds give equal random faults.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Writes the table, and the signals of each fault that an operator sees, as Markdown.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Changes one event on its way to a client, which the checker must notice. Runs with the first --fault, if given.
        /// That fault must not affect replicas.
        #[arg(long, value_name = "HOW")]
        mutation: Option<Mutation>,
    },
    /// Serves /events?channel=... from plain Redis pub/sub, with as little work as possible.
    Reference {
        /// Address to listen on.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
        listen: SocketAddr,
        /// The Redis server.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6379")]
        redis: SocketAddr,
        /// Prefix of a channel's name in Redis.
        #[arg(long, value_name = "PREFIX", default_value = "sse:")]
        prefix: String,
        /// How events are written.
        #[arg(long, value_enum, default_value = "each")]
        writes: Writes,
    },
}

#[derive(Args, Debug)]
struct Site {
    /// The gateway's binary; by default in the directory of this program.
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// Files that start the other servers.
    #[arg(long, value_name = "DIR", default_value = "loadtest/contenders")]
    contenders_dir: PathBuf,
    /// Directory for Redis and logs during the run, and for the figures as JSON afterwards.
    #[arg(long, value_name = "DIR", default_value = ".dev/bench")]
    dir: PathBuf,
}

impl Site {
    fn places(&self) -> Result<Places> {
        fs::create_dir_all(&self.dir)?;
        let gateway = match &self.gateway {
            Some(gateway) => gateway.clone(),
            None => env::current_exe()?.with_file_name("sse-gateway"),
        };
        let missing = || format!("--gateway {}", gateway.display());
        Ok(Places {
            gateway: gateway.canonicalize().with_context(missing)?,
            contenders: self
                .contenders_dir
                .canonicalize()
                .context("--contenders-dir")?,
            dir: self.dir.canonicalize().context("--dir")?,
        })
    }
}

#[derive(Args, Debug)]
struct To {
    /// Number of channels.
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: usize,
    /// Destination of messages: redis://ADDRESS/PREFIX for raw PUBLISH, or http://ADDRESS/PATH for POST, with {channel}
    /// in the path.
    #[arg(
        long,
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379/sse:"
    )]
    publish: String,
    /// Bearer token of a publisher, for http://.
    #[arg(
        long,
        env = "SSE_GATEWAY_PUBLISH_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Bytes per payload.
    #[arg(long, value_name = "N", default_value_t = 100)]
    bytes: usize,
}

impl To {
    fn way(&self) -> Result<Way> {
        let url = &self.publish;
        let (scheme, rest) = url
            .split_once("://")
            .context("--publish takes a URL, as in redis://127.0.0.1:6379/sse:")?;
        let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = address
            .parse()
            .context("--publish takes an address and a port")?;
        match scheme {
            "redis" => Ok(Way::Redis {
                address,
                prefix: path.to_owned(),
            }),
            "http" => Ok(Way::Http {
                address,
                target: format!("/{path}"),
                token: self.token.clone(),
            }),
            _ => bail!("--publish takes redis:// or http://"),
        }
    }
}

#[derive(Args, Debug)]
struct Target {
    #[command(flatten)]
    to: To,
    /// Address that streams connect to; several are used in turn.
    #[arg(
        long = "server",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    servers: Vec<SocketAddr>,
    /// Path and query of a stream.
    #[arg(long, value_name = "PATH", default_value = "/events?channel={channel}")]
    target: String,
    /// Number of streams. From 20,000 on, further source addresses of 127.0.0.0/8 are used.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    connections: usize,
    /// New connections a second; no limit unless given.
    #[arg(long, value_name = "N")]
    connect_rate: Option<f64>,
    /// Number of streams that read slowly; they are counted separately.
    #[arg(long, value_name = "N", default_value_t = 0)]
    slow: usize,
    /// Bytes a second that each slow stream reads.
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    slow_rate: u64,
    /// Process whose CPU time and memory are measured; may be repeated.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
    /// Draws the latencies into this SVG file.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

impl Target {
    fn setup(&self) -> Result<Setup> {
        ensure!(
            self.slow < self.connections,
            "--slow has to be less than --connections"
        );
        Ok(Setup {
            servers: self.servers.clone(),
            target: self.target.clone(),
            connections: self.connections,
            channels: self.to.channels,
            way: self.to.way()?,
            bytes: self.to.bytes,
            connect_rate: self.connect_rate,
            slow: self.slow,
            slow_bytes_per_second: self.slow_rate,
            pids: self.pids.clone(),
        })
    }

    /// Prints the result. Fails if a stream did not receive every message once.
    fn report(&self, opened: &Opened, outcome: Option<&Outcome>) -> Result<()> {
        if self.json {
            let mut figures = opened.to_json();
            if let (Value::Object(into), Some(outcome)) = (&mut figures, outcome)
                && let Value::Object(from) = outcome.to_json()
            {
                into.extend(from);
            }
            print(format_args!("{figures:#}"))?;
        } else {
            print(opened)?;
            if let Some(outcome) = outcome {
                print(outcome)?;
            }
        }
        let Some(outcome) = outcome else {
            return Ok(());
        };
        if let Some(file) = &self.chart {
            fs::write(file, latency_chart(&outcome.tally.latency)).context("--chart")?;
        }
        ensure!(
            outcome.is_exact(),
            "not every stream received every message once"
        );
        Ok(())
    }
}

fn report(results: &Value, chart: &Path) -> Result<()> {
    fs::write(chart, loadtest::chart(results)?)?;
    print(loadtest::table(results)?.trim_end())?;
    Ok(())
}

/// Runs to the end, or until this program receives SIGINT or SIGTERM. Servers end with it.
async fn until_signal<T>(run: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        result = run => result,
        _ = interrupted.recv() => bail!("SIGINT received"),
        _ = terminated.recv() => bail!("SIGTERM received"),
    }
}

fn main() -> Result<()> {
    // Every stream needs a file descriptor.
    rlimit::increase_nofile_limit(u64::MAX)?;
    match Flags::parse().command {
        Command::Run {
            target,
            rate,
            seconds,
        } => {
            let mut session = Session::open(target.setup()?)?;
            session.wait(Duration::from_secs(1))?;
            let opened = session.opened()?;
            if rate <= 0.0 {
                return target.report(&opened, None);
            }
            let seconds = Duration::from_secs_f64(seconds);
            let outcome = session.load(rate, seconds, Duration::from_secs(10))?;
            target.report(&opened, Some(&outcome))
        }
        Command::Saturate {
            target,
            rate,
            seconds,
        } => {
            let mut session = Session::open(target.setup()?)?;
            let opened = session.opened()?;
            let (_, outcome) = session.saturate(rate, Duration::from_secs_f64(seconds))?;
            target.report(&opened, Some(&outcome))
        }
        Command::Storm { target, missed } => {
            let mut session = Session::open(target.setup()?)?;
            session.wait(Duration::from_secs(1))?;
            let opened = session.opened()?;
            let sent = session.cut_and_publish(missed)?;
            let outcome = session.reconnect(sent, Duration::from_secs(30))?;
            target.report(&opened, Some(&outcome))
        }
        Command::Publish { to, rate, seconds } => {
            let publisher = Publisher::start(Load {
                way: to.way()?,
                name: "load".to_owned(),
                channels: (0..to.channels).map(|n| format!("load{n}")).collect(),
                next: vec![0; to.channels],
                rate,
                bytes: to.bytes,
                duration: Duration::from_secs_f64(seconds),
            });
            let sent = publisher.finish()?;
            print(sent)?;
            Ok(())
        }
        Command::Bench {
            site,
            contenders,
            rounds,
            seconds,
            idle,
        } => {
            let places = site.places()?;
            let everybody = Contender::value_variants();
            let results = Bench {
                contenders: match &contenders[..] {
                    [] => everybody.to_vec(),
                    _ => contenders,
                },
                places: places.clone(),
                rounds,
                seconds,
                idle,
            };
            let results = results.run()?;
            fs::write(places.dir.join("figures.json"), format!("{results:#}\n"))?;
            report(&results, &places.dir.join("chart.svg"))
        }
        Command::Report { figures, chart } => {
            let results = fs::read_to_string(&figures).context("FILE")?;
            report(&serde_json::from_str(&results).context("FILE")?, &chart)
        }
        Command::Limits { site, parts, churn } => {
            let places = site.places()?;
            let limits = Limits {
                places: places.clone(),
                churn: Duration::from_secs_f64(churn),
                parts,
            };
            let figures = limits.run()?;
            fs::write(places.dir.join("limits.json"), format!("{figures:#}\n"))?;
            print(format_args!("{figures:#}"))?;
            Ok(())
        }
        Command::Chaos {
            clients,
            rate,
            faults,
            minutes,
            seed,
            report,
            mutation,
        } => {
            let beside = faults.first().map_or(Fault::None, |faults| faults[0]);
            let alone = if faults.is_empty() {
                Fault::all().iter().map(|fault| vec![*fault]).collect()
            } else {
                faults
            };
            let chaos = Chaos {
                clients,
                rate,
                seed,
                alone,
                random: Duration::from_secs_f64(60.0 * minutes),
            };
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build()?;
            if let Some(mutation) = mutation {
                let row = runtime.block_on(until_signal(chaos.mutated(mutation, beside)))?;
                print(&row)?;
                ensure!(!row.is_kept(), "the checker did not notice the mutation");
                return Ok(());
            }
            let run = async { Ok(chaos.run().await) };
            let findings = runtime.block_on(until_signal(run))?;
            if let Some(report) = report {
                fs::write(report, chaos::markdown(&findings)).context("--report")?;
            }
            if let Some(failed) = &findings.failed {
                bail!("{failed}");
            }
            ensure!(
                findings.is_kept(),
                "a promise was broken: see the rows above"
            );
            Ok(())
        }
        Command::Reference {
            listen,
            redis,
            prefix,
            writes,
        } => reference::serve(listen, redis, &prefix, writes),
    }
}
