//! What a client should have received: each number once, in order, under the same id as everybody.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::Result;

use self::ledger::Track;
use crate::{Event, Gap, Id, Message, Position, partition_of};

mod ledger;
#[cfg(test)]
mod tests;
mod violation;

pub use ledger::Ledger;
pub use violation::Violation;

/// Judges one client's events, over all its connections.
///
/// The first message of a publisher on a channel sets where its numbers start, unless
/// [`expect_from`](Self::expect_from) did. Numbers may only be skipped where a gap was announced
/// for their channel since its last message.
#[derive(Debug)]
pub struct Checker {
    ledger: Arc<Ledger>,
    runs: HashMap<Key, Run>,
    /// How many gaps each channel was told.
    gaps_of: HashMap<String, u64>,
    position: Option<Position>,
    gaps: Vec<Gap>,
    violations: Vec<Violation>,
    messages: u64,
    /// The channels it asked for; any, if none is named.
    channels: Vec<String>,
    others: BTreeMap<String, Text>,
    /// Up to here texts were compared with what other clients saw.
    settled: Option<Id>,
    /// How many gaps had been told by then.
    settled_gaps: usize,
}

/// A text without a number, as one client sees it.
#[derive(Debug, Default)]
struct Text {
    /// How often it came.
    came: u64,
    /// How often with an id of its own since the last [`settle`](Checker::settle).
    unsettled: u64,
}

/// Channel and publisher.
type Key = (Box<str>, Box<str>);

/// A publisher's numbers on a channel, as one client sees them.
#[derive(Debug)]
struct Run {
    track: Arc<Track>,
    partition: u32,
    /// The next number; absent until the first message says.
    next: Option<u64>,
    /// Skipped, so that one of these that comes later is told from a repetition.
    skipped: Vec<u64>,
    /// How many gaps the channel had been told at the last message.
    gaps: u64,
}

/// The last number each publisher sent on each channel: (channel, publisher) to number.
pub type Goal = BTreeMap<(String, String), u64>;

