//! Spans to a collector: OTLP over HTTP.

use std::{
    error::Error,
    fmt, io,
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
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{self, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _},
};
use sha1::{Digest as _, Sha1};
use tokio::runtime::{self, Runtime};

use super::TracesConfig;

/// The path, after a collector's address, that accepts spans.
const PATH: &str = "/v1/traces";
/// Longest wait at the end for a collector that does not accept the remaining spans.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// Maximum links of one request. This is OpenTelemetry's own limit.
const MAX_LINKS: usize = 128;

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
    pub(crate) fn new(config: &TracesConfig, replica: &str) -> Result<Self, Box<dyn Error>> {
        let endpoint = format!("{}{PATH}", config.endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()?;
        let exporter = Exporter::new(exporter)?;
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

    pub(super) fn delivered(&self, event: Published) {
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

/// Runs the exporter on a runtime of its own. The thread of the processor has none, and the main thread's runtime ends
/// before the last spans are sent.
#[derive(Debug)]
struct Exporter {
    otlp: SpanExporter,
    runtime: Runtime,
}

impl Exporter {
    fn new(otlp: SpanExporter) -> io::Result<Self> {
        let mut builder = runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build()?;
        Ok(Self { otlp, runtime })
    }
}

impl trace::SpanExporter for Exporter {
    /// Blocks: only the thread of the processor calls this.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.runtime.block_on(self.otlp.export(batch))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
