//! The metrics of the broker.

use prometheus::{
    HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};
use strum::VariantArray as _;

use crate::{
    call::{Function, PlainCommand},
    payload::Rejected,
    serializer::Serializer,
};

/// The reason for rejecting a raw message whose channel has no valid name.
pub(crate) const BAD_CHANNEL: &str = "bad_channel";

/// Counters of a broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    commands: IntCounterVec,
    calls: HistogramVec,
    rejected: IntCounterVec,
    serialized: IntCounterVec,
    pub(crate) subscriber_reconnects: IntCounter,
    pub(crate) recorder_reconnects: IntCounter,
    pub(crate) pages: IntCounter,
    pub(crate) attaches: IntCounter,
    pub(crate) recorded: IntCounter,
    pub(crate) unrecorded: IntCounter,
    pub(crate) dropped: IntCounter,
    pub(crate) republished: IntCounter,
    pub(crate) rebuilt_links: IntCounter,
    pub(crate) interruptions: IntCounter,
    pub(crate) candidacy: IntGauge,
    pub(crate) in_sync: IntGauge,
    pub(crate) active: IntGauge,
    pub(crate) compared: IntGauge,
    pub(crate) pending: IntGauge,
    pub(crate) raw_refused: IntGauge,
    pub(crate) subscribed: IntGauge,
    pub(crate) missing: IntGauge,
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
        let reconnects = vector(
            "sse_gateway_redis_reconnects_total",
            "Redis pub/sub connections that were lost or could not be made: the subscriber's, which brings events, or \
             the recorder's, which brings raw messages to candidates. Connections for calls are not counted",
            "connection",
        )?;
        let calls = HistogramVec::new(
            HistogramOpts::new(
                "sse_gateway_redis_call_seconds",
                "From a function's call to its answer, or to its failure, by function",
            )
            .buckets(vec![
                0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0,
            ]),
            &["function"],
        )?;
        registry.register(Box::new(calls.clone()))?;
        let metrics = Self {
            calls,
            commands: vector(
                "sse_gateway_redis_commands_total",
                "Commands sent to Redis, by name",
                "command",
            )?,
            subscriber_reconnects: reconnects.with_label_values(&["subscriber"]),
            recorder_reconnects: reconnects.with_label_values(&["recorder"]),
            rejected: vector(
                "sse_gateway_raw_rejected_total",
                "Raw messages that cannot be events, by reason; counted by the recorder",
                "reason",
            )?,
            serialized: vector(
                "sse_gateway_raw_serialized_total",
                "Raw messages that look as if a library has serialized them, rejected or not; counted by the recorder",
                "serializer",
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
            republished: counter(
                "sse_gateway_raw_republished_total",
                "Raw messages that had not reached the node of their partition, and were published there again",
            )?,
            rebuilt_links: counter(
                "sse_gateway_redis_bus_links_rebuilt_total",
                "Links of the cluster bus to a node that this replica records from, and that were made again",
            )?,
            dropped: counter(
                "sse_gateway_raw_dropped_total",
                "Raw messages dropped because too many waited to be recorded; clients receive a gap",
            )?,
            interruptions: counter(
                "sse_gateway_recording_interruptions_total",
                "Times that recording was interrupted, so that raw messages may be missing: no replica was subscribed \
                 throughout, or messages were lost with their Redis process. Clients receive a gap if raw messages were \
                 recorded before. By partition, counted by the replica that notices it",
            )?,
            candidacy: gauge(
                "sse_gateway_recorder_subscribed",
                "1 while this replica listens to raw messages",
            )?,
            in_sync: gauge(
                "sse_gateway_recorder_in_sync",
                "Partitions for which this replica's recorder is in sync: it has received every unrecorded message",
            )?,
            compared: gauge(
                "sse_gateway_recorder_compared",
                "Partitions for which this replica's recorder would notice that their node has missed a raw message",
            )?,
            active: gauge(
                "sse_gateway_recorder_active",
                "Partitions whose lease this replica holds",
            )?,
            pending: gauge(
                "sse_gateway_recorder_pending",
                "Raw messages that this recorder has received and not yet seen recorded",
            )?,
            raw_refused: gauge(
                "sse_gateway_raw_refused",
                "Redis servers that refuse this replica's subscription to raw messages. They are not recorded then",
            )?,
            subscribed: gauge(
                "sse_gateway_redis_subscribed",
                "1 while live events of all partitions arrive: the subscription connections are up and answer their probes",
            )?,
            missing: gauge(
                "sse_gateway_redis_partitions_missing",
                "Partitions whose live events do not arrive. With a Redis Cluster, those of a node that is lost",
            )?,
        };
        // Present from the start, so that the first increase counts in a rate.
        for function in Function::VARIANTS.iter().filter(|it| !it.migrates()) {
            metrics.commands.with_label_values(&[function.as_str()]);
            metrics.calls.with_label_values(&[function.as_str()]);
        }
        for command in PlainCommand::VARIANTS {
            metrics.commands.with_label_values(&[command.as_str()]);
        }
        for reason in Rejected::VARIANTS {
            metrics.rejected.with_label_values(&[reason.as_str()]);
        }
        metrics.rejected.with_label_values(&[BAD_CHANNEL]);
        for serializer in Serializer::VARIANTS {
            metrics.serialized.with_label_values(&[serializer.as_str()]);
        }
        Ok(metrics)
    }

    pub(crate) fn function(&self, function: Function) {
        self.commands.with_label_values(&[function.as_str()]).inc();
    }

    /// Measures a call until the timer is dropped.
    pub(crate) fn call(&self, function: Function) -> HistogramTimer {
        let calls = self.calls.with_label_values(&[function.as_str()]);
        calls.start_timer()
    }

    pub(crate) fn command(&self, command: PlainCommand) {
        self.commands.with_label_values(&[command.as_str()]).inc();
    }

    pub(crate) fn serialized(&self, serializer: Serializer) {
        self.serialized
            .with_label_values(&[serializer.as_str()])
            .inc();
    }

    pub(crate) fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }
}
