//! Reads a stream for the doctor.

use std::{
    fmt,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{Failure, describe, hints, wrong};

/// How long an event is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum bytes of an event. The expected events are tiny.
const MAX_EVENT: usize = 1 << 20;

/// A stream under observation.
pub(super) struct TestStream {
    response: reqwest::Response,
    parser: sse::Parser,
    /// Events that have arrived and were not examined yet.
    pub(super) events: Vec<TestEvent>,
    pub(super) last_event_id: String,
    /// When the last bytes arrived.
    pub(super) heard: Instant,
    /// An event of the doctor arrived without an id, so it is in no history.
    pub(super) unrecorded: bool,
}

/// Why the next event did not arrive.
#[derive(Debug)]
pub(super) enum Broken {
    /// The stream ended in an orderly way.
    Ended,
    /// The stream was cut, for this reason.
    Cut(String),
    /// The stream is open.
    Silent,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the stream was ended"),
            Self::Cut(error) => write!(f, "the stream was cut ({error})"),
            Self::Silent => write!(f, "nothing arrived within {PATIENCE:?}"),
        }
    }
}

/// Why a stream did not begin with `gateway.open`.
#[derive(Debug)]
pub(super) enum NoGreeting {
    /// Nothing came.
    Broken(Broken),
    /// An event of this type came.
    Other(String),
}

impl From<NoGreeting> for Failure {
    fn from(error: NoGreeting) -> Self {
        const WHAT: &str = "first event";
        match error {
            NoGreeting::Broken(Broken::Ended) => wrong(
                WHAT,
                "the stream ended before it: clients are asked to come back later. Either no replica is ready (what does \
                 /readyz say?), or a limit is reached (sse_gateway_refused_total says which)"
                    .to_owned(),
            ),
            NoGreeting::Broken(error @ Broken::Silent) => wrong(
                WHAT,
                format!("{error}, though the stream is open: {}", hints::UNBUFFER),
            ),
            NoGreeting::Broken(error @ Broken::Cut(_)) => wrong(
                WHAT,
                format!("{error} before it: a replica has died, or the balancer cuts streams"),
            ),
            NoGreeting::Other(kind) => wrong(
                WHAT,
                format!("it is {kind:?} and not gateway.open: is this a gateway?"),
            ),
        }
    }
}

/// Why a published event did not arrive as expected.
#[derive(Debug)]
pub(super) enum Unexpected {
    /// Nothing came.
    Broken(Broken),
    /// The gateway reported missing events.
    Gap(String),
    /// Another event of this run came.
    Other { expected: u32, came: String },
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => error.fmt(f),
            Self::Gap(data) => write!(f, "a gap event came: {data}"),
            Self::Other { expected, came } => {
                write!(f, "event {expected} was expected, and {came} came")
            }
        }
    }
}

pub(super) struct TestEvent {
    pub(super) kind: String,
    pub(super) data: String,
    id: String,
}

impl TestStream {
    /// Reads this answer as a stream after an id, unless the id is empty.
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

    /// How many comments have arrived.
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
            events.push(TestEvent {
                kind: event.event.to_owned(),
                data: event.data.to_owned(),
                id: event.id.to_owned(),
            });
        });
        // Events of others on the same channel may have any size.
        if parsed.is_err() {
            self.parser = sse::Parser::new(MAX_EVENT);
        }
        Ok(true)
    }

    /// The next event.
    async fn next(&mut self) -> Result<TestEvent, Broken> {
        let reading = async {
            while self.events.is_empty() {
                match self.read().await {
                    Ok(true) => {}
                    Ok(false) => return Err(Broken::Ended),
                    Err(error) => return Err(Broken::Cut(describe(&error))),
                }
            }
            Ok(self.events.remove(0))
        };
        let event = timeout(PATIENCE, reading).await;
        let event = event.map_err(|_| Broken::Silent)??;
        if !event.id.is_empty() {
            self.last_event_id.clone_from(&event.id);
        }
        Ok(event)
    }

    /// The first event, and the replica that it names.
    pub(super) async fn greeting(&mut self) -> Result<Option<String>, NoGreeting> {
        let event = self.next().await.map_err(NoGreeting::Broken)?;
        if event.kind != "gateway.open" {
            return Err(NoGreeting::Other(event.kind));
        }
        let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
        Ok(data["replica"].as_str().map(str::to_owned))
    }

    /// The event of this number, which must be the next of this run.
    pub(super) async fn expect(&mut self, run: &str, number: u32) -> Result<(), Unexpected> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let before = self.last_event_id.clone();
            let event = self.next().await.map_err(Unexpected::Broken)?;
            if event.kind == "gateway.gap" {
                return Err(Unexpected::Gap(event.data));
            }
            let Some(found) = event.data.strip_prefix(run) else {
                continue;
            };
            // An event without an id keeps the previous one.
            self.unrecorded |= event.id == before;
            let found = found.trim();
            return match found.parse::<u32>() {
                Ok(found) if found == number => Ok(()),
                _ => Err(Unexpected::Other {
                    expected: number,
                    came: found.to_owned(),
                }),
            };
        }
        Err(Unexpected::Broken(Broken::Silent))
    }
}
