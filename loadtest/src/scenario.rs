//! The measurements: idle streams, a steady load, the greatest load, a reconnect storm.

use std::{
    fmt,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Load, Plan, Publisher, Swarm, Tally, Usage, Way, publisher::Sent, usage::Threads};

/// Number of sessions in this process so far.
static SESSIONS: AtomicUsize = AtomicUsize::new(0);
/// Longest wait until all streams are open.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// At a sustained load, the last message is delivered within this time.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The servers to measure, and the streams to open.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The servers. Streams use them in turn.
    pub servers: Vec<SocketAddr>,
    /// Path and query. `{channel}` is replaced by the channel's name.
    pub target: String,
    /// Number of streams.
    pub connections: usize,
    /// Number of channels.
    pub channels: usize,
    /// How messages are published.
    pub way: Way,
    /// Bytes per payload.
    pub bytes: usize,
    /// New connections per second. `None` for no limit.
    pub connect_rate: Option<f64>,
    /// How many of the streams read slowly.
    pub slow: usize,
    /// Bytes per second that each slow stream reads.
    pub slow_bytes_per_second: u64,
    /// The processes whose CPU time and memory are measured.
    pub pids: Vec<u32>,
}

/// A load on open streams.
pub struct Session {
    setup: Setup,
    swarm: Swarm,
    channels: Vec<String>,
    /// The number of each channel's next message.
    next: Vec<u64>,
    /// The resources that the processes used before the first stream.
    before: Usage,
    connecting: Duration,
}

/// The costs of opening the streams.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Number of streams.
    pub connections: usize,
    /// Connections made per second.
    pub connects_per_second: f64,
    /// Resident bytes of the processes per stream. `None` without a process.
    pub bytes_per_connection: Option<f64>,
}

/// The result of one load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The counts of the streams that read as fast as they can.
    pub tally: Tally,
    /// The result of the streams that read slowly, if there are any.
    pub slow: Option<Slow>,
    /// The messages that were sent.
    pub sent: Sent,
    /// CPU time of the processes.
    pub cpu: Duration,
    /// CPU time of the busiest thread.
    pub busiest: Duration,
    /// From the first message to the last delivery.
    pub took: Duration,
    /// Deliveries that did not arrive in time.
    pub outstanding: u64,
}

/// The result of one load for slow streams.
#[derive(Clone, Debug)]
pub struct Slow {
    /// Their counts.
    pub tally: Tally,
    /// Deliveries that were still outstanding at the end. They are not an error.
    pub outstanding: u64,
}

impl Session {
    /// Opens all streams.
    ///
    /// # Errors
    /// If they cannot be opened.
    pub fn open(setup: Setup) -> Result<Self> {
        ensure!(setup.channels > 0 && setup.connections > 0, "nothing to do");
        // No other session has these names, in this process or another.
        let session = format!(
            "load{}.{}",
            std::process::id(),
            SESSIONS.fetch_add(1, Relaxed)
        );
        let channels: Vec<_> = (0..setup.channels)
            .map(|n| format!("{session}-{n}"))
            .collect();
        let plans = (0..setup.connections).map(|number| {
            let channel = number % setup.channels;
            Plan {
                server: setup.servers[number % setup.servers.len()],
                target: setup.target.replace("{channel}", &channels[channel]),
                channel,
                bytes_per_second: (number < setup.slow).then_some(setup.slow_bytes_per_second),
            }
        });
        let before = Usage::of(&setup.pids)?;
        let mut swarm = Swarm::new(plans.collect())?;
        let connecting = swarm.connect(setup.connect_rate, CONNECT_LIMIT)?;
        let refused = swarm.tally().refused + swarm.slow_tally().refused;
        ensure!(refused == 0, "{refused} streams were refused");
        let next = vec![0; channels.len()];
        Ok(Self {
            setup,
            swarm,
            channels,
            next,
            before,
            connecting,
        })
    }

    /// Connections made per second.
    #[must_use]
    pub fn connects_per_second(&self) -> f64 {
        self.setup.connections as f64 / self.connecting.as_secs_f64()
    }

    /// Resident bytes of the processes per stream at this time.
    ///
    /// # Errors
    /// If a process has ended.
    pub fn bytes_per_connection(&self) -> Result<f64> {
        let now = Usage::of(&self.setup.pids)?;
        let grown = now.resident.saturating_sub(self.before.resident);
        Ok(grown as f64 / self.setup.connections as f64)
    }

    /// The costs of opening the streams, measured at this time.
    ///
    /// # Errors
    /// If a process has ended.
    pub fn opened(&self) -> Result<Opened> {
        let known = !self.setup.pids.is_empty();
        Ok(Opened {
            connections: self.setup.connections,
            connects_per_second: self.connects_per_second(),
            bytes_per_connection: known.then(|| self.bytes_per_connection()).transpose()?,
        })
    }

