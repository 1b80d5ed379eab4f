//! Reads the texts that the function library writes: live messages and pages.

use bytes::Bytes;
use hub::{EventId, Frame, Gap, Item, Kind, Page, Reason};

use crate::payload::Payload;

/// A message on one of this deployment's names that cannot be read. Another program writes to these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not in the format of the function library")]
pub(crate) struct Malformed;

/// A live message.
pub(crate) struct Live {
    /// The event's id and that of its channel's previous event; none if the event is not recorded.
    pub(crate) ids: Option<(EventId, EventId)>,
    pub(crate) frame: Frame,
}

impl Live {
    /// `<id> <prev>` LF payload; `-` twice if the event is not recorded.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let (ids, payload) = split_line(message)?;
        let (id, prev) = ids.split_once(' ').ok_or(Malformed)?;
        let ids = match (id, prev) {
            ("-", "-") => None,
            (id, prev) => Some((parse(id)?, Prev::parse(prev).id.ok_or(Malformed)?)),
        };
        let frame = frame(ids.map(|(id, _)| id), payload);
        Ok(Self { ids, frame })
    }
}

/// The id of the newest lost event, if a live message announces lost events: `- <id>` LF.
pub(crate) fn tombstone(message: &[u8]) -> Option<EventId> {
    let id = message.strip_prefix(b"- ")?.strip_suffix(b"\n")?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// The live message for an event that could not be recorded.
pub(crate) fn unrecorded(payload: &[u8]) -> Vec<u8> {
    [b"- -\n", payload].concat()
}

/// Encodes an event from its payload, once for all clients.
fn frame(id: Option<EventId>, payload: &[u8]) -> Frame {
    let payload = Payload::stored(payload);
    let event = sse::Event {
        id: None,
        event: payload
            .event
            .as_deref()
            .and_then(|event| sse::Line::new(event).ok()),
        retry: payload.retry.map(u64::from),
        data: &payload.data,
    };
    Frame::encode(id, &event, payload.end)
}

/// The last message of an answer to an attach: the clock and the horizon of the partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionState {
    /// As given to the call.
    pub(crate) call: u64,
    pub(crate) clock: EventId,
    pub(crate) horizon: EventId,
    /// The deployment has moved to another Redis.
    pub(crate) has_moved: bool,
}

impl PartitionState {
    /// `<call> <clock> <horizon>[ moved]`
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
        let (call, rest) = text.split_once(' ').ok_or(Malformed)?;
        let (clock, rest) = rest.split_once(' ').ok_or(Malformed)?;
        let horizon = rest.strip_suffix(" moved");
        Ok(Self {
            call: number(call)?,
            clock: parse(clock)?,
            horizon: parse(horizon.unwrap_or(rest))?,
            has_moved: horizon.is_some(),
        })
    }
}

/// Entries of one channel and the facts that decide about gaps.
#[derive(Debug)]
pub(crate) struct HistoryReply {
    /// The server's time.
    now_ms: u64,
    /// The newest id of the partition.
    clock: EventId,
    /// Cursors below may miss events.
    horizon: EventId,
    /// The newest id of the channel, while Redis still has it.
    head: Option<EventId>,
    expire_ms: u64,
    /// There are more entries: after these when reading forward, before them when attaching.
    more: bool,
    /// The id of the channel's first event, zero if it never had one; none if that is not known.
    first: Option<EventId>,
    entries: Vec<(EventId, Prev, Bytes)>,
}

/// The predecessor of an entry in its channel; unknown if another program wrote the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prev {
    id: Option<EventId>,
    /// It is a horizon.
    is_horizon: bool,
}

impl Prev {
    /// An id, followed by `!` if it is a horizon.
    fn parse(text: &str) -> Self {
        let horizon = text.strip_suffix('!');
        Self {
            id: horizon.unwrap_or(text).parse().ok(),
            is_horizon: horizon.is_some(),
        }
    }
}

