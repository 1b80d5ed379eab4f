//! Compares the messages that were published, the events that clients saw, and the history of Redis.

use std::sync::{Arc, atomic::Ordering};

use testkit::{Id, Message, Violation, lab::Fleet, partition_of};

use crate::{
    book::Book,
    channels::{BURST, CHANNELS, NUMBERED, SAME, filler},
    crowd::follows,
    row::{Followers, Relayed, Row},
    store::Store,
};

/// Up to where a run has been judged.
#[derive(Debug)]
pub(crate) struct Judge {
    /// Messages sent until this time have been judged, in microseconds since the epoch.
    judged: u64,
    /// How many identical messages had been recorded and published at the end of the last row.
    same: [u64; 2],
    /// How many identical messages were uncertain at the ends of the last two rows.
    uncertain: [u64; 2],
    /// How many gaps each client had received by then.
    gaps: Vec<usize>,
    /// By partition: up to this id, the events in Redis have been compared with the events of clients.
    compared: Vec<Id>,
}

impl Judge {
    /// Judges messages that are sent after `start`. Every client has received a message by now.
    pub(crate) fn new(fleet: &Fleet, book: &Book, start: u64, partitions: u32) -> Self {
        for (number, mut checker) in fleet.checkers().enumerate() {
            if follows(number, fleet.len(), SAME) {
                checker.expect_text(SAME);
            }
            checker.settle();
        }
        let gaps = fleet.checkers().map(|checker| checker.gaps().len());
        Self {
            judged: start,
            same: recorded_and_published(fleet, book),
            uncertain: [0, 0],
            gaps: gaps.collect(),
            compared: common_positions(fleet, partitions),
        }
    }

    /// Judges the events that clients saw between the last row and this fault. No fault excuses a violation in them.
    pub(crate) fn judge_calm(fleet: &Fleet, book: &Book, row: &mut Row) {
        let mut calm = Row::new(&[], true);
        for mut checker in fleet.checkers() {
            let violations = checker.take_violations();
            calm.judge(&violations, fleet.ledger(), book, &mut Relayed::new());
        }
        row.add(&calm);
    }

    /// Judges the messages that were sent until `upto`.
    pub(crate) fn judge(&mut self, fleet: &Fleet, book: &Book, row: &mut Row, upto: u64) {
        let burst = filler(BURST);
        let mut relayed = Relayed::new();
        for (number, mut checker) in fleet.checkers().enumerate() {
            checker.settle();
            for (channel, text) in [(SAME, SAME), (BURST, &burst)] {
                if checker.came(text) > 0 && !follows(number, fleet.len(), channel) {
                    checker.blame(Violation::Leaked {
                        channel: channel.to_owned(),
                    });
                }
            }
            for gap in &checker.gaps()[self.gaps[number]..] {
                row.gaps += 1;
                let may_be = match &*gap.reason {
                    "trimmed" => true,
                    "forgotten" => !row.promises.remembers,
                    _ => false,
                };
                if !may_be {
                    row.disorder += 1;
                    row.example(format!(
                        "{}: a gap has the reason {}",
                        gap.channel, gap.reason
                    ));
                }
            }
            self.gaps[number] = checker.gaps().len();
            let violations = checker.take_violations();
            row.judge(&violations, fleet.ledger(), book, &mut relayed);
        }
        let time = self.judged + 1..upto + 1;
        self.judged = upto;
        for channel in CHANNELS {
            let checkers = fleet.checkers().enumerate();
            let clients = checkers.filter(|(number, _)| follows(*number, fleet.len(), channel));
            let last_gaps = clients.map(|(_, checker)| checker.last_gap(channel));
            let last_gaps: Vec<_> = last_gaps.map(Option::unwrap_or_default).collect();
            let followers = Followers {
                clients: last_gaps.len(),
                last_gap: last_gaps.into_iter().min().unwrap_or_default(),
            };
            for publisher in NUMBERED {
                for (seq, sent) in book.sent_during(publisher, channel, &time) {
                    let seen = fleet.ledger().id_of(channel, publisher, seq);
                    row.judge_sent((publisher, channel, seq), sent, seen, &relayed, followers);
                }
            }
        }
        // An uncertain message may be recorded a little later.
        let now = book.same[1].load(Ordering::Acquire);
        let uncertain = now - self.uncertain[0];
        self.uncertain = [self.uncertain[1], now];
        let [recorded, published] = recorded_and_published(fleet, book);
        let recorded_now = recorded - self.same[0];
        let accepted = published - self.same[1];
        self.same = [recorded, published];
        row.messages += accepted;
        if recorded_now < accepted && row.promises.bus_delivers {
            row.unrecorded += accepted - recorded_now;
            row.example(format!(
                "{accepted} identical messages had a subscriber, {recorded_now} were recorded"
            ));
        }
        if recorded_now > accepted + uncertain {
            row.repeated += recorded_now - accepted - uncertain;
            row.example(format!(
                "{accepted} identical messages had a subscriber, {recorded_now} were recorded"
            ));
        }
    }

    /// Compares the events that Redis stored since the last call with the events of clients. Ids have to be equal.
    pub(crate) async fn compare_with_redis(&mut self, fleet: &Fleet, store: &Store, row: &mut Row) {
        let partitions = store.partitions();
        let upto = common_positions(fleet, partitions);
        let before = std::mem::replace(&mut self.compared, upto.clone());
        let ledger = Arc::clone(fleet.ledger());
        for channel in CHANNELS.into_iter().chain([SAME]) {
            let partition = partition_of(channel, partitions) as usize;
            let range = [
                format!("({}", before[partition]),
                upto[partition].to_string(),
            ];
            let range = range.each_ref().map(String::as_str);
            let redis = store.holder(channel).await;
            for (id, payload) in redis.log_between(channel, partitions, range).await {
                row.stored += 1;
                let text = String::from_utf8_lossy(&payload);
                let seen = match Message::parse(&text) {
                    Some(message) => ledger.id_of(channel, message.publisher, message.seq),
                    None => ledger.has_text(&text, id).then_some(id),
                };
                if seen == Some(id) {
                    continue;
                }
                if seen.is_some() {
                    row.disorder += 1;
                } else {
                    row.lost += 1;
                }
                row.example(format!(
                    "{channel}: Redis has {id}, which was seen as {seen:?}: {text}"
                ));
            }
        }
    }
}

/// By partition, the id that every client of a channel there has reached.
fn common_positions(fleet: &Fleet, partitions: u32) -> Vec<Id> {
    let of = |partition| {
        let positions = fleet.checkers().filter_map(|checker| {
            let position = checker.position();
            position.and_then(|position| position.of(partition))
        });
        positions.min().unwrap_or_default()
    };
    (0..partitions).map(of).collect()
}

/// Identical messages: how many were seen by any client, and how many were accepted.
fn recorded_and_published(fleet: &Fleet, book: &Book) -> [u64; 2] {
    let last = Id {
        ms: u64::MAX,
        seq: u64::MAX,
    };
    let recorded = fleet.ledger().times(SAME, Id::default(), last);
    let published = book.same[0].load(Ordering::Acquire);
    [recorded, published]
}
