//! `sse-gateway doctor`: looks at a gateway from where clients are, through whatever lies between, and
//! says in plain words what to mend.

mod idle;
mod publisher;
mod stream;

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, StatusCode, Version, header};
use reqwest::Url;
use tokio::time::{sleep, timeout};

pub(crate) use self::publisher::Publish;
use self::{publisher::Publisher, stream::Stream};
use crate::tls;

/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(10);
/// An event that is this late was held back by somebody.
const PROMPT: Duration = Duration::from_secs(1);
/// Events that are published one by one to see whether each arrives at once.
const EVENTS: u32 = 5;
/// Time between these.
const PACE: Duration = Duration::from_millis(300);
/// Reconnects, and events missed in each.
const RECONNECTS: u32 = 10;
const MISSED: u32 = 2;

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

/// How bad it is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It works, and could be better.
    Advice,
    /// It could not be looked at.
    Unknown,
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
            Verdict::Unknown => "unknown",
            Verdict::Wrong => "WRONG",
        };
        write!(f, "{verdict:<7} {:<12} ", self.what)?;
        // The examined server supplies part of the text, so control characters are escaped before the terminal sees
        // them.
        for char in self.text.chars() {
            match char.is_control() {
                true => write!(f, "{}", char.escape_default())?,
                false => f.write_char(char)?,
            }
        }
        Ok(())
    }
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

    /// Looks at everything, and tells each finding as it is made. Answers the worst verdict.
    ///
    /// # Errors
    /// When this machine cannot make requests at all.
    pub async fn examine(&self, mut tell: impl FnMut(&Finding)) -> Result<Verdict, reqwest::Error> {
        tls::choose_provider();
        let client = self.client()?;
        let mut worst = Verdict::Fine;
        let mut note = |finding: Finding| {
            worst = worst.max(finding.verdict);
            tell(&finding);
        };
        if let Err(finding) = self.examine_all(&client, &mut note).await {
            note(finding);
        }
        Ok(worst)
    }

    /// The error is the finding after which there is no more to look at.
    async fn examine_all(
        &self,
        client: &reqwest::Client,
        note: &mut impl FnMut(Finding),
    ) -> Result<(), Failure> {
        let mut stream = self.open(client, "").await?;
        note(fine("stream", "200 and text/event-stream".to_owned()));
        note(version(stream.response()));
        let compression = compression(stream.response().headers());
        if compression.verdict == Verdict::Wrong {
            // Nothing more can be read.
            return Err(compression);
        }
        note(compression);
        note(caching(stream.response().headers()));
        stream.greeting().await?;

        let mut publisher = Publisher::new(self, client);
        let publisher = match publisher.publish().await {
            Err(error) => {
                note(Finding {
                    verdict: Verdict::Unknown,
                    what: "publish",
                    text: format!(
                        "nothing could be published, so that buffering and resume are not looked at: {error}. {}",
                        match self.publish {
                            Publish::Post(_) =>
                                "Is the token one that may publish to this channel?",
                            Publish::Redis(_) => "Set SSE_GATEWAY_PUBLISH_TOKEN, or --redis-url",
                        }
                    ),
                });
                None
            }
            Ok(()) => {
                note(buffering(&mut stream, &mut publisher).await);
                note(self.resume(stream, &mut publisher).await);
                Some(&mut publisher)
            }
        };
        for finding in self.idle(publisher).await? {
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
            return Ok(Stream::new(response, id));
        }
        Err(wrong("stream", refusal(response.status(), kind)))
    }

    /// Opens one over a connection of its own, which a balancer may send elsewhere, and which is as old as the stream.
    async fn open_anew(&self, id: &str) -> Result<Stream, Failure> {
        let client = self
            .client()
            .map_err(|error| wrong("stream", describe(&error)))?;
        self.open(&client, id).await
    }

    /// Whether whoever reconnects is given what it missed, wherever it comes back to.
    async fn resume(&self, mut stream: Stream, publisher: &mut Publisher<'_>) -> Finding {
        const WHAT: &str = "resume";
        if stream.unrecorded {
            return Finding {
                verdict: Verdict::Unknown,
                what: WHAT,
                text: "events come without an id, so that nobody can come back to where it was: the channel keeps no \
                       history (history = 0; --channel names another), or Redis takes no writes"
                    .to_owned(),
            };
        }
        let mut replicas = BTreeSet::new();
        for _ in 0..RECONNECTS {
            let id = stream.last_event_id.clone();
            drop(stream);
            let first = publisher.number + 1;
            for _ in 0..MISSED {
                if let Err(error) = publisher.publish().await {
                    return wrong("publish", error);
                }
            }
            stream = match self.open_anew(&id).await {
                Ok(stream) => stream,
                Err(failure) => return failure,
            };
            match stream.greeting().await {
                Ok(replica) => replicas.extend(replica),
                Err(failure) => return failure,
            }
            for expected in first..=publisher.number {
                if let Err(error) = stream.expect(&publisher.run, expected).await {
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
}

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

pub(crate) fn describe(error: &reqwest::Error) -> String {
    // The innermost cause is the one that says something.
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Whether each event arrives when it is published.
async fn buffering(stream: &mut Stream, publisher: &mut Publisher<'_>) -> Finding {
    const WHAT: &str = "buffering";
    // The one that showed that publishing works.
    let mut slowest = match stream.expect(&publisher.run, publisher.number).await {
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
        if let Err(error) = publisher.publish().await {
            return wrong("publish", error);
        }
        let published = Instant::now();
        if let Err(error) = stream.expect(&publisher.run, publisher.number).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_does_not_steer_the_terminal() {
        let finding = wrong(
            "stream",
            "came \u{1b}]0;x\u{7}\r\nWRONG \u{9b}2J ü".to_owned(),
        );
        let shown = finding.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(shown.ends_with("\\u{9b}2J ü"), "{shown}");
    }
}
