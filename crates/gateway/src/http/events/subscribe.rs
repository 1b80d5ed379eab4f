//! `GET /events`: parses a request to subscribe, and checks its permissions.

mod parameters;

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header, request::Parts},
    response::{IntoResponse, Response},
};
use hub::{Channel, Start};

#[cfg(fuzzing)]
pub(crate) use self::parameters::check;
use self::parameters::read;
pub(crate) use self::parameters::{PARAMETERS, is_own_parameter};
use crate::http::AppState;
use crate::http::Peer;
use crate::http::error::Problem;
use crate::http::events::page::{self, PageRequest};
use crate::http::stream;
use crate::http::stream::request::{HeadOnly, StreamRequest};
use crate::http::stream::untaken;

/// The charset is that of the standard. Some clients do not assume it, and take ISO 8859-1 for a text type.
const STREAM: &str = "text/event-stream; charset=utf-8";
const JSON: &str = "application/json";
/// `sse-gateway doctor` sends this header. The answer contains the HTTP version with which the request arrived here. It
/// shows how a balancer connects.
pub(crate) const DOCTOR: &str = "x-sse-doctor";
pub(crate) const ASKED_WITH: &str = "x-sse-http-version";
/// A client that has to reconnect later receives the usual retry time, multiplied by this.
const LATER: u32 = 4;

pub(crate) async fn subscribe(
    extract::State(app_state): extract::State<Arc<AppState>>,
    request: Request<Body>,
) -> Response {
    let (head, _no_body) = request.into_parts();
    let is_page = wants_page(&head.headers);
    let problem = match app_state.subscribe(&head, is_page).await {
        Ok(response) => return response,
        Err(problem) => problem,
    };
    app_state.metrics.refuse(problem.code());
    // An EventSource reconnects only after an answer like this.
    if problem.is_temporary() && !is_page {
        return come_back(&app_state, &problem);
    }
    problem.into_response()
}

/// A stream that ends at once, with the reason in a comment. There is no blank line. By the letter of the standard, a
/// blank line may make a client forget its last id.
fn come_back(app_state: &AppState, problem: &Problem) -> Response {
    let retry = stream::retry(app_state.config.retry * LATER);
    let code = problem.code().as_str();
    let why = format!(": {code}: {problem}\n");
    (headers(STREAM), [&retry, why.as_bytes()].concat()).into_response()
}

/// Headers for an answer of this type. They ask proxies not to buffer, cache or transform it, and browsers not to take
/// it for a script.
fn headers(kind: &'static str) -> [(header::HeaderName, &'static str); 4] {
    [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ]
}

impl AppState {
    async fn subscribe(&self, head: &Parts, is_page: bool) -> Result<Response, Problem> {
        let query = head.uri.query().unwrap_or_default();
        let received_at = Instant::now();
        let access = self.access.get();
        let mut asked = read(
            self.partitions,
            self.config.max_channels,
            query,
            &head.headers,
            access.parameters(),
        )?;
        if asked.limit.is_some() && !is_page {
            return Err(Problem::LimitOfStream);
        }
        let is_head = head.method == Method::HEAD;
        if is_head {
            // A ticket is for a stream. HEAD opens none, so it does not use the ticket up.
            asked.credentials.ticket = None;
        }
        let client = self.client(head);
        // Limits are checked before any backend is asked, so that a client beyond a limit costs little. They do not
        // apply to this process itself, which checks the events that clients receive.
        let mut place = match access.is_canary(&head.headers) {
            true => None,
            false => Some(self.limits.admit(client)?),
        };
        if place.is_some() {
            self.limits.name_channels(client, asked.channels.len())?;
        }
        let names: Vec<_> = asked.channels.iter().map(Channel::as_str).collect();
        let decided =
            access.subscriber(&head.headers, &head.uri, client, asked.credentials, &names);
        let grant = decided.await?;
        let kind = if is_page { JSON } else { STREAM };
        let mut response = (StatusCode::OK, headers(kind)).into_response();
        if head.headers.contains_key(DOCTOR) {
            let version = match head.version {
                Version::HTTP_2 => HeaderValue::from_static("HTTP/2.0"),
                _ => HeaderValue::from_static("HTTP/1.1"),
            };
            response.headers_mut().insert(ASKED_WITH, version);
        }
        if is_head {
            response.extensions_mut().insert(HeadOnly);
            return Ok(response);
        }
        if let Some(place) = &mut place {
            place.belongs_to(grant.holder())?;
            place.opens(&asked.channels, grant.holder(), client)?;
            self.limits.opened();
        }
        let otherwise = if is_page { Start::Oldest } else { Start::Live };
        let stream = StreamRequest {
            channels: asked.channels,
            start: asked.start.unwrap_or(otherwise),
            format: Arc::clone(&self.controls) as _,
            heartbeat: asked.heartbeat,
            end: grant.end(),
            owner: untaken::owner(grant.subject.as_ref(), client),
            subject: grant.subject,
            received_at,
            place: place.map(Arc::new),
        };
        let limit = asked.limit.unwrap_or(page::EVENTS);
        let extensions = response.extensions_mut();
        match is_page {
            true => {
                let holder =
                    page::holder(stream.subject.as_ref(), client, Peer::of(head).connection);
                extensions.insert(PageRequest {
                    stream,
                    limit,
                    holder,
                });
            }
            false => drop(extensions.insert(stream)),
        }
        Ok(response)
    }
}

/// Whether a client prefers JSON to a stream; RFC 9110, 12.5.1.
fn wants_page(headers: &HeaderMap) -> bool {
    quality(headers, "application", "json") > quality(headers, "text", "event-stream")
}

/// The client's preference for this media type, in thousandths. The most specific range that matches counts.
fn quality(headers: &HeaderMap, kind: &str, subtype: &str) -> u16 {
    let values = headers.get_all(header::ACCEPT).into_iter();
    let ranges = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let matching = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) = parts.next()?.split_once('/')?;
        let exactness = match (range_kind, range_subtype) {
            ("*", "*") => 0,
            (range, "*") if range.eq_ignore_ascii_case(kind) => 1,
            (range, sub)
                if range.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) =>
            {
                2
            }
            _ => return None,
        };
        let weight = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let value = name.eq_ignore_ascii_case("q").then_some(value)?;
            value.parse::<f32>().ok()
        });
        let weight = weight.unwrap_or(1.0).clamp(0.0, 1.0);
        Some((exactness, (weight * 1000.0).round() as u16))
    });
    matching.max().map_or(0, |(_, quality)| quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_for_clients_that_prefer_json() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_page(&headers)
        };
        assert!(wants("application/json"));
        assert!(wants("text/html, Application/JSON;q=0.9"));
        assert!(wants("application/json, */*;q=0.1"));
        assert!(wants("text/event-stream;q=0.5, application/*"));
        assert!(wants("application/json, text/*;q=0"));
        assert!(!wants("*/*") && !wants("text/event-stream"));
        assert!(!wants("application/json, text/event-stream"));
        assert!(!wants("application/json;q=0, */*"));
        // A default of many libraries asks for anything, first for JSON.
        assert!(!wants("application/json, text/plain, */*"));
        assert!(!wants("application/json;q=0.5, text/event-stream;q=0.6"));
        assert!(!wants("application/json;q=x, text/event-stream;Q=1.0"));
        assert!(!wants_page(&HeaderMap::new()));
    }
}
