//! The result of one fault, or of several at once: counts, times, and the signals that an operator sees.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use serde_json::Value;

use super::{
    counters::is_usual,
    fault::{Fault, Promises},
    publishers::{Book, Fate, NUMBERED, SAME, Sent},
};
use testkit::{Id, Ledger, Violation, lab::Metrics};

/// Every client has to receive again within this time after a fault.
const SOON: Duration = Duration::from_secs(15);
/// How many examples of broken promises are kept.
const EXAMPLES: usize = 5;
/// Each connection has to receive something within this time, even while Redis is away. A heartbeat is sent each second,
/// but the two cores are busy.
const QUIET: Duration = Duration::from_secs(4);

/// The result of a fault.
#[derive(Clone, Debug)]
pub struct Row {
    /// The faults, all at once.
    pub faults: Vec<Fault>,
    pub(crate) promises: Promises,
    /// Time of the faults, in microseconds since the epoch. Raw messages sent before or after are recorded in any case.
    pub(crate) during: Range<u64>,
    /// Messages that were accepted: the answer had an id, or PUBLISH reached a subscriber.
    pub messages: u64,
    /// Messages in the history of Redis. Each was compared with the messages that clients saw.
    pub stored: u64,
    /// Events that clients received.
    pub deliveries: u64,
    /// Attempts to publish that were refused, and repeated.
    pub refused: u64,
    /// Attempts to publish without an answer.
    pub uncertain: u64,
    /// Connections that the client did not end.
    pub cuts: u64,
    /// Of these, connections of clients that always read. A gateway may give up clients that stall; they resume.
    pub readers_cut: u64,
    /// Connections that a client ended, to reconnect.
    pub returns: u64,
    /// Gap events received.
    pub gaps: u64,
    /// Raw messages that had a subscriber and were never recorded.
    pub unrecorded: u64,
    /// Messages that a client missed without a gap.
    pub lost: u64,
    /// Messages that arrived twice.
    pub repeated: u64,
    /// Unrecorded raw messages after which a client of their channel received no gap, although a gap was possible.
    pub silent: u64,
    /// All other broken promises: order, ids, leaks, answers.
    pub disorder: u64,
    /// How long the faults lasted.
    pub lasted: Duration,
    /// Time from their end until every client receives stored messages on each of its channels.
    pub live: Duration,
    /// The same for raw messages.
    pub raw_live: Duration,
    /// Longest time that a client received no event.
    pub silence: Duration,
    /// Longest time that a connection received nothing, not even a heartbeat.
    pub quiet: Duration,
    /// The least number of replicas that were ready at the same time, and the number of all replicas.
    pub ready: [usize; 2],
    /// The least number of replicas whose `/metrics` answered.
    pub up: usize,
    /// Sums of gauges over the replicas that answered: the least and the greatest value seen.
    pub gauges: BTreeMap<&'static str, [f64; 2]>,
    /// Counters that moved, summed over all replicas.
    pub metrics: BTreeMap<String, f64>,
    /// Log lines of the replicas, with their level, and how often each was logged.
    pub logs: BTreeMap<String, u64>,
    /// Average seconds from append to write.
    pub delay: f64,
    /// Some of the broken promises.
    pub examples: Vec<String>,
}

/// The clients of a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Followers {
    pub(crate) clients: usize,
    /// All of them received a gap of the channel at this time or later, in microseconds since the epoch.
    pub(crate) told: u64,
}

/// How many clients received each raw message without an id, by channel and number.
pub(crate) type Relayed = BTreeMap<(String, u64), usize>;

impl Row {
    /// An empty row of these faults. `other_has_recorder`: whether the replica that does not record, which some faults
    /// affect, is a candidate.
    pub(crate) fn new(faults: &[Fault], other_has_recorder: bool) -> Self {
        // A restarted replica may become a candidate.
        let has_recorder = other_has_recorder || faults.contains(&Fault::RollingRestart);
        let promises = faults.iter().map(|fault| fault.promises(has_recorder));
        Self {
            faults: faults.to_vec(),
            promises: promises.fold(Fault::None.promises(has_recorder), Promises::and),
            during: 0..0,
            messages: 0,
            stored: 0,
            deliveries: 0,
            refused: 0,
            uncertain: 0,
            cuts: 0,
            readers_cut: 0,
            returns: 0,
            gaps: 0,
            unrecorded: 0,
            lost: 0,
            repeated: 0,
            silent: 0,
            disorder: 0,
            lasted: Duration::ZERO,
            live: Duration::ZERO,
            raw_live: Duration::ZERO,
            silence: Duration::ZERO,
            quiet: Duration::ZERO,
            ready: [0, 0],
            up: 0,
            gauges: BTreeMap::new(),
            metrics: BTreeMap::new(),
            logs: BTreeMap::new(),
            delay: 0.0,
            examples: Vec::new(),
        }
    }

