//! `LastEventId`: the cursor that a client sends to resume, one id or one per partition.

use std::{fmt, str::FromStr};

use crate::{BadEventId, EventId, Partitions};

/// Longest text that is read at all, in bytes.
const MAX_BYTES: usize = MAX_COUNT + (5 << 10);
/// The longest beginning of a vector: the number of partitions.
const MAX_COUNT: usize = "1024_".len();
/// The longest part of one partition in a vector, with the separator. Milliseconds have this many digits until the year
/// 2286.
const MAX_PART: usize = "1023.9999999999999-18446744073709551615_".len();

/// A client's cursor in its wire format.
///
/// While the subscription touches one partition: `1763800000000-3`. Otherwise the number of partitions, and one id per
/// partition touched: `16_3.1763800000000-3_7.1763800000001-0`. It consists of letters, digits, `.`, `_` and `-` only.
/// Other bytes make browsers send a CORS preflight at each reconnect to another origin.
///
/// A cursor of a deployment that was moved to more partitions stays exact. Each new partition has channels of one
/// earlier partition, with their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastEventId {
    /// One id, good for every partition.
    One(EventId),
    /// The number of partitions of the deployment that made the cursor; partition and id, in the order of the
    /// partitions. At least one.
    Many(Partitions, Vec<(u16, EventId)>),
}

impl LastEventId {
    /// The number of partitions whose vector always fits, even with the longest ids. A stream must not touch more.
    pub const MAX_PARTITIONS: usize = (MAX_BYTES - MAX_COUNT + 1) / MAX_PART;

    /// Whether a deployment with these partitions may have made it, before or after it was moved to more partitions.
    #[must_use]
    pub fn fits(&self, partitions: Partitions) -> bool {
        match self {
            Self::One(_) => true,
            Self::Many(earlier, _) => partitions.divide(*earlier),
        }
    }

    /// Where to resume in a partition. The cursor has to fit.
    ///
    /// A partition without an id of its own is resumed at the client's oldest id. So a channel that was added later
    /// starts at the same moment as the others.
    #[must_use]
    pub fn in_partition(&self, partition: u16) -> EventId {
        match self {
            Self::One(id) => *id,
            Self::Many(partitions, ids) => ids
                .iter()
                .find(|(number, _)| *number == partition % partitions.count())
                .or_else(|| ids.iter().min_by_key(|(_, id)| *id))
                .map_or(EventId::ZERO, |(_, id)| *id),
        }
    }
}

impl fmt::Display for LastEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(id) => id.fmt(f),
            Self::Many(partitions, ids) => {
                write!(f, "{}", partitions.count())?;
                for (partition, id) in ids {
                    write!(f, "_{partition}.{id}")?;
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
        let (count, parts) = text.split_once('_').ok_or(BadEventId)?;
        let partitions = Partitions::new(number(count)?).ok_or(BadEventId)?;
        let mut ids: Vec<(u16, EventId)> = Vec::new();
        for part in parts.split('_') {
            let (partition, id) = part.split_once('.').ok_or(BadEventId)?;
            let partition = number(partition)?;
            let is_late = ids.last().is_none_or(|(before, _)| *before < partition);
            if partition >= partitions.count() || !is_late {
                return Err(BadEventId);
            }
            ids.push((partition, id.parse()?));
        }
        Ok(Self::Many(partitions, ids))
    }
}

/// Digits only: `str::parse` alone would also take a leading `+`.
fn number(text: &str) -> Result<u16, BadEventId> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadEventId);
    }
    text.parse().map_err(|_| BadEventId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_the_wire() {
        for text in ["5-0", "4_3.5-0", "16_3.1763800000000-3_7.1763800000001-0"] {
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
            "3.5-0",
            "8_",
            "8_3.5-0_",
            "8_3.5-0_3.5-0",
            "8_7.5-0_3.5-0",
            "3.5-0_7.5-0",
            "8_3.5",
            "8_8.5-0",
            "0_0.5-0",
            "1025_3.5-0",
            "65536_3.5-0",
            "+8_3.5-0",
            "8_+3.5-0",
            "8.5-0_8_3.5-0",
            "1471851398:0",
            "urn:uuid:x",
        ] {
            assert!(text.parse::<LastEventId>().is_err(), "{text:?}");
        }
        assert!("1".repeat(6000).parse::<LastEventId>().is_err());
    }

    #[test]
    fn the_largest_vector_that_may_be_survives_the_wire() {
        let id = EventId {
            ms: 9_999_999_999_999,
            seq: u64::MAX,
        };
        let numbers = (0..1024).rev().take(LastEventId::MAX_PARTITIONS);
        let ids: Vec<_> = numbers.rev().map(|number| (number, id)).collect();
        let largest = LastEventId::Many(Partitions::new(1024).unwrap(), ids);
        assert_eq!(largest.to_string().parse(), Ok(largest));
    }

    #[test]
    fn a_new_partition_resumes_at_the_oldest_id() {
        let id: LastEventId = "8_3.9-0_7.5-0".parse().unwrap();
        assert_eq!(id.in_partition(3).ms, 9);
        assert_eq!(id.in_partition(4).ms, 5);
    }

    #[test]
    fn a_cursor_stays_exact_when_each_partition_is_divided() {
        let id: LastEventId = "4_1.9-0_2.5-0".parse().unwrap();
        for partition in 0..16 {
            let expected = if partition % 4 == 1 { 9 } else { 5 };
            assert_eq!(id.in_partition(partition).ms, expected, "{partition}");
        }
        for (count, fits) in [(4, true), (8, true), (16, true), (2, false), (6, false)] {
            assert_eq!(id.fits(Partitions::new(count).unwrap()), fits, "{count}");
        }
    }
}