impl HistoryReply {
    /// Facts in one line, then the entries, each as `<id> <prev> <length>` LF payload.
    pub(crate) fn parse(text: &Bytes) -> Result<Self, Malformed> {
        let (facts, mut rest) = split_line(text)?;
        let mut facts = facts.split(' ');
        let mut fact = || facts.next().ok_or(Malformed);
        let now_ms = number(fact()?)?;
        let clock = parse(fact()?)?;
        let horizon = parse(fact()?)?;
        let head = match fact()? {
            "-" => None,
            id => Some(parse(id)?),
        };
        let expire_ms = number(fact()?)?;
        let more = fact()? == "1";
        let first = match fact()? {
            "-" => None,
            id => Some(parse(id)?),
        };
        let count = number(fact()?)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (line, payload) = split_line(rest)?;
            let mut parts = line.split(' ');
            let mut part = || parts.next().ok_or(Malformed);
            let id = parse(part()?)?;
            let prev = Prev::parse(part()?);
            let length = usize::try_from(number(part()?)?).map_err(|_| Malformed)?;
            let payload = payload.get(..length).ok_or(Malformed)?;
            entries.push((id, prev, text.slice_ref(payload)));
            let taken = line.len() + 1 + length;
            rest = &rest[taken..];
        }
        Ok(Self {
            now_ms,
            clock,
            horizon,
            head,
            expire_ms,
            more,
            first,
            entries,
        })
    }

    /// The page after a cursor.
    pub(crate) fn page_after(self, after: EventId) -> Page {
        let to = match self.entries.last() {
            Some((last, ..)) if self.more => *last,
            _ => self.clock,
        };
        self.page(after, to)
    }

    /// Cursors below may miss events.
    pub(crate) fn horizon(&self) -> EventId {
        self.horizon
    }

    /// Whether even the newest entry was left out.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.entries.is_empty() && self.more
    }

    /// The page of the newest entries; serves every cursor if these are all. It may be empty, because an entry can be
    /// larger than the answer to an attach may be.
    pub(crate) fn newest_page(self) -> Page {
        let after = match self.entries.first() {
            _ if !self.more => EventId::ZERO,
            Some((first, prev, _)) => prev.id.unwrap_or_else(|| first.predecessor()),
            None => self.head.unwrap_or(self.clock),
        };
        let to = self.clock;
        self.page(after, to)
    }

    /// Puts the gaps at their places, by the rules of the protocol. There is a gap:
    /// - before an entry whose `prev` is newer than the entry before it,
    /// - after the last entry, if the head is newer,
    /// - if a cursor is below the horizon,
    /// - if there is no head, and the cursor is older than the channel's expiry.
    ///
    /// The place of a gap is the newest id up to which events may be missing. So every cursor below that id receives
    /// it, and no other. A cursor newer than the clock needs no item: the page then ends before it begins.
    fn page(self, after: EventId, to: EventId) -> Page {
        let mut items = Vec::with_capacity(self.entries.len() + 1);
        let mut complete = after;
        let gap = |after: EventId, at: EventId, is_horizon: bool, is_beginning: bool| Item {
            at: at.into(),
            kind: Kind::Gap(Gap {
                after,
                reason: if is_horizon || at == self.horizon {
                    Reason::Forgotten
                } else {
                    Reason::Trimmed
                },
                is_beginning,
            }),
        };
        for (id, prev, payload) in &self.entries {
            let crossed = Some(self.horizon).filter(|horizon| horizon < id);
            let missing = prev
                .id
                .max(crossed)
                .filter(|missing| *missing > complete && missing < id);
            let is_horizon = prev.is_horizon && missing == prev.id;
            let is_beginning = self.first == Some(*id);
            let gap = |missing| gap(complete, missing, is_horizon, is_beginning);
            items.extend(missing.map(gap));
            items.push(Item {
                at: (*id).into(),
                kind: Kind::Frame(frame(Some(*id), payload)),
            });
            complete = *id;
        }
        let ends_here = to == self.clock;
        if ends_here {
            let expired = EventId {
                ms: self.now_ms.saturating_sub(self.expire_ms),
                seq: 0,
            };
            // Without a head, the `prev` of the entries shows which events were before them.
            let forgotten = match self.head {
                Some(head) => head,
                None if self.entries.is_empty() => expired.min(to),
                None => EventId::ZERO,
            };
            let missing = forgotten.max(self.horizon);
            if missing > complete {
                let is_beginning = self.entries.is_empty() && self.first == Some(EventId::ZERO);
                items.push(gap(complete, missing, false, is_beginning));
            }
        }
        Page { after, to, items }
    }
}

