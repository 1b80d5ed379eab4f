//! Checks that a client receives each number once, in order, and under the same id as all other clients.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::Result;

use self::{gaps::ReceivedGap, numbers::Run};
use crate::{Event, Gap, Id, Message, Position, partition_of};

mod gaps;
mod ledger;
mod numbers;
#[cfg(test)]
mod tests;
mod violation;

pub use ledger::Ledger;
pub use violation::Violation;

/// Judges one client's events, over all its connections.
///
/// The first message of a publisher on a channel sets where its numbers start, unless
/// [`expect_from`](Self::expect_from) did. Numbers may be skipped only if the channel has received a gap since its last
/// message.
#[derive(Debug)]
pub struct Checker {
    ledger: Arc<Ledger>,
    runs: HashMap<Key, Run>,
    /// The gaps of each channel, in the order of arrival.
    gaps_by_channel: HashMap<String, Vec<ReceivedGap>>,
    position: Option<Position>,
    gaps: Vec<Gap>,
    violations: Vec<Violation>,
    messages: u64,
    /// The channels that the client asked for: with numbered messages, and with texts. If there are none, any channel
    /// is allowed.
    asked: [Vec<String>; 2],
    others: BTreeMap<String, Text>,
    /// Up to this id, texts have been compared with those of other clients.
    settled: Option<Id>,
    /// Number of its connections, including the current one.
    connections: u64,
    /// How many gaps the channels of texts had received by then.
    settled_gaps: usize,
}

/// A text without a number, as one client saw it.
#[derive(Debug, Default)]
struct Text {
    /// How often it arrived.
    came: u64,
    /// How often it arrived with its own id since the last [`settle`](Checker::settle).
    unsettled: u64,
}

/// Channel and publisher.
type Key = (Box<str>, Box<str>);

/// The last number of each publisher on each channel: (channel, publisher) to number.
pub type Goal = BTreeMap<(String, String), u64>;

impl Checker {
    /// A checker for one client.
    pub fn new(ledger: &Arc<Ledger>) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            runs: HashMap::new(),
            gaps_by_channel: HashMap::new(),
            position: None,
            gaps: Vec::new(),
            violations: Vec::new(),
            messages: 0,
            asked: Default::default(),
            others: BTreeMap::new(),
            settled: None,
            settled_gaps: 0,
            connections: 0,
        }
    }

    /// Sets the allowed channels. Messages of other channels are leaks.
    pub fn asks_for(&mut self, numbered: &[String], others: &[String]) {
        self.asked = [numbered.to_vec(), others.to_vec()];
    }

    /// Compares this text without a number even if it never arrives.
    pub fn expect_text(&mut self, text: &str) {
        self.others.entry(text.to_owned()).or_default();
    }

    /// The next number of `publisher` on `channel` must be `seq`.
    pub fn expect_from(&mut self, channel: &str, publisher: &str, seq: u64) {
        self.run(channel, publisher).next = Some(seq);
    }

    /// Takes the next event. If it is a message, returns it.
    pub fn see<'a>(&mut self, event: &'a Event) -> Option<Message<'a>> {
        let before = self.position.clone();
        if let Err(error) = self.advance(event) {
            self.unreadable(event, &error);
        }
        if event.event == "gateway.gap" {
            match Gap::read(event) {
                Ok(gap) => self.note_gap(gap),
                Err(error) => self.unreadable(event, &error),
            }
        }
        if event.event.starts_with("gateway.") {
            self.connections += u64::from(event.event == "gateway.open");
            return None;
        }
        let Some(message) = Message::parse(&event.data) else {
            self.others.entry(event.data.clone()).or_default().came += 1;
            self.must_advance(event, before.as_ref());
            return None;
        };
        if !self.has_asked_for(message.channel) {
            self.leaked(message.channel);
            return Some(message);
        }
        self.messages += 1;
        let is_new = self.count(&message, &event.id);
        if self.position == before {
            if is_new {
                self.violations.push(Violation::NoId {
                    channel: message.channel.to_owned(),
                    publisher: message.publisher.to_owned(),
                    seq: message.seq,
                });
            }
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

    /// Whether all messages of `goal` have arrived.
    pub fn reached(&self, goal: &Goal) -> bool {
        goal.iter().all(|((channel, publisher), last)| {
            let key = (channel.as_str().into(), publisher.as_str().into());
            self.runs
                .get(&key)
                .is_some_and(|run| run.next > Some(*last))
        })
    }

    /// Notes the messages of `goal` that have not arrived, unless a gap at the end covers them.
    pub fn finish(&mut self, goal: &Goal) {
        for ((channel, publisher), last) in goal {
            let run = self.run(channel, publisher);
            let (next, since) = (run.next.unwrap_or_default(), run.at);
            self.skip(channel, publisher, next..last + 1, since);
        }
    }

    /// The broken promises.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The gaps that arrived.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// When the last gap of a channel was received, in microseconds since the epoch.
    pub fn last_gap(&self, channel: &str) -> Option<u64> {
        let last = self.gaps_by_channel.get(channel)?.last();
        last.map(|gap| gap.at)
    }

    /// Number of numbered messages that arrived.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// How often a text without a number arrived.
    pub fn came(&self, text: &str) -> u64 {
        self.others.get(text).map_or(0, |text| text.came)
    }

    /// Notes a violation that was found elsewhere.
    pub fn blame(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// Takes the violations noted so far.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Compares texts without a number: each has to arrive as often as all clients together saw it, between the last
    /// call and the position. Texts are not compared if one of their channels has received a gap since then. Each gap
    /// of another channel needs a missing message. Only for clients whose texts are in one partition, when no client is
    /// behind.
    pub fn settle(&mut self) {
        self.find_false_gaps();
        let partition = self.partition_of_texts();
        let to = self
            .position
            .as_ref()
            .and_then(|position| position.of(partition));
        let of_texts = &self.asked[1];
        let is_of_texts = |gap: &&Gap| of_texts.is_empty() || of_texts.contains(&gap.channel);
        let gaps = self.gaps.iter().filter(is_of_texts).count();
        if let (Some(from), Some(to)) = (self.settled, to)
            && self.settled_gaps == gaps
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
        self.settled_gaps = gaps;
    }

    /// The partition of the channel with texts. Without one, there has to be one partition.
    fn partition_of_texts(&self) -> u32 {
        let channel = self.asked[1].first();
        channel.map_or(0, |channel| partition_of(channel, self.ledger.partitions()))
    }

    fn has_asked_for(&self, channel: &str) -> bool {
        let mut asked = self.asked.iter().flatten().peekable();
        asked.peek().is_none() || asked.any(|mine| mine == channel)
    }

    fn leaked(&mut self, channel: &str) {
        self.violations.push(Violation::Leaked {
            channel: channel.to_owned(),
        });
    }

    /// The newest position.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Moves the position. No event may move it back.
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

    /// For a text without a number, only a new id proves that it is not a repetition.
    fn must_advance(&mut self, event: &Event, before: Option<&Position>) {
        if before.is_some() && self.position.as_ref() == before {
            self.violations.push(Violation::NotNew {
                text: event.data.clone(),
                id: event.id.clone(),
            });
        } else if let Some(position) = &self.position
            && let Some(id) = position.of(self.partition_of_texts())
        {
            self.ledger.note_text(&event.data, id);
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
}
