//! Metrics of the HTTP side.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use strum::{IntoStaticStr, VariantArray};

use crate::code::Code;

/// Metrics of a canary. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CanaryMetrics {
    pub(crate) sent: IntCounter,
    pub(crate) received: IntCounter,
    pub(crate) gaps: IntCounter,
    /// Stored messages that a later one passed, without a gap event.
    pub(crate) lost: IntCounter,
    pub(crate) duplicates: IntCounter,
    /// Age of the oldest message that has not returned, or how long the last one took.
    pub(crate) lag: Gauge,
}

impl CanaryMetrics {
    /// Registered only with a canary. Otherwise an unset metric would look fine.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("sse_gateway_canary_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let lag = Gauge::new(
            "sse_gateway_canary_lag_seconds",
            "From a canary message's publish to its arrival through this replica's own /events; while \
             none arrives, the age of the oldest that is missing",
        )?;
        registry.register(Box::new(lag.clone()))?;
        Ok(Self {
            sent: counter("sent_total", "Canary messages that were published")?,
            received: counter("received_total", "Canary messages that arrived")?,
            gaps: counter("gaps_total", "Gap events that the canary received")?,
            lost: counter(
                "lost_total",
                "Canary messages that Redis stored and that did not arrive before a later one, without a gap event",
            )?,
            duplicates: counter(
                "duplicates_total",
                "Canary messages that arrived again, or too late",
            )?,
            lag,
        })
    }
}

/// Why the gateway ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Closed {
    /// The client's permission has ended, or the stream is too old.
    Expired,
    /// Its subject was revoked.
    Revoked,
    /// This replica is about to stop.
    Drained,
    /// Each of its channels is complete.
    Ended,
}

impl Closed {
    /// The word in metrics and answers. It is stable, even if the name in the code changes.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Closed {
    /// The comment at the end of a stream: the reason's word in the metrics, and an explanation.
    pub(crate) fn comment(self) -> &'static str {
        match self {
            Self::Expired => ": expired: the permission or the age of this stream has ended\n",
            Self::Revoked => ": revoked: the streams of this subject were ended\n",
            Self::Drained => ": drained: this replica stops\n",
            Self::Ended => ": ended: each of its channels is complete\n",
        }
    }
}

/// Counters of a process; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// The answer of /readyz at the last check.
    pub(crate) ready: IntGauge,
    /// Open event streams.
    pub(crate) connections: IntGauge,
    pub(crate) connections_total: IntCounter,
    /// Streams closed because the client read nothing for too long.
    pub(crate) stalled: IntCounter,
    /// Clients that resumed from the same event again and again.
    pub(crate) stuck: IntCounter,
    /// Events that were published over HTTP and appended.
    pub(crate) appended: IntCounter,
    /// By result: `appended`, or the code of the problem.
    published: IntCounterVec,
    /// By reason: the code of the problem, or of the limit.
    refused: IntCounterVec,
    closed: IntCounterVec,
    /// From the append in Redis to the write to the socket.
    pub(crate) latency: Histogram,
}

/// Registers the values that stay the same for the whole life of a process.
pub(crate) fn register_facts(
    registry: &Registry,
    replica: &str,
    partitions: u16,
    recorders: u32,
) -> prometheus::Result<()> {
    let fact = |name: &str, help: &str, label: (&str, &str)| {
        let opts = Opts::new(name, help).const_label(label.0, label.1);
        let fact = IntGauge::with_opts(opts)?;
        fact.set(1);
        registry.register(Box::new(fact))
    };
    let setting = |name: &str, help: &str, value: i64| {
        let setting = IntGauge::new(name, help)?;
        setting.set(value);
        registry.register(Box::new(setting))
    };
    fact(
        "sse_gateway_build_info",
        "1; the version of this program",
        ("version", env!("CARGO_PKG_VERSION")),
    )?;
    fact(
        "sse_gateway_replica_info",
        "1; the name of this replica, as in gateway.open and in Redis",
        ("replica", replica),
    )?;
    setting(
        "sse_gateway_partitions",
        "What --partitions says",
        partitions.into(),
    )?;
    setting(
        "sse_gateway_recorders",
        "What --recorders says",
        recorders.into(),
    )
}