    /// Whether everything was as promised.
    pub fn is_kept(&self) -> bool {
        let Promises {
            no_gaps,
            no_cuts,
            beats,
            exact,
            ..
        } = self.promises;
        self.disorder == 0
            && self.live.max(self.raw_live) < SOON
            && !(no_cuts && self.readers_cut > 0)
            && !(beats && self.quiet > QUIET)
            && !(exact && self.lost + self.repeated > 0)
            && !(self.promises.raw_recorded() && self.unrecorded > 0)
            && !(no_gaps && self.gaps > 0)
            && self.silent == 0
            && self.has_shown()
    }

    /// Whether the faults had a visible effect. A row whose faults had none proves nothing.
    fn has_shown(&self) -> bool {
        self.stored > 0 && self.faults.iter().all(|fault| self.shows(*fault))
    }

    fn shows(&self, fault: Fault) -> bool {
        // Raw messages may have no subscriber at that time. Appends are refused even then.
        let refused = r#"sse_gateway_published_total{result="redis_takes_no_writes"}"#;
        match fault {
            Fault::OutOfMemory | Fault::DiskFull => {
                return self.unrecorded > 0 || self.metrics.contains_key(refused);
            }
            fault if fault.tells_gaps() => return self.gaps > 0,
            // Another fault at the same time may hide the effect.
            _ if self.faults.len() > 1 => return true,
            _ => {}
        }
        let counted = |name: &str| -> f64 {
            let series = self.metrics.iter();
            let named = series.filter(|(series, _)| series.starts_with(name));
            named.map(|(_, by)| by).sum()
        };
        let logged = |text: &str| self.logs.keys().any(|line| line.contains(text));
        match fault {
            Fault::KillReplica
            | Fault::KillRecorder
            | Fault::TermReplica
            | Fault::TermRecorder
            // A replica that has just been replaced may have no client yet.
            | Fault::RollingRestart => self.cuts > 0 || self.ready[0] < self.ready[1],
            Fault::StopReplica | Fault::StopRecorder => self.up < self.ready[1],
            Fault::NoFiles => logged("cannot accept connections"),
            Fault::NeverReading => counted("sse_gateway_history_pages_total") > 0.0,
            Fault::Churn => counted("sse_gateway_streams_total") > 1000.0,
            Fault::Stampede => self.returns > 0,
            Fault::ScriptFlush => logged("the function library"),
            Fault::ClientPause | Fault::StopRedis => self.silence > Duration::from_secs(1),
            Fault::LoseSentinels => self.silence > Duration::from_secs(1),
            fault if fault.replaces_master() => logged("another redis is the master"),
            Fault::KillPubsub | Fault::Cut => self.gaps > 0,
            Fault::RestartRedis
            | Fault::KillRedis
            | Fault::CutRecorder
            | Fault::HalfOpen
            | Fault::Blackhole
            | Fault::HalfOpenRecorder
            | Fault::BlackholeRecorder
            | Fault::OutputBuffer => counted("sse_gateway_redis_reconnects_total") > 0.0,
            _ => true,
        }
    }

    /// Notes the broken promises of the row as a whole.
    pub(crate) fn explain(&mut self) {
        let late = self.live.max(self.raw_live);
        if late >= SOON {
            self.example(format!(
                "somebody received nothing until {late:?} after the end"
            ));
        }
        if self.promises.beats && self.quiet > QUIET {
            self.example(format!("a connection was quiet for {:?}", self.quiet));
        }
        if self.promises.no_gaps && self.gaps > 0 {
            self.example(format!("{} gaps were told", self.gaps));
        }
        if !self.is_kept() {
            let moved: Vec<_> = self
                .metrics
                .iter()
                .filter(|(name, _)| !is_usual(name))
                .collect();
            let what = format!("counters {moved:?}, logs {:?}", self.logs);
            self.examples.push(what);
        }
        if !self.has_shown() {
            self.example("nothing was stored, or the fault could not be seen".to_owned());
        }
    }

    /// The faults' names.
    pub fn name(&self) -> String {
        let names: Vec<_> = self.faults.iter().map(|fault| fault.name()).collect();
        names.join(" + ")
    }

