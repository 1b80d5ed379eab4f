//! Every name in Redis: keys and pub/sub channels.
//!
//! All names of a partition carry the same hash tag, so one function call touches one slot of a Redis Cluster.

use std::sync::{Arc, LazyLock};

use hub::{Channel, Partitions};
use sha1::{Digest as _, Sha1};

/// Name of the function library.
pub(crate) const LIBRARY: &str = "ssegw";

/// String: the number of partitions. It decides the names of all partitions, so it has none of their tags.
pub(crate) const PARTITIONS: &str = "ssegw:partitions";

/// Slots of a Redis Cluster (Redis Cluster specification, "Key distribution model").
pub(crate) const SLOTS: u16 = 16384;

/// The slot of [`PARTITIONS`].
pub(crate) static PARTITIONS_SLOT: LazyLock<u16> = LazyLock::new(|| slot(PARTITIONS.as_bytes()));

/// Hash: the last id, the horizon, the server process of the last handshake, and the rules of retention.
pub(crate) const CLOCK: &str = "clock";
/// String: the token of the active recorder.
pub(crate) const LEASE: &str = "lease";
/// Sorted set: replicas that have missed no raw message, by the time until which that is known.
pub(crate) const IN_SYNC: &str = "in-sync";
/// Sorted set: replicas that subscribe to raw messages, by the time their candidacy expires.
pub(crate) const CANDIDATES: &str = "candidates";
/// Sorted set: digests of channels that had events, by the time of their first.
pub(crate) const PAST: &str = "past";
/// Hash: ends that wait for raw messages, by channel. Also pub/sub: their announcements.
pub(crate) const ENDS: &str = "ends";
/// Stream, one per channel: its events.
pub(crate) const LOG: &str = "log:";
/// List, one per channel: the ids of its newest events, after that of its first.
pub(crate) const IDS: &str = "ids:";
/// String, one per idempotency key: the digest of the payload, and the id of its event.
pub(crate) const IDEMPOTENCY: &str = "idempotency:";
/// String, one per ticket: the permissions that it grants.
const TICKET: &str = "ticket:";

/// Digits of a run id in the names of pub/sub channels, and a colon.
const RUN: usize = 9;

/// Pub/sub: digests of recorded messages, in order; fences and barriers of the recorders.
///
/// After this name and those below follows the beginning of the run id of the server process that publishes. Nodes of a
/// Redis Cluster pass such messages on to their copies. So a master that was stopped and replaced, and carries out what
/// waits in its sockets when it continues, publishes to the subscribers of its successor.
const RECORDED: &str = "recorded:";
/// Pub/sub: raw messages that the cluster has lost on their way to the node of the partition, for its recorders.
const REPUBLISHED: &str = "republished:";
/// Pub/sub, one per channel: the events as they are appended.
const LIVE: &str = "live:";
/// Pub/sub, one per replica: answers to its attaches.
const ANSWERS: &str = "answers:";

/// Pub/sub, of the whole deployment: subjects whose streams are to end. Part of the interface: any client of Redis may
/// publish to it.
pub(crate) const REVOKE: &str = "ssegw:revoke";

/// The names of a deployment. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    partitions: Partitions,
    /// The beginning of the names of each partition.
    prefixes: Arc<[String]>,
    /// Hash tags with their partitions, in order.
    tags: Arc<[(u32, u16)]>,
}

