//! A batch: a line for each event, and a line of the answer for each line.

use std::{borrow::Cow, collections::HashMap};

use access::Caller;
use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use broker::{Append, Envelope, NotAppended, Payload};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use sha1::{Digest as _, Sha1};

use super::{
    Origin,
    body::{Received, room_for},
    cause,
};
use crate::http::{
    AppState, answer,
    error::{Problem, SOON, retry_after},
};

/// Events of a batch at most.
const MAX_LINES: usize = 1000;
/// Maximum bytes of the answer to a line that was read: an id, or the reason why Redis did not store the event.
const LINE_ANSWER: usize = 512;

/// A line of a batch: an envelope and its channel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    retry: Option<&'a RawValue>,
    #[serde(borrow)]
    end: Option<&'a RawValue>,
}

impl<'a> Line<'a> {
    fn envelope(&self) -> Envelope<'a> {
        Envelope {
            event: self.event,
            data: self.data,
            retry: self.retry,
            end: self.end,
        }
    }
}

impl AppState {
    /// One envelope with its channel per line; one answer per line.
    pub(super) async fn batch(
        &self,
        origin: &Origin<'_>,
        caller: &Caller<'_>,
        key: Option<&str>,
        body: Received,
    ) -> Result<Response, Problem> {
        let Received { bytes, mut share } = body;
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty());
        let mut keys = LineKeys::new(key);
        let (mut events, mut results) = (Vec::new(), Vec::new());
        let mut room = 0;
        for line in lines {
            if results.len() == MAX_LINES {
                return Err(Problem::TooManyLines(MAX_LINES));
            }
            match self.line(caller, line) {
                Ok(event) => {
                    events.push(Append {
                        idempotency_key: keys.of(line),
                        ..event
                    });
                    results.push(None);
                    room += LINE_ANSWER;
                }
                Err(problem) => {
                    let answer = refused_line(&problem);
                    room += answer.len();
                    results.push(Some((problem, answer)));
                }
            }
        }
        if results.is_empty() {
            return Err(Problem::EmptyBatch);
        }
        self.in_time(caller, results.len(), key.is_some())?;
        // Room is taken before anything is stored, because the client needs an answer after that.
        room_for(&mut share, room).await?;
        let mut appended = self.append(origin, events).await.into_iter();
        let mut answer = String::new();
        let (mut waits, mut is_copied) = (false, true);
        for result in results {
            let refused = match result {
                Some(refused) => refused,
                None => match appended.next().expect("there is a result for each event") {
                    Ok(id) => {
                        let id = json!({ "id": id.map(|id| id.to_string()) });
                        answer += &id.to_string();
                        answer.push('\n');
                        continue;
                    }
                    Err(error) => {
                        let problem = Problem::from(error);
                        let line = refused_line(&problem);
                        (problem, line)
                    }
                },
            };
            self.metrics.not_appended(refused.0.code());
            waits |= refused.0.is_temporary();
            is_copied &= !matches!(refused.0, Problem::NotAppended(NotAppended::NotCopied(_)));
            answer += &refused.1;
        }
        drop(bytes);
        share.shrink(answer.len());
        let status = match (waits, is_copied) {
            (true, _) => StatusCode::SERVICE_UNAVAILABLE,
            (false, false) => StatusCode::GATEWAY_TIMEOUT,
            (false, true) => StatusCode::OK,
        };
        let headers = [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        let mut response = (status, headers, answer).into_response();
        if waits {
            retry_after(&mut response, SOON);
        }
        response.extensions_mut().insert(answer::Room::from(share));
        Ok(response)
    }

    fn line(&self, caller: &Caller<'_>, line: &[u8]) -> Result<Append, Problem> {
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| Problem::BadLine(cause(&error)))?;
        let channel = self.partitions.channel(&line.channel)?;
        caller.may_publish(channel.as_str())?;
        let payload = line.envelope().encode();
        if payload.len() > self.max_payload {
            return Err(Problem::TooLarge(self.max_payload));
        }
        Ok(Append {
            channel,
            is_end: Payload::parse(&payload)?.end,
            payload,
            idempotency_key: None,
        })
    }
}

/// The answer to a line that is not stored.
fn refused_line(problem: &Problem) -> String {
    let mut line = json!({ "error": problem.to_json() }).to_string();
    line.push('\n');
    line
}

/// Derives a key for each line from the key of a batch. The key of a line depends on its content, not on its position.
/// So a client can send the lines that were not stored again, without the other lines.
struct LineKeys<'a> {
    key: Option<&'a str>,
    /// Number of occurrences of each line.
    seen: HashMap<[u8; 20], u32>,
}

impl<'a> LineKeys<'a> {
    fn new(key: Option<&'a str>) -> Self {
        Self {
            key,
            seen: HashMap::new(),
        }
    }

    fn of(&mut self, line: &[u8]) -> Option<String> {
        let key = self.key?;
        let digest: [u8; 20] = Sha1::digest(line).into();
        let times = self.seen.entry(digest).or_default();
        *times += 1;
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        // The key of a single event has no line break, so the two kinds of keys differ.
        Some(format!("{key}\n{hex}\n{times}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_line_depends_on_its_content_and_on_its_repetition() {
        let mut first = LineKeys::new(Some("k"));
        let keys: Vec<_> = [b"a", b"b", b"a"].map(|line| first.of(line)).into();
        assert_ne!(keys[0], keys[2]);
        let mut again = LineKeys::new(Some("k"));
        assert_eq!(again.of(b"b"), keys[1]);
        assert_eq!(
            [again.of(b"a"), again.of(b"a")],
            [keys[0].clone(), keys[2].clone()]
        );
        assert_ne!(LineKeys::new(Some("l")).of(b"a"), keys[0]);
        assert_eq!(LineKeys::new(None).of(b"a"), None);
    }
}
