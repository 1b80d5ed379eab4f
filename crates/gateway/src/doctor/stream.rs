//! A stream as the doctor reads it.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Failure, UNBUFFER, describe, wrong};

/// How long an event is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an event at most; those that are looked for are tiny.
const MAX_EVENT: usize = 1 << 20;
/// What is said of a stream that ended as HTTP says.
const ENDED: &str = "the stream was ended";

/// A stream under observation.
pub(super) struct Stream {
    response: reqwest::Response,
    parser: sse::Parser,
    /// What has arrived and was not looked at.
    pub(super) events: Vec<Event>,
    pub(super) last_event_id: String,
    /// When the last bytes came.
    pub(super) heard: Instant,
    /// An event of the doctor's own came without an id: there is no history that it is in.
    pub(super) unrecorded: bool,
}

pub(super) struct Event {
    pub(super) kind: String,
    data: String,
    id: String,
}

impl Stream {
    /// What this answer is, behind an id unless it is empty.
    pub(super) fn new(response: reqwest::Response, id: &str) -> Self {
        Self {
            response,
            parser: sse::Parser::new(MAX_EVENT),
            events: Vec::new(),
            last_event_id: id.to_owned(),
            heard: Instant::now(),
            unrecorded: false,
        }
    }

    /// The answer itself.
    pub(super) fn response(&self) -> &reqwest::Response {
        &self.response
    }

    /// How many comments have come.
    pub(super) fn comments(&self) -> u64 {
        self.parser.comments()
    }

    /// Reads once; false at the end.
    pub(super) async fn read(&mut self) -> Result<bool, reqwest::Error> {
        let Some(chunk) = self.response.chunk().await? else {
            return Ok(false);
        };
        self.heard = Instant::now();
        let events = &mut self.events;
        let parsed = self.parser.push(&chunk, |event| {
            events.push(Event {
                kind: event.event.to_owned(),
                data: event.data.to_owned(),
                id: event.id.to_owned(),
            });
        });
        // Foreign events on the same channel may be as large as they like.
        if parsed.is_err() {
            self.parser = sse::Parser::new(MAX_EVENT);
        }
        Ok(true)
    }

    /// The next event.
    async fn next(&mut self) -> Result<Event, String> {
        let reading = async {
            while self.events.is_empty() {
                match self.read().await {
                    Ok(true) => {}
                    Ok(false) => return Err(ENDED.to_owned()),
                    Err(error) => return Err(describe(&error)),
                }
            }
            Ok(self.events.remove(0))
        };
        let event = match timeout(PATIENCE, reading).await {
            Ok(event) => event?,
            Err(_) => return Err(format!("nothing arrived within {PATIENCE:?}")),
        };
        if !event.id.is_empty() {
            self.last_event_id.clone_from(&event.id);
        }
        Ok(event)
    }

    /// The first event, and the replica that it names.
    pub(super) async fn greeting(&mut self) -> Result<Option<String>, Failure> {
        let event = match self.next().await {
            Ok(event) => event,
            Err(error) if error == ENDED => {
                return Err(wrong(
                    "first event",
                    "the stream ended before it: clients are asked to come back later. Either no replica is ready (what does \
                     /readyz say?), or a limit is reached (sse_gateway_refused_total says which)"
                        .to_owned(),
                ));
            }
            Err(error) => {
                return Err(wrong(
                    "first event",
                    format!("{error}, though the stream is open: {UNBUFFER}"),
                ));
            }
        };
        if event.kind != "gateway.open" {
            return Err(wrong(
                "first event",
                format!(
                    "it is {:?} and not gateway.open: is this a gateway?",
                    event.kind
                ),
            ));
        }
        let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
        Ok(data["replica"].as_str().map(str::to_owned))
    }

    /// The event of this number, which must be the next of this run.
    pub(super) async fn expect(&mut self, run: &str, number: u32) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let before = self.last_event_id.clone();
            let event = self.next().await?;
            if event.kind == "gateway.gap" {
                return Err(format!("a gap was told: {}", event.data));
            }
            let Some(found) = event.data.strip_prefix(run) else {
                continue;
            };
            // Where none comes the one before stays.
            self.unrecorded |= event.id == before;
            return match found.trim().parse::<u32>() {
                Ok(found) if found == number => Ok(()),
                _ => Err(format!(
                    "event {number} was expected, and {} came",
                    found.trim()
                )),
            };
        }
        Err(format!("event {number} did not arrive within {PATIENCE:?}"))
    }
}
