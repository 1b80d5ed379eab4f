//! Traces: for a share of the events, spans record when each was published, appended and delivered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use tokio::{task::JoinHandle, time::Instant};

use crate::support::{Gateway, KEEP_ALL, Redis, Viewer, among_others, data, in_time, recording};

/// Accepts spans as a collector does: OTLP over HTTP.
struct Collector {
    address: SocketAddr,
    /// Each span with the replica that sent it.
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    server: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&spans);
        let take = async move |body: Bytes| {
            let Ok(request) = ExportTraceServiceRequest::decode(body) else {
                return StatusCode::BAD_REQUEST;
            };
            let mut taken = taken.lock().expect("no holder panics");
            for resource in request.resource_spans {
                let attributes = resource.resource.expect("who it is").attributes;
                assert_eq!(text(&attributes, "service.name"), "sse-gateway");
                let replica = text(&attributes, "service.instance.id");
                let spans = resource.scope_spans.into_iter();
                let spans = spans.flat_map(|scope| scope.spans);
                taken.extend(spans.map(|span| (replica.clone(), span)));
            }
            StatusCode::OK
        };
        let router = Router::new().route("/v1/traces", post(take));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Self {
            address,
            spans,
            server,
        }
    }

    /// Flags of a replica that sends this share of its traces to the collector.
    fn options(&self, ratio: f64) -> String {
        format!(
            "--otlp-endpoint http://{} --trace-ratio {ratio} --workers 1 --publish-token t",
            self.address
        )
    }

    /// All spans of these replicas, after they have ended.
    async fn all(self, gateways: impl IntoIterator<Item = Gateway>) -> Vec<(String, Span)> {
        for mut gateway in gateways {
            gateway.process().signal("TERM");
            in_time("it ends", gateway.process().exit()).await;
        }
        std::mem::take(&mut *self.spans.lock().expect("no holder panics"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|attribute| attribute.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn id(span: &Span) -> String {
    text(&span.attributes, "messaging.message.id")
}

/// Breaks when replicas use different traces for an event, or when a span is missing, repeated or in another's place.
/// Breaks also when a caller's own trace is not continued.
#[tokio::test]
async fn an_event_has_one_trace_over_all_replicas() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let collector = Collector::start().await;
    let options = collector.options(1.0);
    let a = Gateway::start(&redis, &options).await;
    let b = Gateway::start(&redis, &options).await;
    recording([&a, &b], 1).await;
    let mut viewers = Vec::new();
    for gateway in [&a, &a, &b] {
        viewers.push(Viewer::open(gateway, "channel=news").await);
    }
    let mut commands = redis.connect().await;
    commands.publish("news", "raw").await;
    for viewer in &mut viewers {
        viewer.until("raw").await;
    }
    let [caller_trace, caller_span] = ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"];
    let headers =
        format!("Authorization: Bearer t\r\ntraceparent: 00-{caller_trace}-{caller_span}-01\r\n");
    let posted = a.post("/events?channel=news", &headers, "posted").await;
    assert_eq!(posted.head.status, 201);
    for viewer in &mut viewers {
        viewer.until("posted").await;
    }
    redis.append("news", "called").await;
    for viewer in &mut viewers {
        viewer.until("called").await;
    }
    let log = redis.log("news", 1).await;
    drop(viewers);

    let spans = collector.all([a, b]).await;
    let mut traces = BTreeMap::<_, Vec<_>>::new();
    let mut of_caller = Vec::new();
    for (replica, span) in &spans {
        if span.name == "POST /events" {
            of_caller.push(span);
        } else {
            traces.entry(id(span)).or_default().push((replica, span));
        }
    }
    let [raw, posted, called] = &log[..] else {
        panic!("{log:?}");
    };
    assert_eq!(
        traces.keys().cloned().collect::<BTreeSet<_>>(),
        log.iter().map(|(id, _)| id.to_string()).collect()
    );
    for (event, appended) in [(raw, 1), (posted, 1), (called, 0)] {
        let spans = &traces[&event.0.to_string()];
        let named = |name: &str| {
            let named = spans.iter().filter(|(_, span)| span.name == name);
            named.collect::<Vec<_>>()
        };
        let [publish, append, deliver] = ["publish", "append", "deliver"].map(named);
        assert_eq!([publish.len(), append.len()], [appended; 2], "{spans:?}");
        // Each replica reports the delivery once, although one of them has two streams.
        assert_eq!(deliver.len(), 2, "{spans:?}");
        assert_ne!(deliver[0].0, deliver[1].0);
        let (_, first) = spans[0];
        assert!(
            spans
                .iter()
                .all(|(_, span)| span.trace_id == first.trace_id)
        );
        if let Some((_, root)) = publish.first() {
            assert!(root.parent_span_id.is_empty());
            assert_eq!(root.kind(), SpanKind::Producer);
            assert_eq!(text(&root.attributes, "messaging.destination.name"), "news");
            for (_, child) in append.iter().chain(&deliver) {
                assert_eq!(child.parent_span_id, root.span_id);
            }
            let append = append[0].1;
            assert!(root.start_time_unix_nano <= append.start_time_unix_nano);
            assert!(append.start_time_unix_nano < append.end_time_unix_nano);
            assert!(append.end_time_unix_nano <= root.end_time_unix_nano);
        }
        for (_, span) in deliver {
            assert_eq!(span.start_time_unix_nano, event.0.ms * 1_000_000);
            let took = span.end_time_unix_nano - span.start_time_unix_nano;
            assert!(Duration::from_nanos(took) < Duration::from_secs(5));
        }
    }
    let [of_caller] = of_caller[..] else {
        panic!("{of_caller:?}");
    };
    assert_eq!(hex(&of_caller.trace_id), caller_trace);
    assert_eq!(hex(&of_caller.parent_span_id), caller_span);
    let links = of_caller.links.iter().map(|link| &link.trace_id);
    let linked = &traces[&posted.0.to_string()][0].1.trace_id;
    assert_eq!(links.collect::<Vec<_>>(), [linked]);
}

/// Breaks when the share is not the requested one, or when each replica chooses its own events.
#[tokio::test]
async fn a_share_of_the_events_is_traced_and_all_replicas_trace_the_same() {
    const EVENTS: usize = 400;
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let collector = Collector::start().await;
    let options = collector.options(0.25);
    let a = Gateway::start(&redis, &options).await;
    let b = Gateway::start(&redis, &options).await;
    recording([&a, &b], 1).await;
    let mut viewers = [
        Viewer::open(&a, "channel=news").await,
        Viewer::open(&b, "channel=news").await,
    ];
    let mut commands = redis.connect().await;
    for number in 0..EVENTS {
        let text = number.to_string();
        commands.publish("news", &text).await;
        // One after the other, so that each event is the oldest of its write.
        for viewer in &mut viewers {
            assert_eq!(data(&viewer.until(&text).await), [&*text]);
        }
    }
    drop(viewers);
    let spans = collector.all([a, b]).await;
    let ids = |replica: Option<&str>, name| {
        let ids = spans
            .iter()
            .filter(|(of, span)| span.name == name && replica.is_none_or(|replica| of == replica));
        ids.map(|(_, span)| id(span)).collect::<BTreeSet<_>>()
    };
    let published = ids(None, "publish");
    // Six standard deviations.
    assert!((48..=152).contains(&published.len()), "{}", published.len());
    let replicas: BTreeSet<_> = spans.iter().map(|(replica, _)| replica).collect();
    assert_eq!(replicas.len(), 2);
    for replica in replicas {
        assert_eq!(ids(Some(replica), "deliver"), published);
    }
}

/// Breaks when a collector that does not answer delays events, or the end.
#[tokio::test]
async fn a_collector_that_does_not_answer_delays_nothing() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    // It accepts connections, and answers nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let options = format!("--otlp-endpoint http://{address} --trace-ratio 1");
    let mut gateway = Gateway::start_with(&redis, &options, KEEP_ALL).await;
    recording([&gateway], 1).await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    let mut commands = redis.connect().await;
    // More events than the queue holds.
    let messages: Vec<_> = (0..5000)
        .map(|number| ("news".to_owned(), number.to_string()))
        .collect();
    commands.publish_all(&messages).await;
    let texts: Vec<_> = messages.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(data(&viewer.until("4999").await), texts);
    let start = Instant::now();
    gateway.process().signal("TERM");
    let status = in_time("it ends", gateway.process().exit()).await;
    assert_eq!(status.code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
