//! The `loadtest` binary: measures a gateway, or any server of event streams, and the references.

#![expect(clippy::print_stdout, reason = "the figures are the program's output")]

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use loadtest::{Bench, Session, Setup, Way, Writes, reference, table};
use serde_json::{Value, json};

/// Measures servers of event streams: a steady load, the greatest load, a reconnect storm.
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
    /// Runs the standard set against the gateway and the references, in turn, pinned to two cores.
    Bench {
        /// The gateway's binary.
        #[arg(
            long,
            value_name = "FILE",
            default_value = "target/release/sse-gateway"
        )]
        gateway: PathBuf,
        /// How often each takes its turn.
        #[arg(long, value_name = "N", default_value_t = 3)]
        rounds: usize,
        /// Seconds of each load.
        #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
        seconds: f64,
        /// Idle streams.
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        idle: usize,
        /// Where Redis and the logs live meanwhile, and the figures as JSON afterwards.
        #[arg(long, value_name = "DIR", default_value = ".dev/bench")]
        dir: PathBuf,
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
struct Target {
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
    /// How many streams.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    connections: usize,
    /// Over how many channels.
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: usize,
    /// Where raw messages are published: redis://ADDRESS/PREFIX or http://ADDRESS/PATH.
    #[arg(
        long,
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379/sse:"
    )]
    publish: String,
    /// Bytes of a payload.
    #[arg(long, value_name = "N", default_value_t = 100)]
    bytes: usize,
    /// New connections a second; as fast as it goes unless given.
    #[arg(long, value_name = "N")]
    connect_rate: Option<f64>,
    /// Processes whose CPU time and memory count.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
}

impl Target {
    fn setup(self) -> Result<Setup> {
        Ok(Setup {
            servers: self.servers,
            target: self.target,
            connections: self.connections,
            channels: self.channels,
            way: parse_way(&self.publish)?,
            bytes: self.bytes,
            connect_rate: self.connect_rate,
            pids: self.pids,
        })
    }
}

fn parse_way(url: &str) -> Result<Way> {
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
        }),
        _ => bail!("--publish takes redis:// or http://"),
    }
}

fn main() -> Result<()> {
    // Every stream is a file descriptor.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let figures = match Flags::parse().command {
        Command::Run {
            target,
            rate,
            seconds,
        } => {
            let mut session = Session::open(target.setup()?)?;
            session.wait(Duration::from_secs(1))?;
            let mut figures = opened(&session)?;
            if rate > 0.0 {
                let seconds = Duration::from_secs_f64(seconds);
                let outcome = session.load(rate, seconds, Duration::from_secs(10))?;
                merge(&mut figures, outcome.to_json());
            }
            figures
        }
        Command::Saturate {
            target,
            rate,
            seconds,
        } => {
            let mut session = Session::open(target.setup()?)?;
            let mut figures = opened(&session)?;
            let (deliveries, outcome) = session.saturate(rate, Duration::from_secs_f64(seconds))?;
            merge(&mut figures, outcome.to_json());
            merge(&mut figures, json!({ "sustained_per_second": deliveries }));
            figures
        }
        Command::Storm { target, missed } => {
            let mut session = Session::open(target.setup()?)?;
            session.wait(Duration::from_secs(1))?;
            let mut figures = opened(&session)?;
            let outcome = session.storm(missed, Duration::from_secs(30))?;
            merge(&mut figures, outcome.to_json());
            figures
        }
        Command::Bench {
            gateway,
            rounds,
            seconds,
            idle,
            dir,
        } => {
            std::fs::create_dir_all(&dir)?;
            let bench = Bench {
                gateway: gateway.canonicalize().context("--gateway")?,
                rounds,
                seconds,
                idle,
                dir: dir.canonicalize()?,
            };
            let results = bench.run()?;
            std::fs::write(dir.join("figures.json"), format!("{results:#}\n"))?;
            print!("{}", table(&results)?);
            return Ok(());
        }
        Command::Reference {
            listen,
            redis,
            prefix,
            writes,
        } => return reference::serve(listen, redis, &prefix, writes),
    };
    println!("{figures:#}");
    Ok(())
}

fn opened(session: &Session) -> Result<Value> {
    Ok(json!({
        "connects_per_second": session.connects_per_second(),
        "bytes_per_connection": session.bytes_per_connection()?,
    }))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