impl Names {
    /// The tag of partition P of N is the smallest whole number in the slot (2P + 1) x 8192 / N, rounded down. So the
    /// partitions are spread evenly over the slots, and masters with as many slots have as many partitions.
    pub(crate) fn new(partitions: Partitions) -> Self {
        let (count, slots) = (u32::from(partitions.count()), u32::from(SLOTS));
        let wanted = |partition: u16| (2 * u32::from(partition) + 1) * (slots / 2) / count;
        let mut tags = vec![None; usize::from(partitions.count())];
        let mut missing = tags.len();
        let tags_and_slots =
            (0..).map(|tag: u32| (tag, u32::from(slot(tag.to_string().as_bytes()))));
        for (tag, slot) in tags_and_slots {
            // Only this partition can have the slot.
            let partition = u16::try_from(slot * count / slots).unwrap_or(u16::MAX);
            if wanted(partition) == slot && tags[usize::from(partition)].is_none() {
                tags[usize::from(partition)] = Some(tag);
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        let tags = tags.into_iter().flatten();
        let prefixes = tags
            .clone()
            .map(|tag| format!("ssegw:{{{tag}}}:"))
            .collect();
        let mut tags: Vec<_> = tags.zip(0..).collect();
        tags.sort_unstable();
        Self {
            partitions,
            prefixes,
            tags: tags.into(),
        }
    }

    pub(crate) fn partitions(&self) -> Partitions {
        self.partitions
    }

    /// The constants of the function library.
    pub(crate) fn lua_constants(&self) -> String {
        let names = [
            ("CLOCK", CLOCK),
            ("RECORDED", RECORDED),
            ("REPUBLISHED", REPUBLISHED),
            ("LIVE", LIVE),
            ("ANSWERS", ANSWERS),
            ("LEASE", LEASE),
            ("REVOKE", REVOKE),
            ("LOG", LOG),
            ("IDS", IDS),
            ("PAST", PAST),
            ("ENDS", ENDS),
            ("IN_SYNC", IN_SYNC),
            ("CANDIDATES", CANDIDATES),
            ("IDEMPOTENCY", IDEMPOTENCY),
        ];
        let names = names.map(|(name, value)| format!("local {name} = '{value}'\n"));
        let prefixes: Vec<_> = self.prefixes.iter().map(|it| format!("'{it}'")).collect();
        format!(
            "{}local PREFIXES = {{ {} }}\n",
            names.concat(),
            prefixes.join(", ")
        )
    }

    /// The slot of all names of a partition in a Redis Cluster.
    pub(crate) fn slot(&self, partition: u16) -> u16 {
        let prefix = &self.prefixes[usize::from(partition)];
        let tag = prefix.trim_start_matches("ssegw:{").trim_end_matches("}:");
        slot(tag.as_bytes())
    }

    /// A name of a partition.
    pub(crate) fn name(&self, partition: u16, rest: &str) -> String {
        let prefix = &self.prefixes[usize::from(partition)];
        let mut name = String::with_capacity(prefix.len() + rest.len());
        name.push_str(prefix);
        name.push_str(rest);
        name
    }

    pub(crate) fn lease(&self, partition: u16) -> String {
        self.name(partition, LEASE)
    }

    pub(crate) fn recorded(&self, partition: u16, run: &str) -> String {
        self.name(partition, RECORDED) + &run_part(run)
    }

    pub(crate) fn ends(&self, partition: u16, run: &str) -> String {
        self.name(partition, ENDS) + ":" + &run_part(run)
    }

    pub(crate) fn republished(&self, partition: u16, run: &str) -> String {
        self.name(partition, REPUBLISHED) + &run_part(run)
    }

    pub(crate) fn live(&self, channel: &Channel, run: &str) -> String {
        self.name(channel.partition(), LIVE) + &run_part(run) + channel.as_str()
    }

    pub(crate) fn answers(&self, partition: u16, replica: &str, run: &str) -> String {
        self.name(partition, ANSWERS) + &run_part(run) + replica
    }

    /// The key of a publisher's idempotency key for a channel of this partition.
    pub(crate) fn idempotency(&self, partition: u16, channel: &str, key: &str) -> String {
        let digest = Sha1::digest(format!("{}:{channel}:{key}", channel.len()));
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.name(partition, IDEMPOTENCY) + &digest
    }

    /// Tickets are spread over the partitions as channels are.
    pub(crate) fn ticket(&self, ticket: &str) -> String {
        self.name(self.partitions.of(ticket), TICKET) + ticket
    }

    /// Reads a name of a partition back: the partition, and the part after the tag.
    pub(crate) fn split<'a>(&self, name: &'a [u8]) -> Option<(u16, &'a [u8])> {
        let rest = name.strip_prefix(b"ssegw:{")?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let tag: u32 = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        let rest = rest[digits..].strip_prefix(b"}:")?;
        let found = self.tags.binary_search_by_key(&tag, |(tag, _)| *tag).ok()?;
        Some((self.tags[found].1, rest))
    }

    /// Reads a pub/sub channel of a partition back; none for any other channel.
    pub(crate) fn subject<'a>(&self, channel: &'a [u8]) -> Option<(u16, Subject<'a>)> {
        let (partition, rest) = self.split(channel)?;
        let subject = if let Some(rest) = rest.strip_prefix(LIVE.as_bytes()) {
            Subject::Live(rest.get(RUN..)?)
        } else if rest.starts_with(ANSWERS.as_bytes()) {
            Subject::Answer
        } else if rest.starts_with(RECORDED.as_bytes()) {
            Subject::Recorded
        } else if rest.starts_with(ENDS.as_bytes()) {
            Subject::Ends
        } else if rest.starts_with(REPUBLISHED.as_bytes()) {
            Subject::Republished
        } else {
            return None;
        };
        Some((partition, subject))
    }
}

