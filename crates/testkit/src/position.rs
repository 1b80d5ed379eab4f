//! The position of a client: one event id, or one per partition if its channels are in several.

use std::{collections::BTreeMap, fmt, str::FromStr};

use anyhow::{Context, Error, ensure};
use sha1::{Digest, Sha1};

/// A Redis stream id: milliseconds, and a counter within the millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Milliseconds since the epoch.
    pub ms: u64,
    /// Counts events of the same millisecond.
    pub seq: u64,
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (ms, seq) = text
            .split_once('-')
            .with_context(|| format!("{text:?} is not an event id"))?;
        Ok(Self {
            ms: number(ms)?,
            seq: number(seq)?,
        })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The value of an `id:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// All channels are in one partition.
    Single(Id),
    /// The number of partitions, and the newest id of each one touched.
    Vector(u32, BTreeMap<u32, Id>),
}

impl Position {
    /// The id of `partition`. The position may be from before the deployment was moved to more partitions.
    pub fn of(&self, partition: u32) -> Option<Id> {
        match self {
            Self::Single(id) => Some(*id),
            Self::Vector(count, ids) => ids.get(&(partition % count)).copied(),
        }
    }

    /// Whether no component is older than the same one of `earlier`, and none is missing. There may be more partitions
    /// than earlier.
    pub fn is_not_before(&self, earlier: &Self) -> bool {
        match (earlier, self) {
            (Self::Single(earlier), Self::Single(later)) => later >= earlier,
            (Self::Single(earlier), Self::Vector(_, later)) => {
                later.values().all(|id| id >= earlier)
            }
            (Self::Vector(few, earlier), Self::Vector(many, later)) if many % few == 0 => {
                let is_there = |partition: &u32| later.keys().any(|it| it % few == *partition);
                let is_later = |(it, id): (&u32, &Id)| {
                    (earlier.get(&(it % few))).is_none_or(|earlier| id >= earlier)
                };
                earlier.keys().all(is_there) && later.iter().all(is_later)
            }
            _ => false,
        }
    }
}

impl FromStr for Position {
    type Err = Error;

    /// `17-0`, or `16_3.17-0_7.18-2` with the number of partitions and a partition before each id, ascending.
    fn from_str(text: &str) -> Result<Self, Error> {
        if !text.contains(['.', '_']) {
            return Ok(Self::Single(text.parse()?));
        }
        let (count, components) = text
            .split_once('_')
            .with_context(|| format!("{text:?} has no number of partitions"))?;
        let count = u32::try_from(number(count)?)?;
        let mut ids = BTreeMap::new();
        let mut newest = None;
        for component in components.split('_') {
            let (partition, id) = component
                .split_once('.')
                .with_context(|| format!("{component:?} names no partition"))?;
            let partition = u32::try_from(number(partition)?)?;
            ensure!(partition < count, "{text:?} has no partition {partition}");
            ensure!(Some(partition) > newest, "{text:?} is not in order");
            newest = Some(partition);
            ids.insert(partition, id.parse()?);
        }
        Ok(Self::Vector(count, ids))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(id) => id.fmt(f),
            Self::Vector(count, ids) => {
                write!(f, "{count}")?;
                let mut ids = ids.iter();
                ids.try_for_each(|(partition, id)| write!(f, "_{partition}.{id}"))
            }
        }
    }
}

/// The partition of a channel: the first 8 hex digits of SHA-1(name), modulo the number of partitions.
pub fn partition_of(channel: &str, partitions: u32) -> u32 {
    let digest = Sha1::digest(channel.as_bytes());
    let head = digest
        .iter()
        .take(4)
        .fold(0, |head, byte| head << 8 | u32::from(*byte));
    head % partitions
}

/// Accepts digits only. `parse` alone would accept a leading `+`.
fn number(text: &str) -> Result<u64, Error> {
    ensure!(
        text.bytes().all(|byte| byte.is_ascii_digit()),
        "{text:?} is not a number"
    );
    text.parse()
        .with_context(|| format!("{text:?} is not a number"))
}

/// The hash tag of a partition's keys: the smallest number whose slot in a Redis Cluster is the middle one of the
/// partition's share.
pub fn hash_tag(partition: u32, partitions: u32) -> u32 {
    let slot = (2 * partition + 1) * 8192 / partitions;
    let crc16 = |text: String| {
        text.bytes().fold(0_u16, |crc, byte| {
            let crc = crc ^ u16::from(byte) << 8;
            (0..8).fold(crc, |crc, _| match crc & 0x8000 {
                0 => crc << 1,
                _ => crc << 1 ^ 0x1021,
            })
        })
    };
    let is_there = |tag: &u32| u32::from(crc16(tag.to_string())) % 16384 == slot;
    (0..).find(is_there).expect("every slot has a number")
}

/// A channel of each partition, in order: `c` and the smallest number.
pub fn channel_of_each(partitions: u32) -> Vec<String> {
    let of = |partition| {
        let mut names = (0..).map(|number| format!("c{number}"));
        names.find(|name| partition_of(name, partitions) == partition)
    };
    (0..partitions).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back_as_written() {
        for text in ["1763800000000-3", "0-0", "16_3.17-0_7.18-2"] {
            assert_eq!(text.parse::<Position>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "17",
            "-1",
            "+1-0",
            "1-0_2-0",
            "3.1-0",
            "8_7.1-0_3.1-0",
            "8_3.1-0_",
            "8_8.1-0",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_vector_is_earlier_if_any_component_is() {
        let at = |text: &str| text.parse::<Position>().unwrap();
        assert!(at("4_1.5-0_2.7-0").is_not_before(&at("4_1.5-0_2.6-0")));
        assert!(!at("4_1.4-9_2.7-0").is_not_before(&at("4_1.5-0_2.6-0")));
        assert!(
            !at("4_1.9-0").is_not_before(&at("4_1.5-0_2.6-0")),
            "a component is missing"
        );
    }

    #[test]
    fn positions_of_more_partitions_are_compared_with_those_before() {
        let at = |text: &str| text.parse::<Position>().unwrap();
        assert!(at("8_1.6-0_7.5-0").is_not_before(&at("5-0")));
        assert!(!at("8_1.6-0_7.4-0").is_not_before(&at("5-0")));
        assert!(at("8_1.5-0_5.6-0_7.9-0").is_not_before(&at("4_1.5-0_3.9-0")));
        assert!(!at("8_1.5-0_5.4-0_7.9-0").is_not_before(&at("4_1.5-0_3.9-0")));
        assert!(!at("8_1.5-0_5.6-0").is_not_before(&at("4_1.5-0_3.9-0")));
        assert_eq!(at("4_1.5-0_3.9-0").of(5), at("5-0").of(0));
    }

    #[test]
    fn partitions_are_those_of_sha1() {
        assert_eq!(
            partition_of("", 16),
            14,
            "SHA-1 of nothing starts with da39a3ee"
        );
        assert_eq!(
            partition_of("abc", 16),
            6,
            "SHA-1 of abc starts with a9993e36"
        );
        assert_eq!(
            partition_of("abc", 10),
            (0xa999_3e36_u32 % 10),
            "not a power of two"
        );
    }
}
