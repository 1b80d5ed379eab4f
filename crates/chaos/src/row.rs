//! The result of one fault, or of several at once: counts, times, and the signals that an operator sees.

mod effect;
mod signals;
mod verdict;

use std::{collections::BTreeMap, fmt, ops::Range, time::Duration};

use crate::{counters::is_usual, fault::Fault, promises::Promises};

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
    pub(crate) last_gap: u64,
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

    /// Notes the broken promises of the row as a whole.
    pub(crate) fn explain(&mut self) {
        let late = self.live.max(self.raw_live);
        if late >= SOON {
            self.example(format!(
                "a client received nothing until {late:?} after the end"
            ));
        }
        if self.promises.beats && self.quiet > QUIET {
            self.example(format!("a connection was quiet for {:?}", self.quiet));
        }
        if self.promises.no_gaps && self.gaps > 0 {
            self.example(format!("clients received {} gaps", self.gaps));
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
            self.example("nothing was stored, or the fault had no visible effect".to_owned());
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

    pub(crate) fn example(&mut self, what: String) {
        // Many clients may have the same violation.
        if self.examples.len() < EXAMPLES && !self.examples.contains(&what) {
            self.examples.push(what);
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>6} messages {:>8} deliveries {:>4} cuts {:>4} gaps {:>3} unrecorded {} silent {} lost {} twice {} \
             other; live {:.2} s, raw {:.2} s, silence {:.2} s, quiet {:.2} s, ready {}/{}{}",
            self.messages,
            self.deliveries,
            self.cuts,
            self.gaps,
            self.unrecorded,
            self.silent,
            self.lost,
            self.repeated,
            self.disorder,
            self.live.as_secs_f64(),
            self.raw_live.as_secs_f64(),
            self.silence.as_secs_f64(),
            self.quiet.as_secs_f64(),
            self.ready[0],
            self.ready[1],
            if self.is_kept() {
                ""
            } else {
                "  PROMISE BROKEN"
            },
        )?;
        if !self.is_kept() {
            for example in &self.examples {
                write!(f, "\n    {example}")?;
            }
        }
        Ok(())
    }
}
