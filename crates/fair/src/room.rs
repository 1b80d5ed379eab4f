//! `Room`: memory that many clients use at once, and that none of them can have alone.
//!
//! A client may take more until it holds as much as is left for all. One of its connections may take more until it
//! holds as much as is left for its client. So one client alone gets half of the room, two get a third each, and there
//! is always some for the next one. One connection alone gets a third. So if many connections share one address, some
//! is left for the others too.
//!
//! Shares that grow in step would all reach these limits at once, and none would be completed. So the oldest share of a
//! client may exceed the limit of its connection. The oldest of all may exceed both, up to a quarter of the room. A
//! share that cannot grow waits in a queue. The queue is served in order, except that a client that holds too much does
//! not stop the others.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::sync::oneshot;

/// The least that a share takes, for its bookkeeping, in bytes. It bounds the number of shares too.
const LEAST: usize = 1 << 10;
/// Shares that wait at once. The places in the queue are divided among clients as the room is. Each release checks all
/// of them, which takes some 20 us.
const MAX_WAITING: usize = 256;
/// The oldest share may pass the limits up to this part of the room: 16 MiB of 64, the largest `--max-payload`.
const OLDEST: usize = 4;

/// Bytes for the whole process.
#[derive(Debug)]
pub struct Room {
    state: Mutex<State>,
}

/// The owner of a share.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The client, by any name that is its own.
    pub client: Arc<str>,
    /// Its number in this process.
    pub connection: u64,
}

#[derive(Debug)]
struct State {
    size: usize,
    free: usize,
    /// Clients and connections that hold nothing and wait for nothing are not in the tables.
    clients: HashMap<Arc<str>, Client>,
    connections: HashMap<u64, usize>,
    /// Numbers of the shares, oldest first.
    shares: BTreeSet<u64>,
    /// The number of the next share.
    next: u64,
    queue: VecDeque<Waiting>,
}

#[derive(Debug, Default)]
struct Client {
    held: usize,
    shares: BTreeSet<u64>,
    waiting: usize,
}

/// Bytes of one holder. Released when dropped.
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    holder: Holder,
    number: u64,
    /// Bytes that were taken from the room.
    taken: usize,
    /// Bytes of these that are used.
    used: usize,
}

/// A share's request for more bytes.
#[derive(Clone, Debug)]
struct Wish {
    holder: Holder,
    number: u64,
    taken: usize,
    more: usize,
}

#[derive(Debug)]
struct Waiting {
    wish: Wish,
    granted: oneshot::Sender<()>,
}

/// A place in the queue. If the request is dropped when its bytes were granted already, they are given back.
struct Queued<'a> {
    room: &'a Room,
    wish: &'a Wish,
    granted: oneshot::Receiver<()>,
    is_over: bool,
}

