//! `--watch`: opens streams again and again, to show how clients are affected while replicas stop, start and die.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    select,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Finding, PROMPT, Route, Verdict, describe, hints,
    publisher::Publisher,
    refusal::{Answer, Refusal},
    stream::{Broken, NoGreeting},
    wrong,
};

/// Between two streams.
const PACE: Duration = Duration::from_millis(200);
/// Between two events.
const EVENT_PACE: Duration = Duration::from_secs(1);
/// A stream is held this long. So some 50 are open at any time, fewer than one subject may have.
const HELD: Duration = Duration::from_secs(10);
/// Maximum lines about single streams. Further streams are only counted.
const MAX_LINES: u32 = 30;

/// The result of one stream.
enum Visit {
    /// The answer was no stream. An `EventSource` stops for good.
    Refused(Answer),
    /// There was no answer, or no first event. An `EventSource` tries again.
    Failed(String),
    /// The gateway asked the client to reconnect later.
    Later,
    Open {
        replica: Option<String>,
        /// Until the first event.
        took: Duration,
        end: End,
    },
}

/// How a stream ended.
enum End {
    /// The doctor closed it.
    Left,
    /// In an orderly way: the client reconnects with its id.
    Orderly,
    /// Without the end of the answer, for this reason.
    Cut(String),
}

#[derive(Default)]
struct Tally {
    asked: u64,
    /// By status.
    refused: BTreeMap<u16, u64>,
    /// When the first and the last of them were requested.
    refused_at: Option<(Duration, Duration)>,
    failed: u64,
    later: u64,
    late: u64,
    slowest: Duration,
    orderly: u64,
    cut: u64,
    replicas: BTreeSet<String>,
    lines: u32,
    /// The last line.
    last: String,
}

/// The events that are published during the watch.
#[derive(Default)]
struct Events {
    /// The prefix of their data.
    run: String,
    /// When each was published. None if that failed or is not done yet.
    published: RefCell<Vec<Option<Instant>>>,
    /// The events that arrived late at a stream, with the greatest delay of each.
    late: RefCell<BTreeMap<usize, Duration>>,
    /// Why one was not published.
    failed: RefCell<Option<String>>,
}

impl Events {
    /// An event with this data has arrived.
    fn came(&self, data: &str) {
        let number = data.strip_prefix(&self.run);
        let Some(number) = number.filter(|_| !self.run.is_empty()) else {
            return;
        };
        let index = number.trim().parse::<usize>().ok();
        let Some(index) = index.and_then(|number| number.checked_sub(1)) else {
            return;
        };
        // An event that arrives before its POST is answered is not late.
        let published = self.published.borrow().get(index).copied().flatten();
        let took = published.map_or(Duration::ZERO, |published| published.elapsed());
        if took > PROMPT {
            let mut late = self.late.borrow_mut();
            let most = late.entry(index).or_default();
            *most = took.max(*most);
        }
    }

    /// Publishes until `stop`.
    async fn publish(&self, publisher: &mut Publisher<'_>, stop: &CancellationToken) {
        let mut due = interval(EVENT_PACE);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                () = stop.cancelled() => return,
                _ = due.tick() => {}
            }
            self.published.borrow_mut().push(None);
            match publisher.publish().await {
                Ok(()) => {
                    let mut published = self.published.borrow_mut();
                    if let Some(last) = published.last_mut() {
                        *last = Some(Instant::now());
                    }
                }
                Err(error) => *self.failed.borrow_mut() = Some(error),
            }
        }
    }

    /// The findings about the events, in a watch that began at this time.
    fn findings(self, begun: Instant) -> Vec<Finding> {
        const WHAT: &str = "events";
        let times = self.published.into_inner();
        let published = times.iter().flatten().count();
        let mut findings = Vec::new();
        if let Some(error) = self.failed.into_inner() {
            let text = format!(
                "{} of {} were not published. The last reason: {error}. A publisher has to try again",
                times.len() - published,
                times.len()
            );
            findings.push(Finding::new(Verdict::Advice, WHAT, text));
        }
        let late = self.late.into_inner();
        let at = |index: Option<&usize>| {
            let at = index.and_then(|index| times[*index]);
            seconds(at.map_or(Duration::ZERO, |at| at - begun))
        };
        if let Some(most) = late.values().max() {
            let text = format!(
                "{} of {published} that were published came late at a stream, {} to {}, the slowest after {most:.1?}",
                late.len(),
                at(late.keys().next()),
                at(late.keys().next_back())
            );
            findings.push(Finding::new(Verdict::Advice, WHAT, text));
        } else if published > 0 {
            let text = format!("{published} were published, and none came late at a stream");
            findings.push(Finding::new(Verdict::Fine, WHAT, text));
        }
        findings
    }
}