fn split_line(message: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let end = message
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Malformed)?;
    let line = std::str::from_utf8(&message[..end]).map_err(|_| Malformed)?;
    Ok((line, &message[end + 1..]))
}

fn parse(id: &str) -> Result<EventId, Malformed> {
    id.parse().map_err(|_| Malformed)
}

fn number(text: &str) -> Result<u64, Malformed> {
    text.parse().map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use hub::Position;

    use super::*;

    /// The items that a client with this cursor receives: `n` is an event, `n!` a gap at n, `n?` a gap because Redis
    /// has lost events, `n.` a gap that a client without an id does not have.
    fn told(page: &Page, cursor: u64) -> String {
        let cursor = EventId { ms: cursor, seq: 0 };
        let words = page.items_after(Position::from(cursor)).iter().map(|item| {
            let mark = match item.kind {
                Kind::Frame(_) => "",
                Kind::Gap(gap) if gap.is_beginning => ".",
                Kind::Gap(gap) if gap.reason == Reason::Forgotten => "?",
                Kind::Gap(_) => "!",
            };
            format!("{}{mark}", item.at.id.ms)
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Facts as (now, clock, horizon, head, expire, more), entries as (id, prev).
    fn excerpt(
        facts: (u64, u64, u64, Option<u64>, u64, bool),
        entries: &[(u64, u64)],
    ) -> HistoryReply {
        excerpt_of(facts, "-", entries)
    }

    /// The same of a channel whose first event is known.
    fn excerpt_of(
        facts: (u64, u64, u64, Option<u64>, u64, bool),
        first: &str,
        entries: &[(u64, u64)],
    ) -> HistoryReply {
        let (now, clock, horizon, head, expire, more) = facts;
        let head = head.map_or_else(|| "-".to_owned(), |head| format!("{head}-0"));
        let more = u8::from(more);
        let count = entries.len();
        let mut text =
            format!("{now} {clock}-0 {horizon}-0 {head} {expire} {more} {first} {count}\n");
        for (id, prev) in entries {
            text += &format!("{id}-0 {prev}-0 2\n\nx");
        }
        HistoryReply::parse(&Bytes::from(text)).unwrap()
    }

    #[test]
    fn each_rule_makes_its_gap_for_the_right_cursors_only() {
        let check = |name: &str, facts, entries: &[(u64, u64)], expected: &[(u64, &str)]| {
            let page = excerpt(facts, entries).newest_page();
            for (cursor, expected) in expected {
                assert_eq!(told(&page, *cursor), *expected, "{name}: cursor {cursor}");
                // A page that was read for a cursor holds only entries after it.
                let mut behind = entries.to_vec();
                behind.retain(|(id, _)| id > cursor);
                let after = EventId {
                    ms: *cursor,
                    seq: 0,
                };
                let page = excerpt(facts, &behind).page_after(after);
                assert_eq!(
                    told(&page, *cursor),
                    *expected,
                    "{name}: page after {cursor}"
                );
            }
        };
        check(
            "nothing is missing",
            (100, 90, 10, Some(50), 1000, false),
            &[(30, 20), (50, 30)],
            &[(20, "30 50"), (29, "30 50"), (30, "50"), (50, ""), (90, "")],
        );
        check(
            "trimmed: the first entry names one that is gone",
            (100, 90, 10, Some(50), 1000, false),
            &[(30, 20), (50, 30)],
            &[(10, "20! 30 50"), (19, "20! 30 50")],
        );
        check(
            "deleted from the middle",
            (100, 90, 10, Some(50), 1000, false),
            &[(30, 20), (50, 40)],
            &[
                (20, "30 40! 50"),
                (30, "40! 50"),
                (39, "40! 50"),
                (40, "50"),
            ],
        );
        check(
            "deleted: no entry, but the head remembers",
            (100, 90, 10, Some(50), 1000, false),
            &[],
            &[(10, "50!"), (49, "50!"), (50, ""), (90, "")],
        );
        check(
            "expired: no head, and the cursor is older than the expiry",
            (2000, 1990, 10, None, 1000, false),
            &[],
            &[(10, "1000!"), (999, "1000!"), (1000, ""), (1990, "")],
        );
        check(
            "a channel before its first event",
            (100, 90, 10, None, 1000, false),
            &[],
            &[(10, ""), (90, "")],
        );
        check(
            "forgotten, and nothing since",
            (100, 90, 60, None, 1000, false),
            &[],
            &[(10, "60?"), (59, "60?"), (60, "")],
        );
        check(
            "forgotten between two entries: what is left is told first",
            (100, 90, 40, Some(50), 1000, false),
            &[(30, 20), (50, 40)],
            &[(20, "30 40? 50"), (30, "40? 50"), (40, "50")],
        );
        check(
            "forgotten behind the last entry",
            (100, 90, 60, Some(50), 1000, false),
            &[(50, 20)],
            &[(20, "50 60?"), (50, "60?"), (60, "")],
        );
    }

    #[test]
    fn the_beginning_of_a_channel_differs_from_lost_events() {
        let began = (100, 90, 10, Some(50), 1000, false);
        let check = |facts, first, entries: &[(u64, u64)], expected| {
            let page = excerpt_of(facts, first, entries).newest_page();
            assert_eq!(told(&page, 0), expected, "first {first}");
        };
        check(began, "30-0", &[(30, 20), (50, 30)], "20. 30 50");
        // Its first events are gone, or those of an earlier life of the channel may be.
        check(began, "20-0", &[(30, 20), (50, 30)], "20! 30 50");
        check(began, "-", &[(30, 20), (50, 30)], "20! 30 50");
        let empty = (2000, 1990, 10, None, 1000, false);
        check(empty, "0-0", &[], "1000.");
        check(empty, "-", &[], "1000!");
        // All of it is gone, or events after the first were lost.
        check(began, "30-0", &[], "50!");
        let lost = (100, 90, 60, Some(50), 1000, false);
        check(lost, "30-0", &[(30, 20), (50, 30)], "20. 30 50 60?");
    }

    #[test]
    fn pages_have_their_range() {
        let id = |ms| EventId { ms, seq: 0 };
        let part = || excerpt((100, 90, 10, Some(70), 1000, true), &[(30, 20), (50, 30)]);
        let page = part().page_after(id(20));
        assert_eq!(
            (page.after, page.to),
            (id(20), id(50)),
            "more entries follow"
        );
        let page = part().newest_page();
        assert_eq!(
            (page.after, page.to),
            (id(20), id(90)),
            "more entries come before"
        );
        assert_eq!(told(&page, 20), "30 50 70!");
        let page = excerpt((100, 90, 10, Some(70), 1000, true), &[]).newest_page();
        assert_eq!(
            (page.after, page.to),
            (id(70), id(90)),
            "none is small enough"
        );
        assert_eq!(told(&page, 70), "");
        let page = excerpt((100, 90, 10, Some(50), 1000, false), &[]).page_after(id(95));
        assert!(page.to < page.after, "newer than the clock");
    }

    #[test]
    fn other_texts_are_malformed() {
        for text in [
            "",
            "x",
            "1 2-0 3-0 - 5 0 - 1\n",
            "1 2-0 3-0 - 5 0 - x\n",
            "1 2-0 3-0 - 5 0 x 0\n",
            "1 2 3-0 - 5 0 - 0\n",
            "1 2-0 3-0 - 5 0 - 1\n1-0 0-0 99\nab",
            "1 2-0 3-0 - 5 0 - 18446744073709551615\n",
        ] {
            assert_eq!(
                HistoryReply::parse(&Bytes::from(text)).err(),
                Some(Malformed),
                "{text:?}"
            );
        }
        for text in ["", "1-0\nx", "1-0 x\ny", "- 1-0\ny"] {
            assert!(Live::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
