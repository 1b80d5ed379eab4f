//! The standard set: every contender in turn, round after round, on the same two cores.
//!
//! The contender has the first core to itself. Redis and this program share the second. Compared
//! figures come from the same run, so noise on the machine affects all contenders.

mod limits;
mod report;
mod servers;

use std::{path::Path, process::Stdio, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::servers::{BYTES, LOAD_CORE, Servers, pinned};
pub use self::{
    limits::{Limits, Part},
    report::{chart, table},
    servers::{Contender, Places},
};
use crate::{Load, Outcome, Publisher, Session, Usage};

/// A delivery that arrives later than this after the last message counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// The configuration of the benchmark.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The contenders. The others are compared with the first.
    pub contenders: Vec<Contender>,
    /// Their paths.
    pub places: Places,
    /// How often each contender is measured.
    pub rounds: usize,
    /// Duration of each load, in seconds.
    pub seconds: f64,
    /// Number of idle streams.
    pub idle: usize,
}

/// One figure of the set.
struct Figure {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    /// Whether a greater value is better.
    more: bool,
}

const FIGURES: [Figure; 9] = [
    Figure {
        name: "idle",
        what: "memory per idle stream",
        unit: "KiB",
        more: false,
    },
    Figure {
        name: "connects",
        what: "new streams",
        unit: "/s",
        more: true,
    },
    Figure {
        name: "cpu_one",
        what: "CPU per delivery, 1 channel x 1,000 streams x 20 messages/s",
        unit: "us",
        more: false,
    },
    Figure {
        name: "cpu_one_wrk",
        what: "the same, wrk as the streams",
        unit: "us",
        more: false,
    },
    Figure {
        name: "cpu_many",
        what: "CPU per delivery, 100 channels x 50 streams x 10 messages/s",
        unit: "us",
        more: false,
    },
    Figure {
        name: "p50",
        what: "latency, 1,000 streams x 100 messages/s, median",
        unit: "ms",
        more: false,
    },
    Figure {
        name: "p99",
        what: "latency, 1,000 streams x 100 messages/s, 99th percentile",
        unit: "ms",
        more: false,
    },
    Figure {
        name: "p99_many",
        what: "latency, 100 channels x 50 streams x 10 messages/s, 99th percentile",
        unit: "ms",
        more: false,
    },
    Figure {
        name: "sustained",
        what: "deliveries, the most that 1,000 streams keep up with",
        unit: "/s",
        more: true,
    },
];

impl Bench {
    /// Runs the set and returns every figure of every round. A figure is null if the contender lost
    /// a message or delivered it too late.
    ///
    /// # Errors
    /// If a server does not start, or the gateway or a reference server loses a message.
    pub fn run(&self) -> Result<Value> {
        let mut results = json!({});
        for round in 1..=self.rounds {
            for contender in &self.contenders {
                testkit::progress!("round {round}: {}", contender.name());
                let figures = self
                    .measure(*contender)
                    .with_context(|| contender.name().to_owned())?;
                for (name, value) in figures {
                    match value {
                        Some(value) => testkit::progress!("  {name}: {value:.2}"),
                        None => testkit::progress!("  {name}: not kept up with"),
                    }
                    match &mut results[contender.name()][name] {
                        Value::Array(values) => values.push(json!(value)),
                        absent => *absent = json!([value]),
                    }
                }
            }
        }
        Ok(json!({
            "rounds": self.rounds,
            "seconds": self.seconds,
            "idle": self.idle,
            "machine": report::machine()?,
            "figures": results,
        }))
    }

    fn measure(&self, contender: Contender) -> Result<Vec<(&'static str, Option<f64>)>> {
        let mut figures = Vec::new();
        {
            let servers = self.places.start(contender)?;
            let mut session = Session::open(servers.setup(self.idle, 1))?;
            session.wait(Duration::from_secs(2))?;
            figures.push(("idle", Some(session.bytes_per_connection()? / 1024.0)));
            figures.push(("connects", Some(session.connects_per_second())));
        }
        let seconds = Duration::from_secs_f64(self.seconds);
        let servers = self.places.start(contender)?;
        {
            let mut session = Session::open(servers.setup(1000, 1))?;
            session.load(20.0, Duration::from_secs(1), PATIENCE)?;
            let outcome = session.load(20.0, seconds, PATIENCE)?;
            let exact = is_exact(contender, &outcome)?;
            let cpu = outcome.cpu_per_delivery();
            figures.push(("cpu_one", exact.then_some(cpu)));
            let outcome = session.load(100.0, seconds, PATIENCE)?;
            let exact = is_exact(contender, &outcome)?;
            figures.push(("p50", exact.then(|| outcome.latency(0.5))));
            figures.push(("p99", exact.then(|| outcome.latency(0.99))));
        }
        {
            let mut session = Session::open(servers.setup(5000, 100))?;
            session.load(1000.0, Duration::from_secs(1), PATIENCE)?;
            let outcome = session.load(1000.0, seconds, PATIENCE)?;
            let exact = is_exact(contender, &outcome)?;
            let cpu = outcome.cpu_per_delivery();
            figures.push(("cpu_many", exact.then_some(cpu)));
            figures.push(("p99_many", exact.then(|| outcome.latency(0.99))));
        }
        if contender.has_to_be_exact() {
            figures.push(("cpu_one_wrk", Some(wrk(&servers, seconds)?)));
        }
        let mut session = Session::open(servers.setup(1000, 1))?;
        let (sustained, _) = session.saturate(50.0, Duration::from_secs(3))?;
        figures.push(("sustained", Some(sustained)));
        Ok(figures)
    }
}

