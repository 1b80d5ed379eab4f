//! `sse-gateway doctor`: looks at a gateway from where clients are, through whatever lies between, and
//! says in plain words what to mend.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, StatusCode, Version, header};
use reqwest::Url;
use tokio::time::{sleep, timeout};

use crate::{access::Secret, tls};

/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(10);
/// An event that is this late was held back by somebody.
const PROMPT: Duration = Duration::from_secs(1);
/// How long an event is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events that are published one by one to see whether each arrives at once.
const EVENTS: u32 = 5;
/// Time between these.
const PACE: Duration = Duration::from_millis(300);
/// Reconnects, and events missed in each.
const RECONNECTS: u32 = 10;
const MISSED: u32 = 2;
/// Bytes of an event at most; those that are looked for are tiny.
const MAX_EVENT: usize = 1 << 20;

/// What to look at, and how.
#[derive(Debug)]
pub struct Doctor {
    /// Where clients connect to, without channels.
    pub(crate) url: Url,
    /// Sent with each request to subscribe.
    pub(crate) headers: HeaderMap,
    /// A channel that may be published to.
    pub(crate) channel: String,
    /// How a publisher reaches it.
    pub(crate) publish: Publish,
    /// How long a stream is left idle.
    pub(crate) idle: Duration,
}

/// How the doctor publishes.
#[derive(Debug)]
pub(crate) enum Publish {
    /// By POST to the same URL, with this token.
    Post(Secret),
    /// By the function, in this Redis.
    Redis(broker::Server),
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It works, and could be better.
    Advice,
    /// It has to be mended.
    Wrong,
}

/// What was looked at, and what there is to say.
#[derive(Debug)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: &'static str,
    /// What is to be said.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Advice => "advice",
            Verdict::Wrong => "WRONG",
        };
        write!(f, "{verdict:<7} {:<12} {}", self.what, self.text)
    }
}

/// A stream under observation.
struct Stream {
    response: reqwest::Response,
    parser: sse::Parser,
    /// What has arrived and was not looked at.
    events: Vec<Event>,
    last_event_id: String,
    /// When the last bytes came.
    heard: Instant,
}

struct Event {
    kind: String,
    data: String,
    id: String,
}

/// Why there is no stream.
type Failure = Finding;

