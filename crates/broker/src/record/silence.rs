//! `Silence`: whether a subscription that brings nothing is dead.

use crate::times::{LAST_PINGS, MAX_SILENT, MAX_UNHEARD};

/// For how long the connection has brought nothing, not even answers to pings. That means nothing while Redis itself is
/// silent, or while this process has not read the connection. If the recorder gave up such a connection, it would lose
/// the messages that are about to arrive.
#[derive(Default)]
pub(super) struct Silence {
    pings: u32,
    /// Redis is being asked on another connection.
    pub(super) asking: bool,
    /// Pings since it answered there.
    alive: Option<u32>,
}

impl Silence {
    /// The connection brought something.
    pub(super) fn end(&mut self) {
        self.pings = 0;
        self.alive = None;
    }

    /// Redis answered on another connection, or did not. If this connection has brought something since, the answer
    /// means nothing: the silence that caused the question is over.
    pub(super) fn answered(&mut self, alive: bool) {
        self.asking = false;
        self.alive = (alive && self.pings > MAX_SILENT).then_some(0);
    }

    /// Another ping is due. Returns whether the connection is dead.
    pub(super) fn grow(&mut self) -> bool {
        self.pings += 1;
        self.alive = self.alive.map(|pings| pings + 1);
        self.alive.is_some_and(|pings| pings > LAST_PINGS)
    }

    /// Whether the subscription may have stopped delivering: a ping was not answered until the next one was due.
    pub(super) fn is_long(&self) -> bool {
        self.pings > MAX_UNHEARD
    }

    pub(super) fn is_suspicious(&self) -> bool {
        self.pings > MAX_SILENT && !self.asking && self.alive.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A silence that lasts until Redis is asked on another connection.
    fn suspicious() -> Silence {
        let mut silence = Silence::default();
        while !silence.is_suspicious() {
            assert!(!silence.grow());
        }
        silence.asking = true;
        silence
    }

    #[test]
    fn a_connection_is_dead_only_if_redis_answers_on_another() {
        let mut silence = suspicious();
        silence.answered(false);
        assert!(
            (0..100).all(|_| !silence.grow()),
            "the connection is dead, although redis is silent too"
        );
        silence.answered(true);
        assert!((0..LAST_PINGS).all(|_| !silence.grow()) && silence.grow());
    }

    /// Redis stalls, answers on both connections for a moment, and stalls again.
    #[test]
    fn an_answer_after_the_end_of_a_silence_is_ignored() {
        let mut silence = suspicious();
        silence.end();
        silence.answered(true);
        assert!((0..100).all(|_| !silence.grow()));
    }
}