impl Metrics {
    /// `max_streams` is the limit of open streams. Zero is no limit.
    pub(crate) fn register(registry: &Registry, max_streams: usize) -> prometheus::Result<Self> {
        let limit = Gauge::new(
            "sse_gateway_max_streams",
            "Event streams that this replica may have; +Inf without a limit",
        )?;
        // So that the share in use is a number in any case.
        limit.set(match max_streams {
            0 => f64::INFINITY,
            max => max as f64,
        });
        registry.register(Box::new(limit))?;
        let published = IntCounterVec::new(
            Opts::new(
                "sse_gateway_published_total",
                "Events that were published over HTTP, by result: appended, or the code of the problem",
            ),
            &["result"],
        )?;
        let metrics = Self {
            ready: IntGauge::new(
                "sse_gateway_ready",
                "1 while /readyz answers 200: subscribed to Redis, and not draining",
            )?,
            connections: IntGauge::new("sse_gateway_streams", "Open event streams")?,
            connections_total: IntCounter::new(
                "sse_gateway_streams_total",
                "Event streams opened",
            )?,
            stuck: IntCounter::new(
                "sse_gateway_stuck_clients_total",
                "Clients that resumed from the same event five times within ten minutes, were sent the events after it, and left. The next event is probably larger than the client accepts",
            )?,
            stalled: IntCounter::new(
                "sse_gateway_stalled_total",
                "Event streams closed because the client took nothing for too long",
            )?,
            appended: published.with_label_values(&["appended"]),
            published,
            refused: IntCounterVec::new(
                Opts::new(
                    "sse_gateway_refused_total",
                    "Connections, and requests to subscribe or for a ticket, that were refused, by reason",
                ),
                &["reason"],
            )?,
            closed: IntCounterVec::new(
                Opts::new(
                    "sse_gateway_closed_total",
                    "Event streams that the gateway ended, by reason: expired (token or connection age), \
                     revoked, drained (this replica stops) or ended (all channels are complete)",
                ),
                &["reason"],
            )?,
            latency: Histogram::with_opts(
                HistogramOpts::new(
                    "sse_gateway_publish_to_write_seconds",
                    "From an event's append, by the clock of Redis, to its write to a client that was up \
                     to date, by the clock of this host; of several events in one write, the oldest. The \
                     first write of a client that was blocked counts its own slowness",
                )
                .buckets(vec![
                    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
                ]),
            )?,
        };
        registry.register(Box::new(metrics.ready.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_total.clone()))?;
        registry.register(Box::new(metrics.stalled.clone()))?;
        registry.register(Box::new(metrics.stuck.clone()))?;
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.closed.clone()))?;
        registry.register(Box::new(metrics.latency.clone()))?;
        // Created at the start, so that a rate includes the first refusal.
        for code in Code::refusals() {
            metrics.refused.with_label_values(&[code.as_str()]);
        }
        for code in Code::of_publishing() {
            metrics.published.with_label_values(&[code.as_str()]);
        }
        for reason in Closed::VARIANTS {
            metrics.closed.with_label_values(&[reason.as_str()]);
        }
        Ok(metrics)
    }

    /// Counts a refusal.
    pub(crate) fn refuse(&self, code: Code) {
        debug_assert!(Code::refusals().any(|refusal| refusal == code));
        self.refused.with_label_values(&[code.as_str()]).inc();
    }

    /// Counts an event that was not appended.
    pub(crate) fn not_appended(&self, code: Code) {
        debug_assert!(Code::of_publishing().any(|counted| counted == code));
        self.published.with_label_values(&[code.as_str()]).inc();
    }

    /// Counts a stream that the gateway ends.
    pub(crate) fn close(&self, reason: Closed) {
        self.closed.with_label_values(&[reason.as_str()]).inc();
    }
}
