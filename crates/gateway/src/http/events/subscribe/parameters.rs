//! `SubscribeRequest`: the query of a request to subscribe, and its last event id.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use access::UrlCredentials;
use axum::http::HeaderMap;
#[cfg(fuzzing)]
use axum::response::IntoResponse as _;
use hub::{Channel, LastEventId, Partitions, Start};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::http::{
    error::Problem,
    events::{page, query},
};

/// Maximum number of events for `since=-N`.
const MAX_NEWEST: u32 = 10_000;
/// Parameters of the query. Libraries that cannot send the header have their own spelling of `last_event_id`, and all
/// spellings are accepted.
pub(crate) const PARAMETERS: [&str; 7] = [
    "channel",
    "last_event_id",
    "since",
    "limit",
    "heartbeat",
    "access_token",
    "ticket",
];
/// The interval of heartbeats that a stream may ask for. A shorter one costs more than it is worth, and a longer one lets
/// proxies and this gateway take the connection for dead.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(20);

/// The contents of a request.
pub(super) struct SubscribeRequest {
    pub(super) channels: Vec<Channel>,
    pub(super) start: Option<Start>,
    /// The limit of a page.
    pub(super) limit: Option<usize>,
    pub(super) heartbeat: Option<Duration>,
    pub(super) credentials: UrlCredentials,
}

/// Reads the query, and the header with the last id.
pub(super) fn read(
    partitions: Partitions,
    max_channels: usize,
    query: &str,
    headers: &HeaderMap,
    backends: &[String],
) -> Result<SubscribeRequest, Problem> {
    query::check_header(headers, "last-event-id")?;
    let mut channels = Vec::new();
    let (mut last_event_id, mut since, mut limit) = (None, None, None);
    let mut heartbeat = None;
    let mut credentials = UrlCredentials::default();
    for (key, value) in query::pairs(query) {
        match key {
            "channel" => {
                channels.push(partitions.channel(&query::decode(value)?)?);
                if channels.len() > max_channels {
                    return Err(Problem::TooManyChannels(max_channels));
                }
            }
            "since" => since = Some(query::decode(value)?),
            "limit" => {
                limit = match value.parse() {
                    Ok(limit @ 1..=page::MAX_EVENTS) => Some(limit),
                    _ => return Err(Problem::BadLimit(page::MAX_EVENTS)),
                }
            }
            "heartbeat" => heartbeat = Some(parse_heartbeat(&query::decode(value)?)?),
            "access_token" => credentials.access_token = Some(query::decode(value)?),
            "ticket" => credentials.ticket = Some(query::decode(value)?),
            // Of several ids the last one counts, because a library adds its own to the URL that it was given.
            _ if is_last_event_id(key) => {
                let id = query::decode(value)?;
                last_event_id = Some(id).filter(|id| !id.is_empty()).or(last_event_id);
            }
            _ if backends.iter().any(|name| name == key) => {}
            _ => query::unknown(key, &PARAMETERS)?,
        }
    }
    if channels.is_empty() {
        return Err(Problem::NoChannel);
    }
    let start = match (resume(partitions, headers, last_event_id.as_deref()), since) {
        (Some(start), _) => Some(start),
        (None, Some(since)) => Some(parse_since(partitions, &since)?),
        (None, None) => None,
    };
    Ok(SubscribeRequest {
        channels,
        start,
        limit,
        heartbeat,
        credentials,
    })
}

/// Whether the gateway reads a query parameter itself, so that it cannot be one of a backend.
pub(crate) fn is_own_parameter(name: &str) -> bool {
    is_last_event_id(name) || PARAMETERS.contains(&name)
}

fn is_last_event_id(key: &str) -> bool {
    query::is_spelled_like(key, "lasteventid")
}

