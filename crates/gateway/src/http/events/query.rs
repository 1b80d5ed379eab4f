//! The query of a request.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use crate::http::error::Problem;
use text::nearest;

/// Keys, and values that are not decoded yet.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// application/x-www-form-urlencoded, but strict about UTF-8, because a name must not turn into another.
pub(crate) fn decode(value: &str) -> Result<String, Problem> {
    let spaced: Cow<'_, str> = match value.contains('+') {
        true => value.replace('+', " ").into(),
        false => value.into(),
    };
    let decoded = percent_decode_str(&spaced)
        .decode_utf8()
        .map_err(|_| Problem::BadQuery)?;
    Ok(decoded.into_owned())
}

/// Checks a query parameter that the route does not know. Names of cache busters begin with `_` and are ignored, as
/// `_=1763800000000`.
///
/// # Errors
/// For all other unknown names, which would otherwise be ignored silently.
pub(crate) fn unknown(name: &str, known: &[&'static str]) -> Result<(), Problem> {
    if name.starts_with('_') {
        return Ok(());
    }
    let advice = match (nearest(name, known.iter().copied()), known) {
        (_, []) => "this route has none".to_owned(),
        (Some(known), _) => format!("did you mean {known}?"),
        (None, _) => format!("there are {}", known.join(", ")),
    };
    let name = name.chars().take(64).collect();
    Err(Problem::UnknownParameter { name, advice })
}

/// Refuses a header whose name is another spelling of `ours`.
///
/// # Errors
/// When such a header is present, and `ours` is not.
pub(crate) fn check_header(headers: &HeaderMap, ours: &'static str) -> Result<(), Problem> {
    if headers.contains_key(ours) {
        return Ok(());
    }
    let is_meant = |name: &&HeaderName| {
        let name = name.as_str();
        is_spelled_like(name.strip_prefix("x-").unwrap_or(name), ours)
    };
    match headers.keys().find(is_meant) {
        Some(name) => Err(Problem::UnknownHeader {
            name: name.to_string(),
            ours,
        }),
        None => Ok(()),
    }
}

/// Whether two names differ at most in `-`, `_` and case. Nothing is copied: the headers of each request are compared.
pub(crate) fn is_spelled_like(name: &str, other: &str) -> bool {
    letters(name).eq(letters(other))
}

/// A name without `_` and `-`, in lower case.
fn letters(name: &str) -> impl Iterator<Item = u8> {
    let letters = name.bytes().filter(|byte| !matches!(byte, b'_' | b'-'));
    letters.map(|byte| byte.to_ascii_lowercase())
}