impl Route {
    /// Opens streams until `stop`. Reports each stream that was refused, cut or late, and then a summary. Also
    /// publishes events if it can.
    pub(super) async fn watch(
        &self,
        stop: &CancellationToken,
        publishes: bool,
        note: &mut impl FnMut(Finding),
    ) {
        let begun = Instant::now();
        let Some(client) = publishes.then(|| self.client().ok()).flatten() else {
            self.watch_streams(begun, &Events::default(), stop, note)
                .await;
            let text = "none was published, so that it does not show whether they come late: give --redis-url, or \
                        --publish-token for POST";
            note(Finding::new(Verdict::Note, "events", text));
            return;
        };
        let mut publisher = Publisher::new(self, &client);
        let events = Events {
            run: publisher.run.clone(),
            ..Events::default()
        };
        tokio::join!(
            events.publish(&mut publisher, stop),
            self.watch_streams(begun, &events, stop, note)
        );
        events.findings(begun).into_iter().for_each(note);
    }

    async fn watch_streams(
        &self,
        begun: Instant,
        events: &Events,
        stop: &CancellationToken,
        note: &mut impl FnMut(Finding),
    ) {
        let mut tally = Tally::default();
        let mut visits = FuturesUnordered::new();
        let mut due = interval(PACE);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                biased;
                Some((at, ended, visit)) = visits.next() => tally.note(at, ended, visit, note),
                _ = due.tick(), if !stop.is_cancelled() => {
                    tally.asked += 1;
                    let at = begun.elapsed();
                    visits.push(async move {
                        let visit = self.visit(events, stop).await;
                        (at, begun.elapsed(), visit)
                    });
                }
                () = stop.cancelled(), if visits.is_empty() => break,
            }
        }
        tally.summary(begun.elapsed()).into_iter().for_each(note);
    }

    /// Requests a stream over its own connection, and holds it for a while.
    async fn visit(&self, events: &Events, stop: &CancellationToken) -> Visit {
        let asked = Instant::now();
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return Visit::Failed(describe(&error)),
        };
        let mut stream = match self.ask(&client, "").await {
            Ok(stream) => stream,
            Err(Refusal::Answer(answer)) => return Visit::Refused(answer),
            Err(Refusal::Failed(error)) => return Visit::Failed(error),
            Err(Refusal::Silent) => return Visit::Failed("no answer".to_owned()),
        };
        let replica = match stream.greeting().await {
            Ok(replica) => replica,
            Err(NoGreeting::Broken(Broken::Ended)) => return Visit::Later,
            Err(NoGreeting::Broken(error)) => {
                return Visit::Failed(format!("{error} before gateway.open"));
            }
            Err(NoGreeting::Other(kind)) => {
                return Visit::Failed(format!("{kind:?} came instead of gateway.open"));
            }
        };
        let took = asked.elapsed();
        let hold = async {
            loop {
                for event in stream.events.drain(..) {
                    events.came(&event.data);
                }
                match stream.read().await {
                    Ok(true) => {}
                    Ok(false) => return End::Orderly,
                    Err(error) => return End::Cut(describe(&error)),
                }
            }
        };
        let held = select! {
            held = timeout(HELD, hold) => held,
            () = stop.cancelled() => Ok(End::Left),
        };
        Visit::Open {
            replica,
            took,
            end: held.unwrap_or(End::Left),
        }
    }
}

