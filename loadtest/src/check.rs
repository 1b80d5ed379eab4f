//! What a client should have received: each number once, in order, under the same id as everybody.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::Result;

use self::ledger::Track;
use crate::{Event, Gap, Id, Message, Position, partition_of};

mod fault;
mod ledger;
#[cfg(test)]
mod tests;

pub use fault::Fault;
pub use ledger::Ledger;

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
    faults: Vec<Fault>,
    messages: u64,
    others: BTreeMap<String, u64>,
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
            faults: Vec::new(),
            messages: 0,
            others: BTreeMap::new(),
        }
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
            *self.others.entry(event.data.clone()).or_default() += 1;
            self.must_advance(event, before.as_ref());
            return None;
        };
        self.messages += 1;
        self.count(&message);
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
                self.faults.push(Fault::Missing {
                    channel: channel.clone(),
                    publisher: publisher.clone(),
                    from: next,
                    to: *last,
                });
            }
        }
    }

    /// What was not as promised.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The gaps that were announced.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// How many numbered messages came.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// How often each other text came.
    pub fn others(&self) -> &BTreeMap<String, u64> {
        &self.others
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
            self.went_back(before, event);
        }
    }

    fn went_back(&mut self, from: Option<&Position>, event: &Event) {
        let fault = Fault::WentBack {
            from: from.map(ToString::to_string).unwrap_or_default(),
            to: event.id.clone(),
        };
        if self.faults.last() != Some(&fault) {
            self.faults.push(fault);
        }
    }

    fn unreadable(&mut self, event: &Event, error: &anyhow::Error) {
        let what = format!("{error:#} in {event:?}");
        self.faults.push(Fault::Unreadable { what });
    }

    /// Compares the number with those before it.
    fn count(&mut self, message: &Message<'_>) {
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
        let fault = match run.next {
            Some(next) if seq < next => {
                if let Some(at) = run.skipped.iter().position(|skipped| *skipped == seq) {
                    run.skipped.swap_remove(at);
                    Fault::Reordered {
                        channel,
                        publisher,
                        seq,
                    }
                } else {
                    Fault::Repeated {
                        channel,
                        publisher,
                        seq,
                    }
                }
            }
            Some(next) if seq > next && !announced => {
                run.next = Some(seq + 1);
                run.skipped.extend(next..seq);
                Fault::Missing {
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
        self.faults.push(fault);
    }

    /// Compares the id with what other clients saw.
    fn compare(&mut self, message: &Message<'_>, id: Id) {
        let run = self.run(message.channel, message.publisher);
        let elsewhere = run.track.note(message.seq, id);
        if elsewhere != id {
            self.faults.push(Fault::Renumbered {
                channel: message.channel.to_owned(),
                publisher: message.publisher.to_owned(),
                seq: message.seq,
                id,
                elsewhere,
            });
        }
    }
}
