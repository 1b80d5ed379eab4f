//! Every name that stands in Redis: keys and pub/sub channels.
//!
//! All names of a partition carry its number as hash tag, so that one function call touches one
//! slot of a Redis Cluster. The Lua library is given the same constants.

use hub::{Channel, Partitions};

/// Name of the function library.
pub(crate) const LIBRARY: &str = "ssegw";

/// What the names of a partition begin with; `%d` stands for its number, as in Lua.
const PREFIX: &str = "ssegw:{%d}:";

/// Hash: last id, horizon, the run id of the Redis process that was vouched for, and what became of earlier rules.
const CLOCK: &str = "clock";
/// Pub/sub: digests of what was recorded, in order; fences and barriers of the recorders.
const RECORDED: &str = "recorded";
/// Pub/sub, one per channel: the events as they are appended.
const LIVE: &str = "live:";
/// Pub/sub, one per replica: answers to its attaches.
const FENCE: &str = "fence:";

/// String: the token of the recorder that may write.
const LEASE: &str = "lease";

/// String, one per ticket: what it is good for.
const TICKET: &str = "ticket:";

/// Pub/sub, of the whole deployment: subjects whose streams are to end. Part of the interface:
/// anybody may publish to it.
pub(crate) const REVOKE: &str = "ssegw:revoke";

/// The rest is touched by the library alone.
const LUA_ONLY: [(&str, &str); 6] = [
    // Stream, one per channel: its events.
    ("LOG", "log:"),
    // List, one per channel: the ids of its newest events, behind that of its first.
    ("IDS", "ids:"),
    // Sorted set: digests of channels that had events, by the time of their first.
    ("PAST", "past"),
    // Sorted set: replicas that have missed no raw message, by the time until which that is known.
    ("WARM", "warm"),
    // Sorted set: replicas that listen to raw messages, by the time their seat expires.
    ("SEATS", "seats"),
    // String, one per idempotency key: the digest of the payload, and the id that was given out for it.
    ("IDEMPOTENCY", "idempotency:"),
];

/// The names as Lua constants.
pub(crate) fn lua_constants() -> String {
    let shared = [
        ("PREFIX", PREFIX),
        ("CLOCK", CLOCK),
        ("RECORDED", RECORDED),
        ("LIVE", LIVE),
        ("FENCE", FENCE),
        ("LEASE", LEASE),
        ("REVOKE", REVOKE),
    ];
    let lines = shared.iter().chain(&LUA_ONLY);
    lines
        .map(|(name, value)| format!("local {name} = '{value}'\n"))
        .collect()
}

fn name(partition: u16, rest: &str) -> String {
    PREFIX.replace("%d", &partition.to_string()) + rest
}

pub(crate) fn clock(partition: u16) -> String {
    name(partition, CLOCK)
}

pub(crate) fn lease(partition: u16) -> String {
    name(partition, LEASE)
}

pub(crate) fn recorded(partition: u16) -> String {
    name(partition, RECORDED)
}

pub(crate) fn live(channel: &Channel) -> String {
    name(channel.partition(), LIVE) + channel.as_str()
}

pub(crate) fn fence(partition: u16, replica: &str) -> String {
    name(partition, FENCE) + replica
}

/// Tickets are spread over the partitions as channels are.
pub(crate) fn ticket(partitions: Partitions, ticket: &str) -> String {
    name(partitions.of(ticket), TICKET) + ticket
}

/// What a pub/sub message of a partition is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Subject<'a> {
    /// An event of this channel.
    Live(&'a [u8]),
    /// An answer to an attach.
    Fence,
    /// What a recorder did.
    Recorded,
}

/// Reads a pub/sub channel of ours back; none for any other.
pub(crate) fn subject(channel: &[u8]) -> Option<(u16, Subject<'_>)> {
    let (before, after) = PREFIX.split_once("%d")?;
    let rest = channel.strip_prefix(before.as_bytes())?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let partition = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    let rest = rest[digits..].strip_prefix(after.as_bytes())?;
    let subject = if let Some(name) = rest.strip_prefix(LIVE.as_bytes()) {
        Subject::Live(name)
    } else if rest.starts_with(FENCE.as_bytes()) {
        Subject::Fence
    } else if rest == RECORDED.as_bytes() {
        Subject::Recorded
    } else {
        return None;
    };
    Some((partition, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_read_back() {
        let eight = hub::Partitions::new(8).unwrap();
        let channel = eight.channel("a:{b} c").unwrap();
        assert_eq!(
            subject(live(&channel).as_bytes()),
            Some((channel.partition(), Subject::Live(b"a:{b} c")))
        );
        assert_eq!(
            subject(fence(3, "r1").as_bytes()),
            Some((3, Subject::Fence))
        );
        assert_eq!(
            subject(recorded(7).as_bytes()),
            Some((7, Subject::Recorded))
        );
        for foreign in ["sse:news", "ssegw:{x}:recorded", "ssegw:{0}:clock", ""] {
            assert_eq!(subject(foreign.as_bytes()), None, "{foreign}");
        }
    }
}
