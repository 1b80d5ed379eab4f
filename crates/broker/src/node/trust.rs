//! `Trust`: whether a server may have been replaced, if sentinels watch it. The times of its answers show that.

use std::time::Instant;

use crate::times::{DOUBT, STALE};

/// The times of one server's answers. They decide whether it is believed to be the master.
#[derive(Debug)]
pub(crate) struct Trust {
    /// When it was last known to be the master.
    believed: Instant,
    /// When it last answered.
    answered: Instant,
    /// When it first answered after its last silence.
    since: Instant,
}

impl Trust {
    /// For a server that is the master now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            believed: now,
            answered: now,
            since: now,
        }
    }

    /// The server has answered. Returns whether it is believed. If not, the sentinels are to be asked.
    pub(crate) fn answered(&mut self, now: Instant) -> bool {
        if now.duration_since(self.answered) >= STALE {
            self.since = now;
        }
        self.answered = now;
        let is_believed = self.is_fresh(now);
        if is_believed {
            self.believed = now;
        }
        is_believed
    }

    /// Whether it is believed without asking the sentinels.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.believed) < STALE
    }

    /// Sentinels confirm that it is the master.
    pub(crate) fn confirmed(&mut self, now: Instant) {
        self.believed = now;
    }

    /// Too few sentinels can be asked. Returns whether it is believed in spite of that.
    pub(crate) fn outlasts(&mut self, now: Instant) -> bool {
        let is_believed = now.duration_since(self.since) >= DOUBT;
        if is_believed {
            self.believed = now;
        }
        is_believed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_silent_server_is_believed_when_confirmed_or_after_answering_for_a_while() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut trust = Trust::new(start);
        assert!(trust.answered(at(1000)) && trust.answered(at(2000)));
        assert!(!trust.answered(at(3500)));
        trust.confirmed(at(3500));
        assert!(trust.answered(at(4000)));
        // Too few sentinels can be asked.
        for millis in [6000, 7000, 7900] {
            assert!(!trust.answered(at(millis)) && !trust.outlasts(at(millis)));
        }
        // It was silent again.
        for millis in [9200, 10_300] {
            assert!(!trust.answered(at(millis)) && !trust.outlasts(at(millis)));
        }
        assert!(!trust.answered(at(11_300)) && trust.outlasts(at(11_300)));
        assert!(trust.answered(at(12_000)));
    }
}
