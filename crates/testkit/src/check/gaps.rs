//! The gaps that a client received, and which missing messages they cover.

use super::{Checker, Violation};
use crate::{Gap, Id, micros_since_epoch, partition_of};

/// A gap, as a client received it.
#[derive(Debug)]
pub(super) struct ReceivedGap {
    /// No message up to this id is missing.
    pub(super) after: Option<Id>,
    /// No message after this id is missing. It is the id of the gap event. If the gap begins there, it is the id of the
    /// channel's next event.
    pub(super) upto: Option<Id>,
    /// No message from this id on is missing.
    pub(super) oldest: Option<Id>,
    /// Redis has forgotten events, or the client's id was malformed or from the future. Then a gap without a missing
    /// message is not an error.
    pub(super) is_vague: bool,
    /// A message was missing inside it, or it has already been reported as false.
    pub(super) is_filled: bool,
    /// The connection over which it arrived.
    pub(super) connection: u64,
    /// When it arrived, in microseconds since the epoch.
    pub(super) at: u64,
}

impl ReceivedGap {
    /// Whether the gap covers a missing message. A message that no client saw has no id.
    pub(super) fn excuses(&self, id: Option<Id>) -> bool {
        let lies_in_it = |id| {
            self.after.is_none_or(|after| id > after)
                && self.oldest.is_none_or(|oldest| id < oldest)
                && self.upto.is_none_or(|upto| id <= upto)
        };
        id.is_none_or(lies_in_it)
    }
}

impl Checker {
    pub(super) fn note_gap(&mut self, gap: Gap) {
        if !self.has_asked_for(&gap.channel) {
            self.leaked(&gap.channel);
            return;
        }
        let id = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        let says_nothing = ["future", "malformed"].contains(&gap.reason.as_str());
        let after = id(&gap.after).filter(|_| !says_nothing);
        let partition = partition_of(&gap.channel, self.ledger.partitions());
        let at = self.position.as_ref().and_then(|at| at.of(partition));
        let new = ReceivedGap {
            upto: at.filter(|_| at > after),
            after,
            oldest: id(&gap.oldest),
            is_vague: says_nothing || gap.reason == "forgotten",
            is_filled: false,
            connection: self.connections,
            at: micros_since_epoch(),
        };
        let received = self.gaps_by_channel.entry(gap.channel.clone()).or_default();
        let is_same = |old: &ReceivedGap| {
            (old.connection, old.after, old.oldest) == (new.connection, new.after, new.oldest)
        };
        if received.iter().any(is_same) {
            self.violations.push(Violation::RepeatedGap {
                channel: gap.channel.clone(),
            });
        }
        received.push(new);
        self.gaps.push(gap);
    }

    /// Ends the channel's gaps at its next event, which has just arrived.
    pub(super) fn bound_gaps(&mut self, channel: &str) {
        let partition = partition_of(channel, self.ledger.partitions());
        let at = self.position.as_ref().and_then(|at| at.of(partition));
        let received = self.gaps_by_channel.get_mut(channel).into_iter().flatten();
        for gap in received.rev().take_while(|gap| gap.upto.is_none()) {
            gap.upto = at;
        }
    }

    pub(super) fn find_false_gaps(&mut self) {
        for (channel, received) in &mut self.gaps_by_channel {
            if self.asked[1].contains(channel) {
                continue;
            }
            for gap in received
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
}
