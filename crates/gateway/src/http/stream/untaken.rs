//! `Untaken`: bytes that a worker holds for clients that have not taken them.
//!
//! An event that was sent in part cannot return to the tail. So a stream holds it until its client has taken it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BinaryHeap, HashMap},
    hash::BuildHasher as _,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fair::counted;

/// Beyond this many bytes, streams whose clients took nothing for [`PAUSE`] are given up, and those with the longest
/// pause first. An event that several streams hold counts once.
const MAX_HELD: usize = 16 << 20;
const PAUSE: Duration = Duration::from_secs(2);
/// Beyond this many bytes, streams are given up even if their clients take something now and then. Streams of the
/// client that holds most are given up first.
const MAX_TAKING: usize = 4 * MAX_HELD;

/// Holds bytes for a client.
pub(crate) trait Holds {
    /// Visits each piece that is held, with the bytes of memory that it keeps. Bytes that the client has taken count,
    /// too.
    fn see(&self, see: &mut dyn FnMut(&Bytes, usize));
    /// Changes whenever the client takes something.
    fn taken(&self) -> u64;
    /// Releases everything that is held.
    fn give_up(&self);
}

/// The bytes at one worker.
#[derive(Default)]
pub(crate) struct Untaken {
    /// The sum of all claims. Each copy of an event counts, so the bytes that are held are never more.
    bytes: Cell<usize>,
    next: Cell<u64>,
    holders: RefCell<BTreeMap<u64, Entry>>,
}

struct Entry {
    holder: Weak<dyn Holds>,
    owner: u64,
    taken: u64,
    /// When `taken` was seen to change.
    since: Instant,
}

/// The bytes of one holder, which is registered while its claim exists.
pub(crate) struct Claim {
    untaken: Rc<Untaken>,
    key: u64,
    bytes: usize,
}

/// A number for a client: a subject, or an address where the subject is not known.
pub(crate) fn owner(subject: Option<&Arc<str>>, client: IpAddr) -> u64 {
    static NUMBERS: LazyLock<std::hash::RandomState> = LazyLock::new(Default::default);
    match subject {
        Some(subject) => NUMBERS.hash_one(subject),
        None => NUMBERS.hash_one(counted(client)),
    }
}

impl Untaken {
    /// Registers a holder, which holds nothing yet.
    pub(crate) fn claim(self: &Rc<Self>, holder: Weak<dyn Holds>, owner: u64) -> Claim {
        let key = self.next.get();
        self.next.set(key + 1);
        let entry = Entry {
            holder,
            owner,
            taken: 0,
            since: Instant::now(),
        };
        self.holders.borrow_mut().insert(key, entry);
        Claim {
            untaken: Rc::clone(self),
            key,
            bytes: 0,
        }
    }

    /// Gives up streams while too much is held. Returns their number. Call this once a second.
    pub(crate) fn relieve(&self) -> u64 {
        if self.bytes.get() <= MAX_HELD {
            return 0;
        }
        let now = Instant::now();
        let mut holding = Vec::new();
        let mut holders = Vec::new();
        for entry in self.holders.borrow_mut().values_mut() {
            let Some(holder) = entry.holder.upgrade() else {
                continue;
            };
            let taken = holder.taken();
            if taken != entry.taken {
                entry.taken = taken;
                entry.since = now;
            }
            let mut pieces = Vec::new();
            // The end of a piece identifies it, because a part of it may be written already.
            holder.see(&mut |piece, kept| pieces.push((piece.as_ptr_range().end as usize, kept)));
            if !pieces.is_empty() {
                holding.push(Holding {
                    owner: entry.owner,
                    pause: now - entry.since,
                    pieces,
                });
                holders.push(holder);
            }
        }
        let mut count = 0;
        for index in choose(&holding) {
            holders[index].give_up();
            count += 1;
        }
        count
    }
}

