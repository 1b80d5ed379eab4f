//! `POST /events`: appends the events of a body, and answers with their ids.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    extract,
    http::{HeaderMap, Request, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use broker::{Append, Appended, Payload};
use http_body_util::BodyExt as _;
use hub::{Channel, Partitions, Published};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use sha1::{Digest as _, Sha1};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Front, Peer, answer,
    error::{Problem, SOON, retry_after},
    query,
};
use crate::{
    access::Publisher,
    room::{Holder, Room, Share},
    traces::Traces,
};

/// Time that a publisher has to send its body, and the longest pause within it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_PAUSE: Duration = Duration::from_secs(5);
/// The longest wait for room, for a body and for the answer to a batch. It is shorter than the pause that a body may
/// have, because over HTTP/2 a waiting body can block another body of its connection.
const ROOM_WAIT: Duration = Duration::from_secs(4);
/// Maximum bytes of a batch. A partition's share is stored in one step, and published to subscribers. At most 32 MB may
/// wait for each subscriber.
const MAX_BATCH: usize = 4 << 20;
/// Events of a batch at most.
const MAX_LINES: usize = 1000;
/// Maximum bytes of the answer to a line that was read: an id, or the reason why Redis did not store the event.
const LINE_ANSWER: usize = 512;
/// Maximum characters of a JSON error in an answer, because the error may quote a key of any length.
const MAX_CAUSE: usize = 256;
/// Bytes of an idempotency key at most.
const MAX_KEY: usize = 256;
/// Bytes of all bodies that are read or wait to be stored, in the whole process.
const ROOM: usize = 64 << 20;

/// State of the routes for publishing, in addition to the state of all routes.
pub(crate) struct Publish {
    publisher: broker::Publisher,
    room: Arc<Room>,
    traces: Option<Traces>,
}

impl Publish {
    pub(crate) fn new(publisher: broker::Publisher, traces: Option<Traces>) -> Self {
        Self {
            publisher,
            room: Room::new(ROOM),
            traces,
        }
    }

    /// Reads the whole body. Fails if it is larger than `limit` or too slow. It takes room for the bytes that have
    /// arrived; `Content-Length` reserves none. Call this only after the publisher was authorized.
    pub(super) async fn read(
        &self,
        mut body: Body,
        limit: usize,
        holder: &Holder,
    ) -> Result<Received, Problem> {
        let first = timeout(ROOM_WAIT, self.room.wait(holder, 0)).await;
        let mut share = first.ok().flatten().ok_or(Problem::Busy)?;
        let mut bytes = Vec::new();
        let end = Instant::now() + BODY_TIMEOUT;
        loop {
            let pause = Instant::now() + BODY_PAUSE;
            let frame = match timeout_at(end.min(pause), body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => return Err(Problem::BrokenBody),
                Ok(None) => break,
                Err(_) => return Err(Problem::BodyTimeout),
            };
            let Ok(chunk) = frame.into_data() else {
                // Trailers.
                continue;
            };
            if bytes.len() + chunk.len() > limit {
                return Err(Problem::TooLarge(limit));
            }
            room_for(&mut share, chunk.len()).await?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Received { bytes, share })
    }
}

/// Takes room for this many bytes. Waits for other bodies to end.
async fn room_for(share: &mut Share, bytes: usize) -> Result<(), Problem> {
    match timeout(ROOM_WAIT, share.wait(bytes)).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Problem::Busy),
    }
}

/// The reason why a text is no JSON, in brief.
pub(super) fn cause(error: &serde_json::Error) -> String {
    error.to_string().chars().take(MAX_CAUSE).collect()
}

/// The holder of a body's room.
pub(super) fn holder(publisher: &Publisher<'_>, head: &Parts) -> Holder {
    Holder {
        client: publisher.principal().to_string().into(),
        connection: Peer::of(head).connection,
    }
}

/// A body, and its room.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    share: Share,
}

/// The origin of a request, for its trace.
struct Origin<'a> {
    headers: &'a HeaderMap,
    start: SystemTime,
}

/// The properties of a body, from the head of its request.
struct Announced {
    is_batch: bool,
    key: Option<String>,
    /// Bytes at most.
    limit: usize,
}

