//! What the HTTP side counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of a process; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Open event streams.
    pub(crate) connections: IntGauge,
    pub(crate) connections_total: IntCounter,
    /// Streams given up because the client took nothing for too long.
    pub(crate) stalled: IntCounter,
    published: IntCounterVec,
    /// From the append in Redis to the write to the socket.
    pub(crate) latency: Histogram,
}

/// What became of an event that was published over HTTP.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Published {
    /// It has an id.
    Appended,
    /// It cannot be an event, or not on that channel.
    Rejected,
    /// Redis did not take it, or did not answer.
    Failed,
}

impl Published {
    const ALL: [Self; 3] = [Self::Appended, Self::Rejected, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Appended => "appended",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
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
                    "Events that were published over HTTP, by result",
                ),
                &["result"],
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
        registry.register(Box::new(metrics.latency.clone()))?;
        for result in Published::ALL {
            // A counter that is there from the start can be alerted on.
            metrics.published(result).inc_by(0);
        }
        Ok(metrics)
    }

    pub(crate) fn published(&self, result: Published) -> IntCounter {
        self.published.with_label_values(&[result.as_str()])
    }
}