impl Claim {
    pub(crate) fn set(&mut self, bytes: usize) {
        let sum = &self.untaken.bytes;
        sum.set(sum.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set(0);
        self.untaken.holders.borrow_mut().remove(&self.key);
    }
}

struct Holding {
    owner: u64,
    /// Time since the client took something.
    pause: Duration,
    /// The end of each piece, and the memory that it keeps.
    pieces: Vec<(usize, usize)>,
}

/// Chooses the holders to give up.
fn choose(holding: &[Holding]) -> Vec<usize> {
    let mut order: Vec<_> = (0..holding.len()).collect();
    order.sort_by_key(|index| holding[*index].pause);
    let mut given_up = Vec::new();
    let (mut kept, mut held) = (Vec::new(), 0);
    // How often each piece is held.
    let mut counts = HashMap::<usize, usize>::new();
    for index in order {
        let own = &holding[index];
        let more = own.pieces.iter();
        let more = more.filter(|(end, _)| !counts.contains_key(end));
        let more: usize = more.map(|(_, length)| length).sum();
        if held + more > MAX_HELD && own.pause > PAUSE {
            given_up.push(index);
            continue;
        }
        held += more;
        kept.push(index);
        for (end, _) in &own.pieces {
            *counts.entry(*end).or_default() += 1;
        }
    }
    if held <= MAX_TAKING {
        return given_up;
    }
    // A piece that several hold is divided among them.
    let part = |index: usize| -> usize {
        let pieces = holding[index].pieces.iter();
        pieces.map(|(end, length)| length / counts[end]).sum()
    };
    let mut owners = HashMap::<u64, (usize, BinaryHeap<(usize, usize)>)>::new();
    for index in kept {
        let part = part(index);
        let owner = owners.entry(holding[index].owner).or_default();
        owner.0 += part;
        owner.1.push((part, index));
    }
    let mut most: BinaryHeap<_> = owners.iter().map(|(owner, it)| (it.0, *owner)).collect();
    while held > MAX_TAKING
        && let Some((bytes, owner)) = most.pop()
        && let Some((part, index)) = owners.get_mut(&owner).and_then(|it| it.1.pop())
    {
        given_up.push(index);
        held = held.saturating_sub(part);
        most.push((bytes.saturating_sub(part), owner));
    }
    given_up
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn holding(owner: u64, pause: u64, pieces: &[(usize, usize)]) -> Holding {
        Holding {
            owner,
            pause: Duration::from_secs(pause),
            pieces: pieces.to_vec(),
        }
    }

    fn chosen(holding: &[Holding]) -> Vec<usize> {
        let mut chosen = choose(holding);
        chosen.sort_unstable();
        chosen
    }

    #[test]
    fn streams_that_take_nothing_are_given_up_first() {
        let all: Vec<_> = (0..30)
            .map(|index| holding(1, index, &[(index as usize, MIB)]))
            .collect();
        assert_eq!(chosen(&all), (16..30).collect::<Vec<_>>());
        // One event for all of them.
        let all: Vec<_> = (0..30)
            .map(|index| holding(1, index, &[(7, MIB)]))
            .collect();
        assert!(chosen(&all).is_empty());
        // All take something, and hold no more than they may.
        let all: Vec<_> = (0..64)
            .map(|index| holding(1, 1, &[(index, MIB)]))
            .collect();
        assert!(chosen(&all).is_empty());
    }

    #[test]
    fn beyond_the_last_limit_the_client_that_holds_most_loses_streams_first() {
        let greedy = (0..100).map(|index| holding(1, 0, &[(index, MIB)]));
        let others = (100..110).map(|index| holding(index as u64, 0, &[(index, MIB)]));
        let all: Vec<_> = greedy.chain(others).collect();
        let chosen = chosen(&all);
        assert_eq!(chosen.len(), 46);
        assert!(chosen.iter().all(|index| *index < 100), "{chosen:?}");
        // Streams that share an event hold little, so none of them is given up.
        let shared = (0..200).map(|_| holding(2, 0, &[(500, MIB)]));
        let all: Vec<_> = all.into_iter().chain(shared).collect();
        assert!(choose(&all).iter().all(|index| *index < 100));
    }

    struct Nobody;

    impl Holds for Nobody {
        fn see(&self, _: &mut dyn FnMut(&Bytes, usize)) {}

        fn taken(&self) -> u64 {
            0
        }

        fn give_up(&self) {}
    }

    #[test]
    fn a_claim_counts_for_as_long_as_it_lives() {
        let untaken = Rc::new(Untaken::default());
        let holder = Rc::downgrade(&(Rc::new(Nobody) as Rc<dyn Holds>));
        let mut claims = [1, 2].map(|owner| untaken.claim(Weak::clone(&holder), owner));
        claims[0].set(100);
        claims[1].set(30);
        claims[0].set(20);
        assert_eq!(untaken.bytes.get(), 50);
        drop(claims);
        assert_eq!(untaken.bytes.get(), 0);
        assert!(untaken.holders.borrow().is_empty());
    }
}
