//! `Flight`: keeps each message of a canary from its sending until its result is known.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Maximum of messages that are remembered while they are away. The oldest shows the lag. A message beyond this limit
/// never counts as lost.
const MAX_AWAY: usize = 1000;

/// The numbered messages, in the order in which they are sent.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    next: u64,
    /// Messages that have not returned, oldest first.
    away: VecDeque<SentMessage>,
    /// Messages that a later one passed before their appends were answered.
    passed: BTreeSet<u64>,
    /// The newest that returned.
    seen: Option<u64>,
}

#[derive(Debug)]
struct SentMessage {
    number: u64,
    sent: Instant,
    promise: Promise,
}

/// Whether a message must return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Its append is not answered yet.
    Open,
    /// It is stored.
    Given,
    /// It is not stored, or the result is unknown, or a gap may contain it.
    None,
}

/// The meaning of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It arrived before, or a later one arrived first.
    Repeated,
    /// It was never sent.
    Foreign,
    New {
        /// How long it was away. If it was not remembered itself, the time of an earlier one.
        lag: Option<Duration>,
        /// Earlier messages that had to arrive before it.
        lost: u64,
    },
}

impl Flight {
    /// The next number, which is sent now.
    pub(crate) fn send(&mut self, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        if self.away.len() < MAX_AWAY {
            self.away.push_back(SentMessage {
                number,
                sent: now,
                promise: Promise::Open,
            });
        }
        number
    }

    /// An append was answered. Returns how many messages are thereby known to be lost. An event may arrive before the
    /// answers to it and to earlier ones.
    pub(crate) fn answer(&mut self, number: u64, is_stored: bool) -> u64 {
        if self.passed.remove(&number) {
            return u64::from(is_stored);
        }
        let mut away = self.away.iter_mut();
        if let Some(message) = away.find(|message| message.number == number)
            && message.promise == Promise::Open
        {
            message.promise = match is_stored {
                true => Promise::Given,
                false => Promise::None,
            };
        }
        0
    }

    /// A gap was received. It may contain every message that is away.
    pub(crate) fn gap(&mut self) {
        for message in &mut self.away {
            message.promise = Promise::None;
        }
    }

    pub(crate) fn arrive(&mut self, number: u64, now: Instant) -> Arrival {
        if number >= self.next {
            return Arrival::Foreign;
        }
        if self.seen.is_some_and(|seen| number <= seen) {
            self.passed.remove(&number);
            return Arrival::Repeated;
        }
        // Before the first arrival, the start of the subscription is not known.
        let is_first = self.seen.replace(number).is_none();
        let (mut lag, mut lost) = (None, 0);
        let upto = self
            .away
            .partition_point(|message| message.number <= number);
        for message in self.away.drain(..upto) {
            lag = Some(now - message.sent);
            match message.promise {
                _ if message.number == number || is_first => {}
                Promise::Given => lost += 1,
                Promise::Open => drop(self.passed.insert(message.number)),
                Promise::None => {}
            }
        }
        Arrival::New { lag, lost }
    }

    /// How long the oldest has been away.
    pub(crate) fn oldest(&self, now: Instant) -> Option<Duration> {
        Some(now - self.away.front()?.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A canary that sends a message every second, and has received the first.
    struct Story {
        flight: Flight,
        now: Instant,
    }

    impl Story {
        fn begin() -> Self {
            let (flight, now) = (Flight::default(), Instant::now());
            let mut story = Self { flight, now };
            story.send(1);
            story.arrive(0, 1, 0);
            story.answer(0, true, 0);
            story
        }

        fn send(&mut self, count: usize) {
            for _ in 0..count {
                self.flight.send(self.now);
                self.now += SECOND;
            }
        }

        #[track_caller]
        fn answer(&mut self, number: u64, is_stored: bool, lost: u64) {
            assert_eq!(self.flight.answer(number, is_stored), lost, "{number}");
        }

        #[track_caller]
        fn arrive(&mut self, number: u64, lag: u32, lost: u64) {
            let lag = Some(lag * SECOND);
            let arrival = self.flight.arrive(number, self.now);
            assert_eq!(arrival, Arrival::New { lag, lost }, "{number}");
        }

        #[track_caller]
        fn repeat(&mut self, number: u64) {
            let arrival = self.flight.arrive(number, self.now);
            assert_eq!(arrival, Arrival::Repeated, "{number}");
        }
    }

    #[test]
    fn what_was_stored_and_passed_is_lost() {
        let mut story = Story::begin();
        story.send(5);
        for number in 1..=5 {
            story.answer(number, true, 0);
        }
        story.arrive(2, 4, 1);
        story.arrive(5, 1, 2);
        assert_eq!(story.flight.oldest(story.now), None);
    }

    #[test]
    fn an_event_may_be_here_before_its_answer() {
        let mut story = Story::begin();
        story.send(4);
        story.arrive(1, 4, 0);
        story.arrive(4, 1, 0);
        story.answer(1, true, 0);
        story.answer(2, true, 1);
        story.answer(3, false, 0);
        story.answer(4, true, 0);
        assert!(story.flight.passed.is_empty());
    }

    #[test]
    fn what_is_not_known_to_be_stored_is_not_lost() {
        let mut story = Story::begin();
        story.send(3);
        // Refused, or the result is unknown.
        story.answer(1, false, 0);
        story.answer(3, true, 0);
        story.arrive(3, 1, 0);
        // Until now the result of this one was unknown too.
        story.answer(2, false, 0);
    }

    #[test]
    fn a_gap_is_for_what_was_away_when_it_was_told() {
        let mut story = Story::begin();
        story.send(2);
        story.answer(1, true, 0);
        story.flight.gap();
        story.answer(2, true, 0);
        story.send(2);
        story.answer(3, true, 0);
        story.answer(4, true, 0);
        story.arrive(4, 1, 1);
    }

    #[test]
    fn before_the_first_one_nothing_is_promised() {
        let mut flight = Flight::default();
        let now = Instant::now();
        for _ in 0..3 {
            flight.send(now);
        }
        flight.answer(0, true);
        let lag = Some(Duration::ZERO);
        assert_eq!(flight.arrive(2, now), Arrival::New { lag, lost: 0 });
        assert_eq!(flight.answer(1, true), 0);
    }

    #[test]
    fn what_comes_again_or_too_late_is_repeated() {
        let mut story = Story::begin();
        story.send(3);
        story.arrive(2, 2, 0);
        story.repeat(2);
        story.repeat(0);
        // It is out of order, but it has arrived.
        story.repeat(1);
        story.answer(1, true, 0);
        story.arrive(3, 1, 0);
    }

    #[test]
    fn a_number_that_was_never_sent_changes_nothing() {
        let mut story = Story::begin();
        story.send(1);
        for number in [2, u64::MAX] {
            let arrival = story.flight.arrive(number, story.now);
            assert_eq!(arrival, Arrival::Foreign, "{number}");
        }
        story.arrive(1, 1, 0);
    }

    #[test]
    fn the_lag_is_known_after_more_than_is_remembered() {
        let mut story = Story::begin();
        story.send(MAX_AWAY + 10);
        assert_eq!(story.flight.away.len(), MAX_AWAY);
        let first = story.now - story.flight.away[0].sent;
        assert_eq!(story.flight.oldest(story.now), Some(first));
        let last = u64::try_from(MAX_AWAY).unwrap() + 10;
        // The newest remembered message was sent ten messages earlier.
        story.arrive(last, 11, 0);
        story.send(1);
        story.arrive(last + 1, 1, 0);
    }
}
