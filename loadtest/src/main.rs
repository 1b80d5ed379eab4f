//! The `loadtest` binary: measures a gateway, or any server of event streams, and the references.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum as _};
use loadtest::{
    Bench, Chaos, Contender, Fault, Limits, Load, Opened, Outcome, Part, Places, Publisher,
    Sabotage, Session, Setup, Way, Writes, latency_chart, parse_faults, print, reference,
};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// What happens at once.
type Faults = Vec<Fault>;

fn fault_help() -> String {
    let known = Fault::all()
        .iter()
        .map(|fault| format!("\n  {}: {}", fault.name(), fault.what()));
    let known: String = known.collect();
    format!(
        "What is done one by one: a fault, or several at once, as in trim+kill-recorder; each alone unless given:{known}"
    )
}

/// Measures servers of event streams: a steady load, the greatest load, a reconnect storm.
///
/// Messages carry their number and the time they were sent; what is missing, comes again or comes
/// out of order is counted, for every stream. The exit status is 1 if anything was.
#[derive(Parser, Debug)]
#[command(name = "loadtest", version, max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Opens streams, publishes at a rate, and counts what arrives, and when.
    Run {
        #[command(flatten)]
        target: Target,
        /// Messages a second over all channels; 0 only opens the streams.
        #[arg(long, value_name = "N", default_value_t = 20.0)]
        rate: f64,
        /// For so long.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
    },
    /// Opens streams and searches the greatest rate that is delivered without falling behind.
    Saturate {
        #[command(flatten)]
        target: Target,
        /// Messages a second to begin with.
        #[arg(long, value_name = "N", default_value_t = 100.0)]
        rate: f64,
        /// Each step takes so long.
        #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
        seconds: f64,
    },
    /// Cuts all streams, publishes meanwhile, reconnects all at once with their last ids, and
    /// checks that each receives what it missed.
    Storm {
        #[command(flatten)]
        target: Target,
        /// Messages published while the streams are cut.
        #[arg(long, value_name = "N", default_value_t = 100)]
        missed: u64,
    },
    /// Publishes to channels "load0", "load1"..., for streams that somebody else holds.
    Publish {
        #[command(flatten)]
        to: To,
        /// Messages a second over all channels.
        #[arg(long, value_name = "N", default_value_t = 20.0)]
        rate: f64,
        /// For so long.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
    },
    /// Runs the standard set against the gateway and others, in turn, pinned to two cores.
    Bench {
        #[command(flatten)]
        site: Site,
        /// Who takes part; everybody unless given.
        #[arg(long = "contender", value_name = "NAME")]
        contenders: Vec<Contender>,
        /// How often each takes its turn.
        #[arg(long, value_name = "N", default_value_t = 3)]
        rounds: usize,
        /// Seconds of each load.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
        /// Idle streams.
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        idle: usize,
    },
    /// Prints the table and draws the chart of figures that `bench` has measured.
    Report {
        /// What `bench` wrote.
        #[arg(value_name = "FILE", default_value = ".dev/bench/figures.json")]
        figures: PathBuf,
        /// The chart, an SVG image.
        #[arg(long, value_name = "FILE", default_value = ".dev/bench/chart.svg")]
        chart: PathBuf,
    },
    /// Measures what one gateway takes: raw messages, channels, a stampede, workers, churn.
    Limits {
        #[command(flatten)]
        site: Site,
        /// Only this part; all unless given.
        #[arg(long = "part", value_name = "NAME")]
        parts: Vec<Part>,
        /// How long the load of those who come and go lasts in all.
        #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
        churn: f64,
    },
    /// Does to a gateway and its Redis whatever may happen to them, and checks what clients receive.
    Chaos {
        /// Clients.
        #[arg(long, value_name = "N", default_value_t = 300)]
        clients: usize,
        /// Messages a second of each way to publish.
        #[arg(long, value_name = "N", default_value_t = 50.0)]
        rate: f64,
        #[arg(long = "fault", value_name = "NAME", value_parser = parse_faults, help = fault_help())]
        faults: Vec<Faults>,
        /// After these, faults at random, two at once, for so long.
        #[arg(long, value_name = "N", default_value_t = 0.0)]
        minutes: f64,
        /// The same faults at random for the same seed.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Writes the table and what an operator sees of each fault, in Markdown.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// One event is falsified on its way to a client, which must be noticed; with the first --fault, which
        /// has to leave replicas alone, or none.
        #[arg(long, value_name = "HOW")]
        sabotage: Option<Sabotage>,
    },
    /// Serves /events?channel=... from plain Redis pub/sub, with as little as possible.
    Reference {
        /// Address to listen on.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
        listen: SocketAddr,
        /// The Redis server.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6379")]
        redis: SocketAddr,
        /// In front of a channel's name.
        #[arg(long, value_name = "PREFIX", default_value = "sse:")]
        prefix: String,
        /// How events are written.
        #[arg(long, value_enum, default_value = "each")]
        writes: Writes,
    },
}