impl Checker {
    /// A checker for one client.
    pub fn new(ledger: &Arc<Ledger>) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            runs: HashMap::new(),
            gaps_of: HashMap::new(),
            position: None,
            gaps: Vec::new(),
            violations: Vec::new(),
            messages: 0,
            channels: Vec::new(),
            others: BTreeMap::new(),
            settled: None,
            settled_gaps: 0,
        }
    }

    /// Messages of other channels than these are leaks.
    pub fn asks_for(&mut self, channels: &[String]) {
        self.channels = channels.to_vec();
    }

    /// The next number of `publisher` on `channel` must be `seq`.
    pub fn expect_from(&mut self, channel: &str, publisher: &str, seq: u64) {
        self.run(channel, publisher).next = Some(seq);
    }

    /// Takes the next event, and answers the message in it, if it is one.
    pub fn see<'a>(&mut self, event: &'a Event) -> Option<Message<'a>> {
        let before = self.position.clone();
        if let Err(error) = self.advance(event) {
            self.unreadable(event, &error);
        }
        if event.event == "gateway.gap" {
            match Gap::read(event) {
                Ok(gap) => {
                    *self.gaps_of.entry(gap.channel.clone()).or_default() += 1;
                    self.gaps.push(gap);
                }
                Err(error) => self.unreadable(event, &error),
            }
            return None;
        }
        if event.event.starts_with("gateway.") {
            return None;
        }
        let Some(message) = Message::parse(&event.data) else {
            self.others.entry(event.data.clone()).or_default().came += 1;
            self.must_advance(event, before.as_ref());
            return None;
        };
        if !self.channels.is_empty() && !self.channels.iter().any(|mine| mine == message.channel) {
            self.violations.push(Violation::Leaked {
                channel: message.channel.to_owned(),
            });
            return Some(message);
        }
        self.messages += 1;
        self.count(&message, &event.id);
        if self.position == before {
            // Relayed without an id, or repeated: the numbers tell.
            return Some(message);
        }
        let partition = self.run(message.channel, message.publisher).partition;
        let at = |position: &Option<Position>| position.as_ref().and_then(|p| p.of(partition));
        let (from, to) = (at(&before), at(&self.position));
        if let Some(id) = to
            && to > from
        {
            self.compare(&message, id);
        } else {
            self.went_back(before.as_ref(), event);
        }
        Some(message)
    }

    /// Whether everything of `goal` has come.
    pub fn reached(&self, goal: &Goal) -> bool {
        goal.iter().all(|((channel, publisher), last)| {
            let key = (channel.as_str().into(), publisher.as_str().into());
            self.runs
                .get(&key)
                .is_some_and(|run| run.next > Some(*last))
        })
    }

    /// Notes what of `goal` has not come, unless a gap was announced at the end.
    pub fn finish(&mut self, goal: &Goal) {
        for ((channel, publisher), last) in goal {
            let told = self.gaps_of.get(channel).copied().unwrap_or_default();
            let run = self.run(channel, publisher);
            let next = run.next.unwrap_or_default();
            if next <= *last && run.gaps == told {
                self.violations.push(Violation::Missing {
                    channel: channel.clone(),
                    publisher: publisher.clone(),
                    from: next,
                    to: *last,
                });
            }
        }
    }

    /// What was not as promised.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The gaps that were announced.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// How many numbered messages came.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// How often a text without a number came.
    pub fn came(&self, text: &str) -> u64 {
        self.others.get(text).map_or(0, |text| text.came)
    }

    /// Notes a violation that is seen from outside.
    pub fn blame(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// Takes the violations noted so far.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Compares how often each text without a number came, from the last time up to the position,
    /// with what all clients saw, unless a gap was told meanwhile. For deployments of one
    /// partition, once no client is behind.
    pub fn settle(&mut self) {
        let to = self.position.as_ref().and_then(|position| position.of(0));
        if let (Some(from), Some(to)) = (self.settled, to)
            && self.settled_gaps == self.gaps.len()
        {
            for (text, seen) in &self.others {
                let came = seen.unsettled;
                let elsewhere = self.ledger.times(text, from, to);
                if came != elsewhere {
                    self.violations.push(Violation::Miscounted {
                        text: text.clone(),
                        came,
                        elsewhere,
                    });
                }
            }
        }
        for seen in self.others.values_mut() {
            seen.unsettled = 0;
        }
        self.settled = to;
        self.settled_gaps = self.gaps.len();
    }

    /// The newest position.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    fn run(&mut self, channel: &str, publisher: &str) -> &mut Run {
        let key = (channel.into(), publisher.into());
        self.runs.entry(key).or_insert_with(|| Run {
            track: self.ledger.track(channel, publisher),
            partition: partition_of(channel, self.ledger.partitions()),
            next: None,
            skipped: Vec::new(),
            gaps: 0,
        })
    }

    /// Moves the position, which no event may take back.
    fn advance(&mut self, event: &Event) -> Result<()> {
        if event.id.is_empty() {
            return Ok(());
        }
        let to: Position = event.id.parse()?;
        if self
            .position
            .as_ref()
            .is_some_and(|from| !to.is_not_before(from))
        {
            let from = self.position.clone();
            self.went_back(from.as_ref(), event);
        }
        self.position = Some(to);
        Ok(())
    }

    /// A text without a number has only its id to show that it is not a repetition.
    fn must_advance(&mut self, event: &Event, before: Option<&Position>) {
        if before.is_some() && self.position.as_ref() == before {
            self.violations.push(Violation::NotNew {
                text: event.data.clone(),
                id: event.id.clone(),
            });
        } else if let Some(Position::Single(id)) = &self.position {
            self.ledger.note_text(&event.data, *id);
            if let Some(text) = self.others.get_mut(&event.data) {
                text.unsettled += 1;
            }
        }
    }

    fn went_back(&mut self, from: Option<&Position>, event: &Event) {
        let violation = Violation::WentBack {
            from: from.map(ToString::to_string).unwrap_or_default(),
            to: event.id.clone(),
        };
        if self.violations.last() != Some(&violation) {
            self.violations.push(violation);
        }
    }

    fn unreadable(&mut self, event: &Event, error: &anyhow::Error) {
        let what = format!("{error:#} in {event:?}");
        self.violations.push(Violation::Unreadable { what });
    }

    /// Compares the number with those before it.
    fn count(&mut self, message: &Message<'_>, id: &str) {
        let told = self
            .gaps_of
            .get(message.channel)
            .copied()
            .unwrap_or_default();
        let run = self.run(message.channel, message.publisher);
        let announced = run.gaps != told;
        run.gaps = told;
        let channel = message.channel.to_owned();
        let publisher = message.publisher.to_owned();
        let seq = message.seq;
        let violation = match run.next {
            Some(next) if seq < next => {
                if let Some(at) = run.skipped.iter().position(|skipped| *skipped == seq) {
                    run.skipped.swap_remove(at);
                    Violation::Reordered {
                        channel,
                        publisher,
                        seq,
                    }
                } else {
                    Violation::Repeated {
                        channel,
                        publisher,
                        seq,
                        id: id.to_owned(),
                    }
                }
            }
            Some(next) if seq > next && !announced => {
                run.next = Some(seq + 1);
                run.skipped.extend(next..seq);
                Violation::Missing {
                    channel,
                    publisher,
                    from: next,
                    to: seq - 1,
                }
            }
            _ => {
                run.next = Some(seq + 1);
                return;
            }
        };
        self.violations.push(violation);
    }

    /// Compares the id with what other clients saw.
    fn compare(&mut self, message: &Message<'_>, id: Id) {
        let run = self.run(message.channel, message.publisher);
        let elsewhere = run.track.note(message.seq, id);
        if elsewhere != id {
            self.violations.push(Violation::Renumbered {
                channel: message.channel.to_owned(),
                publisher: message.publisher.to_owned(),
                seq: message.seq,
                id,
                elsewhere,
            });
        }
    }
}
