//! `Room`: memory that many clients use at once, and that none of them can have alone.
//!
//! A holder may take more while it has no more than what is left. So one holder alone gets half of the room, two get
//! a third each, and there is always some for the next one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Bytes that a share takes at least: what is kept beside its bytes. It bounds the number of shares too.
const LEAST: usize = 1 << 10;

/// Bytes for the whole process.
#[derive(Debug)]
pub(crate) struct Room {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// By holder; none has nothing.
    held: HashMap<Arc<str>, usize>,
}

/// Bytes of one holder; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    holder: Arc<str>,
    /// What was taken from the room.
    taken: usize,
    /// What is used of it.
    used: usize,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let held = HashMap::new();
        Arc::new(Self {
            state: Mutex::new(State { free: bytes, held }),
            freed: Notify::new(),
        })
    }

    /// A share with room for so many bytes, unless the holder has as much as it may.
    pub(crate) fn share(self: &Arc<Self>, holder: &Arc<str>, bytes: usize) -> Option<Share> {
        let taken = bytes.max(LEAST);
        self.lock().take(holder, taken).then(|| Share {
            room: Arc::clone(self),
            holder: Arc::clone(holder),
            taken,
            used: 0,
        })
    }

    /// The same, once there is room.
    pub(crate) async fn wait(self: &Arc<Self>, holder: &Arc<str>, bytes: usize) -> Share {
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
    fn take(&mut self, holder: &Arc<str>, bytes: usize) -> bool {
        let held = self.held.get(holder).copied().unwrap_or_default();
        let Some(left) = self.free.checked_sub(bytes) else {
            return false;
        };
        if held + bytes > left {
            return false;
        }
        self.free = left;
        self.held.insert(Arc::clone(holder), held + bytes);
        true
    }

    fn give_back(&mut self, holder: &Arc<str>, bytes: usize) {
        self.free += bytes;
        if let Some(held) = self.held.get_mut(holder) {
            *held -= bytes;
            if *held == 0 {
                self.held.remove(holder);
            }
        }
    }
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

    fn fill(share: &mut Share) -> usize {
        let mut filled = 0;
        while share.grow(KIB) {
            filled += 1;
        }
        filled
    }

    #[test]
    fn nobody_takes_what_the_next_one_needs() {
        let room = Room::new(64 * KIB);
        let [anna, ben, cleo] = ["anna", "ben", "cleo"].map(Arc::from);
        let mut one = room.share(&anna, 0).unwrap();
        assert_eq!(fill(&mut one), 32);
        // More shares are no more room.
        assert!(room.share(&anna, 0).is_none());
        let mut two = room.share(&ben, 0).unwrap();
        assert_eq!(fill(&mut two), 16);
        let mut three = room.share(&cleo, 0).unwrap();
        assert_eq!(fill(&mut three), 8);
        one.shrink(2 * KIB);
        assert!(fill(&mut two) > 0);
        drop((one, two, three));
        let state = room.lock();
        assert_eq!((state.free, state.held.len()), (64 * KIB, 0));
    }

    #[tokio::test]
    async fn a_holder_waits_until_there_is_room() {
        let room = Room::new(4 * KIB);
        let anna: Arc<str> = Arc::from("anna");
        let first = room.share(&anna, 0).unwrap();
        let second = room.share(&anna, 0).unwrap();
        assert!(room.share(&anna, 0).is_none());
        let (waiting, ()) = tokio::join!(room.wait(&anna, 0), async {
            tokio::task::yield_now().await;
            drop(first);
        });
        drop((second, waiting));
        assert!(room.lock().held.is_empty());
    }
}