impl Room {
    /// Room of this many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                size: bytes,
                free: bytes,
                clients: HashMap::new(),
                connections: HashMap::new(),
                shares: BTreeSet::new(),
                next: 0,
                queue: VecDeque::new(),
            }),
        })
    }

    /// A share with room for this many bytes, unless the holder has reached its limit.
    #[cfg(test)]
    pub fn share(self: &Arc<Self>, holder: &Holder, bytes: usize) -> Option<Share> {
        let mut share = self.empty(holder);
        let is_granted = share.grow(bytes);
        share.used = 0;
        is_granted.then_some(share)
    }

    /// Waits for a share with room for this many bytes. None if too many shares wait.
    pub async fn wait(self: &Arc<Self>, holder: &Holder, bytes: usize) -> Option<Share> {
        let mut share = self.empty(holder);
        let is_granted = share.wait(bytes).await;
        share.used = 0;
        is_granted.then_some(share)
    }

    /// A share that has not taken anything yet.
    fn empty(self: &Arc<Self>, holder: &Holder) -> Share {
        let mut state = self.lock();
        state.next += 1;
        Share {
            room: Arc::clone(self),
            holder: holder.clone(),
            number: state.next,
            taken: 0,
            used: 0,
        }
    }

    /// Held only briefly.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn may(&self, wish: &Wish) -> bool {
        let Some(left) = self.free.checked_sub(wish.more) else {
            return false;
        };
        let client = self.clients.get(&wish.holder.client);
        let of_client = wish.more + client.map_or(0, |client| client.held);
        let of_connection = self.connections.get(&wish.holder.connection).copied();
        let of_connection = wish.more + of_connection.unwrap_or_default();
        let may_client = of_client <= left;
        if may_client && of_connection <= left - of_client {
            return true;
        }
        if wish.taken + wish.more > self.size / OLDEST {
            return false;
        }
        let is_oldest =
            |shares: &BTreeSet<u64>| shares.first().is_none_or(|first| *first >= wish.number);
        is_oldest(&self.shares)
            || may_client && client.is_none_or(|client| is_oldest(&client.shares))
    }

    fn take(&mut self, wish: &Wish) {
        self.free -= wish.more;
        let client = self.clients.entry(Arc::clone(&wish.holder.client));
        let client = client.or_default();
        client.held += wish.more;
        client.shares.insert(wish.number);
        self.shares.insert(wish.number);
        *self.connections.entry(wish.holder.connection).or_default() += wish.more;
    }

    /// Releases bytes of a share that keeps `kept` bytes.
    fn give_back(&mut self, holder: &Holder, number: u64, bytes: usize, kept: usize) {
        self.free += bytes;
        if let Some(client) = self.clients.get_mut(&holder.client) {
            client.held -= bytes;
            if kept == 0 {
                client.shares.remove(&number);
                self.shares.remove(&number);
            }
        }
        self.forget(&holder.client);
        if let Some(held) = self.connections.get_mut(&holder.connection) {
            *held -= bytes;
            if *held == 0 {
                self.connections.remove(&holder.connection);
            }
        }
        self.serve();
    }

    /// Grants the waiting requests that fit now, in the order of the queue.
    fn serve(&mut self) {
        let mut at = 0;
        while let Some(waiting) = self.queue.get(at) {
            if !self.may(&waiting.wish) {
                at += 1;
            } else if let Some(waiting) = self.dequeue(at) {
                self.take(&waiting.wish);
                // The receiver lives for as long as its place in the queue.
                let _received = waiting.granted.send(());
            }
        }
    }

    /// None if the holder has the maximum of places.
    fn enqueue(&mut self, wish: &Wish) -> Option<oneshot::Receiver<()>> {
        let left = MAX_WAITING.checked_sub(self.queue.len() + 1)?;
        let client = self.clients.entry(Arc::clone(&wish.holder.client));
        let client = client.or_default();
        if client.waiting >= left {
            self.forget(&wish.holder.client);
            return None;
        }
        client.waiting += 1;
        let (granted, receiver) = oneshot::channel();
        self.queue.push_back(Waiting {
            wish: wish.clone(),
            granted,
        });
        Some(receiver)
    }

    fn dequeue(&mut self, at: usize) -> Option<Waiting> {
        let waiting = self.queue.remove(at)?;
        let client = &waiting.wish.holder.client;
        if let Some(client) = self.clients.get_mut(client) {
            client.waiting -= 1;
        }
        self.forget(client);
        Some(waiting)
    }

    fn forget(&mut self, client: &Arc<str>) {
        let is_over = |client: &Client| client.held == 0 && client.waiting == 0;
        if self.clients.get(client).is_some_and(is_over) {
            self.clients.remove(client);
        }
    }
}

impl Share {
    /// The request of this share if it needs this many more bytes.
    fn wish(&self, bytes: usize) -> Wish {
        let used = (self.used + bytes).max(LEAST);
        Wish {
            holder: self.holder.clone(),
            number: self.number,
            taken: self.taken,
            more: used.saturating_sub(self.taken),
        }
    }

