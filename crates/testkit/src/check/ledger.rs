//! The messages that all clients of a test saw, so that clients can be compared.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Key;
use crate::Id;

/// The ids of all messages, as the first client saw them.
#[derive(Debug)]
pub struct Ledger {
    partitions: u32,
    tracks: Mutex<HashMap<Key, Arc<Track>>>,
    /// The ids under which clients saw each text without a number.
    texts: Mutex<HashMap<Box<str>, BTreeSet<Id>>>,
}

/// The ids of one publisher's messages on one channel, by number.
#[derive(Debug, Default)]
pub(super) struct Track {
    ids: Mutex<Vec<Option<Id>>>,
}

impl Ledger {
    /// A ledger that the checkers of one test share.
    pub fn new(partitions: u32) -> Arc<Self> {
        Arc::new(Self {
            partitions,
            tracks: Mutex::default(),
            texts: Mutex::default(),
        })
    }

    /// The id under which clients saw a message, if any.
    pub fn id_of(&self, channel: &str, publisher: &str, seq: u64) -> Option<Id> {
        self.track(channel, publisher).id_of(seq)
    }

    /// How often clients saw a text without a number, after `from` and up to `to`.
    pub fn times(&self, text: &str, from: Id, to: Id) -> u64 {
        let texts = lock(&self.texts);
        let ids = texts.get(text).into_iter();
        ids.flat_map(|ids| ids.range((Bound::Excluded(from), Bound::Included(to))))
            .count() as u64
    }

    /// Whether any client saw a text without a number under this id.
    pub fn has_text(&self, text: &str, id: Id) -> bool {
        let texts = lock(&self.texts);
        texts.get(text).is_some_and(|ids| ids.contains(&id))
    }

    pub(super) fn note_text(&self, text: &str, id: Id) {
        let mut texts = lock(&self.texts);
        match texts.get_mut(text) {
            Some(ids) => ids.insert(id),
            None => texts.entry(text.into()).or_default().insert(id),
        };
    }

    pub(super) fn partitions(&self) -> u32 {
        self.partitions
    }

    pub(super) fn track(&self, channel: &str, publisher: &str) -> Arc<Track> {
        let mut tracks = lock(&self.tracks);
        Arc::clone(
            tracks
                .entry((channel.into(), publisher.into()))
                .or_default(),
        )
    }
}

impl Track {
    /// The id under which clients saw a message, if any.
    pub(super) fn id_of(&self, seq: u64) -> Option<Id> {
        let ids = lock(&self.ids);
        ids.get(usize::try_from(seq).ok()?).copied().flatten()
    }

    /// Notes the id of a message and returns its first noted id.
    pub(super) fn note(&self, seq: u64, id: Id) -> Id {
        let Ok(at) = usize::try_from(seq) else {
            return id;
        };
        let mut ids = lock(&self.ids);
        if ids.len() <= at {
            ids.resize(at + 1, None);
        }
        *ids[at].get_or_insert(id)
    }
}

/// A panic elsewhere fails its own test. The data is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