impl Doctor {
    /// One with connections of its own, as another browser's.
    fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // Without TLS the system's certificates are not wanted, and may be missing.
            .danger_accept_invalid_certs(self.url.scheme() == "http")
            .build()
    }

    /// Looks at everything, and tells each finding as it is made. Answers whether nothing is wrong.
    ///
    /// # Errors
    /// When this machine cannot make requests at all.
    pub async fn examine(&self, mut tell: impl FnMut(&Finding)) -> Result<bool, reqwest::Error> {
        tls::choose_provider();
        let client = self.client()?;
        let mut fine = true;
        let mut note = |finding: Finding| {
            fine &= finding.verdict != Verdict::Wrong;
            tell(&finding);
        };
        if let Err(finding) = self.examine_all(&client, &mut note).await {
            note(finding);
        }
        Ok(fine)
    }

    /// The error is the finding after which there is no more to look at.
    async fn examine_all(
        &self,
        client: &reqwest::Client,
        note: &mut impl FnMut(Finding),
    ) -> Result<(), Failure> {
        let mut stream = self.open(client, "").await?;
        note(fine("stream", "200 and text/event-stream".to_owned()));
        note(version(&stream.response));
        let compression = compression(stream.response.headers());
        if compression.verdict == Verdict::Wrong {
            // Nothing more can be read.
            return Err(compression);
        }
        note(compression);
        note(caching(stream.response.headers()));
        stream.greeting().await?;

        let run = format!("{:08x}", fastrand::u32(..));
        let mut number = 0;
        match self.publish(client, &run, &mut number).await {
            Err(error) => note(Finding {
                verdict: Verdict::Advice,
                what: "publish",
                text: format!(
                    "nothing could be published, so that buffering and resume are not looked at: {error}. {}",
                    match self.publish {
                        Publish::Post(_) => "Is the token one that may publish to this channel?",
                        Publish::Redis(_) => "Set SSE_GATEWAY_PUBLISH_TOKEN, or --redis-url",
                    }
                ),
            }),
            Ok(()) => {
                note(self.buffering(client, &mut stream, &run, &mut number).await);
                note(self.resume(client, stream, &run, &mut number).await);
            }
        }
        let stream = self.open(client, "").await?;
        for finding in self.idle(stream).await {
            note(finding);
        }
        Ok(())
    }

    /// Opens a stream, behind an id unless it is empty.
    async fn open(&self, client: &reqwest::Client, id: &str) -> Result<Stream, Failure> {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("channel", &self.channel);
        let mut request = client
            .get(url)
            .headers(self.headers.clone())
            .header(header::ACCEPT, "text/event-stream")
            // As browsers do. It is not undone here, so that it would be seen.
            .header(header::ACCEPT_ENCODING, "gzip, deflate, br, zstd");
        if !id.is_empty() {
            request = request.header("last-event-id", id);
        }
        let response = match timeout(ANSWER, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(wrong("stream", describe(&error))),
            Err(_) => {
                return Err(wrong(
                    "stream",
                    format!(
                        "no answer within {ANSWER:?}. Either nobody is there, or the answer is held back until there is \
                         more of it: {UNBUFFER}"
                    ),
                ));
            }
        };
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_stream = kind.starts_with("text/event-stream");
        if response.status() == StatusCode::OK && is_stream {
            return Ok(Stream {
                response,
                parser: sse::Parser::new(MAX_EVENT),
                events: Vec::new(),
                last_event_id: id.to_owned(),
                heard: Instant::now(),
            });
        }
        Err(wrong("stream", refusal(response.status(), kind)))
    }

    /// Publishes the next event of this run.
    async fn publish(
        &self,
        client: &reqwest::Client,
        run: &str,
        number: &mut u32,
    ) -> Result<(), String> {
        *number += 1;
        let payload = format!("{run} {number}");
        match &self.publish {
            Publish::Redis(redis) => {
                let published = broker::publish(redis, &self.channel, payload.as_bytes());
                match timeout(ANSWER, published).await {
                    Ok(published) => published.map(drop).map_err(|error| error.to_string()),
                    Err(_) => Err("Redis does not answer".to_owned()),
                }
            }
            Publish::Post(token) => {
                let mut url = self.url.clone();
                url.query_pairs_mut().append_pair("channel", &self.channel);
                let request = client
                    .post(url)
                    .bearer_auth(token.as_str())
                    .header(header::CONTENT_TYPE, "text/plain")
                    .body(payload);
                match timeout(ANSWER, request.send()).await {
                    Ok(Ok(answer)) if answer.status() == StatusCode::CREATED => Ok(()),
                    Ok(Ok(answer)) => Err(format!("POST is answered {}", answer.status())),
                    Ok(Err(error)) => Err(describe(&error)),
                    Err(_) => Err("POST is not answered".to_owned()),
                }
            }
        }
    }

    /// Whether each event arrives when it is published.
    async fn buffering(
        &self,
        client: &reqwest::Client,
        stream: &mut Stream,
        run: &str,
        number: &mut u32,
    ) -> Finding {
        const WHAT: &str = "buffering";
        // The one that showed that publishing works.
        let mut slowest = match stream.expect(run, *number).await {
            Ok(_) => Duration::ZERO,
            Err(error) => {
                return wrong(
                    WHAT,
                    format!(
                        "{error}. Is it the replicas' Redis that was published to? If so, {UNBUFFER}"
                    ),
                );
            }
        };
        for _ in 0..EVENTS {
            sleep(PACE).await;
            if let Err(error) = self.publish(client, run, number).await {
                return wrong("publish", error);
            }
            let published = Instant::now();
            if let Err(error) = stream.expect(run, *number).await {
                return wrong(WHAT, format!("{error}: {UNBUFFER}"));
            }
            slowest = slowest.max(published.elapsed());
        }
        if slowest > PROMPT {
            return wrong(
                WHAT,
                format!("an event took {slowest:.1?} to arrive: {UNBUFFER}"),
            );
        }
        fine(
            WHAT,
            format!(
                "{EVENTS} events, each by itself, the slowest {slowest:.0?} after it was published"
            ),
        )
    }

    /// Whether whoever reconnects is given what it missed, wherever it comes back to.
    async fn resume(
        &self,
        client: &reqwest::Client,
        mut stream: Stream,
        run: &str,
        number: &mut u32,
    ) -> Finding {
        const WHAT: &str = "resume";
        let mut replicas = BTreeSet::new();
        for _ in 0..RECONNECTS {
            let id = stream.last_event_id.clone();
            drop(stream);
            let first = *number + 1;
            for _ in 0..MISSED {
                if let Err(error) = self.publish(client, run, number).await {
                    return wrong("publish", error);
                }
            }
            // Over another connection, which a balancer may send elsewhere.
            let another = match self.client() {
                Ok(another) => another,
                Err(error) => return wrong("stream", describe(&error)),
            };
            stream = match self.open(&another, &id).await {
                Ok(stream) => stream,
                Err(failure) => return failure,
            };
            match stream.greeting().await {
                Ok(replica) => replicas.extend(replica),
                Err(failure) => return failure,
            }
            for expected in first..=*number {
                if let Err(error) = stream.expect(run, expected).await {
                    return wrong(
                        WHAT,
                        format!(
                            "after a reconnect with Last-Event-ID {id}, {error}. Does the balancer pass Last-Event-ID on, \
                             and do all replicas have the same Redis?"
                        ),
                    );
                }
            }
        }
        let text = format!("{RECONNECTS} reconnects, each with exactly what it had missed");
        match replicas.len() {
            0 | 1 => Finding {
                verdict: Verdict::Advice,
                what: WHAT,
                text: format!(
                    "{text}, all at one replica. If there are more, the balancer sends a client to the same one again and \
                     again; it need not, and should rather choose the one with the fewest connections"
                ),
            },
            several => fine(WHAT, format!("{text}, at {several} replicas")),
        }
    }

    /// Whether an idle stream is kept alive, and left alone.
    async fn idle(&self, mut stream: Stream) -> Vec<Finding> {
        let begun = Instant::now();
        let mut beats = Vec::new();
        let (mut silences, mut heard) = (Vec::new(), None);
        loop {
            let left = self.idle.saturating_sub(begun.elapsed());
            let before = (stream.parser.comments(), stream.heard);
            silences.extend(heard.replace(before.1).map(|earlier| before.1 - earlier));
            match timeout(left, stream.read()).await {
                Err(_) => break,
                Ok(Ok(true)) => {
                    let positions = stream.events.drain(..);
                    let position = positions.filter(|event| event.kind == "gateway.position");
                    if stream.parser.comments() > before.0 || position.count() > 0 {
                        beats.push(Instant::now());
                    }
                }
                Ok(ended) => {
                    let how = match ended {
                        Err(error) => describe(&error),
                        Ok(_) => "it was ended".to_owned(),
                    };
                    let silence = before.1.elapsed();
                    let survived = silences.iter().any(|earlier| *earlier >= silence);
                    return vec![cut(begun.elapsed(), silence, survived, &how)];
                }
            }
        }
        let mut findings = vec![fine(
            "idle",
            format!("a stream without events stayed open for {:.0?}", self.idle),
        )];
        let gaps = beats.windows(2).map(|two| two[1] - two[0]);
        findings.push(match (beats.len(), gaps.max()) {
            (0, _) => Finding {
                // The gateway's own default is 15 s.
                verdict: if self.idle < Duration::from_secs(30) {
                    Verdict::Advice
                } else {
                    Verdict::Wrong
                },
                what: "heartbeats",
                text: format!(
                    "none within {:.0?}: either --heartbeat is longer, or they are held back: {UNBUFFER}",
                    self.idle
                ),
            },
            (count, Some(longest)) => fine(
                "heartbeats",
                format!("{count} of them, {longest:.0?} apart at most"),
            ),
            (_, None) => fine("heartbeats", "one of them".to_owned()),
        });
        findings
    }
}