    /// Reads incoming data for this long.
    ///
    /// # Errors
    /// If the system cannot wait.
    pub fn wait(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.swarm.turn(left)?;
        }
        Ok(())
    }

    /// Publishes at `rate` messages per second over all channels. Reads until all messages have
    /// arrived, or until `patience` has passed after the last message.
    ///
    /// # Errors
    /// If the publisher fails.
    pub fn load(&mut self, rate: f64, duration: Duration, patience: Duration) -> Result<Outcome> {
        self.swarm.reset_tally();
        self.swarm.expect_from(&self.next);
        let before = self.used()?;
        let start = Instant::now();
        let publisher = self.publish(rate, duration);
        while !publisher.is_done() {
            self.swarm.turn(Duration::from_millis(10))?;
        }
        let sent = publisher.finish()?;
        self.next.clone_from(&sent.next);
        let end = Instant::now() + patience;
        while self.swarm.outstanding(&sent.next) > 0 && Instant::now() < end {
            self.swarm.turn(Duration::from_millis(1))?;
        }
        self.outcome(sent, &before, start)
    }

    /// Finds the greatest rate, in deliveries per second, at which streams keep up. The search
    /// starts at `rate` messages per second and increases it in steps of 50 %, then of 15 %. A rate
    /// is tried twice, because a machine that was busy with something else for a moment also lags behind.
    ///
    /// # Errors
    /// If the publisher fails.
    pub fn saturate(&mut self, mut rate: f64, duration: Duration) -> Result<(f64, Outcome)> {
        let mut best = None;
        for factor in [1.5, 1.15] {
            loop {
                let mut kept_up = self.keep_up(rate, duration)?;
                if kept_up.is_none() {
                    kept_up = self.keep_up(rate, duration)?;
                }
                let Some((deliveries, outcome)) = kept_up else {
                    break;
                };
                best = Some((rate, deliveries, outcome));
                rate *= factor;
            }
            let (best, ..) = best
                .as_ref()
                .with_context(|| format!("not even {rate} messages a second are kept up with"))?;
            rate = best * 1.15;
        }
        let (_, deliveries, outcome) = best.context("the search has no result")?;
        Ok((deliveries, outcome))
    }

    /// The deliveries per second at this rate; none if streams do not keep up.
    fn keep_up(&mut self, rate: f64, duration: Duration) -> Result<Option<(f64, Outcome)>> {
        let outcome = self.load(rate, duration, 10 * CATCH_UP)?;
        let kept_up = outcome.outstanding == 0
            && outcome.tally.missing == 0
            && outcome.took < duration + CATCH_UP;
        let deliveries = outcome.tally.deliveries as f64 / outcome.took.as_secs_f64();
        testkit::progress!(
            "  {rate:.0} messages/s: {deliveries:.0} deliveries/s, kept up: {kept_up}"
        );
        Ok(kept_up.then_some((deliveries, outcome)))
    }

    /// Publishes messages while all streams are cut.
    ///
    /// # Errors
    /// If the publisher fails.
    pub fn cut_and_publish(&mut self, missed: u64) -> Result<Sent> {
        self.swarm.reset_tally();
        self.swarm.expect_from(&self.next);
        self.swarm.cut();
        let rate = 5000.0_f64.min(missed as f64 * 10.0);
        let sent = self
            .publish(rate, Duration::from_secs_f64(missed as f64 / rate))
            .finish()?;
        self.next.clone_from(&sent.next);
        Ok(sent)
    }

    /// Reconnects all streams at once with their ids. Each then has to receive exactly the messages
    /// that it missed. The outcome's time is from the first connect to the last delivery.
    ///
    /// # Errors
    /// If streams cannot be opened.
    pub fn reconnect(&mut self, sent: Sent, patience: Duration) -> Result<Outcome> {
        let before = self.used()?;
        let start = Instant::now();
        self.swarm.connect(None, CONNECT_LIMIT)?;
        let end = Instant::now() + patience;
        while self.swarm.outstanding(&sent.next) > 0 && Instant::now() < end {
            self.swarm.turn(Duration::from_millis(1))?;
        }
        self.outcome(sent, &before, start)
    }

    fn used(&self) -> Result<(Usage, Threads)> {
        Ok((Usage::of(&self.setup.pids)?, Threads::of(&self.setup.pids)?))
    }

    fn outcome(&self, sent: Sent, before: &(Usage, Threads), start: Instant) -> Result<Outcome> {
        let took = start.elapsed();
        let (usage, threads) = self.used()?;
        let slow = (self.setup.slow > 0).then(|| Slow {
            tally: self.swarm.slow_tally().clone(),
            outstanding: self.swarm.slow_outstanding(&sent.next),
        });
        Ok(Outcome {
            tally: self.swarm.tally().clone(),
            slow,
            outstanding: self.swarm.outstanding(&sent.next),
            sent,
            cpu: usage.cpu.saturating_sub(before.0.cpu),
            busiest: threads.busiest_since(&before.1),
            took,
        })
    }

    fn publish(&self, rate: f64, duration: Duration) -> Publisher {
        Publisher::start(Load {
            way: self.setup.way.clone(),
            name: "load".to_owned(),
            channels: self.channels.clone(),
            next: self.next.clone(),
            rate,
            bytes: self.setup.bytes,
            duration,
        })
    }
}