    /// Adds the counts of another row.
    pub(crate) fn add(&mut self, other: &Self) {
        self.promises = self.promises.and(other.promises);
        for (sum, count) in [
            (&mut self.messages, other.messages),
            (&mut self.stored, other.stored),
            (&mut self.deliveries, other.deliveries),
            (&mut self.refused, other.refused),
            (&mut self.uncertain, other.uncertain),
            (&mut self.cuts, other.cuts),
            (&mut self.readers_cut, other.readers_cut),
            (&mut self.returns, other.returns),
            (&mut self.gaps, other.gaps),
            (&mut self.unrecorded, other.unrecorded),
            (&mut self.lost, other.lost),
            (&mut self.repeated, other.repeated),
            (&mut self.silent, other.silent),
            (&mut self.disorder, other.disorder),
        ] {
            *sum += count;
        }
        self.ready = match self.ready {
            [_, 0] => other.ready,
            [least, all] => [least.min(other.ready[0]), all],
        };
        self.lasted += other.lasted;
        self.live = self.live.max(other.live);
        self.raw_live = self.raw_live.max(other.raw_live);
        self.silence = self.silence.max(other.silence);
        self.quiet = self.quiet.max(other.quiet);
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples
            .extend(other.examples.iter().take(room).cloned());
    }

    /// Judges the violations that a client's checker found.
    pub(crate) fn judge(
        &mut self,
        violations: &[Violation],
        ledger: &Ledger,
        book: &Book,
        relayed: &mut Relayed,
    ) {
        let is_raw = |publisher: &str| publisher == NUMBERED[0];
        let during = self.during.clone();
        let was_during = |publisher: &str, channel: &str, seq: u64| {
            let sent = book.sent(publisher, channel, seq);
            sent.is_some_and(|sent| during.contains(&sent.at))
        };
        for violation in violations {
            match violation {
                Violation::Missing {
                    channel,
                    publisher,
                    from,
                    to,
                } => {
                    let missed = (*from..=*to).filter(|seq| {
                        let seen = ledger.id_of(channel, publisher, *seq).is_some();
                        let sent = book.sent(publisher, channel, *seq);
                        let Some(Sent { fate, at, .. }) = sent else {
                            return seen;
                        };
                        let certain = fate == Fate::Accepted;
                        // It never had an id, so it is missing in no history. Such messages are counted separately.
                        let is_unrecorded = !seen && certain && is_raw(publisher);
                        let is_excused = self.promises.raw_recorded() || self.during.contains(&at);
                        (seen || certain) && !(is_unrecorded && is_excused)
                    });
                    let missed = missed.count() as u64;
                    self.lost += missed;
                    if missed == 0 {
                        continue;
                    }
                }
                Violation::Miscounted { .. } => self.lost += 1,
                // The gateway passes them on while Redis takes no writes. They are counted where they were published.
                Violation::NoId {
                    channel,
                    publisher,
                    seq,
                } if !self.promises.writes
                    && is_raw(publisher)
                    && was_during(publisher, channel, *seq) =>
                {
                    let key = (channel.clone(), *seq);
                    *relayed.entry(key).or_default() += 1;
                    continue;
                }
                Violation::NotNew { text, .. } if !self.promises.writes && text == SAME => continue,
                // Without an id, a replica that was stalled cannot know that the client already received the message
                // elsewhere.
                Violation::Repeated {
                    channel,
                    publisher,
                    seq,
                    has_moved: true,
                    ..
                }
                | Violation::Reordered {
                    channel,
                    publisher,
                    seq,
                    has_moved: true,
                } if !self.promises.writes
                    && is_raw(publisher)
                    && ledger.id_of(channel, publisher, *seq).is_none()
                    && was_during(publisher, channel, *seq) =>
                {
                    continue;
                }
                // After an eviction, gaps are based on the keys that Redis still has.
                Violation::FalseGap { .. } if !self.promises.exact => continue,
                Violation::Repeated { .. } | Violation::NotNew { .. } => self.repeated += 1,
                _ => self.disorder += 1,
            }
            let mut example = violation.to_string();
            if let Violation::Repeated {
                channel,
                publisher,
                seq,
                ..
            } = violation
                && let Some(first) = ledger.id_of(channel, publisher, *seq)
            {
                example.push_str(&format!(", first as {first}"));
            }
            self.example(example);
        }
    }

