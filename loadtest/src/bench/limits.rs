//! Measures the limits of one gateway: raw messages, channels, a stampede, a second worker, long churn.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    PATIENCE, Places,
    servers::{Contender, Servers, metric},
};
use crate::{Outcome, Session, Usage};

/// Longest wait until the gateway has released departed clients and the allocator has returned memory.
const SETTLE: Duration = Duration::from_secs(90);

/// The configuration of the measurement.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Paths of the programs.
    pub places: Places,
    /// Total duration of the load with clients that connect and leave.
    pub churn: Duration,
    /// Runs only these parts. Empty: all.
    pub parts: Vec<Part>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// 20,000 raw messages a second, and the greatest rate that is recorded and delivered.
    Raw,
    /// 10,000 streams reconnect at once.
    Storm,
    /// 15,000 channels with one stream each.
    Channels,
    /// Two workers compared with one.
    Workers,
    /// Memory after 100,000 streams that opened and ended.
    Churn,
}

impl Limits {
    /// Runs the parts and returns their figures.
    ///
    /// # Errors
    /// If the gateway does not start, or loses a message.
    pub fn run(&self) -> Result<Value> {
        let mut figures = json!({});
        for part in <Part as clap::ValueEnum>::value_variants() {
            if !self.parts.is_empty() && !self.parts.contains(part) {
                continue;
            }
            let name = format!("{part:?}").to_lowercase();
            testkit::progress!("{name}");
            let value = match part {
                Part::Raw => self.raw(),
                Part::Storm => self.storm(),
                Part::Channels => self.channels(),
                Part::Workers => self.workers(),
                Part::Churn => self.churn(),
            };
            let value = value.with_context(|| name.clone())?;
            testkit::progress!("{value:#}");
            figures[name] = value;
        }
        Ok(figures)
    }

    fn raw(&self) -> Result<Value> {
        let servers = self.places.start(Contender::Gateway)?;
        let mut session = Session::open(servers.setup(100, 100))?;
        session.load(1000.0, Duration::from_secs(1), PATIENCE)?;
        let outcome = session.load(20_000.0, Duration::from_secs(10), PATIENCE)?;
        exact(&outcome)?;
        let (most, _) = session.saturate(20_000.0, Duration::from_secs(5))?;
        let unrecorded = metric(servers.admin()?, "sse_gateway_unrecorded_total")?;
        ensure!(unrecorded == 0.0, "{unrecorded} messages were not recorded");
        Ok(json!({
            "at_20000_p50_ms": outcome.latency(0.5),
            "at_20000_p99_ms": outcome.latency(0.99),
            "at_20000_busiest_thread": outcome.busiest.as_secs_f64() / outcome.took.as_secs_f64(),
            "most_per_second": most,
        }))
    }

    fn storm(&self) -> Result<Value> {
        let servers = self.places.start(Contender::Gateway)?;
        let mut session = Session::open(servers.setup(10_000, 100))?;
        session.load(1000.0, Duration::from_secs(1), PATIENCE)?;
        let sent = session.cut_and_publish(2000)?;
        let commands = commands(servers.redis)?;
        let pages = metric(servers.admin()?, "sse_gateway_history_pages_total")?;
        let outcome = session.reconnect(sent, PATIENCE)?;
        exact(&outcome)?;
        Ok(json!({
            "seconds": outcome.took.as_secs_f64(),
            "pages": metric(servers.admin()?, "sse_gateway_history_pages_total")? - pages,
            "commands": since(servers.redis, &commands)?,
        }))
    }

    fn channels(&self) -> Result<Value> {
        const CHANNELS: usize = 15_000;
        let servers = self.places.start(Contender::Gateway)?;
        let commands = commands(servers.redis)?;
        let mut session = Session::open(servers.setup(CHANNELS, CHANNELS))?;
        session.wait(Duration::from_secs(3))?;
        let attach = since(servers.redis, &commands)?;
        let bytes = session.bytes_per_connection()?;
        let seconds = Duration::from_secs(10);
        let outcome = session.load(5000.0, seconds, PATIENCE)?;
        exact(&outcome)?;
        let connects = session.connects_per_second();
        drop(session);
        // Idle channels and streams must not cost anything. So the same load is repeated with a hundredth of them.
        drop(servers);
        let servers = self.places.start(Contender::Gateway)?;
        let mut session = Session::open(servers.setup(CHANNELS / 100, CHANNELS / 100))?;
        session.wait(Duration::from_secs(3))?;
        let few = session.load(5000.0, seconds, PATIENCE)?;
        exact(&few)?;
        Ok(json!({
            "kib_each": bytes / 1024.0,
            "connects_per_second": connects,
            "commands_to_attach": attach,
            "at_5000_p99_ms": outcome.latency(0.99),
            "at_5000_cpu_us_per_delivery": outcome.cpu_per_delivery(),
            "a_hundredth_of_them_at_5000_p99_ms": few.latency(0.99),
            "a_hundredth_of_them_at_5000_cpu_us_per_delivery": few.cpu_per_delivery(),
        }))
    }

