//! `Parts`: a number of places that many clients share, and that none of them can have alone.
//!
//! A client may take more until it holds as many as are left. So one client alone gets half, two get a third each, and
//! some is always left for the next one. `Room` has the same rule for bytes.

use std::{collections::HashMap, hash::Hash};

/// The places, and how many of them each client holds. Clients that hold nothing are not in the table.
#[derive(Debug)]
pub struct Parts<K> {
    free: usize,
    held: HashMap<K, usize>,
}

impl<K: Hash + Eq + Clone> Parts<K> {
    /// This many places, all of them free.
    pub fn new(places: usize) -> Self {
        Self {
            free: places,
            held: HashMap::new(),
        }
    }

    /// Takes all of these, unless the client would have more than are left.
    pub fn take(&mut self, client: &K, count: usize) -> bool {
        let held = self.held.get(client).copied().unwrap_or_default() + count;
        match self.free.checked_sub(count) {
            Some(left) if held <= left => {
                self.free = left;
                if held > 0 {
                    self.held.insert(client.clone(), held);
                }
                true
            }
            _ => false,
        }
    }

    /// Gives back this many places of the client.
    pub fn give_back(&mut self, client: &K, count: usize) {
        self.free += count;
        if let Some(held) = self.held.get_mut(client) {
            *held -= count;
            if *held == 0 {
                self.held.remove(client);
                if self.held.capacity() > 1024.max(4 * self.held.len()) {
                    self.held.shrink_to_fit();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_half_and_there_is_always_some_for_the_next() {
        let mut parts = Parts::new(120);
        let mut fill = |client| (0..120).filter(|_| parts.take(&client, 1)).count();
        assert_eq!(fill("anna"), 60);
        assert_eq!(fill("ben"), 30);
        assert_eq!(fill("clara"), 15);
        assert_eq!(fill("anna"), 0);
        assert!(!parts.take(&"dora", 8) && parts.take(&"dora", 7));
        for (client, count) in [("anna", 60), ("ben", 30), ("clara", 15), ("dora", 7)] {
            parts.give_back(&client, count);
        }
        assert!(parts.held.is_empty());
        assert!(parts.take(&"anna", 60) && !parts.take(&"anna", 1));
    }
}
