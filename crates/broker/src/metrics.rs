//! What the broker counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::payload::Rejected;

/// Counters of a broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    commands: IntCounterVec,
    reconnects: IntCounterVec,
    rejected: IntCounterVec,
    pub(crate) pages: IntCounter,
    pub(crate) attaches: IntCounter,
    pub(crate) recorded: IntCounter,
    pub(crate) unrecorded: IntCounter,
    pub(crate) dropped: IntCounter,
    pub(crate) seat: IntGauge,
    pub(crate) active: IntGauge,
    pub(crate) pending: IntGauge,
    pub(crate) subscribed: IntGauge,
}

impl Metrics {
    /// Makes the counters and registers them.
    ///
    /// # Errors
    /// When a name is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let vector = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let metrics = Self {
            commands: vector(
                "sse_gateway_redis_commands_total",
                "Commands sent to Redis, by name",
                "command",
            )?,
            reconnects: vector(
                "sse_gateway_redis_reconnects_total",
                "Connections to Redis that were lost and had to be made again, by use",
                "connection",
            )?,
            rejected: vector(
                "sse_gateway_raw_rejected_total",
                "Raw messages that cannot be events, by reason; counted by the recorder",
                "reason",
            )?,
            pages: counter(
                "sse_gateway_history_pages_total",
                "Pages of history read from Redis",
            )?,
            attaches: counter(
                "sse_gateway_attaches_total",
                "Channels attached, that is, subscribed and read up to the present",
            )?,
            recorded: counter(
                "sse_gateway_recorded_total",
                "Raw messages recorded by this replica",
            )?,
            unrecorded: counter(
                "sse_gateway_unrecorded_total",
                "Raw messages relayed without an id, because Redis refused to store them",
            )?,
            dropped: counter(
                "sse_gateway_raw_dropped_total",
                "Raw messages given up unrecorded, because too many were waiting",
            )?,
            seat: gauge(
                "sse_gateway_recorder_seat",
                "1 while this replica listens to raw messages",
            )?,
            active: gauge(
                "sse_gateway_recorder_active",
                "Partitions whose lease this replica holds",
            )?,
            pending: gauge(
                "sse_gateway_recorder_pending",
                "Raw messages heard here and not yet seen recorded by anybody",
            )?,
            subscribed: gauge(
                "sse_gateway_redis_subscribed",
                "1 while the subscription connection is up and answers its probes",
            )?,
        };
        for reason in Rejected::ALL {
            metrics.rejected.with_label_values(&[reason.as_str()]);
        }
        metrics.rejected.with_label_values(&["bad_channel"]);
        for connection in ["subscriber", "recorder"] {
            metrics.reconnects.with_label_values(&[connection]);
        }
        Ok(metrics)
    }

    pub(crate) fn command(&self, name: &str) {
        self.commands.with_label_values(&[name]).inc();
    }

    pub(crate) fn reconnect(&self, connection: &str) {
        self.reconnects.with_label_values(&[connection]).inc();
    }

    pub(crate) fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }
}