/// For the fuzzers: checks that parsed requests are within the bounds.
#[cfg(fuzzing)]
pub(in crate::http) fn check(partitions: Partitions, query: &str, headers: &HeaderMap) {
    match read(partitions, 100, query, headers, &[]) {
        Ok(asked) => {
            assert!((1..=100).contains(&asked.channels.len()));
            assert!(
                asked
                    .limit
                    .is_none_or(|limit| (1..=page::MAX_EVENTS).contains(&limit))
            );
            for channel in asked.channels {
                let again = partitions.channel(channel.as_str());
                assert_eq!(
                    again.expect("it is a name").partition(),
                    channel.partition()
                );
            }
        }
        Err(problem) => assert!(problem.into_response().status().is_client_error()),
    }
}

/// The client's position. The header is from the browser itself, and is newer than the URL. A malformed id is not
/// refused, because the browser would never reconnect.
fn resume(partitions: Partitions, headers: &HeaderMap, query: Option<&str>) -> Option<Start> {
    let header = headers
        .get("last-event-id")
        .filter(|value| !value.is_empty());
    let id = match header {
        Some(value) => value.to_str().map_err(|_| ()),
        None => Ok(query.filter(|id| !id.is_empty())?),
    };
    let id = id.and_then(|id| parse_id(partitions, id).ok_or(()));
    Some(id.map_or(Start::Malformed, Start::After))
}

/// A position that this deployment may have given out, before or after it was moved to more partitions.
fn parse_id(partitions: Partitions, text: &str) -> Option<LastEventId> {
    let id: LastEventId = text.parse().ok()?;
    id.fits(partitions).then_some(id)
}

fn parse_heartbeat(text: &str) -> Result<Duration, Problem> {
    let interval = humantime::parse_duration(text).ok();
    let interval = interval.filter(|interval| HEARTBEATS.contains(interval));
    interval.ok_or(Problem::BadHeartbeat)
}