pub(crate) async fn publish(
    extract::State(front): extract::State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let answer = front.publish(request).await;
    if let Err(problem) = &answer {
        front.metrics.not_appended(problem.code());
    }
    answer
}

impl Front {
    async fn publish(&self, request: Request<Body>) -> Result<Response, Problem> {
        let start = SystemTime::now();
        let (head, body) = request.into_parts();
        let access = self.access.get();
        if !access.has_publishers() {
            return Err(Problem::PublishingOff);
        }
        let client = self.client(&head);
        let publisher = access.publisher(&head.headers, client).await?;
        let announced = Announced::read(&head.headers, self.max_payload)?;
        let query = head.uri.query().unwrap_or_default();
        let settings = match announced.is_batch {
            true if query.is_empty() => None,
            true => return Err(Problem::BatchQuery),
            false => Some(Settings::read(query, self.partitions)?),
        };
        if let Some(Settings { channel, .. }) = &settings {
            publisher.may_publish(channel)?;
        } else {
            publisher.may_publish_anything()?;
        }
        let key = announced.key.map(|key| {
            let key = publisher.idempotency_key(&key);
            key.ok_or(Problem::KeyWithoutSubject)
        });
        let key = key.transpose()?;
        // The lines of a batch count once they have arrived.
        let events = usize::from(!announced.is_batch);
        self.in_time(&publisher, events, key.is_some())?;
        // Held until the answer is complete. This limits the bytes of waiting events, not their number.
        let holder = holder(&publisher, &head);
        let body = self.publish.read(body, announced.limit, &holder).await?;
        let origin = Origin {
            headers: &head.headers,
            start,
        };
        match settings {
            Some(settings) => self.single(&origin, settings, key, &body.bytes).await,
            None => self.batch(&origin, &publisher, key.as_deref(), body).await,
        }
    }

    /// Whether this publisher may publish this many events now. An event with a key counts twice, because its key takes
    /// as much room in Redis as a small event, for five minutes.
    fn in_time(
        &self,
        publisher: &Publisher<'_>,
        events: usize,
        have_keys: bool,
    ) -> Result<(), Problem> {
        let count = events << u32::from(have_keys);
        let limited = self.limits.publish(publisher.principal(), count);
        limited.map_err(Problem::TooFast)
    }

    async fn single(
        &self,
        origin: &Origin<'_>,
        settings: Settings,
        key: Option<String>,
        body: &[u8],
    ) -> Result<Response, Problem> {
        let payload = settings.payload(body)?;
        if payload.len() > self.max_payload {
            return Err(Problem::TooLarge(self.max_payload));
        }
        let event = Append {
            channel: settings.channel,
            payload: payload.into_owned(),
            idempotency_key: key,
        };
        let mut appended = self.append(origin, vec![event]).await;
        let id = appended.pop().expect("there is a result for each event")?;
        let body = json!({ "id": id.map(|id| id.to_string()) }).to_string();
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        Ok((StatusCode::CREATED, headers, body).into_response())
    }