impl Tally {
    /// Counts a stream that was requested and ended at these times, and reports a problem with it.
    fn note(
        &mut self,
        at: Duration,
        ended: Duration,
        visit: Visit,
        tell: &mut impl FnMut(Finding),
    ) {
        let (asked, now) = (seconds(at), seconds(ended));
        match visit {
            Visit::Refused(answer) => {
                *self.refused.entry(answer.status.as_u16()).or_default() += 1;
                let (first, _) = self.refused_at.unwrap_or((at, at));
                self.refused_at = Some((first.min(at), at));
                self.line(
                    wrong("stream", format!("{asked}: answered {}", answer.describe())),
                    tell,
                );
            }
            Visit::Failed(error) => {
                self.failed += 1;
                self.line(advice(format!("{asked}: {error}")), tell);
            }
            Visit::Later => {
                self.later += 1;
            }
            Visit::Open { replica, took, end } => {
                self.replicas.extend(replica);
                self.slowest = self.slowest.max(took);
                if took > PROMPT {
                    self.late += 1;
                    let text = format!("{asked}: the first event came after {took:.1?}");
                    self.line(advice(text), tell);
                }
                match end {
                    End::Left => {}
                    End::Orderly => self.orderly += 1,
                    End::Cut(error) => {
                        self.cut += 1;
                        let text = format!("{now}: cut without an end ({error})");
                        self.line(advice(text), tell);
                    }
                }
            }
        }
    }

    /// Reports a finding, unless it is the same as the previous one. So streams that are cut together share one line.
    fn line(&mut self, finding: Finding, tell: &mut impl FnMut(Finding)) {
        if self.last == finding.text {
            return;
        }
        self.last.clone_from(&finding.text);
        self.lines += 1;
        if self.lines <= MAX_LINES {
            tell(finding);
        } else if self.lines == MAX_LINES + 1 {
            let text = "more like these are counted only";
            tell(Finding::new(Verdict::Note, "stream", text));
        }
    }

    fn summary(self, time: Duration) -> Vec<Finding> {
        const WHAT: &str = "watch";
        let Self {
            asked,
            refused,
            refused_at,
            failed,
            later,
            late,
            slowest,
            orderly,
            cut,
            replicas,
            ..
        } = self;
        let replicas = replicas.len();
        let mut findings = vec![Finding::new(
            Verdict::Note,
            WHAT,
            format!(
                "{asked} streams in {time:.0?} at {replicas} replicas: the slowest opened in {slowest:.1?}, {orderly} were \
                 ended in an orderly way, {later} were asked to come back later"
            ),
        )];
        if let Some((first, last)) = refused_at {
            let statuses: Vec<_> = refused
                .iter()
                .map(|(status, count)| format!("{count} x {status}"))
                .collect();
            let hint = match refused.keys().all(|status| (502..=504).contains(status)) {
                true => format!(": {}", hints::RETRY),
                false => String::new(),
            };
            let refused: u64 = refused.values().sum();
            findings.push(wrong(
                WHAT,
                format!(
                    "{refused} of {asked} requests were refused, {} to {} ({}). There an EventSource stops for good{hint}",
                    seconds(first),
                    seconds(last),
                    statuses.join(", ")
                ),
            ));
        }
        for (count, what) in [
            (
                cut,
                "were cut without an end: a replica or the balancer died, or did not wait for its streams. An EventSource \
                 reconnects",
            ),
            (
                failed,
                "had no answer or no first event. An EventSource reconnects",
            ),
            (late, "had their first event late"),
        ] {
            if count > 0 {
                let text = format!("{count} of {asked} {what}");
                findings.push(Finding::new(Verdict::Advice, WHAT, text));
            }
        }
        if findings.len() == 1 {
            let text = "none was refused, cut or late";
            findings.push(Finding::new(Verdict::Fine, WHAT, text));
        }
        findings
    }
}

/// Time since the begin.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn advice(text: String) -> Finding {
    Finding::new(Verdict::Advice, "stream", text)
}
