//! `Pulse`: until when a node is known to have delivered all that it had received.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::times::PROMPT;

/// The pings over one subscription. A node that was stalled answers them before it has read everything that waits in its
/// sockets. So an answer counts if that to the ping before was prompt as well.
#[derive(Default)]
pub(super) struct Pulse {
    sent: VecDeque<Instant>,
    was_prompt: bool,
    alive: Option<Instant>,
}

impl Pulse {
    /// A ping was sent.
    pub(super) fn ping(&mut self, now: Instant) {
        self.sent.push_back(now);
    }

    /// The oldest ping was answered.
    pub(super) fn pong(&mut self, now: Instant) {
        let Some(sent) = self.sent.pop_front() else {
            return;
        };
        let is_prompt = now < sent + PROMPT;
        if is_prompt && self.was_prompt {
            self.alive = Some(sent);
        }
        self.was_prompt = is_prompt;
    }

    /// All messages that the node had received until then have arrived. None before that is known.
    pub(super) fn alive(&self) -> Option<Instant> {
        self.alive
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_counts_if_the_one_before_was_prompt() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::default();
        let mut answered = |sent, received| {
            pulse.ping(at(sent));
            pulse.pong(at(received));
            pulse.alive()
        };
        assert_eq!(answered(0, 10), None);
        assert_eq!(answered(1000, 1010), Some(at(1000)));
        // The node was stalled.
        assert_eq!(answered(2000, 2900), Some(at(1000)));
        assert_eq!(answered(3000, 3010), Some(at(1000)));
        assert_eq!(answered(4000, 4010), Some(at(4000)));
    }
}