    /// Compares two workers with one. Workers are threads that share almost nothing. The figure is deliveries per
    /// second of CPU time of the busiest thread, with equally many streams per worker. CPU time per thread is used
    /// because the load generator and Redis share the same two cores.
    fn workers(&self) -> Result<Value> {
        const STREAMS: usize = 1000;
        const ROUNDS: usize = 3;
        let mut figures = json!({});
        for (name, rate) in [("at_20", 20.0), ("at_100", 100.0), ("at_500", 500.0)] {
            let (mut ratios, mut each) = (Vec::new(), Vec::new());
            for _round in 0..ROUNDS {
                let per_second = |cores, workers| -> Result<f64> {
                    let servers = self.places.gateway(self.places.redis()?, cores, workers)?;
                    let mut session = Session::open(servers.setup(STREAMS * workers, 1))?;
                    session.load(rate, Duration::from_secs(1), PATIENCE)?;
                    let outcome = session.load(rate, Duration::from_secs(5), PATIENCE)?;
                    exact(&outcome)?;
                    Ok(outcome.tally.deliveries as f64 / outcome.busiest.as_secs_f64())
                };
                let (one, two) = (per_second("0", 1)?, per_second("0,1", 2)?);
                ratios.push(two / one);
                each.push(json!([one, two]));
            }
            ratios.sort_by(f64::total_cmp);
            figures[name] = json!({
                "ratio": ratios[ROUNDS / 2],
                "deliveries_per_second_of_the_busiest_thread": each,
            });
        }
        Ok(figures)
    }

    fn churn(&self) -> Result<Value> {
        const STREAMS: usize = 10_000;
        const TIMES: u32 = 10;
        let servers = self.places.start(Contender::Gateway)?;
        let resident = || -> Result<u64> { Ok(Usage::of(&servers.pids)?.resident) };
        {
            // Memory that stays after code has run for the first time is not growth.
            let mut session = Session::open(servers.setup(100, 10))?;
            exact(&session.load(1000.0, Duration::from_secs(1), PATIENCE)?)?;
        }
        let start = settled(&servers)?;
        let idle = || -> Result<(u64, f64)> {
            let mut session = Session::open(servers.setup(STREAMS, 1))?;
            session.wait(Duration::from_secs(2))?;
            Ok((resident()?, session.bytes_per_connection()?))
        };
        let first = idle()?;
        let left = settled(&servers)?;
        for time in 1..=TIMES {
            let mut session = Session::open(servers.setup(STREAMS, STREAMS / 10))?;
            let outcome = session.load(2000.0, self.churn / TIMES, PATIENCE)?;
            exact(&outcome)?;
            testkit::progress!("  {time} of {TIMES}: {} KiB", resident()? >> 10);
        }
        let left_at_last = settled(&servers)?;
        let last = idle()?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Ok(json!({
            "start_mib": mib(start),
            "first_mib": mib(first.0),
            "first_kib_each": first.1 / 1024.0,
            "first_left_mib": mib(left),
            "last_mib": mib(last.0),
            "last_kib_each": last.1 / 1024.0,
            "last_left_mib": mib(left_at_last),
            "ratio": last.0 as f64 / first.0 as f64,
        }))
    }
}

/// Waits until all clients have left and memory no longer shrinks. Returns the least resident memory, in bytes.
fn settled(servers: &Servers) -> Result<u64> {
    let deadline = Instant::now() + SETTLE;
    let admin = servers.admin()?;
    let count = |name| metric(admin, name);
    while count("sse_gateway_streams")? + count("sse_gateway_channels")? > 0.0 {
        ensure!(
            Instant::now() < deadline,
            "those who left are not forgotten"
        );
        thread::sleep(Duration::from_secs(1));
    }
    let mut least = u64::MAX;
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(15) && Instant::now() < deadline {
        let resident = Usage::of(&servers.pids)?.resident;
        if resident < least {
            (least, since) = (resident, Instant::now());
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(least)
}

/// Fails if a message was lost. Figures are only valid without loss.
fn exact(outcome: &Outcome) -> Result<()> {
    super::is_exact(Contender::Gateway, outcome).map(drop)
}

/// Number of calls of each Redis command.
fn commands(redis: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let mut socket = TcpStream::connect(redis)?;
    socket.write_all(b"INFO commandstats\r\n")?;
    let mut answer = BufReader::new(socket);
    let mut length = String::new();
    answer.read_line(&mut length)?;
    let length = length.trim_end().strip_prefix('$').context("no INFO")?;
    let mut text = vec![0; length.parse()?];
    answer.read_exact(&mut text)?;
    let text = String::from_utf8(text)?;
    let mut commands = BTreeMap::new();
    for line in text.lines() {
        // cmdstat_fcall:calls=3,usec=...
        let Some((name, stats)) = line.split_once(":calls=") else {
            continue;
        };
        let name = name.trim_start_matches("cmdstat_");
        let calls = stats.split(',').next().context("no calls")?;
        commands.insert(name.to_owned(), calls.parse()?);
    }
    Ok(commands)
}

/// The calls of functions and subscriptions since `before`. Redis also counts the commands inside functions, but those
/// cost no round trip.
fn since(redis: SocketAddr, before: &BTreeMap<String, u64>) -> Result<Value> {
    let mut calls = json!({});
    for (name, count) in commands(redis)? {
        let new = count - before.get(&name).copied().unwrap_or_default();
        if new > 0 && ["fcall", "subscribe", "unsubscribe"].contains(&name.as_str()) {
            calls[name] = json!(new);
        }
    }
    Ok(calls)
}
