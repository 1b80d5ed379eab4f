//! What one fault, or several at once, came to: counts, times, and what an operator sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use serde_json::Value;

use super::{
    fault::{Fault, Promises},
    publishers::{Book, Fate, NUMBERED, Sent},
    report::is_usual,
};
use crate::{Violation, check::Ledger, lab::Metrics};

/// Everybody has to receive again by then, once a fault is over.
const SOON: Duration = Duration::from_secs(15);
/// Examples of broken promises that are kept.
const EXAMPLES: usize = 5;

/// What came of a fault.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done, at once.
    pub faults: Vec<Fault>,
    pub(super) promises: Promises,
    /// When it was, in microseconds since the epoch: raw messages that were sent before or after are
    /// recorded in any case.
    pub(super) during: Range<u64>,
    /// Messages that were accepted: heard by somebody, or answered with an id.
    pub messages: u64,
    /// Messages that Redis has in its history, each of them compared with what clients saw.
    pub stored: u64,
    /// Events that clients received.
    pub deliveries: u64,
    /// Attempts to publish that were refused, and repeated.
    pub refused: u64,
    /// Attempts to publish whose answer did not come.
    pub uncertain: u64,
    /// Connections that ended without the client's doing.
    pub cuts: u64,
    /// Clients among them that read whatever there is. Those that stall may be given up; they resume.
    pub readers_cut: u64,
    /// Connections that clients ended, and came back.
    pub returns: u64,
    /// Gaps that were told.
    pub gaps: u64,
    /// Raw messages that were heard and recorded nowhere.
    pub unrecorded: u64,
    /// Messages that a client missed, and was told nothing.
    pub lost: u64,
    /// Messages that came twice.
    pub repeated: u64,
    /// Whatever else is not as promised: order, ids, leaks, answers.
    pub disorder: u64,
    /// How long it was done.
    pub lasted: Duration,
    /// From its end until every client receives, on each of its channels, what the function stores.
    pub live: Duration,
    /// The same for raw messages.
    pub raw_live: Duration,
    /// The longest time that a client received nothing.
    pub silence: Duration,
    /// The least number of replicas that were ready at a time, and how many there are.
    pub ready: [usize; 2],
    /// The least number of replicas whose `/metrics` answered.
    pub up: usize,
    /// Sums of gauges over those that answered: the least and the greatest seen meanwhile.
    pub gauges: BTreeMap<&'static str, [f64; 2]>,
    /// Counters that moved, of all replicas.
    pub metrics: BTreeMap<String, f64>,
    /// What replicas logged, with its level, and how often.
    pub logs: BTreeMap<String, u64>,
    /// Some of what was not as promised.
    pub examples: Vec<String>,
}

impl Row {
    pub(super) fn new(faults: &[Fault]) -> Self {
        let promises = faults.iter().map(|fault| fault.promises());
        Self {
            faults: faults.to_vec(),
            promises: promises.fold(Fault::None.promises(), Promises::and),
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
            disorder: 0,
            lasted: Duration::ZERO,
            live: Duration::ZERO,
            raw_live: Duration::ZERO,
            silence: Duration::ZERO,
            ready: [0, 0],
            up: 0,
            gauges: BTreeMap::new(),
            metrics: BTreeMap::new(),
            logs: BTreeMap::new(),
            examples: Vec::new(),
        }
    }

    /// Whether everything was as promised.
    pub fn is_kept(&self) -> bool {
        let Promises {
            no_gaps,
            no_cuts,
            exact,
            ..
        } = self.promises;
        self.disorder == 0
            && self.live.max(self.raw_live) < SOON
            && !(no_cuts && self.readers_cut > 0)
            && !(exact && self.lost + self.repeated > 0)
            && !(self.promises.raw_recorded() && self.unrecorded > 0)
            && !(no_gaps && self.gaps > 0)
            && self.has_shown()
    }

    /// Whether what the faults are to do could be seen: a row in which they did nothing proves nothing.
    fn has_shown(&self) -> bool {
        // Where nobody hears raw messages at the same time, what was to be appended is refused all the same.
        let refused = r#"sse_gateway_published_total{result="redis_takes_no_writes"}"#;
        self.stored > 0
            && self.faults.iter().all(|fault| match fault {
                Fault::OutOfMemory => self.unrecorded > 0 || self.metrics.contains_key(refused),
                fault => !fault.tells_gaps() || self.gaps > 0,
            })
    }

