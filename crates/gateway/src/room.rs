//! `Room`: memory that many clients use at once, and that none of them can have alone.
//!
//! A client may take more until it holds as much as is left for all. One of its connections may take more until it holds
//! as much as is left for its client. So one client alone gets half of the room, two get a third each, and there is always some for
//! the next one. One connection alone gets a third: where many are behind one address, there is some for the others too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The least that a share takes, for its bookkeeping, in bytes. It bounds the number of shares too.
const LEAST: usize = 1 << 10;

/// Bytes for the whole process.
#[derive(Debug)]
pub(crate) struct Room {
    state: Mutex<State>,
    freed: Notify,
}

/// The owner of a share.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) client: Arc<str>,
    /// Its number in this process.
    pub(crate) connection: u64,
}

/// Clients and connections that hold nothing are not in the tables.
#[derive(Debug)]
struct State {
    free: usize,
    clients: HashMap<Arc<str>, usize>,
    connections: HashMap<u64, usize>,
}

/// Bytes of one holder; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    holder: Holder,
    /// Bytes that were taken from the room.
    taken: usize,
    /// Bytes of these that are used.
    used: usize,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: bytes,
                clients: HashMap::new(),
                connections: HashMap::new(),
            }),
            freed: Notify::new(),
        })
    }

    /// A share with room for so many bytes, unless the holder has as much as it may.
    pub(crate) fn share(self: &Arc<Self>, holder: &Holder, bytes: usize) -> Option<Share> {
        let taken = bytes.max(LEAST);
        self.lock().take(holder, taken).then(|| Share {
            room: Arc::clone(self),
            holder: holder.clone(),
            taken,
            used: 0,
        })
    }

    /// The same, once there is room.
    pub(crate) async fn wait(self: &Arc<Self>, holder: &Holder, bytes: usize) -> Share {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on no notification is missed.
            freed.as_mut().enable();
            if let Some(share) = self.share(holder, bytes) {
                return share;
            }
            freed.await;
        }
    }

    /// Held for a look only.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, holder: &Holder, bytes: usize) -> bool {
        let of_client = self.clients.get(&holder.client).copied();
        let of_client = of_client.unwrap_or_default() + bytes;
        let of_connection = self.connections.get(&holder.connection).copied();
        let of_connection = of_connection.unwrap_or_default() + bytes;
        let left = self.free.saturating_sub(bytes);
        if bytes > self.free || of_client > left || of_connection > left - of_client {
            return false;
        }
        self.free = left;
        self.clients.insert(Arc::clone(&holder.client), of_client);
        self.connections.insert(holder.connection, of_connection);
        true
    }

    fn give_back(&mut self, holder: &Holder, bytes: usize) {
        self.free += bytes;
        let held = self.clients.get_mut(&holder.client);
        if held.is_some_and(|held| reduce(held, bytes) == 0) {
            self.clients.remove(&holder.client);
        }
        let held = self.connections.get_mut(&holder.connection);
        if held.is_some_and(|held| reduce(held, bytes) == 0) {
            self.connections.remove(&holder.connection);
        }
    }
}

fn reduce(held: &mut usize, bytes: usize) -> usize {
    *held -= bytes;
    *held
}

impl Share {
    /// Takes room for so many more bytes, unless the holder has as much as it may.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let used = self.used + bytes;
        let more = used.saturating_sub(self.taken);
        if more > 0 && !self.room.lock().take(&self.holder, more) {
            return false;
        }
        self.taken += more;
        self.used = used;
        true
    }

    /// Gives back what is beyond so many bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let taken = self.taken.min(bytes.max(LEAST));
        self.used = self.used.min(bytes);
        self.give_back(self.taken - taken);
    }

    fn give_back(&mut self, bytes: usize) {
        if bytes > 0 {
            self.room.lock().give_back(&self.holder, bytes);
            self.taken -= bytes;
            self.room.freed.notify_waiters();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn holder(client: &str, connection: u64) -> Holder {
        Holder {
            client: client.into(),
            connection,
        }
    }

    fn fill(share: &mut Share) -> usize {
        let mut filled = 0;
        while share.grow(KIB) {
            filled += 1;
        }
        filled
    }

    #[test]
    fn nobody_takes_what_the_next_one_needs() {
        let room = Room::new(240 * KIB);
        let mut one = room.share(&holder("anna", 1), 0).unwrap();
        assert_eq!(fill(&mut one), 80);
        // More shares are no more room, but another connection has some.
        assert!(room.share(&holder("anna", 1), 0).is_none());
        let mut two = room.share(&holder("anna", 2), 0).unwrap();
        assert_eq!(fill(&mut two), 26);
        let mut three = room.share(&holder("ben", 3), 0).unwrap();
        assert_eq!(fill(&mut three), 44);
        one.shrink(2 * KIB);
        assert!(fill(&mut three) > 0);
        drop((one, two, three));
        let state = room.lock();
        assert_eq!(state.free, 240 * KIB);
        assert!(state.clients.is_empty() && state.connections.is_empty());
    }

    #[tokio::test]
    async fn a_holder_waits_until_there_is_room() {
        let room = Room::new(8 * KIB);
        let anna = holder("anna", 1);
        let mut first = room.share(&anna, 0).unwrap();
        fill(&mut first);
        assert!(room.share(&anna, 0).is_none());
        let (waiting, ()) = tokio::join!(room.wait(&anna, 0), async {
            tokio::task::yield_now().await;
            drop(first);
        });
        drop(waiting);
        assert!(room.lock().clients.is_empty());
    }
}