impl Stream {
    /// Reads once; false at the end.
    async fn read(&mut self) -> Result<bool, reqwest::Error> {
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
    async fn greeting(&mut self) -> Result<Option<String>, Failure> {
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
    async fn expect(&mut self, run: &str, number: u32) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let event = self.next().await?;
            if event.kind == "gateway.gap" {
                return Err(format!("a gap was told: {}", event.data));
            }
            let Some(found) = event.data.strip_prefix(run) else {
                continue;
            };
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

/// What is said of a stream that ended as HTTP says.
const ENDED: &str = "the stream was ended";

/// What to do about somebody who collects before he passes on.
const UNBUFFER: &str = "whatever lies between must pass events on as they come (no compression of \
                        text/event-stream, no limit of its rate, no buffering: nginx's proxy_buffering off, a CDN's for this path)";

fn fine(what: &'static str, text: String) -> Finding {
    Finding {
        verdict: Verdict::Fine,
        what,
        text,
    }
}

fn wrong(what: &'static str, text: String) -> Finding {
    Finding {
        verdict: Verdict::Wrong,
        what,
        text,
    }
}

fn describe(error: &reqwest::Error) -> String {
    // The innermost cause is the one that says something.
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// An answer that is no stream.
fn refusal(status: StatusCode, kind: &str) -> String {
    let advice = match status.as_u16() {
        200 => "this is no event stream: is the path the gateway's?",
        401 | 403 => {
            "give a credential, as in --header 'Authorization: Bearer ...', or another --channel"
        }
        404 => "the path does not lead to the gateway",
        502..=504 => "the balancer reaches no replica: what do its health checks of /readyz say?",
        300..=399 => "an EventSource follows, but every reconnect pays for it: give the final URL",
        _ => "that is no answer of the gateway's to a request to subscribe",
    };
    format!("answered {status} ({kind}): {advice}")
}

fn version(response: &reqwest::Response) -> Finding {
    let version = response.version();
    if version >= Version::HTTP_2 {
        return fine("http", format!("{version:?}"));
    }
    Finding {
        verdict: Verdict::Advice,
        what: "http",
        text: format!(
            "{version:?}: a browser has six connections to a site, over all its tabs, and each EventSource takes one. Let \
             the balancer speak HTTP/2 to browsers, which needs TLS"
        ),
    }
}

fn compression(headers: &HeaderMap) -> Finding {
    let coding = headers.get(header::CONTENT_ENCODING);
    let coding = coding.and_then(|coding| coding.to_str().ok());
    match coding.filter(|coding| *coding != "identity") {
        None => fine("compression", "none".to_owned()),
        Some(coding) => wrong(
            "compression",
            format!(
                "somebody compresses ({coding}), and holds events back until there is enough of them: except \
                 text/event-stream (nginx: not in gzip_types; HAProxy: not in compression type)"
            ),
        ),
    }
}

fn caching(headers: &HeaderMap) -> Finding {
    let control = headers.get(header::CACHE_CONTROL);
    let control = control.and_then(|control| control.to_str().ok());
    match control {
        Some(control) if control.contains("no-store") || control.contains("no-cache") => {
            fine("caching", control.to_owned())
        }
        other => wrong(
            "caching",
            format!(
                "Cache-Control is {}: somebody has replaced what the gateway says, and may keep the answer",
                other.unwrap_or("absent")
            ),
        ),
    }
}

/// A stream that did not stay open.
fn cut(after: Duration, silence: Duration, survived: bool, how: &str) -> Finding {
    // Whoever cuts because of silence does so at the first one that is long enough.
    let advice = if silence > Duration::from_millis(900) && !survived {
        format!(
            "nothing had come for {silence:.0?}: somebody's idle timeout is shorter than --heartbeat. Raise it (HAProxy: \
             timeout client, timeout server; nginx: proxy_read_timeout; Envoy: stream_idle_timeout; AWS: idle timeout), or lower --heartbeat"
        )
    } else {
        format!(
            "something had come {silence:.0?} before: somebody limits how long an answer may take in all, or the replica \
             was told to stop. Clients resume, but reconnect that often"
        )
    };
    wrong(
        "idle",
        format!("a stream was cut after {after:.0?} ({how}); {advice}"),
    )
}