    /// Says what is wrong about the row as a whole.
    pub(super) fn explain(&mut self) {
        let late = self.live.max(self.raw_live);
        if late >= SOON {
            self.example(format!(
                "somebody received nothing until {late:?} after the end"
            ));
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

    /// Takes the counts of another row into this one.
    pub(super) fn add(&mut self, other: &Self) {
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
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples
            .extend(other.examples.iter().take(room).cloned());
    }

    /// Judges what a client's checker found.
    pub(super) fn judge(
        &mut self,
        violations: &[Violation],
        ledger: &Ledger,
        book: &Book,
        unrecorded: &mut BTreeSet<(String, u64)>,
    ) {
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
                        let Some(Sent { fate, at }) = sent else {
                            return seen;
                        };
                        let certain = fate == Fate::Accepted;
                        let is_excused = self.promises.raw_recorded() || self.during.contains(&at);
                        if !seen && certain && publisher == NUMBERED[0] && is_excused {
                            // It never had an id, so it is missing in nobody's history.
                            unrecorded.insert((channel.clone(), *seq));
                            return false;
                        }
                        seen || certain
                    });
                    let missed = missed.count() as u64;
                    self.lost += missed;
                    if missed == 0 {
                        continue;
                    }
                }
                Violation::Miscounted { .. } => self.lost += 1,
                // Passed on while Redis takes no writes. They are counted where they were published.
                Violation::NotNew { .. } | Violation::NoId { .. } if !self.promises.writes => {
                    continue;
                }
                // Without an id nobody can tell that the client has had it elsewhere, when it comes to a replica that was stalled.
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
                    && ledger.id_of(channel, publisher, *seq).is_none()
                    && book
                        .sent(publisher, channel, *seq)
                        .is_some_and(|sent| self.during.contains(&sent.at)) =>
                {
                    continue;
                }
                // Whoever asks for something that was evicted is told what Redis still knows.
                Violation::FalseGap { .. } if !self.promises.exact => continue,
                Violation::Repeated { .. } | Violation::NotNew { .. } => self.repeated += 1,
                _ => self.disorder += 1,
            }
            self.example(violation.to_string());
        }
    }

    pub(super) fn example(&mut self, what: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(what);
        }
    }

    /// Counts lines of logs, in JSON, by level and message.
    pub(super) fn note_lines(&mut self, lines: &[String]) {
        for line in lines {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                *self.logs.entry(line.clone()).or_default() += 1;
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (level, message) = (text(&line["level"]), text(&line["fields"]["message"]));
            *self.logs.entry(format!("{level} {message}")).or_default() += 1;
        }
    }

    /// Adds what a replica's counters have moved by. A replica that was started anew began at 0.
    pub(super) fn note_metrics(&mut self, before: Option<&Metrics>, after: &Metrics) {
        let before: BTreeMap<_, _> = before.into_iter().flat_map(Metrics::series).collect();
        for (name, value) in after.series() {
            let is_counter = name
                .split('{')
                .next()
                .is_some_and(|name| name.ends_with("_total"));
            let old = before.get(name).copied().unwrap_or_default();
            let moved = if old > value { value } else { value - old };
            if is_counter && moved > 0.0 {
                *self.metrics.entry(name.to_owned()).or_default() += moved;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Row};

    #[test]
    fn a_row_in_which_its_faults_did_nothing_is_not_kept() {
        let row = |faults: &[Fault]| Row {
            stored: 1,
            ..Row::new(faults)
        };
        assert!(row(&[Fault::None]).is_kept());
        assert!(!row(&[Fault::Trim]).is_kept());
        let mut row = row(&[Fault::OutOfMemory, Fault::Cut]);
        assert!(!row.is_kept());
        let refused = r#"sse_gateway_published_total{result="redis_takes_no_writes"}"#;
        row.metrics.insert(refused.to_owned(), 1.0);
        assert!(row.is_kept());
    }
}
