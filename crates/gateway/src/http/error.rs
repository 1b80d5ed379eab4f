//! `Problem`: the closed set of answers that are not a stream, as RFC 9457 problem details.
//!
//! A browser's EventSource never reconnects after any status but 200. So only errors that the page has to fix are
//! answered with 4xx. For a temporary problem the answer is a stream that ends.

use std::time::Duration;

use access::{Denied, TokenRefused};
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use broker::{MAX_COPIES, NotAppended, Rejected};
use hub::BadChannel;
use serde_json::{Value, json};

use super::MAX_HEAD;
use crate::{code::Code, limits::Limit};

/// The reason why a request is refused.
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
    #[error("the query has no parameter {name:?}: {advice}")]
    UnknownParameter { name: String, advice: String },
    #[error("there is no header {name}: it is {ours}")]
    UnknownHeader { name: String, ours: &'static str },
    #[error(
        "since is an id (1763800000000-0), a time (2026-01-31T12:00:00Z or milliseconds since 1970), an age (10m), \
         start, or -N for the newest N events, at most 10000"
    )]
    BadSince,
    #[error(
        "publishing over HTTP is off: set SSE_GATEWAY_PUBLISH_TOKEN, or [[publish]] in the \
         configuration file"
    )]
    PublishingOff,
    #[error(
        "tickets are for those who may publish or have a token, and neither is configured: see \
         [[publish]] and [jwt] in the configuration file"
    )]
    TicketsOff,
    #[error(
        "a request for a ticket is {{\"channels\": [\"news\"], \"subject\": \"anna\", \"expires_in\": 3600}}: {0}"
    )]
    BadTicketRequest(String),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Limit(#[from] Limit),
    #[error("this publisher is too fast; nothing is stored")]
    TooFast(Duration),
    #[error(
        "too many tickets were issued to this subject or publisher, or too many were asked for in a second: use \
         those that were issued, or ask again later"
    )]
    TooManyTickets(Duration),
    #[error("heartbeat is a time from 2s to 20s, such as 4s")]
    BadHeartbeat,
    #[error("limit is 1 to {0} events")]
    BadLimit(usize),
    #[error("limit is for a page: send Accept: application/json, or leave it out for a stream")]
    LimitOfStream,
    #[error("history cannot be read now")]
    HistoryUnavailable,
    #[error("an event has one channel: /events?channel=news")]
    OneChannel,
    #[error(
        "{0} has a value that it cannot have: retry is a number of milliseconds, end true or false, replicas 1 to {MAX_COPIES}"
    )]
    BadSetting(&'static str),
    #[error("an Idempotency-Key is 1 to {0} visible characters")]
    BadKey(usize),
    #[error(
        "an Idempotency-Key needs a token with a sub, or a token of [[publish]]: without a sub the renewed token \
         is another publisher, and its repetition would be stored twice"
    )]
    KeyWithoutSubject,
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
    #[error("a batch names the channel of each event in its line, and has no query but replicas")]
    BatchQuery,
    #[error(
        "too much is being published through this replica, or by this publisher: bodies may take 64 MiB, and one \
         publisher no more than is left; nothing is stored"
    )]
    Busy,
    #[error(
        "the body did not come in time: it has 30 s, and 5 s from each part to the next; nothing is stored"
    )]
    BodyTimeout,
    #[error("the body broke off")]
    BrokenBody,
    #[error("{0}")]
    Rejected(#[from] Rejected),
    #[error("{0}")]
    NotAppended(#[from] NotAppended),
    #[error(
        "the head of the request is larger than {} bytes: send a shorter query, fewer cookies or shorter headers",
        MAX_HEAD
    )]
    HeaderTooLarge,
    #[error(
        "the head of the request is not one of HTTP/1.1: is this a connection with TLS, or are there spaces in the URL?"
    )]
    BadHead,
    #[error(
        "without rules everything is public, so requests have to name localhost or an IP address as their host: set \
         --public-channels (--public-channels '*' for everybody, everything), [jwt] or [forward_auth]"
    )]
    ForeignHost,
    #[error("there is nothing here; events are at /events?channel=...")]
    NotFound,
    #[error(
        "this path takes only the methods in the header Allow: GET and POST for /events, POST for /tickets"
    )]
    MethodNotAllowed,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Self::PublishingOff | Self::TicketsOff => StatusCode::FORBIDDEN,
            Self::Denied(denied) => match denied {
                Denied::NoCredential
                | Denied::Token(_)
                | Denied::Ticket
                | Denied::Backend { known: false } => StatusCode::UNAUTHORIZED,
                Denied::Channel(_)
                | Denied::CrossSite
                | Denied::Publishing
                | Denied::Backend { known: true } => StatusCode::FORBIDDEN,
                Denied::RefusedTokens | Denied::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::TooFast(_) | Self::TooManyTickets(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Limit(_) | Self::HistoryUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) | Self::TooManyLines(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Rejected(Rejected::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotAppended(NotAppended::NotCopied(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::NotAppended(NotAppended::Impossible) => StatusCode::CONFLICT,
            Self::NotAppended(NotAppended::KeyReused) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotAppended(_) | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoChannel => Code::NoChannel,
            Self::BadChannel(_) => Code::BadChannel,
            Self::TooManyChannels(_) => Code::TooManyChannels,
            Self::BadQuery => Code::BadQuery,
            Self::UnknownParameter { .. } => Code::UnknownParameter,
            Self::UnknownHeader { .. } => Code::UnknownHeader,
            Self::BadSince => Code::BadSince,
            Self::PublishingOff => Code::PublishingOff,
            Self::TicketsOff => Code::TicketsOff,
            Self::BadTicketRequest(_) => Code::BadTicketRequest,
            Self::Denied(denied) => match denied {
                Denied::NoCredential => Code::Unauthorized,
                Denied::Token(refused) => token_code(*refused),
                Denied::Ticket => Code::BadTicket,
                Denied::Backend { known: false } => Code::BackendUnauthorized,
                Denied::Backend { known: true } => Code::BackendForbidden,
                Denied::Channel(_) | Denied::Publishing => Code::ForbiddenChannel,
                Denied::CrossSite => Code::CrossSite,
                Denied::RefusedTokens => Code::MaxRefusedTokensPerAddress,
                Denied::Unavailable => Code::AuthorizationUnavailable,
            },
            Self::Limit(limit) => limit.code(),
            Self::TooFast(_) => Code::MaxPublishRate,
            Self::TooManyTickets(_) => Code::MaxTickets,
            Self::BadHeartbeat => Code::BadHeartbeat,
            Self::BadLimit(_) | Self::LimitOfStream => Code::BadLimit,
            Self::HistoryUnavailable => Code::HistoryUnavailable,
            Self::OneChannel => Code::OneChannel,
            Self::BadSetting(_) => Code::BadSetting,
            Self::BadKey(_) | Self::KeyWithoutSubject => Code::BadIdempotencyKey,
            Self::MediaType => Code::UnsupportedMediaType,
            Self::TooLarge(_) | Self::Rejected(Rejected::TooLarge) => Code::TooLarge,
            Self::TooManyLines(_) => Code::TooManyLines,
            Self::EmptyBatch => Code::EmptyBatch,
            Self::BadLine(_) => Code::BadLine,
            Self::BodyTimeout => Code::BodyTimeout,
            Self::BrokenBody => Code::BrokenBody,
            Self::Rejected(Rejected::NotUtf8) => Code::NotUtf8,
            Self::Rejected(Rejected::BadEnvelope) => Code::BadEnvelope,
            Self::Rejected(Rejected::BadEvent) => Code::BadEvent,
            Self::NotAppended(NotAppended::Impossible) => Code::CannotBeStored,
            Self::NotAppended(NotAppended::KeyReused) => Code::IdempotencyKeyReused,
            Self::NotAppended(NotAppended::Refused) => Code::RedisTakesNoWrites,
            Self::NotAppended(NotAppended::Unreachable) => Code::RedisUnreachable,
            Self::NotAppended(NotAppended::NotCopied(_)) => Code::NotCopied,
            Self::NotAppended(NotAppended::Unknown) => Code::RedisDidNotAnswer,
            Self::Busy => Code::Busy,
            Self::BatchQuery => Code::BatchQuery,
            Self::ForeignHost => Code::ForeignHost,
            Self::NotFound => Code::NotFound,
            Self::HeaderTooLarge => Code::HeaderTooLarge,
            Self::BadHead => Code::BadHead,
            Self::MethodNotAllowed => Code::MethodNotAllowed,
        }
    }
}

fn token_code(refused: TokenRefused) -> Code {
    match refused {
        TokenRefused::Unknown => Code::TokenUnknown,
        TokenRefused::Malformed => Code::TokenMalformed,
        TokenRefused::Algorithm => Code::TokenAlgorithm,
        TokenRefused::UnknownKey => Code::TokenUnknownKey,
        TokenRefused::Signature => Code::TokenSignature,
        TokenRefused::Expired => Code::TokenExpired,
        TokenRefused::NotYetValid => Code::TokenNotYetValid,
        TokenRefused::Audience => Code::TokenAudience,
        TokenRefused::Issuer => Code::TokenIssuer,
        TokenRefused::Subject => Code::TokenSubject,
    }
}

impl Problem {
    /// Whether the problem is temporary.
    pub(super) fn is_temporary(&self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    /// This problem, with the headers of the answer that it replaces. Some of these decide which pages may read it.
    pub(super) fn with_headers_of(self, answer: &Response) -> Response {
        let mut response = self.into_response();
        for (name, value) in answer.headers() {
            if !response.headers().contains_key(name)
                && name != header::HeaderName::from_static("x-accel-buffering")
            {
                response.headers_mut().insert(name.clone(), value.clone());
            }
        }
        response
    }

    pub(super) fn to_json(&self) -> Value {
        let status = self.status();
        let mut json = json!({
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": self.code().as_str(),
            "detail": self.to_string(),
        });
        if let Self::NotAppended(NotAppended::NotCopied(id)) = self {
            json["id"] = json!(id.map(|id| id.to_string()));
        }
        json
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        let mut response = (self.status(), headers, self.to_json().to_string()).into_response();
        match self {
            Self::TooFast(wait) | Self::TooManyTickets(wait) => {
                retry_after(&mut response, wait);
            }
            _ if self.is_temporary() => retry_after(&mut response, SOON),
            _ => {}
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3: without a credential in the request, the answer names no error.
            let challenge = match self {
                Self::Denied(Denied::Token(_)) => {
                    "Bearer realm=\"sse-gateway\", error=\"invalid_token\""
                }
                _ => "Bearer realm=\"sse-gateway\"",
            };
            let challenge = HeaderValue::from_static(challenge);
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Time after which a temporary problem may be over.
pub(super) const SOON: Duration = Duration::from_secs(2);

pub(super) fn retry_after(response: &mut Response, wait: Duration) {
    let seconds = HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64);
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
}

pub(crate) async fn not_found() -> Problem {
    Problem::NotFound
}

pub(crate) async fn method_not_allowed() -> Problem {
    Problem::MethodNotAllowed
}