#[derive(Args, Debug)]
struct Site {
    /// The gateway's binary; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// What starts the others.
    #[arg(long, value_name = "DIR", default_value = "loadtest/contenders")]
    contenders_dir: PathBuf,
    /// Where Redis and the logs live meanwhile, and the figures as JSON afterwards.
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
    /// Over how many channels.
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: usize,
    /// Where messages go: redis://ADDRESS/PREFIX for raw PUBLISH, or http://ADDRESS/PATH for POST,
    /// with {channel} in the path.
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
    /// Bytes of a payload.
    #[arg(long, value_name = "N", default_value_t = 100)]
    bytes: usize,
}

impl To {
    fn way(&self) -> Result<Way> {
        let url = &self.publish;
        let (scheme, rest) = url.split_once("://").context("--publish takes a URL")?;
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
    /// Where streams connect to; several are taken in turn.
    #[arg(
        long = "server",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    servers: Vec<SocketAddr>,
    /// Path and query of a stream.
    #[arg(long, value_name = "PATH", default_value = "/events?channel={channel}")]
    target: String,
    /// How many streams. From 20,000 on, further source addresses are taken from 127.0.0.0/8.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    connections: usize,
    /// New connections a second; as fast as it goes unless given.
    #[arg(long, value_name = "N")]
    connect_rate: Option<f64>,
    /// So many of the streams read slowly; they are counted apart.
    #[arg(long, value_name = "N", default_value_t = 0)]
    slow: usize,
    /// What each of these reads in a second.
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    slow_rate: u64,
    /// Processes whose CPU time and memory count.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Answers in JSON.
    #[arg(long)]
    json: bool,
    /// Draws the latencies into this SVG file.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

impl Target {
    fn setup(&self) -> Result<Setup> {
        ensure!(self.slow < self.connections, "--slow: some have to be fast");
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

    /// Says what was measured. An error if something was lost.
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
            "not every stream received everything once"
        );
        Ok(())
    }
}

fn report(results: &Value, chart: &Path) -> Result<()> {
    fs::write(chart, loadtest::chart(results)?)?;
    print(loadtest::table(results)?.trim_end())?;
    Ok(())
}

/// Runs it to its end, or until this program is told to stop; servers end with it.
async fn unless_told<T>(run: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        result = run => result,
        _ = interrupted.recv() => bail!("interrupted"),
        _ = terminated.recv() => bail!("told to stop"),
    }
}

fn main() -> Result<()> {
    // Every stream is a file descriptor.
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
            sabotage,
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
            if let Some(sabotage) = sabotage {
                let row = runtime.block_on(unless_told(chaos.sabotaged(sabotage, beside)))?;
                print(&row)?;
                ensure!(!row.is_kept(), "nobody noticed");
                return Ok(());
            }
            let run = async { Ok(chaos.run().await) };
            let findings = runtime.block_on(unless_told(run))?;
            if let Some(report) = report {
                fs::write(report, loadtest::markdown(&findings)).context("--report")?;
            }
            if let Some(failed) = &findings.failed {
                bail!("{failed}");
            }
            ensure!(findings.is_kept(), "not everything was as promised");
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