impl Opened {
    /// All figures.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "connections": self.connections,
            "connects_per_second": self.connects_per_second,
            "bytes_per_connection": self.bytes_per_connection,
        })
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            connections,
            connects_per_second,
            ..
        } = self;
        write!(
            f,
            "{connections} streams, {connects_per_second:.0} new ones/s"
        )?;
        if let Some(bytes) = self.bytes_per_connection {
            write!(f, ", {:.2} KiB of memory each", bytes / 1024.0)?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        let seconds = self.took.as_secs_f64();
        writeln!(f, "{}", self.sent)?;
        writeln!(
            f,
            "{} deliveries in {seconds:.2} s, {:.0}/s, {:.1} MB",
            tally.deliveries,
            tally.deliveries as f64 / seconds,
            tally.bytes as f64 / 1e6
        )?;
        write!(f, "{tally}")?;
        if self.outstanding > 0 {
            write!(f, ", {} not yet there", self.outstanding)?;
        }
        if let Some(Slow { tally, outstanding }) = &self.slow {
            write!(f, "\nslow streams: {} deliveries", tally.deliveries)?;
            write!(f, ", {tally}, {outstanding} not yet there")?;
        }
        write!(
            f,
            "\nlatency: {:.2} ms median, {:.2} ms 99 %, {:.2} ms greatest",
            self.latency(0.5),
            self.latency(0.99),
            tally.latency.max() as f64 / 1000.0
        )?;
        if !self.cpu.is_zero() {
            let (each, busiest) = (self.cpu_per_delivery(), self.busiest.as_secs_f64());
            let share = busiest / seconds * 100.0;
            write!(
                f,
                "\nCPU: {each:.2} us per delivery, busiest thread at {share:.0} %"
            )?;
        }
        Ok(())
    }
}

impl Outcome {
    /// Whether every fast stream received every message once, and no slow stream missed one without
    /// a gap.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let slow = self.slow.as_ref();
        let untold = slow.map_or(0, |Slow { tally, .. }| {
            tally.missing + tally.repeated + tally.ended + tally.refused
        });
        self.tally.lost() + self.outstanding + untold == 0
    }

    /// CPU time per delivery, in microseconds.
    #[must_use]
    pub fn cpu_per_delivery(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.tally.deliveries.max(1) as f64
    }

    /// A latency in milliseconds. `quantile` is 0.5 or 0.99.
    #[must_use]
    pub fn latency(&self, quantile: f64) -> f64 {
        self.tally.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// All figures.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut figures = json!({
            "messages": self.sent.messages,
            "unheard": self.sent.unheard,
            "publisher_late_ms": self.sent.late.as_millis() as u64,
            "deliveries": self.tally.deliveries,
            "deliveries_per_second": self.tally.deliveries as f64 / self.took.as_secs_f64(),
            "bytes": self.tally.bytes,
            "missing": self.tally.missing,
            "outstanding": self.outstanding,
            "repeated": self.tally.repeated,
            "gaps": self.tally.gaps,
            "ended": self.tally.ended,
            "refused": self.tally.refused,
            "p50_ms": self.latency(0.5),
            "p99_ms": self.latency(0.99),
            "max_ms": self.tally.latency.max() as f64 / 1000.0,
            "cpu_us_per_delivery": self.cpu_per_delivery(),
            "busiest_thread_ms": self.busiest.as_millis() as u64,
            "took_ms": self.took.as_millis() as u64,
        });
        if let Some(Slow { tally, outstanding }) = &self.slow {
            figures["slow"] = json!({
                "deliveries": tally.deliveries,
                "missing": tally.missing,
                "told": tally.told,
                "outstanding": outstanding,
                "repeated": tally.repeated,
                "gaps": tally.gaps,
                "ended": tally.ended,
            });
        }
        figures
    }
}
