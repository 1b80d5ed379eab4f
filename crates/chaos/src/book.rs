//! The outcome of each message that was published.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use testkit::{Goal, Id};

use crate::channels::NUMBERED;

/// The outcome of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its answer had an id, or PUBLISH reached a subscriber.
    Accepted,
    /// There was no answer.
    Uncertain,
}

/// A message that was published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) fate: Fate,
    /// Time of the last attempt, in microseconds since the epoch.
    pub(crate) at: u64,
    /// The id in the answer.
    pub(crate) id: Option<Id>,
}

/// All messages that were published.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The messages of each publisher on each channel, by number.
    sent: Mutex<HashMap<(&'static str, String), Vec<Sent>>>,
    /// Identical messages: accepted, uncertain.
    pub(crate) same: [AtomicU64; 2],
    /// Refused attempts: one count per publisher, then that of `SAME`.
    pub(crate) refused: [AtomicU64; 4],
    /// Redis may forget stored data, so a repetition might publish twice.
    pub(crate) forgetful: AtomicBool,
    /// Set while no identical messages are to be sent.
    pub(crate) quiet: AtomicBool,
    /// Set when publishers have to end.
    pub(crate) stop: AtomicBool,
}

impl Book {
    /// The outcome of a message, if it is known yet.
    pub(crate) fn sent(&self, publisher: &str, channel: &str, seq: u64) -> Option<Sent> {
        let publisher = NUMBERED.into_iter().find(|name| *name == publisher)?;
        let all = self.all();
        let sent = all.get(&(publisher, channel.to_owned()))?;
        sent.get(usize::try_from(seq).ok()?).copied()
    }

    /// The outcomes, by number, of the messages of a publisher on a channel that were sent in this time.
    pub(crate) fn sent_during(
        &self,
        publisher: &'static str,
        channel: &str,
        time: &Range<u64>,
    ) -> Vec<(u64, Sent)> {
        let all = self.all();
        let sent = all.get(&(publisher, channel.to_owned())).into_iter();
        let sent = sent.flat_map(|sent| (0..).zip(sent.iter().copied()));
        sent.filter(|(_, sent)| time.contains(&sent.at)).collect()
    }

    /// Accepted and uncertain messages of each of [`NUMBERED`].
    pub(crate) fn counts(&self) -> [[u64; 2]; 3] {
        let mut counts = [[0; 2]; 3];
        for ((publisher, _), sent) in &*self.all() {
            let at = NUMBERED.iter().position(|name| name == publisher);
            let [accepted, uncertain] = &mut counts[at.expect("one of them")];
            let certain = sent.iter().filter(|sent| sent.fate == Fate::Accepted);
            let certain = certain.count() as u64;
            *accepted += certain;
            *uncertain += sent.len() as u64 - certain;
        }
        counts
    }

    /// Refused attempts.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
            .iter()
            .map(|count| count.load(Ordering::Acquire))
            .sum()
    }

    /// The last accepted message of each publisher on each channel.
    pub(crate) fn goal(&self) -> Goal {
        let all = self.all();
        let last = all.iter().filter_map(|((publisher, channel), sent)| {
            let last = sent.iter().rposition(|sent| sent.fate == Fate::Accepted)?;
            Some(((channel.clone(), (*publisher).to_owned()), last as u64))
        });
        last.collect()
    }

    /// The number of the next message.
    pub(crate) fn next(&self, publisher: &'static str, channel: &str) -> u64 {
        let mut all = self.all();
        all.entry((publisher, channel.to_owned()))
            .or_default()
            .len() as u64
    }

    /// Adds the outcome of the next message.
    pub(crate) fn note(&self, publisher: &'static str, channel: &str, sent: Sent) {
        let mut all = self.all();
        all.entry((publisher, channel.to_owned()))
            .or_default()
            .push(sent);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(&'static str, String), Vec<Sent>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
