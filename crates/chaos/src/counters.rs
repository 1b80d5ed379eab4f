//! The counters of a gateway that move with and without faults.

/// Counters that show the load rather than a fault, unless they move much more than without a fault.
const USUAL: [&str; 11] = [
    "process_cpu_seconds_total",
    "sse_gateway_published_total{result=\"appended\"}",
    "sse_gateway_events_total",
    "sse_gateway_deliveries_total",
    "sse_gateway_delivered_bytes_total",
    "sse_gateway_streams_total",
    "sse_gateway_recorded_total",
    "sse_gateway_replays_total",
    "sse_gateway_history_pages_total",
    "sse_gateway_attaches_total",
    "sse_gateway_redis_commands_total",
];

/// Whether a counter also moves without a fault.
pub(crate) fn is_usual(counter: &str) -> bool {
    USUAL.iter().any(|usual| counter.starts_with(usual))
}
