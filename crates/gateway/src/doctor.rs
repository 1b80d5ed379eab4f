//! `sse-gateway doctor`: tests a gateway over the same way that clients take, and its Redis. Its findings say in plain
//! words how to fix a problem.

mod hints;
mod idle;
mod publisher;
mod refusal;
mod rollout;
mod stream;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, StatusCode, Version, header};
use broker::{Finding, RawChannels, Verdict};
use reqwest::Url;
use tokio::{
    select, signal,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::publisher::PublishWay;
use self::{
    hints::UNBUFFER,
    publisher::Publisher,
    refusal::{Answer, Refusal},
    stream::{Broken, TestStream, Unexpected},
};
use crate::{
    http::events::{ASKED_WITH, DOCTOR},
    tls,
};

/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(10);
/// An event that is this late was held back on its way.
const PROMPT: Duration = Duration::from_secs(1);
/// Events that are published one by one to see whether each arrives at once.
const EVENTS: u32 = 5;
/// Time between these.
const PACE: Duration = Duration::from_millis(300);
/// Reconnects.
const RECONNECTS: u32 = 10;

/// The events that a reconnect misses. Each event is a POST, and a round-robin balancer counts it like a reconnect.
/// With a constant number of events it could send every reconnect to the same replica. With two events at the seventh
/// reconnect, all of 2 to 8 replicas are reached.
fn missed(reconnect: u32) -> u32 {
    match reconnect {
        6 => 2,
        _ => 1,
    }
}

/// The parts to examine.
#[derive(Debug)]
pub struct Doctor {
    /// The way that clients take.
    pub(crate) route: Option<Route>,
    /// The Redis of the replicas.
    pub(crate) redis: Option<broker::Server>,
    /// The channels that backends publish to with PUBLISH.
    pub(crate) raw: RawChannels,
    /// If set, the doctor watches streams and raw messages for this time instead.
    pub(crate) watch: Option<Duration>,
}

/// The way that clients take to the replicas.
#[derive(Debug)]
pub(crate) struct Route {
    /// Where clients connect to, without channels.
    pub(crate) url: Url,
    /// Sent with each request to subscribe.
    pub(crate) headers: HeaderMap,
    /// A channel that may be published to.
    pub(crate) channel: String,
    /// How a publisher reaches it.
    pub(crate) publish: PublishWay,
    /// How long a stream is left idle.
    pub(crate) idle: Duration,
}

/// Why there is no stream.
type Failure = Finding;

impl Doctor {
    /// Examines everything, and passes on each finding at once. Returns the worst verdict.
    ///
    /// # Errors
    /// When this machine cannot make requests at all.
    pub async fn examine(&self, mut tell: impl FnMut(&Finding)) -> Result<Verdict, reqwest::Error> {
        tls::choose_provider();
        let mut worst = Verdict::Fine;
        let mut note = |finding: Finding| {
            worst = worst.max(finding.verdict);
            tell(&finding);
        };
        if let Some(time) = self.watch {
            self.watch(time, &mut note).await;
            return Ok(worst);
        }
        if let Some(redis) = &self.redis {
            broker::inspect(redis, &self.raw.prefix, &mut note).await;
        }
        if let Some(route) = &self.route {
            let client = route.client()?;
            if let Err(finding) = route.examine(&client, &mut note).await {
                note(finding);
            }
        }
        note(self.left_out());
        Ok(worst)
    }

    /// Watches streams and raw messages for this time, or until it is interrupted.
    async fn watch(&self, time: Duration, note: &mut impl FnMut(Finding)) {
        let stop = CancellationToken::new();
        let over = async {
            select! {
                () = sleep(time) => {}
                _ = signal::ctrl_c() => {}
            }
            stop.cancel();
        };
        let raw = async {
            match &self.redis {
                Some(redis) => broker::watch_raw(redis, &self.raw, stop.cancelled()).await,
                None => Vec::new(),
            }
        };
        let streams = async {
            if let Some(route) = &self.route {
                let publishes = self.redis.is_some() || route.publish.is_post();
                route.watch(&stop, publishes, note).await;
            }
        };
        let ((), raw, ()) = tokio::join!(over, raw, streams);
        raw.into_iter().for_each(note);
    }

    /// The parts that this run did not examine.
    fn left_out(&self) -> Finding {
        let mut left_out = Vec::new();
        if self.route.is_none() {
            left_out.push("the balancer (give the URL of /events)");
        } else {
            left_out.push("replicas that stop or die (--watch 2m during a rollout)");
        }
        match self.redis {
            None => left_out.push("Redis (--redis-url)"),
            Some(_) => left_out.push("what backends publish (--redis-url with --watch 10s)"),
        }
        Finding::new(Verdict::Note, "not examined", left_out.join(", "))
    }
}

impl Route {
    /// A client with its own connections, like another browser.
    fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        self.builder().build()
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // Without TLS the system's certificates are not needed, and may be missing.
            .danger_accept_invalid_certs(self.url.scheme() == "http")
    }

    /// The error is a finding that ends the examination.
    async fn examine(
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
        if let Some(finding) = self.hop().await {
            note(finding);
        }

        let mut publisher = Publisher::new(self, client);
        let publisher = match publisher.publish().await {
            Err(error) => {
                note(Finding {
                    verdict: Verdict::Unknown,
                    what: "publish",
                    text: format!(
                        "nothing could be published, so that buffering and resume are not looked at: {error}. {}",
                        match self.publish {
                            PublishWay::Post(_) =>
                                "Is the token one that may publish to this channel?",
                            PublishWay::Redis(_) => "Set SSE_GATEWAY_PUBLISH_TOKEN, or --redis-url",
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

    /// Opens a stream, after an id unless it is empty.
    async fn open(&self, client: &reqwest::Client, id: &str) -> Result<TestStream, Failure> {
        match self.ask(client, id).await {
            Ok(stream) => Ok(stream),
            Err(refusal) => Err(self.explain(refusal).await),
        }
    }

    /// Requests a stream, after an id unless it is empty.
    async fn ask(&self, client: &reqwest::Client, id: &str) -> Result<TestStream, Refusal> {
        let end = tokio::time::Instant::now() + ANSWER;
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("channel", &self.channel);
        let mut request = client
            .get(url)
            .headers(self.headers.clone())
            .header(header::ACCEPT, "text/event-stream")
            .header(DOCTOR, "1")
            // As browsers send it. The answer is not decompressed here, so that compression is noticed.
            .header(header::ACCEPT_ENCODING, "gzip, deflate, br, zstd");
        if !id.is_empty() {
            request = request.header("last-event-id", id);
        }
        let response = match timeout(ANSWER, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Refusal::Failed(describe(&error))),
            Err(_) => return Err(Refusal::Silent),
        };
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // An EventSource demands both.
        if response.status() == StatusCode::OK && kind.starts_with("text/event-stream") {
            return Ok(TestStream::new(response, id));
        }
        let kind = kind.to_owned();
        Err(Refusal::Answer(Answer::read(response, kind, end).await))
    }

    /// Opens a stream over a new connection. A balancer may send it to another replica. The connection is as old as the
    /// stream.
    async fn open_anew(&self, id: &str) -> Result<TestStream, Failure> {
        let client = self
            .client()
            .map_err(|error| wrong("stream", describe(&error)))?;
        self.open(&client, id).await
    }

    /// Whether the balancer uses HTTP/2 to the replicas, where many streams share a connection. The replica names the
    /// HTTP version of the request. The client uses HTTP/1.1, so HTTP/2 can only be the balancer's. None if the version
    /// is not known.
    async fn hop(&self) -> Option<Finding> {
        const WHAT: &str = "replica";
        let client = self.builder().http1_only().build().ok()?;
        let stream = self.ask(&client, "").await.ok()?;
        let asked_with = stream.response().headers().get(ASKED_WITH)?;
        let asked_with = asked_with.to_str().ok()?;
        if !asked_with.starts_with("HTTP/2") {
            return Some(fine(WHAT, format!("asked over {asked_with}")));
        }
        Some(Finding::new(
            Verdict::Advice,
            WHAT,
            format!(
                "the balancer asks it over {asked_with}, so that many streams share a connection. Two clients that read \
                 nothing may stop all streams of that connection, as behind HAProxy 2.6. HTTP/1.1 does not have this: {}",
                hints::HTTP_1
            ),
        ))
    }

    /// Whether a client that reconnects receives the events it missed, from any replica.
    async fn resume(&self, mut stream: TestStream, publisher: &mut Publisher<'_>) -> Finding {
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
        for reconnect in 0..RECONNECTS {
            let id = stream.last_event_id.clone();
            drop(stream);
            let first = publisher.number + 1;
            for _ in 0..missed(reconnect) {
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
                Err(error) => return error.into(),
            }
            for expected in first..=publisher.number {
                if let Err(error) = stream.expect(&publisher.run, expected).await {
                    let advice = match &error {
                        Unexpected::Broken(Broken::Silent) => {
                            "does the balancer pass Last-Event-ID on, and do all replicas have the same Redis?"
                        }
                        _ => advice(&error),
                    };
                    let text =
                        format!("after a reconnect with Last-Event-ID {id}, {error}: {advice}");
                    return wrong(WHAT, text);
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
    // Only the innermost cause is useful.
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// How to fix a stream that lacks the published event. Silence is handled elsewhere.
fn advice(error: &Unexpected) -> &'static str {
    match error {
        Unexpected::Broken(Broken::Silent) => UNBUFFER,
        Unexpected::Broken(Broken::Ended) => {
            "either the replica was told to stop, or a limit is reached. A comment at the stream's end has the reason"
        }
        Unexpected::Broken(Broken::Cut(_)) => {
            "either the replica has died, or the balancer cuts streams that are young"
        }
        Unexpected::Gap(_) => {
            "Redis has lost events, or messages were not recorded. The replicas' logs have the reason"
        }
        Unexpected::Other { .. } => hints::NO_RETRY_OF_POST,
    }
}

/// Whether each event arrives when it is published. Only an event that is late or missing was held back.
async fn buffering(stream: &mut TestStream, publisher: &mut Publisher<'_>) -> Finding {
    const WHAT: &str = "buffering";
    let failed = |error: &Unexpected, published: Instant| {
        let what = match error {
            Unexpected::Broken(Broken::Silent) => WHAT,
            _ => "events",
        };
        let after = published.elapsed();
        let text = format!(
            "{error}, {after:.1?} after it was published: {}",
            advice(error)
        );
        wrong(what, text)
    };
    // This event showed that publishing works.
    let published = Instant::now();
    match stream.expect(&publisher.run, publisher.number).await {
        Ok(()) => {}
        Err(error @ Unexpected::Broken(Broken::Silent)) => {
            let text = format!(
                "{error}. Is it the replicas' Redis that was published to? If so, {UNBUFFER}"
            );
            return wrong(WHAT, text);
        }
        Err(error) => return failed(&error, published),
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..EVENTS {
        sleep(PACE).await;
        if let Err(error) = publisher.publish().await {
            return wrong("publish", error);
        }
        let published = Instant::now();
        if let Err(error) = stream.expect(&publisher.run, publisher.number).await {
            return failed(&error, published);
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
                "somebody compresses ({coding}), and holds events back until there is enough of them: {}",
                hints::UNCOMPRESS
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

    /// Breaks when the doctor reports that a round-robin balancer sends clients to the same replica.
    #[test]
    fn reconnects_meet_all_replicas_of_a_balancer_in_turn() {
        for replicas in 1..=8 {
            let mut request = 0;
            let met: BTreeSet<_> = (0..RECONNECTS)
                .map(|reconnect| {
                    request += missed(reconnect) + 1;
                    request % replicas
                })
                .collect();
            assert_eq!(met.len(), replicas as usize);
        }
    }
}
