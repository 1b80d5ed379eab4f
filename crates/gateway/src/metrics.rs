//! What the HTTP side counts.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// What a canary finds; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CanaryMetrics {
    pub(crate) sent: IntCounter,
    pub(crate) received: IntCounter,
    pub(crate) gaps: IntCounter,
    pub(crate) duplicates: IntCounter,
    /// Age of the oldest message that has not come back, or how long the last one took.
    pub(crate) lag: Gauge,
}

impl CanaryMetrics {
    /// Only where there is a canary: what is never set must not look fine.
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
            gaps: counter("gaps_total", "Gaps that the canary was told of")?,
            duplicates: counter(
                "duplicates_total",
                "Canary messages that arrived again, or too late",
            )?,
            lag,
        })
    }
}

/// Counters of a process; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Open event streams.
    pub(crate) connections: IntGauge,
    pub(crate) connections_total: IntCounter,
    /// Streams given up because the client took nothing for too long.
    pub(crate) stalled: IntCounter,
    /// By result: `appended`, or the code of the problem.
    pub(crate) published: IntCounterVec,
    /// By reason: the code of the problem, or of the limit.
    pub(crate) refused: IntCounterVec,
    /// By reason: `expired` or `revoked`.
    pub(crate) closed: IntCounterVec,
    /// From the append in Redis to the write to the socket.
    pub(crate) latency: Histogram,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            connections: IntGauge::new("sse_gateway_connections", "Open event streams")?,
            connections_total: IntCounter::new(
                "sse_gateway_connections_total",
                "Event streams opened",
            )?,
            stalled: IntCounter::new(
                "sse_gateway_stalled_total",
                "Event streams closed because the client took nothing for too long",
            )?,
            published: IntCounterVec::new(
                Opts::new(
                    "sse_gateway_published_total",
                    "Events that were published over HTTP, by result: appended, or the code of the problem",
                ),
                &["result"],
            )?,
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
                    "Event streams that were ended before their client left, by reason: expired (token or \
                     connection age) or revoked",
                ),
                &["reason"],
            )?,
            latency: Histogram::with_opts(
                HistogramOpts::new(
                    "sse_gateway_publish_to_write_seconds",
                    "From an event's append, by the clock of Redis, to its write to a client that was up \
                     to date, by the clock of this host; of several events in one write, the oldest",
                )
                .buckets(vec![
                    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
                ]),
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_total.clone()))?;
        registry.register(Box::new(metrics.stalled.clone()))?;
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.closed.clone()))?;
        registry.register(Box::new(metrics.latency.clone()))?;
        // There from the start, so that a rate is one.
        metrics.published.with_label_values(&["appended"]);
        metrics.closed.with_label_values(&["expired"]);
        metrics.closed.with_label_values(&["revoked"]);
        Ok(metrics)
    }

    /// Counts a refusal.
    pub(crate) fn refuse(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}
