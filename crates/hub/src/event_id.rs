//! `EventId`: the Redis stream id and the wire id in one.

use std::{fmt, str::FromStr};

/// `<ms>-<seq>`: milliseconds since the Unix epoch by the clock of Redis, and a counter within the millisecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventId {
    /// Milliseconds since the Unix epoch.
    pub ms: u64,
    /// Distinguishes events of one millisecond.
    pub seq: u64,
}

/// A text that is not `<ms>-<seq>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an id like 1763800000000-0")]
pub struct BadEventId;

impl EventId {
    /// Less than every id that is ever assigned.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };

    /// The id right before this one. Zero stays zero.
    #[must_use]
    pub fn predecessor(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => Self::ZERO,
            (ms, 0) => Self {
                ms: ms - 1,
                seq: u64::MAX,
            },
            (ms, seq) => Self { ms, seq: seq - 1 },
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = BadEventId;

    fn from_str(text: &str) -> Result<Self, BadEventId> {
        let (ms, seq) = text.split_once('-').ok_or(BadEventId)?;
        Ok(Self {
            ms: digits(ms)?,
            seq: digits(seq)?,
        })
    }
}

/// Digits only: `str::parse` alone would also take a leading `+`.
fn digits(text: &str) -> Result<u64, BadEventId> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadEventId);
    }
    text.parse().map_err(|_| BadEventId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_plain_numbers_are_an_id() {
        assert_eq!("5-7".parse(), Ok(EventId { ms: 5, seq: 7 }));
        for text in [
            "",
            "-",
            "5",
            "5-",
            "-5",
            "-1",
            "+5-1",
            "5-+1",
            "5-1-1",
            " 5-1",
            "5-1 ",
            "99999999999999999999-0",
            "a-b",
            "0x1-1",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(BadEventId), "{text:?}");
        }
    }

    #[test]
    fn the_predecessor_is_the_next_smaller_id() {
        let id = |ms, seq| EventId { ms, seq };
        assert_eq!(id(5, 1).predecessor(), id(5, 0));
        assert_eq!(id(5, 0).predecessor(), id(4, u64::MAX));
        assert_eq!(EventId::ZERO.predecessor(), EventId::ZERO);
    }
}
