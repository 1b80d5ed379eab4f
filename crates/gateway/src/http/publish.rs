//! `POST /events`: appends what is in the body, and tells the id.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract,
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use broker::{Append, Appended, NotAppended, Payload};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hub::{Channel, Partitions};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio::time::timeout;

use super::{error::Problem, query};
use crate::{
    access::Credential,
    metrics::{Metrics, Published},
};

/// Time that a publisher has to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a batch at most.
pub(crate) const MAX_BATCH: usize = 16 << 20;
/// Events of a batch at most.
const MAX_LINES: usize = 1000;
/// Bytes of an idempotency key at most.
const MAX_KEY: usize = 256;

/// What publishing needs.
pub(crate) struct Publish {
    pub(crate) partitions: Partitions,
    pub(crate) max_payload: usize,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) publisher: broker::Publisher,
    pub(crate) metrics: Metrics,
}

pub(crate) async fn publish(
    extract::State(state): extract::State<Arc<Publish>>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let credential = state.authorise(&head.headers)?;
    let is_batch = is_batch(&head.headers)?;
    let key = idempotency_key(&head.headers)?;
    let query = head.uri.query().unwrap_or_default();
    if is_batch {
        let body = read(body, &head.headers, MAX_BATCH).await?;
        return state.batch(credential, key, &body).await;
    }
    let settings = Settings::read(query, state.partitions)?;
    if !credential.allows(&settings.channel) {
        return Err(Problem::ForbiddenChannel(settings.channel));
    }
    let body = read(body, &head.headers, state.max_payload).await?;
    let payload = settings
        .payload(&body)
        .inspect_err(|_| state.count(Published::Rejected, 1))?;
    if payload.len() > state.max_payload {
        state.count(Published::Rejected, 1);
        return Err(Problem::TooLarge(state.max_payload));
    }
    let event = Append {
        channel: settings.channel,
        payload: payload.into_owned(),
        idempotency_key: key,
    };
    let mut appended = state.append(vec![event]).await;
    let id = appended.pop().expect("there is a result for each event")?;
    let body = json!({ "id": id.map(|id| id.to_string()) }).to_string();
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((StatusCode::CREATED, headers, body).into_response())
}

impl Publish {
    fn authorise(&self, headers: &HeaderMap) -> Result<&Credential, Problem> {
        if self.credentials.is_empty() {
            return Err(Problem::PublishingOff);
        }
        let bearer = headers.get(header::AUTHORIZATION);
        let bearer = bearer.and_then(|value| value.to_str().ok());
        // RFC 9110, 11.1: the name of a scheme is the same in any case.
        let token = bearer.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("Bearer")
                .then_some(token.trim())
        });
        let token = token.ok_or(Problem::Unauthorized)?;
        let mut found = None;
        for credential in &self.credentials {
            // All are looked at, however early one fits.
            if credential.is(token) {
                found = Some(credential);
            }
        }
        found.ok_or(Problem::Unauthorized)
    }

    /// One envelope with its channel per line; one answer per line.
    async fn batch(
        &self,
        credential: &Credential,
        key: Option<String>,
        body: &[u8],
    ) -> Result<Response, Problem> {
        let lines = body.split(|byte| *byte == b'\n');
        let lines = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty());
        let (mut events, mut results) = (Vec::new(), Vec::new());
        for (number, line) in lines.enumerate() {
            if number == MAX_LINES {
                return Err(Problem::TooManyLines(MAX_LINES));
            }
            let event = self
                .line(credential, line)
                .map(|(channel, payload)| Append {
                    channel,
                    payload,
                    idempotency_key: key.as_ref().map(|key| format!("{key}#{number}")),
                });
            match event {
                Ok(event) => {
                    events.push(event);
                    results.push(None);
                }
                Err(problem) => results.push(Some(problem)),
            }
        }
        if results.is_empty() {
            return Err(Problem::EmptyBatch);
        }
        self.count(Published::Rejected, results.iter().flatten().count());
        let mut appended = self.append(events).await.into_iter();
        let mut answer = String::new();
        let mut waits = false;
        for result in results {
            let result = match result {
                Some(problem) => Err(problem),
                None => appended
                    .next()
                    .expect("there is a result for each event")
                    .map_err(Problem::from),
            };
            let line = match &result {
                Ok(id) => json!({ "id": id.map(|id| id.to_string()) }),
                Err(problem) => json!({ "error": problem.to_json() }),
            };
            waits |= result.is_err_and(|problem| problem.is_of_redis());
            answer += &line.to_string();
            answer.push('\n');
        }
        // What was not stored may be sent again, with the same key.
        let status = if waits {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let headers = [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        let mut response = (status, headers, answer).into_response();
        if waits {
            super::error::retry_after(&mut response);
        }
        Ok(response)
    }

    fn line(&self, credential: &Credential, line: &[u8]) -> Result<(Channel, Vec<u8>), Problem> {
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| Problem::BadLine(error.to_string()))?;
        let channel = self.partitions.channel(&line.channel)?;
        if !credential.allows(&channel) {
            return Err(Problem::ForbiddenChannel(channel));
        }
        let payload = json_of(&line.envelope());
        if payload.len() > self.max_payload {
            return Err(Problem::TooLarge(self.max_payload));
        }
        Payload::parse(&payload)?;
        Ok((channel, payload))
    }

    async fn append(&self, events: Vec<Append>) -> Vec<Appended> {
        let appended = match events.is_empty() {
            true => Vec::new(),
            false => self.publisher.append(events).await,
        };
        for result in &appended {
            let result = match result {
                Ok(_) => Published::Appended,
                Err(NotAppended::Impossible(_)) => Published::Rejected,
                Err(_) => Published::Failed,
            };
            self.count(result, 1);
        }
        appended
    }

    fn count(&self, result: Published, count: usize) {
        self.metrics.published(result).inc_by(count as u64);
    }
}

/// What the query of a single event says.
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
                _ => {}
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
        // The event's name came with the query.
        Payload::parse(&envelope)?;
        Ok(envelope.into())
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

/// Whether the body is a batch.
fn is_batch(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(false);
    };
    let value = value.to_str().map_err(|_| Problem::MediaType)?;
    let kind = value.split(';').next().unwrap_or_default().trim();
    match kind.to_ascii_lowercase().as_str() {
        "application/x-ndjson" | "application/ndjson" => Ok(true),
        // What curl says unless told otherwise.
        "application/x-www-form-urlencoded" => Ok(false),
        "application/json" => Ok(false),
        kind if kind.starts_with("text/") => Ok(false),
        _ => Err(Problem::MediaType),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::BadKey(MAX_KEY)),
    }
}

/// The whole body, if it is no larger than that.
async fn read(body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, Problem> {
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Problem::TooLarge(limit));
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::TooLarge(limit)),
        Ok(Err(_)) => Err(Problem::BrokenBody),
        Err(_) => Err(Problem::BodyTimeout),
    }
}
