//! `OpenChannels`: the channels that streams are subscribed to, and the clients that they count for.
//!
//! A channel costs memory here and in Redis for as long as it has a stream. It counts for the client that opened it.
//! Further streams of the channel cost nothing, so popular channels are not counted many times.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    thread,
};

use parking_lot::{Mutex, MutexGuard};

use access::Holder;
use fair::Parts;
use hub::Channel;

/// The client that a channel counts for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    Subject(Holder),
    /// Used when no subject is known.
    Address(IpAddr),
}

/// The bound of each client: it may open more until it holds as many as are left.
#[derive(Debug)]
pub(crate) struct OpenChannels {
    /// None if there is no limit.
    state: Option<Mutex<State>>,
    /// A channel is known by its hash. The hash is keyed, so no client can find two names with the same one.
    hasher: RandomState,
}

#[derive(Debug)]
struct State {
    open: HashMap<u64, Open>,
    parts: Parts<Client>,
}

#[derive(Debug)]
struct Open {
    streams: u32,
    client: Client,
}

impl OpenChannels {
    /// Zero is no limit.
    pub(crate) fn new(most: usize) -> Self {
        let state = State {
            open: HashMap::new(),
            parts: Parts::new(most),
        };
        Self {
            state: (most > 0).then(|| Mutex::new(state)),
            hasher: RandomState::new(),
        }
    }

    /// Counts a stream's channels. Channels without another stream count for this client. None if it would have too
    /// many. To be called by the worker of the stream: each worker keeps its own channels.
    pub(crate) fn open(&self, channels: &[Channel], client: &Client) -> Option<Box<[u64]>> {
        let Some(mut state) = self.lock() else {
            return Some(Box::default());
        };
        let worker = thread::current().id();
        let mut keys: Vec<_> = channels
            .iter()
            .map(|channel| self.hasher.hash_one((worker, channel)))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let State { open, parts } = &mut *state;
        let new = keys.iter().filter(|key| !open.contains_key(key)).count();
        if new > 0 && !parts.take(client, new) {
            return None;
        }
        for key in &keys {
            match open.entry(*key) {
                Entry::Occupied(mut open) => open.get_mut().streams += 1,
                Entry::Vacant(place) => {
                    let client = client.clone();
                    place.insert(Open { streams: 1, client });
                }
            }
        }
        Some(keys.into())
    }

    /// A stream with these channels has ended.
    pub(crate) fn close(&self, keys: &[u64]) {
        if keys.is_empty() {
            return;
        }
        let Some(mut state) = self.lock() else {
            return;
        };
        let State { open, parts } = &mut *state;
        for key in keys {
            let Entry::Occupied(mut channel) = open.entry(*key) else {
                continue;
            };
            channel.get_mut().streams -= 1;
            if channel.get().streams == 0 {
                parts.give_back(&channel.remove().client, 1);
            }
        }
        if open.capacity() > 1024.max(4 * open.len()) {
            open.shrink_to_fit();
        }
    }

    /// Held only briefly.
    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.state.as_ref()?;
        Some(state.lock())
    }
}

#[cfg(test)]
mod tests {
    use hub::Partitions;

    use super::*;

    fn names(range: std::ops::Range<usize>) -> Vec<Channel> {
        let partitions = Partitions::new(1).unwrap();
        range
            .map(|number| partitions.channel(&number.to_string()).unwrap())
            .collect()
    }

    #[test]
    fn a_channel_counts_once_and_for_whoever_opened_it() {
        let channels = OpenChannels::new(40);
        let client = |last| Client::Address([192, 0, 2, last].into());
        let one = channels.open(&names(0..20), &client(1)).unwrap();
        assert!(channels.open(&names(20..21), &client(1)).is_none());
        // Its own and those of others are open to all.
        let again = channels.open(&names(0..20), &client(1)).unwrap();
        let two = channels.open(&names(10..30), &client(2)).unwrap();
        assert!(channels.open(&names(30..31), &client(2)).is_none());
        let twice = [names(0..5), names(0..5)].concat();
        channels.close(&channels.open(&twice, &client(3)).unwrap());
        channels.close(&one);
        // They stay open, and count for the first client.
        assert!(channels.open(&names(20..31), &client(1)).is_none());
        channels.close(&again);
        let one = channels.open(&names(30..35), &client(1)).unwrap();
        channels.close(&two);
        channels.close(&one);
        let state = channels.lock().unwrap();
        assert!(state.open.is_empty());
        drop(state);
        assert!(channels.open(&names(0..20), &client(2)).is_some());
    }

    #[test]
    fn zero_is_no_limit() {
        let channels = OpenChannels::new(0);
        let client = Client::Address([192, 0, 2, 1].into());
        let keys = channels.open(&names(0..100), &client).unwrap();
        assert!(keys.is_empty());
        channels.close(&keys);
    }
}
