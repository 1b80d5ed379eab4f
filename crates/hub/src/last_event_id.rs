//! `LastEventId`: the cursor that a client sends to resume, one id or one per partition.

use std::{fmt, str::FromStr};

use crate::{BadEventId, EventId};

/// Longest text that is read at all, in bytes.
const MAX_BYTES: usize = 5 << 10;
/// The longest part of one partition in a vector, with the separator. Milliseconds have this many digits until the year
/// 2286.
const MAX_PART: usize = "1023.9999999999999-18446744073709551615_".len();

/// A client's cursor in its wire format.
///
/// While the subscription touches one partition: `1763800000000-3`. Otherwise one id per partition touched:
/// `3.1763800000000-3_7.1763800000001-0`. It consists of letters, digits, `.`, `_` and `-` only. Other bytes make
/// browsers send a CORS preflight at each reconnect to another origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastEventId {
    /// One id, good for every partition.
    One(EventId),
    /// Partition and id, in the order of the partitions. At least one.
    Many(Vec<(u16, EventId)>),
}

impl LastEventId {
    /// The number of partitions whose vector always fits, even with the longest ids. A stream must not touch more.
    pub const MAX_PARTITIONS: usize = (MAX_BYTES + 1) / MAX_PART;

    /// Where to resume in a partition.
    ///
    /// A partition without an id of its own is resumed at the client's oldest id. So a channel that was added later
    /// starts at the same moment as the others.
    #[must_use]
    pub fn in_partition(&self, partition: u16) -> EventId {
        match self {
            Self::One(id) => *id,
            Self::Many(ids) => ids
                .iter()
                .find(|(number, _)| *number == partition)
                .or_else(|| ids.iter().min_by_key(|(_, id)| *id))
                .map_or(EventId::ZERO, |(_, id)| *id),
        }
    }
}

impl fmt::Display for LastEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(id) => id.fmt(f),
            Self::Many(ids) => {
                for (index, (partition, id)) in ids.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "_" };
                    write!(f, "{separator}{partition}.{id}")?;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for LastEventId {
    type Err = BadEventId;

    fn from_str(text: &str) -> Result<Self, BadEventId> {
        if text.len() > MAX_BYTES {
            return Err(BadEventId);
        }
        if !text.contains('.') {
            return text.parse().map(Self::One);
        }
        let mut ids: Vec<(u16, EventId)> = Vec::new();
        for part in text.split('_') {
            let (partition, id) = part.split_once('.').ok_or(BadEventId)?;
            if !partition.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(BadEventId);
            }
            let partition = partition.parse().map_err(|_| BadEventId)?;
            if ids.last().is_some_and(|(before, _)| *before >= partition) {
                return Err(BadEventId);
            }
            ids.push((partition, id.parse()?));
        }
        Ok(Self::Many(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_the_wire() {
        for text in ["5-0", "3.5-0", "3.1763800000000-3_7.1763800000001-0"] {
            assert_eq!(text.parse::<LastEventId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn foreign_ids_are_refused() {
        for text in [
            "",
            "-1",
            "abc",
            "3.",
            ".5-0",
            "3.5-0_",
            "3.5-0_3.5-0",
            "7.5-0_3.5-0",
            "3.5",
            "65536.5-0",
            "+3.5-0",
            "1471851398:0",
            "urn:uuid:x",
        ] {
            assert!(text.parse::<LastEventId>().is_err(), "{text:?}");
        }
        assert!("1".repeat(6000).parse::<LastEventId>().is_err());
    }

    #[test]
    fn the_largest_vector_that_may_be_survives_the_wire() {
        let vector = |partitions| {
            let id = EventId {
                ms: 9_999_999_999_999,
                seq: u64::MAX,
            };
            let numbers = (1000..).take(partitions);
            LastEventId::Many(numbers.map(|number| (number, id)).collect())
        };
        let largest = vector(LastEventId::MAX_PARTITIONS);
        assert_eq!(largest.to_string().parse(), Ok(largest));
        let text = vector(LastEventId::MAX_PARTITIONS + 1).to_string();
        assert_eq!(text.parse::<LastEventId>(), Err(BadEventId));
    }

    #[test]
    fn a_new_partition_resumes_at_the_oldest_id() {
        let id: LastEventId = "3.9-0_7.5-0".parse().unwrap();
        assert_eq!(id.in_partition(3).ms, 9);
        assert_eq!(id.in_partition(4).ms, 5);
    }
}