    /// Judges a message by its answer, and by the id under which clients received it, if any.
    pub(crate) fn judge_sent(
        &mut self,
        (publisher, channel, seq): (&str, &str, u64),
        sent: Sent,
        seen: Option<Id>,
        relayed: &Relayed,
        followers: Followers,
    ) {
        let Followers { clients, told } = followers;
        let what = format!("{channel}: {publisher}'s {seq}");
        if let (Some(answered), Some(seen)) = (sent.id, seen)
            && answered != seen
        {
            self.disorder += 1;
            self.example(format!("{what} was answered {answered}, and is {seen}"));
        }
        if seen.is_some() || sent.fate != Fate::Accepted || publisher != NUMBERED[0] {
            return;
        }
        self.unrecorded += 1;
        if self.promises.raw_recorded() {
            self.example(format!("{what} was heard and not recorded"));
        }
        if self.promises.interrupts && self.promises.writes && told < sent.at {
            self.silent += 1;
            self.example(format!("{what} was lost, and not all clients were told"));
        }
        // While Redis takes no writes, every connected client receives the message. With another fault, few clients may
        // be connected.
        let key = (channel.to_owned(), seq);
        let given = relayed.get(&key).copied().unwrap_or_default();
        let expected = if self.faults.len() > 1 {
            1
        } else {
            clients / 2
        };
        if self.promises.relays() && self.during.contains(&sent.at) && given < expected {
            self.disorder += 1;
            self.example(format!("{what} was given to {given} of {clients} clients"));
        }
    }

    pub(crate) fn example(&mut self, what: String) {
        // Many clients may have the same violation.
        if self.examples.len() < EXAMPLES && !self.examples.contains(&what) {
            self.examples.push(what);
        }
    }

    /// Counts JSON log lines by level and message.
    pub(crate) fn note_lines(&mut self, lines: &[String]) {
        for line in lines {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                *self.logs.entry(line.clone()).or_default() += 1;
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (level, fields) = (text(&line["level"]), &line["fields"]);
            let message = text(&fields["message"]);
            let because = ["error", "reason"].map(|field| text(&fields[field]));
            // Numbers are removed, so equal lines are counted together.
            let because = because
                .join("")
                .replace(|char: char| char.is_ascii_digit(), "");
            let line = match &*because {
                "" => format!("{level} {message}"),
                because => format!("{level} {message}: {because}"),
            };
            *self.logs.entry(line).or_default() += 1;
        }
    }

    /// Notes the average time from append to write over these replicas.
    pub(crate) fn note_delay(&mut self, before: &[Option<Metrics>], after: &[Option<Metrics>]) {
        let [seconds, count] = ["sum", "count"].map(|what| {
            let name = format!("sse_gateway_publish_to_write_seconds_{what}");
            let of = |metrics: &Option<Metrics>| metrics.as_ref().map(|metrics| metrics.sum(&name));
            let all = before
                .iter()
                .zip(after)
                .filter_map(|(before, after)| Some(moved(of(before), of(after)?)));
            all.sum::<f64>()
        });
        self.delay = if count > 0.0 { seconds / count } else { 0.0 };
    }

    /// Adds the increases of a replica's counters.
    pub(crate) fn note_metrics(&mut self, before: Option<&Metrics>, after: &Metrics) {
        let before: BTreeMap<_, _> = before.into_iter().flat_map(Metrics::series).collect();
        for (name, value) in after.series() {
            let is_counter = name
                .split('{')
                .next()
                .is_some_and(|name| name.ends_with("_total"));
            let moved = moved(before.get(name).copied(), value);
            if is_counter && moved > 0.0 {
                *self.metrics.entry(name.to_owned()).or_default() += moved;
            }
        }
    }
}