/// Whether all messages arrived exactly once. For the reference servers and the gateway, anything
/// else is an error.
fn is_exact(contender: Contender, outcome: &Outcome) -> Result<bool> {
    let exact = outcome.is_exact();
    ensure!(
        exact || !contender.has_to_be_exact(),
        "not exact: {outcome}"
    );
    Ok(exact)
}

/// CPU per delivery, in microseconds, at 1 x 1,000 x 20 messages/s, with another load generator.
/// `wrk` holds the streams and counts their bytes, which have to match those of all messages.
fn wrk(servers: &Servers, seconds: Duration) -> Result<f64> {
    const STREAMS: u64 = 1000;
    let settle = Duration::from_secs(2);
    let mut setup = servers.setup(STREAMS as usize, 1);
    let whole = (2 * settle + seconds).as_secs() + 1;
    let mut command = pinned(LOAD_CORE, Path::new("wrk"));
    command.args(["--threads", "1", "--connections", &STREAMS.to_string()]);
    command.args(["--duration", &format!("{whole}s"), "--timeout", "60s"]);
    command.arg(format!("http://{}/events?channel=wrk", servers.server));
    command.stdout(Stdio::piped());
    let process = command.spawn().context("wrk")?;
    // `wrk` prints nothing before its end, so this waits until its streams are certainly open.
    thread::sleep(settle);
    let before = Usage::of(&setup.pids)?;
    let publisher = Publisher::start(Load {
        way: setup.way.clone(),
        name: "load".to_owned(),
        channels: vec!["wrk".to_owned()],
        next: vec![0],
        rate: 20.0,
        bytes: BYTES,
        duration: seconds,
    });
    let sent = publisher.finish()?;
    // This includes the server's work for the last event. `wrk` does not report when it arrives.
    thread::sleep(Duration::from_millis(200));
    let used = Usage::of(&setup.pids)?.cpu.saturating_sub(before.cpu);
    let output = process.wait_with_output()?;
    let report = String::from_utf8(output.stdout)?;
    let received = bytes_read(&report).with_context(|| format!("wrk says: {report}"))?;
    let deliveries = sent.messages * STREAMS;
    // The bytes that our own generator reads per delivery of the same message, including framing.
    setup.pids.clear();
    let mut session = Session::open(setup)?;
    let own = session.load(20.0, Duration::from_secs(1), PATIENCE)?.tally;
    let expected = own.bytes as f64 / own.deliveries as f64 * deliveries as f64;
    let share = received / expected;
    // The total includes heads and `gateway.open` events.
    ensure!(
        (0.99..1.2).contains(&share),
        "wrk read {received} bytes, {expected} were expected"
    );
    Ok(used.as_secs_f64() * 1e6 / deliveries as f64)
}

/// Parses a line like `  0 requests in 10.01s, 25.36MB read`.
fn bytes_read(report: &str) -> Option<f64> {
    let line = report.lines().find_map(|line| line.strip_suffix(" read"))?;
    let amount = line.rsplit(' ').next()?;
    let units = [("KB", 10), ("MB", 20), ("GB", 30), ("B", 0)];
    let (number, power) = units
        .iter()
        .find_map(|(unit, power)| Some((amount.strip_suffix(unit)?, power)))?;
    Some(number.parse::<f64>().ok()? * f64::from(1_u32 << power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_wrk_is_parsed() {
        let report = "Running 10s test\n  0 requests in 10.01s, 25.50MB read\nRequests/sec: 0.00\n";
        assert_eq!(bytes_read(report), Some(25.5 * 1024.0 * 1024.0));
        assert_eq!(
            bytes_read("12 requests in 1.00s, 900.00B read"),
            Some(900.0)
        );
        assert_eq!(bytes_read("nothing"), None);
    }
}