    /// One envelope with its channel per line; one answer per line.
    async fn batch(
        &self,
        origin: &Origin<'_>,
        publisher: &Publisher<'_>,
        key: Option<&str>,
        body: Received,
    ) -> Result<Response, Problem> {
        let Received { bytes, mut share } = body;
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty());
        let mut keys = LineKeys::new(key);
        let (mut events, mut results) = (Vec::new(), Vec::new());
        let mut room = 0;
        for line in lines {
            if results.len() == MAX_LINES {
                return Err(Problem::TooManyLines(MAX_LINES));
            }
            match self.line(publisher, line) {
                Ok((channel, payload)) => {
                    let event = Append {
                        channel,
                        payload,
                        idempotency_key: keys.of(line),
                    };
                    events.push(event);
                    results.push(None);
                    room += LINE_ANSWER;
                }
                Err(problem) => {
                    let answer = refused_line(&problem);
                    room += answer.len();
                    results.push(Some((problem, answer)));
                }
            }
        }
        if results.is_empty() {
            return Err(Problem::EmptyBatch);
        }
        self.in_time(publisher, results.len(), key.is_some())?;
        // Room is taken before anything is stored, because the client needs an answer after that.
        room_for(&mut share, room).await?;
        let mut appended = self.append(origin, events).await.into_iter();
        let mut answer = String::new();
        let mut waits = false;
        for result in results {
            let refused = match result {
                Some(refused) => refused,
                None => match appended.next().expect("there is a result for each event") {
                    Ok(id) => {
                        let id = json!({ "id": id.map(|id| id.to_string()) });
                        answer += &id.to_string();
                        answer.push('\n');
                        continue;
                    }
                    Err(error) => {
                        let problem = Problem::from(error);
                        let line = refused_line(&problem);
                        (problem, line)
                    }
                },
            };
            self.metrics.not_appended(refused.0.code());
            waits |= refused.0.is_temporary();
            answer += &refused.1;
        }
        drop(bytes);
        share.shrink(answer.len());
        let status = match waits {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        let headers = [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        let mut response = (status, headers, answer).into_response();
        if waits {
            retry_after(&mut response, SOON);
        }
        response.extensions_mut().insert(answer::Room::from(share));
        Ok(response)
    }

    fn line(&self, publisher: &Publisher<'_>, line: &[u8]) -> Result<(Channel, Vec<u8>), Problem> {
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| Problem::BadLine(cause(&error)))?;
        let channel = self.partitions.channel(&line.channel)?;
        publisher.may_publish(&channel)?;
        let payload = json_of(&line.envelope());
        if payload.len() > self.max_payload {
            return Err(Problem::TooLarge(self.max_payload));
        }
        Payload::parse(&payload)?;
        Ok((channel, payload))
    }

    async fn append(&self, origin: &Origin<'_>, events: Vec<Append>) -> Vec<Appended> {
        if events.is_empty() {
            return Vec::new();
        }
        let partitions: Vec<_> = events
            .iter()
            .map(|event| event.channel.partition())
            .collect();
        let results = self.publish.publisher.append(events).await;
        let appended = results.iter().flatten().count();
        self.metrics.appended.inc_by(appended as u64);
        if let Some(traces) = &self.publish.traces {
            let stored = partitions.into_iter().zip(&results);
            let stored = stored.filter_map(|(partition, result)| {
                let id = (*result.as_ref().ok()?)?;
                Some(Published { partition, id })
            });
            traces.posted(origin.headers, origin.start, stored);
        }
        results
    }
}

/// The answer to a line that is not stored.
fn refused_line(problem: &Problem) -> String {
    let mut line = json!({ "error": problem.to_json() }).to_string();
    line.push('\n');
    line
}

/// Derives a key for each line from the key of a batch. The key of a line depends on its content, not on its position.
/// So a client can send the lines that were not stored again, without the other lines.
struct LineKeys<'a> {
    key: Option<&'a str>,
    /// Number of occurrences of each line.
    seen: HashMap<[u8; 20], u32>,
}

impl<'a> LineKeys<'a> {
    fn new(key: Option<&'a str>) -> Self {
        Self {
            key,
            seen: HashMap::new(),
        }
    }

    fn of(&mut self, line: &[u8]) -> Option<String> {
        let key = self.key?;
        let digest: [u8; 20] = Sha1::digest(line).into();
        let times = self.seen.entry(digest).or_default();
        *times += 1;
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        // The key of a single event has no line break, so the two kinds of keys differ.
        Some(format!("{key}\n{hex}\n{times}"))
    }
}

/// The names of a query.
const PARAMETERS: [&str; 4] = ["channel", "event", "retry", "end"];

/// Settings of a single event, from the query.
struct Settings {
    channel: Channel,
    event: Option<String>,
    retry: Option<u32>,
    end: bool,
}

