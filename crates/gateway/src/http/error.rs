//! `Problem`: the closed set of answers that are not a stream, as RFC 9457 problem details.
//!
//! A browser's EventSource gives up for good on any status but 200. So only what the page has to
//! mend is answered with 4xx here; whatever may be better in a moment is a stream that ends.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use broker::{NotAppended, Rejected};
use hub::{BadChannel, Channel};
use serde_json::{Value, json};

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("name a channel: /events?channel=news")]
    NoChannel,
    #[error("{0}")]
    BadChannel(#[from] BadChannel),
    #[error("a connection subscribes to at most {0} channels")]
    TooManyChannels(usize),
    #[error("the query is not percent-encoded UTF-8")]
    BadQuery,
    #[error(
        "since is an id (1763800000000-0), a time (2026-01-31T12:00:00Z or milliseconds since 1970), \
         start, or -N for the newest N events"
    )]
    BadSince,
    #[error(
        "publishing over HTTP is off: set SSE_GATEWAY_PUBLISH_TOKEN, or [[publish]] in the \
         configuration file"
    )]
    PublishingOff,
    #[error("a publisher says who it is: Authorization: Bearer TOKEN")]
    Unauthorized,
    #[error("this credential is not for channel {0}")]
    ForbiddenChannel(Channel),
    #[error("an event has one channel: /events?channel=news")]
    OneChannel,
    #[error(
        "{0} has a value that it cannot have: retry is a number of milliseconds, end true or false"
    )]
    BadSetting(&'static str),
    #[error("an Idempotency-Key is 1 to {0} visible characters")]
    BadKey(usize),
    #[error("a body is text/*, application/json, or application/x-ndjson for a batch")]
    MediaType,
    #[error("at most {0} bytes are taken")]
    TooLarge(usize),
    #[error("a batch has at most {0} lines")]
    TooManyLines(usize),
    #[error("a batch has a line for each event: {{\"channel\":\"news\",\"data\":\"hello\"}}")]
    EmptyBatch,
    #[error("a line of a batch is {{\"channel\":\"news\",\"data\":\"hello\"}}: {0}")]
    BadLine(String),
    #[error("a batch names the channel of each event in its line, and has no query")]
    BatchQuery,
    #[error("too much is being published through this replica; nothing is stored")]
    Busy,
    #[error("the body did not come in time")]
    BodyTimeout,
    #[error("the body broke off")]
    BrokenBody,
    #[error("{0}")]
    Rejected(#[from] Rejected),
    #[error("{0}")]
    NotAppended(#[from] NotAppended),
    #[error("there is nothing here; events are at /events?channel=...")]
    NotFound,
    #[error("this method is not for this path")]
    MethodNotAllowed,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::PublishingOff | Self::ForbiddenChannel(_) => StatusCode::FORBIDDEN,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) | Self::TooManyLines(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Rejected(Rejected::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotAppended(NotAppended::Impossible) => StatusCode::CONFLICT,
            Self::NotAppended(_) | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Stays the same when the words change.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::NoChannel => "no_channel",
            Self::BadChannel(_) => "bad_channel",
            Self::TooManyChannels(_) => "too_many_channels",
            Self::BadQuery => "bad_query",
            Self::BadSince => "bad_since",
            Self::PublishingOff => "publishing_off",
            Self::Unauthorized => "unauthorized",
            Self::ForbiddenChannel(_) => "forbidden_channel",
            Self::OneChannel => "one_channel",
            Self::BadSetting(_) => "bad_setting",
            Self::BadKey(_) => "bad_idempotency_key",
            Self::MediaType => "unsupported_media_type",
            Self::TooLarge(_) => "too_large",
            Self::TooManyLines(_) => "too_many_lines",
            Self::EmptyBatch => "empty_batch",
            Self::BadLine(_) => "bad_line",
            Self::BodyTimeout => "body_timeout",
            Self::BrokenBody => "broken_body",
            Self::Rejected(rejected) => rejected.as_str(),
            Self::NotAppended(NotAppended::Impossible) => "cannot_be_stored",
            Self::NotAppended(NotAppended::Refused) => "redis_takes_no_writes",
            Self::NotAppended(NotAppended::Unreachable) => "redis_unreachable",
            Self::NotAppended(NotAppended::Unknown) => "redis_did_not_answer",
            Self::Busy => "busy",
            Self::BatchQuery => "batch_query",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
        }
    }
}

impl Problem {
    /// Whether it may be better in a moment.
    pub(super) fn is_temporary(&self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    pub(super) fn to_json(&self) -> Value {
        let status = self.status();
        json!({
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": self.code(),
            "detail": self.to_string(),
        })
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        let mut response = (self.status(), headers, self.to_json().to_string()).into_response();
        if self.is_temporary() {
            retry_after(&mut response);
        }
        if matches!(self, Self::Unauthorized) {
            // RFC 6750, section 3.
            let challenge = HeaderValue::from_static("Bearer realm=\"sse-gateway\"");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

pub(super) fn retry_after(response: &mut Response) {
    let seconds = HeaderValue::from_static("2");
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
}

pub(crate) async fn not_found() -> Problem {
    Problem::NotFound
}

pub(crate) async fn method_not_allowed() -> Problem {
    Problem::MethodNotAllowed
}
