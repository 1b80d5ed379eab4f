//! `Problem`: the closed set of answers that are not a stream, as RFC 9457 problem details.
//!
//! A browser's EventSource gives up for good on any status but 200. So only what the page has to
//! mend is answered with 4xx here; whatever may be better in a moment is a stream that ends.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hub::BadChannel;

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
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::json!({
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": self.code(),
            "detail": self.to_string(),
        });
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        (status, headers, body.to_string()).into_response()
    }
}

pub(crate) async fn not_found() -> Problem {
    Problem::NotFound
}

pub(crate) async fn method_not_allowed() -> Problem {
    Problem::MethodNotAllowed
}