    /// Takes room for this many more bytes, unless the holder has reached its limit.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let wish = self.wish(bytes);
        if wish.more > 0 {
            let mut state = self.room.lock();
            if !state.may(&wish) {
                return false;
            }
            state.take(&wish);
        }
        self.grown(bytes, &wish);
        true
    }

    /// Waits for room and takes it. False if too many shares wait.
    pub async fn wait(&mut self, bytes: usize) -> bool {
        if self.grow(bytes) {
            return true;
        }
        let wish = self.wish(bytes);
        // A statement of its own: the lock is not held while it waits.
        let granted = self.room.lock().enqueue(&wish);
        let Some(granted) = granted else {
            return false;
        };
        let mut queued = Queued {
            room: &self.room,
            wish: &wish,
            granted,
            is_over: false,
        };
        // Room may have been released before this request was in the queue.
        self.room.lock().serve();
        queued.is_over = (&mut queued.granted).await.is_ok();
        drop(queued);
        self.grown(bytes, &wish);
        true
    }

    fn grown(&mut self, bytes: usize, wish: &Wish) {
        self.taken += wish.more;
        self.used += bytes;
    }

    /// Releases all bytes beyond this number.
    pub fn shrink(&mut self, bytes: usize) {
        self.used = self.used.min(bytes);
        self.give_back(self.taken.min(bytes.max(LEAST)));
    }

    fn give_back(&mut self, kept: usize) {
        let bytes = self.taken - kept;
        if bytes > 0 {
            let mut state = self.room.lock();
            state.give_back(&self.holder, self.number, bytes, kept);
            self.taken = kept;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(0);
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.room.lock();
        let wish = self.wish;
        let is_own = |waiting: &Waiting| waiting.wish.number == wish.number;
        match state.queue.iter().position(is_own) {
            Some(at) => drop(state.dequeue(at)),
            None => state.give_back(&wish.holder, wish.number, wish.more, wish.taken),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

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

    fn assert_empty(room: &Room) {
        let state = room.lock();
        assert_eq!(state.free, state.size);
        assert!(state.clients.is_empty() && state.connections.is_empty());
        assert!(state.shares.is_empty() && state.queue.is_empty());
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
        // A quarter, because it is the oldest of its client.
        let mut three = room.share(&holder("ben", 3), 0).unwrap();
        assert_eq!(fill(&mut three), 60);
        let mut four = room.share(&holder("carl", 4), 0).unwrap();
        assert!(fill(&mut four) > 10);
        one.shrink(2 * KIB);
        assert!(fill(&mut two) > 0);
        drop((one, two, three, four));
        assert_empty(&room);
    }

    #[test]
    fn shares_that_grow_in_step_are_completed_one_after_the_other() {
        // As many shares as fit together, if each reaches its goal.
        for (shares, goal, clients) in [(2, 16, 1), (8, 4, 1), (4, 16, 4), (8, 4, 3), (16, 4, 16)] {
            let room = Room::new(64 * KIB);
            let mut growing = Vec::new();
            for number in 0..shares {
                let holder = holder(&format!("client {}", number % clients), number);
                growing.push((room.share(&holder, 0).unwrap(), 0));
            }
            while !growing.is_empty() {
                let before = growing.len();
                let mut has_grown = false;
                for (share, size) in &mut growing {
                    if share.grow(KIB / 4) {
                        *size += KIB / 4;
                        has_grown = true;
                    }
                }
                growing.retain(|(_, size)| *size < goal * KIB);
                assert!(
                    has_grown || growing.len() < before,
                    "{shares} of {goal}: {growing:?}"
                );
            }
            assert_empty(&room);
        }
    }

    fn wait(room: &Arc<Room>, client: &str, bytes: usize) -> JoinHandle<Option<Share>> {
        let (room, holder) = (Arc::clone(room), holder(client, 9));
        tokio::spawn(async move { room.wait(&holder, bytes).await })
    }

    #[tokio::test]
    async fn a_holder_waits_until_there_is_room() {
        let room = Room::new(80 * KIB);
        let mut first = room.share(&holder("anna", 1), 0).unwrap();
        fill(&mut first);
        let mut own = room.share(&holder("anna", 2), 0).unwrap();
        fill(&mut own);
        let late = wait(&room, "anna", 8 * KIB);
        yield_now().await;
        // Another client does not wait for the first one.
        let other = wait(&room, "ben", 8 * KIB).await.unwrap().unwrap();
        assert!(!late.is_finished());
        drop(first);
        let late = late.await.unwrap();
        assert!(late.is_some());
        drop((late, own, other));
        assert_empty(&room);
    }

    #[tokio::test]
    async fn the_queue_is_served_in_order_and_has_places_for_others() {
        let room = Room::new(80 * KIB);
        let mut all = Vec::new();
        for number in 0..20 {
            let mut share = room.empty(&holder(&format!("client {number}"), number));
            while share.grow(KIB) {}
            all.push(share);
        }
        let mut waiting = Vec::new();
        for _ in 0..MAX_WAITING {
            waiting.push(wait(&room, "greedy", 20 * KIB));
        }
        // Between two turns of the test, a runtime runs only some of many tasks.
        for _ in 0..100 {
            yield_now().await;
        }
        // One alone has half of the places. The others are refused at once.
        let mut refused = 0;
        for wait in waiting.extract_if(.., |wait| wait.is_finished()) {
            refused += usize::from(wait.await.unwrap().is_none());
        }
        assert_eq!(refused, MAX_WAITING / 2);
        let first = wait(&room, "ben", 20 * KIB);
        let second = wait(&room, "carl", 24 * KIB);
        yield_now().await;
        for wait in &waiting[1..] {
            wait.abort();
        }
        drop(all);
        let greedy = waiting.remove(0).await.unwrap().unwrap();
        let first = first.await.unwrap().unwrap();
        assert!(!second.is_finished());
        drop((greedy, first));
        let second = second.await.unwrap().unwrap();
        for wait in waiting {
            assert!(wait.await.is_err());
        }
        drop(second);
        assert_empty(&room);
    }

    #[tokio::test]
    async fn a_share_that_is_not_waited_for_takes_nothing() {
        let room = Room::new(80 * KIB);
        let mut first = room.share(&holder("anna", 1), 0).unwrap();
        fill(&mut first);
        let before = wait(&room, "anna", 20 * KIB);
        let granted = wait(&room, "anna", 20 * KIB);
        yield_now().await;
        before.abort();
        assert!(before.await.is_err());
        drop(first);
        // The request is granted, and its task has not run since then.
        granted.abort();
        assert!(granted.await.is_err());
        assert_empty(&room);
    }
}
