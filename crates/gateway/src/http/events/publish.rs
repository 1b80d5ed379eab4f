//! `POST /events`: appends the events of a body, and answers with their ids.

mod batch;
mod body;
mod head;
mod settings;

use std::{sync::Arc, time::SystemTime};

use access::Caller;
use axum::{
    body::Body,
    extract,
    http::{HeaderMap, Request, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use broker::{Append, Appended};
use fair::Holder;
use hub::Published;
use serde_json::json;

use self::{
    body::{Bodies, Received},
    head::PublishHead,
    settings::{Settings, copies_of_batch},
};
use crate::http::AppState;
use crate::http::Peer;
use crate::http::error::Problem;
use crate::traces::Traces;

/// Maximum characters of a JSON error in an answer, because the error may quote a key of any length.
const MAX_CAUSE: usize = 256;

/// State of the routes for publishing, in addition to the state of all routes.
pub(crate) struct PublishState {
    publisher: broker::Publisher,
    bodies: Bodies,
    traces: Option<Traces>,
}

impl PublishState {
    pub(crate) fn new(publisher: broker::Publisher, traces: Option<Traces>) -> Self {
        Self {
            publisher,
            bodies: Bodies::new(),
            traces,
        }
    }

    /// Reads the whole body. Fails if it is larger than `limit` or too slow. Call this only after the publisher was
    /// authorized.
    pub(crate) async fn read(
        &self,
        body: Body,
        limit: usize,
        holder: &Holder,
    ) -> Result<Received, Problem> {
        self.bodies.read(body, limit, holder).await
    }
}

/// The reason why a text is no JSON, in brief.
pub(crate) fn cause(error: &serde_json::Error) -> String {
    error.to_string().chars().take(MAX_CAUSE).collect()
}

/// The holder of a body's room.
pub(crate) fn holder(caller: &Caller<'_>, head: &Parts) -> Holder {
    Holder {
        client: caller.principal().to_string().into(),
        connection: Peer::of(head).connection,
    }
}

/// The origin of a request, for its trace, and how many copies of Redis it waits for.
struct Origin<'a> {
    headers: &'a HeaderMap,
    start: SystemTime,
    copies: u8,
}

pub(crate) async fn publish(
    extract::State(app_state): extract::State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let answer = app_state.publish(request).await;
    if let Err(problem) = &answer {
        app_state.metrics.not_appended(problem.code());
    }
    answer
}

impl AppState {
    async fn publish(&self, request: Request<Body>) -> Result<Response, Problem> {
        let start = SystemTime::now();
        let (head, body) = request.into_parts();
        let access = self.access.get();
        if !access.has_publishers() {
            return Err(Problem::PublishingOff);
        }
        let client = self.client(&head);
        let caller = access.publisher(&head.headers, client).await?;
        let properties = PublishHead::read(&head.headers, self.max_payload)?;
        let query = head.uri.query().unwrap_or_default();
        let (settings, copies) = match properties.is_batch {
            true => (None, copies_of_batch(query)?),
            false => {
                let settings = Settings::read(query, self.partitions)?;
                let copies = settings.copies;
                (Some(settings), copies)
            }
        };
        if let Some(Settings { channel, .. }) = &settings {
            caller.may_publish(channel.as_str())?;
        } else {
            caller.may_publish_anything()?;
        }
        let key = properties.key.map(|key| {
            let key = caller.idempotency_key(&key);
            key.ok_or(Problem::KeyWithoutSubject)
        });
        let key = key.transpose()?;
        // The lines of a batch count once they have arrived.
        let events = usize::from(!properties.is_batch);
        self.in_time(&caller, events, key.is_some())?;
        // Held until the answer is complete. This limits the bytes of waiting events, not their number.
        let holder = holder(&caller, &head);
        let body = self.publish.read(body, properties.limit, &holder).await?;
        let origin = Origin {
            headers: &head.headers,
            start,
            copies,
        };
        match settings {
            Some(settings) => self.single(&origin, settings, key, &body.bytes).await,
            None => self.batch(&origin, &caller, key.as_deref(), body).await,
        }
    }

    /// Whether this publisher may publish this many events now. An event with a key counts twice, because its key takes
    /// as much room in Redis as a small event, for five minutes.
    fn in_time(&self, caller: &Caller<'_>, events: usize, have_keys: bool) -> Result<(), Problem> {
        let count = events << u32::from(have_keys);
        let limited = self.limits.publish(caller.principal(), count);
        limited.map_err(Problem::TooFast)
    }

    async fn single(
        &self,
        origin: &Origin<'_>,
        settings: Settings,
        key: Option<String>,
        body: &[u8],
    ) -> Result<Response, Problem> {
        let (payload, is_end) = settings.payload(body)?;
        if payload.len() > self.max_payload {
            return Err(Problem::TooLarge(self.max_payload));
        }
        let event = Append {
            channel: settings.channel,
            is_end,
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

    async fn append(&self, origin: &Origin<'_>, events: Vec<Append>) -> Vec<Appended> {
        if events.is_empty() {
            return Vec::new();
        }
        let partitions: Vec<_> = events
            .iter()
            .map(|event| event.channel.partition())
            .collect();
        let results = self.publish.publisher.append(events, origin.copies).await;
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

/// For the fuzzers: checks that parsed settings can be stored.
#[cfg(fuzzing)]
pub(crate) fn check(partitions: hub::Partitions, query: &str) {
    match Settings::read(query, partitions) {
        Ok(settings) => {
            if let Ok(payload) = settings.payload(b"hello") {
                let payload = broker::Payload::parse(&payload).expect("it was checked");
                assert_eq!(payload.data, "hello");
            }
        }
        Err(problem) => assert!(problem.into_response().status().is_client_error()),
    }
}
