//! `Stuck`: notices clients that resume from the same event again and again.
//!
//! Many libraries refuse a line or an event above a limit of their own. Such a client ends its stream before the large
//! event. It then resumes from the event before it, again and again.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use hub::{Channel, LastEventId, Start};

use crate::http::stream::request::StreamRequest;

/// A client is stuck after this many attempts within [`WINDOW`].
const ATTEMPTS: u32 = 5;
const WINDOW: Duration = Duration::from_secs(600);
/// Maximum remembered attempts, 32 bytes each.
const MAX_KNOWN: usize = 1024;

/// The point from which a stream resumed.
pub(crate) struct Resumed {
    pub(crate) owner: u64,
    pub(crate) channel: Channel,
    pub(crate) after: LastEventId,
}

impl Resumed {
    /// None if the client does not resume after an id.
    pub(crate) fn of(request: &StreamRequest) -> Option<Box<Self>> {
        let Start::After(after) = &request.start else {
            return None;
        };
        Some(Box::new(Self {
            owner: request.owner,
            channel: request.channels.first()?.clone(),
            after: after.clone(),
        }))
    }
}

/// The attempts at one worker.
#[derive(Default)]
pub(crate) struct Stuck {
    hasher: RandomState,
    attempts: RefCell<HashMap<u64, Attempts>>,
}

struct Attempts {
    count: u32,
    since: Instant,
}

impl Stuck {
    /// Notes that a client received events after this point, and left. Returns whether it is stuck, once for each
    /// [`ATTEMPTS`].
    pub(crate) fn left(&self, resumed: &Resumed, now: Instant) -> bool {
        let Resumed {
            owner,
            channel,
            after,
        } = resumed;
        let key = (owner, channel.as_str(), after.to_string());
        let mut attempts = self.attempts.borrow_mut();
        let is_old = |known: &Attempts| now.saturating_duration_since(known.since) > WINDOW;
        if attempts.len() >= MAX_KNOWN {
            attempts.retain(|_, known| !is_old(known));
            if attempts.len() >= MAX_KNOWN {
                attempts.clear();
            }
        }
        let key = self.hasher.hash_one(key);
        let fresh = || Attempts {
            count: 0,
            since: now,
        };
        let known = attempts.entry(key).or_insert_with(fresh);
        if is_old(known) {
            *known = fresh();
        }
        known.count += 1;
        let is_stuck = known.count >= ATTEMPTS;
        if is_stuck {
            attempts.remove(&key);
        }
        is_stuck
    }
}

#[cfg(test)]
mod tests {
    use hub::Partitions;

    use super::*;

    fn resumed(owner: u64, after: &str) -> Resumed {
        Resumed {
            owner,
            channel: Partitions::new(1).unwrap().channel("a").unwrap(),
            after: after.parse().unwrap(),
        }
    }

    #[test]
    fn a_client_is_stuck_when_it_resumes_from_the_same_event() {
        let (stuck, now) = (Stuck::default(), Instant::now());
        let leaves = |owner, after: &str, seconds| {
            stuck.left(&resumed(owner, after), now + Duration::from_secs(seconds))
        };
        for second in 0..20 {
            // One client advances, and another resumes too rarely.
            assert!(!leaves(1, &format!("{second}-0"), second));
            assert!(!leaves(2, "1-0", 200 * second));
        }
        for round in 0..3 {
            for attempt in 1..=ATTEMPTS {
                assert_eq!(leaves(3, "1-0", round), attempt == ATTEMPTS);
            }
        }
    }

    #[test]
    fn few_attempts_are_remembered() {
        let (stuck, now) = (Stuck::default(), Instant::now());
        for owner in 0..10 * MAX_KNOWN as u64 {
            stuck.left(&resumed(owner, "1-0"), now);
        }
        assert!(stuck.attempts.borrow().len() <= MAX_KNOWN);
    }
}