/// The server process that publishes, as the names of pub/sub channels have it.
pub(crate) fn run_part(run: &str) -> String {
    let mut part: String = run.chars().take(RUN - 1).collect();
    part.push(':');
    part
}

/// The subject of a pub/sub message of a partition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Subject<'a> {
    /// An event of this channel.
    Live(&'a [u8]),
    /// An answer to an attach.
    Answer,
    /// A notice of a recorder.
    Recorded,
    /// The announcement of an end.
    Ends,
    /// A raw message that the node of the partition had missed.
    Republished,
}

/// The slot of a hash tag: CRC16 (XMODEM) modulo [`SLOTS`].
fn slot(tag: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in tag {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            let polynomial = if crc & 0x8000 == 0 { 0 } else { 0x1021 };
            crc = crc << 1 ^ polynomial;
        }
    }
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: u16) -> Names {
        Names::new(Partitions::new(count).unwrap())
    }

    const RUN_ID: &str = "757830c9043f5593008f9ac01705a0bc88b5cd7d";

    #[test]
    fn subjects_are_read_back() {
        let eight = names(8);
        let channel = eight.partitions.channel("a:{b} c").unwrap();
        assert_eq!(
            eight.subject(eight.live(&channel, RUN_ID).as_bytes()),
            Some((channel.partition(), Subject::Live(b"a:{b} c")))
        );
        for partition in 0..8 {
            assert_eq!(
                eight.subject(eight.answers(partition, "r1", RUN_ID).as_bytes()),
                Some((partition, Subject::Answer))
            );
            assert_eq!(
                eight.subject(eight.recorded(partition, RUN_ID).as_bytes()),
                Some((partition, Subject::Recorded))
            );
            assert_eq!(
                eight.subject(eight.ends(partition, RUN_ID).as_bytes()),
                Some((partition, Subject::Ends))
            );
            assert_eq!(
                eight.subject(eight.republished(partition, RUN_ID).as_bytes()),
                Some((partition, Subject::Republished))
            );
        }
        let clock = eight.name(0, CLOCK);
        for foreign in [
            "sse:news",
            "ssegw:{x}:recorded",
            "ssegw:{7}:recorded",
            &clock,
            "",
        ] {
            assert_eq!(eight.subject(foreign.as_bytes()), None, "{foreign}");
        }
    }

    /// The example of the Redis Cluster specification.
    #[test]
    fn a_slot_is_that_of_redis_cluster() {
        assert_eq!(slot(b"123456789"), 0x31C3);
    }

    /// Breaks when a partition has no tag, when two share one, or when masters with as many slots have many more
    /// partitions than others.
    #[test]
    fn partitions_are_spread_evenly_over_masters() {
        for count in (1..=64).chain([100, 128, 500, 1000, 1023, 1024]) {
            let names = names(count);
            let mut slots: Vec<_> = (names.tags.iter())
                .map(|(tag, _)| slot(tag.to_string().as_bytes()))
                .collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), usize::from(count));
            for masters in 1..=16_u32 {
                let held = (0..masters).map(|master| {
                    let from = master * u32::from(SLOTS) / masters;
                    let to = (master + 1) * u32::from(SLOTS) / masters;
                    slots
                        .iter()
                        .filter(|slot| (from..to).contains(&u32::from(**slot)))
                        .count()
                });
                let (least, most) = held.fold((usize::MAX, 0), |(least, most), held| {
                    (least.min(held), most.max(held))
                });
                assert!(
                    most - least <= 1,
                    "{count} over {masters}: {least} to {most}"
                );
            }
        }
    }
}
