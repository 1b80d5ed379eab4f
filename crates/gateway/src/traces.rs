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

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::HeaderMap;
use broker::{AppendObserver, AppendedEvent};
use hub::{EventId, Published};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{
        Link, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
        TraceState,
    },
};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _},
};
use sha1::{Digest as _, Sha1};

use crate::invalid::Invalid;

/// The path, after a collector's address, that accepts spans.
const PATH: &str = "/v1/traces";
/// Longest wait at the end for a collector that does not accept the remaining spans.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// Maximum links of one request. This is OpenTelemetry's own limit.
const MAX_LINKS: usize = 128;

/// The share of events to trace, and the collector.
#[derive(Clone, Debug)]
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

/// A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Traces(Arc<Inner>);

struct Inner {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    /// An event is one of the share if its number is below.
    below: u64,
}

impl Traces {
    /// Opens no connection yet. Starts its own thread, which sends.
    pub(crate) fn new(config: &TracesConfig, replica: &str) -> Result<Self, ExporterBuildError> {
        let endpoint = format!("{}{PATH}", config.endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()?;
        // The queue is bounded. The SDK warns of spans that do not fit, if RUST_LOG enables its warnings.
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let resource = Resource::builder()
            .with_service_name("sse-gateway")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", replica.to_owned()));
        processor.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("sse-gateway").build();
        Ok(Self(Arc::new(Inner {
            processor,
            scope,
            // The greatest value means all events but one in 2^64.
            below: (config.ratio * u64::MAX as f64) as u64,
        })))
    }

    /// Sends the remaining spans, and then no more.
    pub(crate) fn shut_down(&self) {
        if let Err(error) = self.0.processor.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }

    /// The trace of an event, if it is one of the share.
    fn trace(&self, partition: u16, id: EventId) -> Option<SpanContext> {
        let digest: [u8; 20] = Sha1::digest(format!("sse-gateway {partition} {id}")).into();
        let [trace, span] = [&digest[..16], &digest[12..]];
        let trace = u128::from_be_bytes(trace.try_into().expect("16 of 20 bytes"));
        let span = u64::from_be_bytes(span.try_into().expect("8 of 20 bytes"));
        ((trace >> 64) as u64 <= self.0.below && self.0.below > 0)
            .then(|| context(TraceId::from(trace), SpanId::from(span)))
    }

    /// A POST was answered, which stored these events.
    pub(crate) fn posted(
        &self,
        headers: &HeaderMap,
        start: SystemTime,
        events: impl Iterator<Item = Published>,
    ) {
        let caller = TraceContextPropagator::new().extract(&Headers(headers));
        let caller = caller.span().span_context().clone();
        if !caller.is_sampled() {
            return;
        }
        let traced = events.filter_map(|event| self.trace(event.partition, event.id));
        let links = traced.take(MAX_LINKS).map(Link::with_context);
        let span = Span {
            context: context(caller.trace_id(), new_span()),
            parent: caller.span_id(),
            kind: SpanKind::Server,
            name: "POST /events",
            start,
            end: SystemTime::now(),
            attributes: vec![
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("http.route", "/events"),
            ],
            links: links.collect(),
        };
        self.tell(span);
    }

    fn delivered(&self, event: Published) {
        let Some(root) = self.trace(event.partition, event.id) else {
            return;
        };
        self.tell(Span {
            context: context(root.trace_id(), new_span()),
            parent: root.span_id(),
            kind: SpanKind::Consumer,
            name: "deliver",
            start: UNIX_EPOCH + Duration::from_millis(event.id.ms),
            end: SystemTime::now(),
            attributes: attributes(event.partition, event.id),
            links: Vec::new(),
        });
    }

    fn tell(&self, span: Span) {
        let mut links = SpanLinks::default();
        links.links = span.links;
        self.0.processor.on_end(SpanData {
            span_context: span.context,
            parent_span_id: span.parent,
            parent_span_is_remote: true,
            span_kind: span.kind,
            name: span.name.into(),
            start_time: span.start,
            // The clocks of two machines may disagree by more than a delivery takes.
            end_time: span.end.max(span.start),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: Status::Unset,
            instrumentation_scope: self.0.scope.clone(),
        });
    }
}

impl AppendObserver for Traces {
    fn appended(&self, event: &AppendedEvent<'_>) {
        let partition = event.channel.partition();
        let Some(root) = self.trace(partition, event.id) else {
            return;
        };
        let end = SystemTime::now();
        let mut attributes = attributes(partition, event.id);
        let channel = event.channel.as_str().to_owned();
        attributes.push(KeyValue::new("messaging.destination.name", channel));
        let append = Span {
            context: context(root.trace_id(), new_span()),
            parent: root.span_id(),
            kind: SpanKind::Client,
            name: "append",
            start: event.sent,
            end,
            attributes: attributes.clone(),
            links: Vec::new(),
        };
        self.tell(append);
        self.tell(Span {
            context: root,
            parent: SpanId::INVALID,
            kind: SpanKind::Producer,
            name: "publish",
            start: event.asked,
            end,
            attributes,
            links: Vec::new(),
        });
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Traces").finish_non_exhaustive()
    }
}

struct Span {
    context: SpanContext,
    parent: SpanId,
    kind: SpanKind,
    name: &'static str,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<KeyValue>,
    links: Vec<Link>,
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

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

fn context(trace: TraceId, span: SpanId) -> SpanContext {
    SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE)
}

fn new_span() -> SpanId {
    SpanId::from(fastrand::u64(1..))
}

/// Named as in OpenTelemetry's conventions for messaging.
fn attributes(partition: u16, id: EventId) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "redis"),
        KeyValue::new("messaging.message.id", id.to_string()),
        KeyValue::new("messaging.destination.partition.id", partition.to_string()),
    ]
}
