//! `PublishHead`: the properties of a body, from the head of its request.

use axum::http::{HeaderMap, header};

use crate::http::{error::Problem, events::query};

/// Maximum bytes of a batch. A partition's share is stored in one step, and published to subscribers. At most 32 MB may
/// wait for each subscriber.
const MAX_BATCH: usize = 4 << 20;
/// Bytes of an idempotency key at most.
const MAX_KEY: usize = 256;

/// The properties of a body, from the head of its request.
pub(super) struct PublishHead {
    pub(super) is_batch: bool,
    pub(super) key: Option<String>,
    /// Bytes at most.
    pub(super) limit: usize,
}

impl PublishHead {
    pub(super) fn read(headers: &HeaderMap, max_payload: usize) -> Result<Self, Problem> {
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
