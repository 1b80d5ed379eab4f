//! The numbers of each publisher on each channel, as one client saw them.

use std::{
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use super::{Checker, Violation, ledger::Track};
use crate::{Id, Message, partition_of};

/// A publisher's numbers on a channel, as one client saw them.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) track: Arc<Track>,
    pub(super) partition: u32,
    /// The next number. `None` before the first message.
    pub(super) next: Option<u64>,
    /// Skipped numbers. A number that arrives later is not a repetition.
    pub(super) skipped: Vec<u64>,
    /// Numbers that arrived over earlier connections, and not again over this one.
    pub(super) brought: Range<u64>,
    /// The state of the client at the last message.
    pub(super) at: Moment,
}

/// Counts at the time of a message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moment {
    /// Gaps of the channel.
    pub(super) gaps: usize,
    /// Connections.
    pub(super) connections: u64,
}

impl Checker {
    pub(super) fn run(&mut self, channel: &str, publisher: &str) -> &mut Run {
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

    /// Compares the number with earlier ones. Returns whether it is new.
    pub(super) fn count(&mut self, message: &Message<'_>, id: &str) -> bool {
        let Message {
            channel,
            publisher,
            seq,
            ..
        } = *message;
        let now = Moment {
            gaps: self.gaps_by_channel.get(channel).map_or(0, Vec::len),
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
    pub(super) fn skip(
        &mut self,
        channel: &str,
        publisher: &str,
        numbers: Range<u64>,
        since: Moment,
    ) {
        if numbers.is_empty() {
            return;
        }
        let track = Arc::clone(&self.run(channel, publisher).track);
        let mut received = self.gaps_by_channel.get_mut(channel);
        let mut missing: Vec<RangeInclusive<u64>> = Vec::new();
        for seq in numbers {
            let id = track.id_of(seq);
            let mut is_excused = false;
            for gap in received
                .iter_mut()
                .flat_map(|received| &mut received[since.gaps..])
            {
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
    pub(super) fn compare(&mut self, message: &Message<'_>, id: Id) {
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
