//! The query of a request.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error::Problem;

/// Keys, and values that are not decoded yet.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// application/x-www-form-urlencoded, but strict about UTF-8: a name must not turn into another.
pub(super) fn decode(value: &str) -> Result<String, Problem> {
    let spaced: Cow<'_, str> = match value.contains('+') {
        true => value.replace('+', " ").into(),
        false => value.into(),
    };
    let decoded = percent_decode_str(&spaced)
        .decode_utf8()
        .map_err(|_| Problem::BadQuery)?;
    Ok(decoded.into_owned())
}
