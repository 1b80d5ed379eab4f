//! The counts over all streams.

use std::fmt;

use hdrhistogram::Histogram;
use testkit::Message;

/// Greater latencies count as this, in microseconds.
const MAX_LATENCY: u64 = 60_000_000;

/// Counts over all streams.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Numbered messages.
    pub deliveries: u64,
    /// Bytes read, framing included.
    pub bytes: u64,
    /// Numbers that were skipped without a gap.
    pub missing: u64,
    /// Numbers that were skipped after a `gateway.gap` event.
    pub told: u64,
    /// Numbers that arrived again or late.
    pub repeated: u64,
    /// `gateway.gap` events.
    pub gaps: u64,
    /// Streams that ended although the client did not cut them.
    pub ended: u64,
    /// Connections whose answer was not a stream.
    pub refused: u64,
    /// From the publisher's clock to the read, in microseconds.
    pub latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY, 3);
        Self {
            deliveries: 0,
            bytes: 0,
            missing: 0,
            told: 0,
            repeated: 0,
            gaps: 0,
            ended: 0,
            refused: 0,
            latency: latency.expect("the bounds are constants"),
        }
    }
}

/// The next message of a stream.
#[derive(Clone, Copy, Default)]
pub(super) struct Expected {
    pub(super) seq: u64,
    /// A gap before it was received.
    pub(super) is_told: bool,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} missing, {} repeated, {} gaps told, {} streams ended",
            self.missing, self.repeated, self.gaps, self.ended
        )
    }
}

impl Tally {
    /// The number of all errors.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.missing + self.repeated + self.gaps + self.ended + self.refused
    }

    pub(super) fn see(&mut self, event: &sse::Parsed<'_>, next: &mut Expected, now: u64) {
        let Some(message) = Message::parse(event.data) else {
            if event.event == "gateway.gap" {
                self.gaps += 1;
                next.is_told = true;
            }
            return;
        };
        self.deliveries += 1;
        let latency = now.saturating_sub(message.sent_micros);
        self.latency
            .saturating_record(latency.clamp(1, MAX_LATENCY));
        if message.seq < next.seq {
            self.repeated += 1;
            return;
        }
        let skipped = message.seq - next.seq;
        match next.is_told {
            true => self.told += skipped,
            false => self.missing += skipped,
        }
        *next = Expected {
            seq: message.seq + 1,
            is_told: false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_and_repeated_numbers_are_counted() {
        let mut tally = Tally::default();
        let mut next = Expected::default();
        let mut see = |event: &str, data: &str| {
            let event = sse::Parsed {
                id: "",
                event,
                data,
            };
            tally.see(&event, &mut next, 1500);
        };
        see("gateway.open", "{}");
        for seq in [0, 1, 4, 4, 2, 5] {
            see("message", &format!("p c {seq} 1000"));
        }
        see("gateway.gap", "{}");
        see("message", "p c 9 1000");
        see("message", "p c 11 1000");
        assert_eq!((tally.deliveries, tally.gaps), (8, 1));
        assert_eq!((tally.missing, tally.told, tally.repeated), (3, 3, 2));
        assert_eq!(tally.latency.max(), 500);
    }
}
