//! Reads the answer of the backend.

use http::{HeaderMap, HeaderName, StatusCode};
use text::{list, nearest};

use crate::{
    clock::now,
    denied::Denied,
    grant::{Grant, MAX_SUBJECT},
    pattern::Patterns,
};

/// Headers that narrow a 2xx answer.
const SUBSCRIBE: &str = "x-sse-subscribe";
const SUBJECT: &str = "x-sse-subject";
const EXPIRES_IN: &str = "x-sse-expires-in";
/// Sent to the backend. If the backend echoes it, it narrows nothing.
pub(super) const CHANNELS: &str = "x-sse-channels";
const KNOWN: [&str; 4] = [SUBSCRIBE, SUBJECT, EXPIRES_IN, CHANNELS];

/// Reads an answer. An answer that neither allows nor refuses is an error. The request contained `names`. The backend
/// has seen them, so a 2xx answer allows them all unless its headers narrow it.
pub(super) fn read(
    status: StatusCode,
    headers: &HeaderMap,
    names: Vec<String>,
) -> Result<Result<Grant, Denied>, String> {
    match status {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED => return Ok(Err(Denied::Backend { known: false })),
        StatusCode::FORBIDDEN => return Ok(Err(Denied::Backend { known: true })),
        status => return Err(format!("answered {status}")),
    }
    let is_unknown =
        |name: &&HeaderName| name.as_str().starts_with("x-sse-") && !KNOWN.contains(&name.as_str());
    if let Some(name) = headers.keys().find(is_unknown) {
        // The header may be meant to narrow the answer.
        let meant = nearest(name.as_str(), KNOWN).unwrap_or("none of ours");
        return Err(format!("answered {name}, which is unknown: {meant}?"));
    }
    let unreadable = |name: &str| format!("answered {name} with what cannot be read");
    let texts = |name: &'static str| {
        let values = headers.get_all(name).into_iter();
        let texts = values.map(|value| std::str::from_utf8(value.as_bytes()).map(str::trim));
        texts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| unreadable(name))
    };
    let subscribe = match &texts(SUBSCRIBE)?[..] {
        [] => Patterns::of_names(names),
        values => {
            let parts = values.iter().flat_map(|value| list(value));
            Patterns::new(parts.map(str::to_owned))
        }
    };
    let expires = match &texts(EXPIRES_IN)?[..] {
        [] => None,
        [seconds] => {
            let seconds: u64 = seconds.parse().map_err(|_| unreadable(EXPIRES_IN))?;
            if seconds == 0 {
                return Ok(Err(Denied::Backend { known: false }));
            }
            Some(now().saturating_add(seconds))
        }
        _ => return Err(unreadable(EXPIRES_IN)),
    };
    let subject = texts(SUBJECT)?
        .into_iter()
        .find(|subject| !subject.is_empty());
    if subject.is_some_and(|subject| subject.len() > MAX_SUBJECT) {
        return Err(format!(
            "answered {SUBJECT} with more than {MAX_SUBJECT} bytes"
        ));
    }
    Ok(Ok(Grant {
        subject: subject.map(Into::into),
        publisher: None,
        subscribe,
        publish: Patterns::default(),
        expires,
    }))
}
