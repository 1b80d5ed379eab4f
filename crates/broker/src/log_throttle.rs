//! `LogThrottle`: bounds the log lines of one place, so that no client and no message can fill the log.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that may be written at once.
const BURST: u32 = 10;
/// After these, one line in this time.
const PACE: Duration = Duration::from_secs(1);

/// Decides which lines are written. There is one per place that writes.
pub struct LogThrottle(Mutex<Lines>);

/// Writes a log line of this level, with the number of lines that were left out before it. Each place that uses this
/// writes a burst, and then one line a second.
#[macro_export]
macro_rules! throttled {
    ($level:ident, $($line:tt)+) => {{
        static THROTTLE: $crate::LogThrottle = $crate::LogThrottle::new();
        if let Some(suppressed) = THROTTLE.pass() {
            ::tracing::$level!(suppressed, $($line)+);
        }
    }};
}

struct Lines {
    /// Up to when lines were earned.
    since: Option<Instant>,
    left: u32,
    suppressed: u64,
}

impl LogThrottle {
    /// With its whole burst left.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is made for statics")]
    pub const fn new() -> Self {
        Self(Mutex::new(Lines {
            since: None,
            left: BURST,
            suppressed: 0,
        }))
    }

    /// Whether to write a line, and how many were left out before it.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock();
        let passed = lines.since.map_or(Duration::MAX, |since| now - since);
        let earned = passed.as_secs() / PACE.as_secs();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(BURST);
            lines.left = lines.left.saturating_add(earned).min(BURST);
            lines.since = Some(now);
        }
        if lines.left == 0 {
            lines.suppressed += 1;
            return None;
        }
        lines.left -= 1;
        Some(std::mem::take(&mut lines.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_a_second() {
        let throttle = LogThrottle::new();
        let start = Instant::now();
        let passes = |millis: u64| throttle.pass_at(start + Duration::from_millis(millis));
        assert!((0..10).all(|_| passes(0) == Some(0)));
        assert!((0..5).all(|number| passes(number).is_none()));
        assert_eq!(passes(1001), Some(5));
        assert_eq!(passes(1002), None);
        assert_eq!(passes(3000), Some(1));
        assert_eq!([passes(60_000), passes(60_000)], [Some(0), Some(0)]);
    }
}
