//! Metrics of the hubs of a process.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use strum::VariantArray as _;

use crate::Reason;

/// Counters of all hubs of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) channels: IntGauge,
    pub(crate) events: IntCounter,
    pub(crate) deliveries: IntCounter,
    pub(crate) bytes: IntCounter,
    pub(crate) replays_tail: IntCounter,
    pub(crate) replays_redis: IntCounter,
    gaps: IntCounterVec,
}

impl Metrics {
    /// Makes the counters and registers them.
    ///
    /// # Errors
    /// When a name is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let channels = IntGauge::new(
            "sse_gateway_channels",
            "Channels with a tail, counted once per worker",
        )?;
        let events = IntCounter::new(
            "sse_gateway_events_total",
            "Events that reached a tail, counted once per worker",
        )?;
        let deliveries = IntCounter::new(
            "sse_gateway_deliveries_total",
            "Events handed to connections",
        )?;
        let bytes = IntCounter::new(
            "sse_gateway_delivered_bytes_total",
            "Bytes of events handed to connections",
        )?;
        let replays = IntCounterVec::new(
            Opts::new(
                "sse_gateway_replays_total",
                "Resumed cursors by where their events came from: the tail, or a page read from Redis",
            ),
            &["source"],
        )?;
        let gaps = IntCounterVec::new(
            Opts::new(
                "sse_gateway_gaps_total",
                "Gap events sent to clients, by reason",
            ),
            &["reason"],
        )?;
        for reason in Reason::VARIANTS {
            gaps.with_label_values(&[reason.as_str()]);
        }
        registry.register(Box::new(channels.clone()))?;
        registry.register(Box::new(events.clone()))?;
        registry.register(Box::new(deliveries.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(replays.clone()))?;
        registry.register(Box::new(gaps.clone()))?;
        Ok(Self {
            channels,
            events,
            deliveries,
            bytes,
            replays_tail: replays.with_label_values(&["tail"]),
            replays_redis: replays.with_label_values(&["redis"]),
            gaps,
        })
    }

    pub(crate) fn gap(&self, reason: Reason) {
        self.gaps.with_label_values(&[reason.as_str()]).inc();
    }
}