/// The increase of a counter. The counters of a restarted replica begin at 0.
fn moved(before: Option<f64>, after: f64) -> f64 {
    match before {
        Some(before) if before <= after => after - before,
        _ => after,
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, Fate, Fault, NUMBERED, Relayed, Row, SAME, Sent, Violation};
    use testkit::{Checker, Event, Ledger};

    #[test]
    fn a_row_whose_faults_had_no_effect_is_not_kept() {
        let row = |faults: &[Fault]| Row {
            stored: 1,
            ready: [3, 3],
            up: 3,
            ..Row::new(faults, true)
        };
        for fault in Fault::all() {
            // Only the delay of events shows these faults.
            let shows_little = [
                Fault::None,
                Fault::Delay,
                Fault::DelayRecorder,
                Fault::KillCommands,
                Fault::Evict,
            ];
            let is_kept = row(&[*fault]).is_kept();
            assert_eq!(is_kept, shows_little.contains(fault), "{fault:?}");
        }
        let mut row = row(&[Fault::OutOfMemory, Fault::Cut]);
        assert!(!row.is_kept());
        let refused = r#"sse_gateway_published_total{result="redis_takes_no_writes"}"#;
        row.metrics.insert(refused.to_owned(), 1.0);
        assert!(row.is_kept());
    }

    /// The counts for a violation of number 0 or 1. Each publisher has sent number 0 before the faults and number 1
    /// during them.
    fn judged(faults: &[Fault], violation: Violation) -> [u64; 3] {
        let (ledger, book) = (Ledger::new(1), Book::default());
        for publisher in NUMBERED {
            for at in [5, 15] {
                let (fate, id) = (Fate::Accepted, None);
                book.note(publisher, "c0", Sent { fate, at, id });
            }
        }
        let mut row = Row::new(faults, true);
        row.during = 10..20;
        row.judge(&[violation], &ledger, &book, &mut Relayed::new());
        [row.lost, row.repeated, row.disorder]
    }

    const EXCUSED: [u64; 3] = [0, 0, 0];
    const LOST: [u64; 3] = [1, 0, 0];
    const REPEATED: [u64; 3] = [0, 1, 0];
    const DISORDER: [u64; 3] = [0, 0, 1];
    const BEFORE: u64 = 0;
    const DURING: u64 = 1;

    #[test]
    fn only_raw_messages_that_no_recorder_had_may_be_missing() {
        let missing = |publisher: &str, seq| Violation::Missing {
            channel: "c0".to_owned(),
            publisher: publisher.to_owned(),
            from: seq,
            to: seq,
        };
        for faults in [
            &[Fault::Cut][..],
            &[Fault::OutOfMemory],
            &[Fault::KillRecorder, Fault::OutputBuffer],
        ] {
            assert_eq!(judged(faults, missing("raw", DURING)), EXCUSED);
            assert_eq!(judged(faults, missing("raw", BEFORE)), LOST);
            for publisher in ["function", "post"] {
                assert_eq!(judged(faults, missing(publisher, DURING)), LOST);
            }
        }
        // They are counted separately, and break the row.
        let mut row = Row::new(&[Fault::KillRecorder], true);
        (row.stored, row.cuts) = (1, 1);
        assert!(row.is_kept());
        row.unrecorded = 1;
        assert!(!row.is_kept());
    }

    #[test]
    fn only_raw_messages_may_have_no_id_while_redis_takes_no_writes() {
        let no_id = |publisher: &str, seq| Violation::NoId {
            channel: "c0".to_owned(),
            publisher: publisher.to_owned(),
            seq,
        };
        let again = |publisher: &str, seq, has_moved| Violation::Repeated {
            channel: "c0".to_owned(),
            publisher: publisher.to_owned(),
            seq,
            id: String::new(),
            has_moved,
        };
        let not_new = |text: &str| Violation::NotNew {
            text: text.to_owned(),
            id: String::new(),
        };
        let full = &[Fault::OutOfMemory];
        assert_eq!(judged(full, no_id("raw", DURING)), EXCUSED);
        assert_eq!(judged(full, no_id("raw", BEFORE)), DISORDER);
        assert_eq!(judged(full, no_id("post", DURING)), DISORDER);
        assert_eq!(judged(&[Fault::Cut], no_id("raw", DURING)), DISORDER);
        assert_eq!(judged(full, again("raw", DURING, true)), EXCUSED);
        assert_eq!(judged(full, again("raw", DURING, false)), REPEATED);
        assert_eq!(judged(full, again("raw", BEFORE, true)), REPEATED);
        assert_eq!(judged(full, again("function", DURING, true)), REPEATED);
        assert_eq!(judged(&[Fault::Cut], again("raw", DURING, true)), REPEATED);
        assert_eq!(judged(full, not_new(SAME)), EXCUSED);
        assert_eq!(judged(full, not_new("another")), REPEATED);
        assert_eq!(judged(&[Fault::Cut], not_new(SAME)), REPEATED);
    }

    #[test]
    fn a_message_that_others_saw_counts_as_missing_for_each_publisher() {
        let (ledger, book) = (Ledger::new(1), Book::default());
        let mut other = Checker::new(&ledger);
        other.see(&Event {
            id: "2-0".to_owned(),
            event: "message".to_owned(),
            data: "raw c0 0 15".to_owned(),
        });
        let missing = Violation::Missing {
            channel: "c0".to_owned(),
            publisher: "raw".to_owned(),
            from: 0,
            to: 0,
        };
        let mut row = Row::new(&[Fault::OutOfMemory], true);
        row.during = 10..20;
        row.judge(&[missing], &ledger, &book, &mut Relayed::new());
        assert_eq!(row.lost, 1);
    }
}