impl Settings {
    fn read(query: &str, partitions: Partitions) -> Result<Self, Problem> {
        let (mut channel, mut event, mut retry, mut end) = (None, None, None, false);
        for (key, value) in query::pairs(query) {
            let value = query::decode(value)?;
            match key {
                "type" => {
                    return Err(Problem::UnknownParameter {
                        name: key.to_owned(),
                        advice: "the type of an event is event=".to_owned(),
                    });
                }
                "channel" if channel.is_some() => return Err(Problem::OneChannel),
                "channel" => channel = Some(partitions.channel(&value)?),
                "event" => event = Some(value),
                "retry" => retry = Some(value.parse().map_err(|_| Problem::BadSetting("retry"))?),
                "end" => {
                    end = match &*value {
                        "" | "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(Problem::BadSetting("end")),
                    }
                }
                _ => query::unknown(key, &PARAMETERS)?,
            }
        }
        Ok(Self {
            channel: channel.ok_or(Problem::NoChannel)?,
            event,
            retry,
            end,
        })
    }

    /// The payload to store: the body itself, unless the query adds to it.
    fn payload<'a>(&self, body: &'a [u8]) -> Result<Cow<'a, [u8]>, Problem> {
        let payload = Payload::parse(body)?;
        if self.event.is_none() && self.retry.is_none() && !self.end {
            return Ok(body.into());
        }
        let envelope = json_of(&Envelope {
            event: self.event.as_deref().or(payload.event.as_deref()),
            data: &payload.data,
            retry: self.retry.or(payload.retry),
            end: (self.end || payload.end).then_some(true),
        });
        // This also checks the event's name from the query.
        Payload::parse(&envelope)?;
        Ok(envelope.into())
    }
}

/// For the fuzzers: checks that parsed settings can be stored.
#[cfg(fuzzing)]
pub(super) fn check(partitions: Partitions, query: &str) {
    match Settings::read(query, partitions) {
        Ok(settings) => {
            if let Ok(payload) = settings.payload(b"hello") {
                let payload = Payload::parse(&payload).expect("it was checked");
                assert_eq!(payload.data, "hello");
            }
        }
        Err(problem) => assert!(problem.into_response().status().is_client_error()),
    }
}

/// An envelope as it is stored.
#[derive(Serialize)]
struct Envelope<V, D, R, E> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<V>,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<E>,
}

/// A line of a batch: an envelope and its channel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    retry: Option<&'a RawValue>,
    #[serde(borrow)]
    end: Option<&'a RawValue>,
}

impl Line<'_> {
    fn envelope(&self) -> impl Serialize {
        Envelope {
            event: self.event,
            data: self.data,
            retry: self.retry,
            end: self.end,
        }
    }
}

fn json_of(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers can be written as JSON")
}

impl Announced {
    fn read(headers: &HeaderMap, max_payload: usize) -> Result<Self, Problem> {
        let is_batch = is_batch(headers)?;
        let limit = if is_batch { MAX_BATCH } else { max_payload };
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > limit) {
            return Err(Problem::TooLarge(limit));
        }
        Ok(Self {
            is_batch,
            key: idempotency_key(headers)?,
            limit,
        })
    }
}

fn is_batch(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(false);
    };
    let value = value.to_str().map_err(|_| Problem::MediaType)?;
    let kind = value.split(';').next().unwrap_or_default().trim();
    match kind.to_ascii_lowercase().as_str() {
        "application/x-ndjson" | "application/ndjson" => Ok(true),
        // The last one is the default of curl.
        "application/json" | "application/x-www-form-urlencoded" => Ok(false),
        kind if kind.starts_with("text/") => Ok(false),
        _ => Err(Problem::MediaType),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    query::check_header(headers, "idempotency-key")?;
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::BadKey(MAX_KEY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_line_depends_on_its_content_and_on_its_repetition() {
        let mut first = LineKeys::new(Some("k"));
        let keys: Vec<_> = [b"a", b"b", b"a"].map(|line| first.of(line)).into();
        assert_ne!(keys[0], keys[2]);
        let mut again = LineKeys::new(Some("k"));
        assert_eq!(again.of(b"b"), keys[1]);
        assert_eq!(
            [again.of(b"a"), again.of(b"a")],
            [keys[0].clone(), keys[2].clone()]
        );
        assert_ne!(LineKeys::new(Some("l")).of(b"a"), keys[0]);
        assert_eq!(LineKeys::new(None).of(b"a"), None);
    }
}
