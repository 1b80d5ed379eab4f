//! `Traces`: exports OpenTelemetry spans for a share of the events: when each was published, appended and delivered.
//!
//! A raw PUBLISH carries no trace, and none is added to it. The trace of an event is derived from its id instead. So
//! every replica computes the same trace, and decides alike whether the event belongs to the share. No messages are
//! needed for that.
//!
//! | span | from | to | recorded by |
//! |---|---|---|---|
//! | `publish` | received, or requested by POST | appended | the replica that appends |
//! | `append` | sent to Redis | answered | the same |
//! | `deliver` | appended, by the clock of Redis | written | each worker, of the first stream it writes the event to |
//!
//! A POST may carry a [trace of its caller](https://www.w3.org/TR/trace-context/). It gets a span `POST /events` there,
//! with links to the events' traces. An event that a backend appends by FCALL has only the span `deliver`, because no
//! replica sees the rest.
//!
//! The exporter is the Cargo feature `otlp`, because it takes long to compile and few need it. Without it no [`Traces`]
//! can exist, and `--otlp-endpoint` is refused.

use std::{cell::RefCell, collections::HashMap};

use hub::{EventId, Published};

use crate::invalid::Invalid;

#[cfg(not(feature = "otlp"))]
mod absent;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub(crate) use absent::Traces;
#[cfg(feature = "otlp")]
pub(crate) use otlp::Traces;

/// The share of events to trace, and the collector.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "only the exporter reads it")
)]
pub(crate) struct TracesConfig {
    /// The URL of a collector that accepts OTLP over HTTP, without `/v1/traces`.
    pub(crate) endpoint: String,
    /// Which share of the events, from 0 to 1.
    pub(crate) ratio: f64,
}

/// Flags about traces.
#[derive(clap::Args, Debug)]
pub(crate) struct TracesFlags {
    /// Sends spans of publish, append and deliver to this OpenTelemetry collector: OTLP over HTTP, such as
    /// http://collector:4318. Headers and time limits are read from OTEL_EXPORTER_OTLP_HEADERS and _TIMEOUT.
    #[arg(
        long,
        env = "SSE_GATEWAY_OTLP_ENDPOINT",
        value_name = "URL",
        hide_env_values = true
    )]
    otlp_endpoint: Option<String>,

    /// Share of the events that is traced, 0 to 1. It has to be the same on all replicas.
    #[arg(
        long,
        env = "SSE_GATEWAY_TRACE_RATIO",
        value_name = "SHARE",
        default_value = "0.01",
        value_parser = parse_share
    )]
    trace_ratio: f64,
}

impl TracesFlags {
    /// The settings, if there are traces.
    pub(crate) fn into_config(self) -> Result<Option<TracesConfig>, Invalid> {
        let Some(endpoint) = self.otlp_endpoint else {
            return Ok(None);
        };
        if !cfg!(feature = "otlp") {
            return Err(
                "--otlp-endpoint: this program was built without traces; a build with the Cargo feature otlp is needed"
                    .into(),
            );
        }
        // The URL may contain a secret, so the error does not quote it.
        let url = endpoint.parse::<reqwest::Url>().ok();
        if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https")) {
            return Err("--otlp-endpoint: a URL is needed such as http://collector:4318".into());
        }
        let ratio = self.trace_ratio;
        Ok(Some(TracesConfig { endpoint, ratio }))
    }
}

fn parse_share(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("a share is needed, 0 to 1, such as 0.01 for one event in a hundred")
}

/// The deliveries that a worker records: each event once, however many streams it is written to.
#[derive(Default)]
pub(crate) struct Deliveries {
    traces: Option<Traces>,
    /// The newest recorded event of each partition.
    told: RefCell<HashMap<u16, EventId>>,
}

impl Deliveries {
    pub(crate) fn new(traces: Option<Traces>) -> Self {
        Self {
            traces,
            told: RefCell::default(),
        }
    }

    /// A write is done; this was the oldest event in it.
    pub(crate) fn observe(&self, event: Published) {
        let Some(traces) = &self.traces else {
            return;
        };
        let mut told = self.told.borrow_mut();
        let newest = told.entry(event.partition).or_default();
        if event.id > *newest {
            *newest = event.id;
            traces.delivered(event);
        }
    }
}
