//! Decides which violations break a promise of the row.

use std::collections::BTreeSet;

use testkit::{Id, Ledger, Violation};

use super::{Followers, Relayed, Row};
use crate::{
    book::{Book, Fate, Sent},
    channels::{NUMBERED, SAME},
};

impl Row {
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
        let punctual = self.promises.punctual;
        // A PUBLISH without an answer was carried out after later ones.
        let is_late = |publisher: &str, channel: &str, seq: u64| {
            let sent = book.sent(publisher, channel, seq);
            let is_uncertain = sent.is_some_and(|sent| sent.fate == Fate::Uncertain);
            is_uncertain && is_raw(publisher) && !punctual
        };
        let bus_delivers = self.promises.bus_delivers;
        // The bus of the cluster may have lost it, and it was recorded after later ones.
        let may_be_late = |publisher: &str, channel: &str, seq: u64| {
            !bus_delivers && is_raw(publisher) && was_during(publisher, channel, seq)
        };
        let mut late = BTreeSet::new();
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
                        if may_be_late(publisher, channel, *seq) {
                            late.insert((channel.clone(), *seq));
                            return false;
                        }
                        if is_late(publisher, channel, *seq) {
                            return false;
                        }
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
                // If it came after a gap, the checker takes it for a repetition.
                Violation::Repeated {
                    channel,
                    publisher,
                    seq,
                    id,
                    ..
                } if is_late(publisher, channel, *seq)
                    && ledger
                        .id_of(channel, publisher, *seq)
                        .is_some_and(|first| id.contains(&first.to_string())) =>
                {
                    continue;
                }
                Violation::Reordered {
                    channel,
                    publisher,
                    seq,
                    ..
                } if is_late(publisher, channel, *seq) => continue,
                Violation::Reordered {
                    channel,
                    publisher,
                    seq,
                    ..
                } if may_be_late(publisher, channel, *seq) => {
                    late.remove(&(channel.clone(), *seq));
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
        for (channel, seq) in late {
            if ledger.id_of(&channel, NUMBERED[0], seq).is_some() {
                self.lost += 1;
                self.example(format!("{channel}: the late message {seq} did not arrive"));
            }
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
        let Followers { clients, last_gap } = followers;
        let what = format!("{channel}: {publisher}'s {seq}");
        if let (Some(answered), Some(seen)) = (sent.id, seen)
            && answered != seen
        {
            self.disorder += 1;
            self.example(format!(
                "{what} was answered with {answered}, and clients saw {seen}"
            ));
        }
        if seen.is_some() || sent.fate != Fate::Accepted || publisher != NUMBERED[0] {
            return;
        }
        self.unrecorded += 1;
        if self.promises.raw_recorded() {
            self.example(format!("{what} had a subscriber and was not recorded"));
        }
        if self.promises.interrupts && self.promises.writes && last_gap < sent.at {
            self.silent += 1;
            self.example(format!("{what} was lost, and some clients received no gap"));
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
            self.example(format!("{what} reached {given} of {clients} clients"));
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::{Checker, Event};

    use super::*;
    use crate::fault::Fault;

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