fn parse_since(partitions: Partitions, text: &str) -> Result<Start, Problem> {
    if text == "start" {
        return Ok(Start::Oldest);
    }
    if let Some(count) = text.strip_prefix('-') {
        return match count.parse::<u32>() {
            Ok(count @ 1..=MAX_NEWEST) => Ok(Start::Newest(count)),
            _ => Err(Problem::BadSince),
        };
    }
    if let Some(id) = parse_id(partitions, text) {
        return Ok(Start::After(id));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Start::Time).map_err(|_| Problem::BadSince);
    }
    if let Ok(age) = humantime::parse_duration(text) {
        let since = SystemTime::now().checked_sub(age);
        let since = since.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let milliseconds = since.unwrap_or_default().as_millis();
        return Ok(Start::Time(u64::try_from(milliseconds).unwrap_or(0)));
    }
    // An unescaped plus sign of a time zone has become a space.
    let time =
        OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339).map_err(|_| Problem::BadSince)?;
    let milliseconds = time.unix_timestamp_nanos() / 1_000_000;
    Ok(Start::Time(u64::try_from(milliseconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use hub::EventId;

    use super::*;

    fn check(query: &str, header: Option<&[u8]>) -> Result<(Vec<String>, Start), String> {
        let partitions = Partitions::new(1).unwrap();
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("last-event-id", value.try_into().unwrap());
        }
        let asked = read(partitions, 3, query, &headers, &["session".to_owned()]);
        let asked = asked.map_err(|problem| problem.code().as_str().to_owned())?;
        let names = asked.channels.iter().map(ToString::to_string).collect();
        Ok((names, asked.start.unwrap_or(Start::Live)))
    }

    fn start(query: &str, header: Option<&[u8]>) -> Start {
        check(&format!("channel=a&{query}"), header).unwrap().1
    }

    fn after(ms: u64, seq: u64) -> Start {
        Start::After(LastEventId::One(EventId { ms, seq }))
    }

    #[test]
    fn channels_are_decoded_strictly() {
        let names = |query| check(query, None).map(|(names, _)| names);
        assert_eq!(
            names("channel=a&channel=b%20c&_=1&session=x&channel=%C3%BC").unwrap(),
            ["a", "b c", "ü"]
        );
        assert_eq!(names("channel=a+b").unwrap(), ["a b"]);
        assert_eq!(names("channel=%2B%26%3D%2F").unwrap(), ["+&=/"]);
        assert_eq!(names("").unwrap_err(), "no_channel");
        assert_eq!(names("chanel=a").unwrap_err(), "unknown_parameter");
        assert_eq!(names("channel=a&x=1").unwrap_err(), "unknown_parameter");
        assert_eq!(names("channel=").unwrap_err(), "bad_channel");
        assert_eq!(names("channel=%00").unwrap_err(), "bad_channel");
        assert_eq!(names("channel=a%0Ab").unwrap_err(), "bad_channel");
        assert_eq!(names("channel=%FF").unwrap_err(), "bad_query");
        assert_eq!(
            names("channel=a&channel=b&channel=c&channel=d").unwrap_err(),
            "too_many_channels"
        );
    }

    #[test]
    fn the_header_overrides_the_query_and_both_override_since() {
        assert_eq!(
            start("last_event_id=1-1&since=2-2", Some(b"3-3")),
            after(3, 3)
        );
        assert_eq!(start("last_event_id=1-1&since=2-2", Some(b"")), after(1, 1));
        assert_eq!(start("last_event_id=1-1&since=2-2", None), after(1, 1));
        assert_eq!(start("last_event_id=&since=2-2", None), after(2, 2));
        assert_eq!(start("", None), Start::Live);
        // Spellings of event-source-polyfill, reconnecting-eventsource and others.
        for name in ["lastEventId", "Last-Event-ID", "lastEventID"] {
            assert_eq!(start(&format!("since=start&{name}=1-1"), None), after(1, 1));
            let newer = format!("last_event_id=1-1&{name}=2-2&{name}=");
            assert_eq!(start(&newer, None), after(2, 2), "{name}");
        }
    }

    #[test]
    fn a_limit_is_within_bounds() {
        for limit in ["0", "1001", "-1", "x", ""] {
            let refused = check(&format!("channel=a&limit={limit}"), None);
            assert_eq!(refused.unwrap_err(), "bad_limit", "{limit}");
        }
    }

    #[test]
    fn a_foreign_id_is_malformed_and_never_an_error() {
        for id in [
            &b"-1"[..],
            b"abc",
            b"1",
            b"\xff",
            b"0x10-1",
            b"1471851398:0",
            &[b'9'; 5000],
        ] {
            assert_eq!(
                start("", Some(id)),
                Start::Malformed,
                "{}",
                id.escape_ascii()
            );
        }
        assert_eq!(start("last_event_id=%5B%7B%7D%5D", None), Start::Malformed);
    }

    #[test]
    fn since_takes_ids_times_and_counts() {
        assert_eq!(start("since=start", None), Start::Oldest);
        assert_eq!(start("since=-5", None), Start::Newest(5));
        assert_eq!(
            start("since=1763800000000", None),
            Start::Time(1_763_800_000_000)
        );
        assert_eq!(
            start("since=1763800000000-2", None),
            after(1_763_800_000_000, 2)
        );
        assert_eq!(
            start("since=1970-01-01T00:00:01.5Z", None),
            Start::Time(1500)
        );
        assert_eq!(
            start("since=1970-01-01T01:00:00+01:00", None),
            Start::Time(0)
        );
        let Start::Time(since) = start("since=1h30m", None) else {
            panic!("an age is a time");
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now - Duration::from_millis(since);
        assert!(age.abs_diff(Duration::from_secs(5400)) < Duration::from_secs(60));
        assert_eq!(start("since=100000y", None), Start::Time(0));
        for since in [
            "-0",
            "--1",
            "-",
            "-99999",
            "yesterday",
            "",
            "1.5",
            "2026-01-31",
        ] {
            let refused = check(&format!("channel=a&since={since}"), None);
            assert_eq!(refused.unwrap_err(), "bad_since", "{since:?}");
        }
    }
}
