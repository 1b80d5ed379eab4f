//! `Turns`: a bounded number of calls at once, for which clients wait in turn.
//!
//! Clients are served one after the other, and the calls of each in their order. So a client with many calls waits for
//! itself, and another client waits for one call to end.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::Parts;

/// A handle; cheap to clone.
#[derive(Debug)]
pub struct Turns<K>(Arc<Mutex<State<K>>>);

#[derive(Debug)]
struct State<K> {
    /// Calls that may begin now. While there are any, none waits.
    free: usize,
    /// Calls that wait or are under way, by client.
    calls: Parts<K>,
    /// The calls of each client that wait, by their numbers.
    waiting: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
    /// Clients with waiting calls, the next one first.
    order: VecDeque<K>,
    last: u64,
}

/// A call that waits or is under way. It ends when this is dropped.
#[derive(Debug)]
pub struct Turn<K: Hash + Eq + Clone> {
    turns: Turns<K>,
    client: K,
    call: u64,
}

impl<K> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq + Clone> Turns<K> {
    /// The limits: calls at once, and calls that are under way or wait.
    pub fn new(at_once: usize, in_all: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_once,
            calls: Parts::new(in_all),
            waiting: HashMap::new(),
            order: VecDeque::new(),
            last: 0,
        })))
    }

    /// Waits until the client may make one more call. None if it has too many of them.
    pub async fn wait(&self, client: K) -> Option<Turn<K>> {
        let (turn, begins) = self.enter(client)?;
        match begins {
            // The sender is dropped only with the turn.
            Some(begins) => begins.await.ok().map(|()| turn),
            None => Some(turn),
        }
    }

    fn enter(&self, client: K) -> Option<(Turn<K>, Option<oneshot::Receiver<()>>)> {
        let mut state = self.lock();
        if !state.calls.take(&client, 1) {
            return None;
        }
        state.last += 1;
        let call = state.last;
        let mut begins = None;
        if state.free > 0 {
            state.free -= 1;
        } else {
            let (begin, waits) = oneshot::channel();
            let calls = state.waiting.entry(client.clone()).or_default();
            calls.insert(call, begin);
            if calls.len() == 1 {
                state.order.push_back(client.clone());
            }
            begins = Some(waits);
        }
        let turns = self.clone();
        Some((
            Turn {
                turns,
                client,
                call,
            },
            begins,
        ))
    }

    /// Held only briefly.
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.0.lock()
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// Removes a waiting call. Returns whether the call waited.
    fn leave(&mut self, client: &K, call: u64) -> bool {
        let Some(calls) = self.waiting.get_mut(client) else {
            return false;
        };
        let waited = calls.remove(&call).is_some();
        if calls.is_empty() {
            self.waiting.remove(client);
            self.order.retain(|other| other != client);
        }
        waited
    }

    /// A call has ended: begins the next one.
    fn next(&mut self) {
        let Some(client) = self.order.pop_front() else {
            self.free += 1;
            return;
        };
        let calls = self.waiting.get_mut(&client);
        let calls = calls.expect("a client in the order has waiting calls");
        let (_, begin) = calls.pop_first().expect("it has at least one");
        match calls.is_empty() {
            true => drop(self.waiting.remove(&client)),
            false => self.order.push_back(client),
        }
        // A call that is given up at this moment gives its turn to the next when it is dropped.
        let _given_up = begin.send(());
    }
}

impl<K: Hash + Eq + Clone> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.calls.give_back(&self.client, 1);
        if !state.leave(&self.client, self.call) {
            state.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Waiting = (Turn<&'static str>, Option<oneshot::Receiver<()>>);

    fn begins((_, begins): &mut Waiting) -> bool {
        begins
            .as_mut()
            .is_none_or(|begins| begins.try_recv().is_ok())
    }

    #[test]
    fn clients_take_turns() {
        let turns = Turns::new(2, 40);
        let mut greedy: Vec<_> = (0..40).filter_map(|_| turns.enter("greedy")).collect();
        assert_eq!(greedy.len(), 20);
        assert!(begins(&mut greedy[0]) && begins(&mut greedy[1]) && !begins(&mut greedy[2]));
        let mut others: Vec<_> = ["anna", "anna", "ben"]
            .map(|client| turns.enter(client).unwrap())
            .into();
        assert!(!others.iter_mut().any(begins));
        // A call that is given up while it waits uses no turn.
        drop(greedy.remove(2));
        // The greedy client is first, because it has waited longest.
        drop(greedy.remove(0));
        assert!(begins(&mut greedy[1]) && !begins(&mut others[0]));
        drop(greedy.remove(0));
        assert!(begins(&mut others[0]) && !begins(&mut others[2]));
        drop(greedy.remove(0));
        assert!(begins(&mut others[2]) && !begins(&mut others[1]));
        drop((greedy, others));
        let state = turns.lock();
        assert_eq!(state.free, 2);
        assert!(state.waiting.is_empty() && state.order.is_empty());
    }
}
