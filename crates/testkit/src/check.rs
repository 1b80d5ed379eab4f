//! Checks that a client receives each number once, in order, and under the same id as all other clients.

use std::{
    collections::{BTreeMap, HashMap},
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use anyhow::Result;

use self::ledger::Track;
use crate::{Event, Gap, Id, Message, Position, micros_since_epoch, partition_of};

mod ledger;
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
    told: HashMap<String, Vec<Told>>,
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

/// A gap, as a client received it.
#[derive(Debug)]
struct Told {
    /// No message up to this id is missing.
    after: Option<Id>,
    /// No message after this id is missing. It is the id of the gap event. If the gap begins there, it is the id of the
    /// channel's next event.
    upto: Option<Id>,
    /// No message from this id on is missing.
    oldest: Option<Id>,
    /// Redis has forgotten events, or the client's id was malformed or from the future. Then a gap without a missing
    /// message is not an error.
    is_vague: bool,
    /// A message was missing inside it, or it has already been reported as false.
    is_filled: bool,
    /// The connection over which it arrived.
    connection: u64,
    /// When it arrived, in microseconds since the epoch.
    at: u64,
}

impl Told {
    /// Whether the gap covers a missing message. A message that no client saw has no id.
    fn excuses(&self, id: Option<Id>) -> bool {
        let lies_in_it = |id| {
            self.after.is_none_or(|after| id > after)
                && self.oldest.is_none_or(|oldest| id < oldest)
                && self.upto.is_none_or(|upto| id <= upto)
        };
        id.is_none_or(lies_in_it)
    }
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

/// A publisher's numbers on a channel, as one client saw them.
#[derive(Debug)]
struct Run {
    track: Arc<Track>,
    partition: u32,
    /// The next number. `None` before the first message.
    next: Option<u64>,
    /// Skipped numbers. A number that arrives later is not a repetition.
    skipped: Vec<u64>,
    /// Numbers that arrived over earlier connections, and not again over this one.
    brought: Range<u64>,
    /// The state of the client at the last message.
    at: Moment,
}

/// Counts at the time of a message.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    /// Gaps of the channel.
    gaps: usize,
    /// Connections.
    connections: u64,
}

/// The last number of each publisher on each channel: (channel, publisher) to number.
pub type Goal = BTreeMap<(String, String), u64>;

impl Checker {
    /// A checker for one client.
    pub fn new(ledger: &Arc<Ledger>) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            runs: HashMap::new(),
            told: HashMap::new(),
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
        let last = self.told.get(channel)?.last();
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
    /// of another channel needs a missing message. Only for deployments with one partition, when no client is behind.
    pub fn settle(&mut self) {
        self.find_false_gaps();
        let to = self.position.as_ref().and_then(|position| position.of(0));
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

    fn find_false_gaps(&mut self) {
        for (channel, told) in &mut self.told {
            if self.asked[1].contains(channel) {
                continue;
            }
            for gap in told
                .iter_mut()
                .filter(|gap| !gap.is_vague && !gap.is_filled)
            {
                gap.is_filled = true;
                let text = |id: Option<Id>| id.map(|id| id.to_string()).unwrap_or_default();
                self.violations.push(Violation::FalseGap {
                    channel: channel.clone(),
                    after: text(gap.after),
                    oldest: text(gap.oldest),
                });
            }
        }
    }

    fn note_gap(&mut self, gap: Gap) {
        if !self.has_asked_for(&gap.channel) {
            self.leaked(&gap.channel);
            return;
        }
        let id = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        let says_nothing = ["future", "malformed"].contains(&gap.reason.as_str());
        let after = id(&gap.after).filter(|_| !says_nothing);
        let partition = partition_of(&gap.channel, self.ledger.partitions());
        let at = self.position.as_ref().and_then(|at| at.of(partition));
        let new = Told {
            upto: at.filter(|_| at > after),
            after,
            oldest: id(&gap.oldest),
            is_vague: says_nothing || gap.reason == "forgotten",
            is_filled: false,
            connection: self.connections,
            at: micros_since_epoch(),
        };
        let told = self.told.entry(gap.channel.clone()).or_default();
        let is_same = |old: &Told| {
            (old.connection, old.after, old.oldest) == (new.connection, new.after, new.oldest)
        };
        if told.iter().any(is_same) {
            self.violations.push(Violation::RepeatedGap {
                channel: gap.channel.clone(),
            });
        }
        told.push(new);
        self.gaps.push(gap);
    }

    /// Ends the channel's gaps at its next event, which has just arrived.
    fn bound_gaps(&mut self, channel: &str) {
        let partition = partition_of(channel, self.ledger.partitions());
        let at = self.position.as_ref().and_then(|at| at.of(partition));
        let told = self.told.get_mut(channel).into_iter().flatten();
        for gap in told.rev().take_while(|gap| gap.upto.is_none()) {
            gap.upto = at;
        }
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

    fn run(&mut self, channel: &str, publisher: &str) -> &mut Run {
        let key = (channel.into(), publisher.into());
        self.runs.entry(key).or_insert_with(|| Run {
            track: self.ledger.track(channel, publisher),
            partition: partition_of(channel, self.ledger.partitions()),
            next: None,
            skipped: Vec::new(),
            brought: 0..0,
            at: Moment::default(),
        })
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

    /// Compares the number with earlier ones. Returns whether it is new.
    fn count(&mut self, message: &Message<'_>, id: &str) -> bool {
        let Message {
            channel,
            publisher,
            seq,
            ..
        } = *message;
        let now = Moment {
            gaps: self.told.get(channel).map_or(0, Vec::len),
            connections: self.connections,
        };
        self.bound_gaps(channel);
        let run = self.run(channel, publisher);
        let since = std::mem::replace(&mut run.at, now);
        let next = run.next.unwrap_or(seq);
        if now.connections > since.connections {
            run.brought = 0..next;
        }
        let has_moved = run.brought.contains(&seq);
        if has_moved {
            run.brought.start = seq + 1;
        }
        if seq >= next {
            run.next = Some(seq + 1);
            self.skip(channel, publisher, next..seq, since);
            return true;
        }
        let skipped = run.skipped.iter().position(|skipped| *skipped == seq);
        let (channel, publisher) = (channel.to_owned(), publisher.to_owned());
        let violation = if let Some(at) = skipped {
            run.skipped.swap_remove(at);
            Violation::Reordered {
                channel,
                publisher,
                seq,
                has_moved,
            }
        } else {
            Violation::Repeated {
                channel,
                publisher,
                seq,
                id: id.to_owned(),
                has_moved,
            }
        };
        self.violations.push(violation);
        false
    }

    /// Notes these numbers as missing, except numbers that a gap since then covers.
    fn skip(&mut self, channel: &str, publisher: &str, numbers: Range<u64>, since: Moment) {
        if numbers.is_empty() {
            return;
        }
        let track = Arc::clone(&self.run(channel, publisher).track);
        let mut told = self.told.get_mut(channel);
        let mut missing: Vec<RangeInclusive<u64>> = Vec::new();
        for seq in numbers {
            let id = track.id_of(seq);
            let mut is_excused = false;
            for gap in told.iter_mut().flat_map(|told| &mut told[since.gaps..]) {
                if gap.excuses(id) {
                    gap.is_filled = true;
                    is_excused = true;
                }
            }
            match missing.last_mut() {
                _ if is_excused => {}
                Some(range) if range.end() + 1 == seq => *range = *range.start()..=seq,
                _ => missing.push(seq..=seq),
            }
        }
        for range in missing {
            let (from, to) = range.clone().into_inner();
            self.run(channel, publisher).skipped.extend(range);
            self.violations.push(Violation::Missing {
                channel: channel.to_owned(),
                publisher: publisher.to_owned(),
                from,
                to,
            });
        }
    }

    /// Compares the id with that of other clients.
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
