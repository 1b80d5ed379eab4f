//! What the function library writes, read back: live messages and pages.

use bytes::Bytes;
use hub::{EventId, Frame, Item, Kind, Page, Reason};

use crate::payload::Payload;

/// A message of ours that cannot be read. Somebody else writes to our names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not in the format of the function library")]
pub(crate) struct Malformed;

/// A live message.
pub(crate) struct Live {
    /// The event's id and that of its channel's previous event; none for what is not recorded.
    pub(crate) ids: Option<(EventId, EventId)>,
    pub(crate) frame: Frame,
}

impl Live {
    /// `<id> <prev>` LF payload; `-` twice for what is not recorded.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let (ids, payload) = split_line(message)?;
        let (id, prev) = ids.split_once(' ').ok_or(Malformed)?;
        let ids = match (id, prev) {
            ("-", "-") => None,
            (id, prev) => Some((parse(id)?, parse(prev)?)),
        };
        let frame = frame(ids.map(|(id, _)| id), payload);
        Ok(Self { ids, frame })
    }
}

/// The live message for what could not be recorded.
pub(crate) fn unrecorded(payload: &[u8]) -> Vec<u8> {
    [b"- -\n", payload].concat()
}

/// Encodes an event from its payload, once for everybody.
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

/// The answer to a probe: where the partition stands.
pub(crate) struct Stand {
    pub(crate) clock: EventId,
    pub(crate) horizon: EventId,
}

impl Stand {
    /// `<clock> <horizon>`
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
        let (clock, horizon) = text.split_once(' ').ok_or(Malformed)?;
        Ok(Self {
            clock: parse(clock)?,
            horizon: parse(horizon)?,
        })
    }
}

/// Entries of one channel and the facts that decide about gaps.
#[derive(Debug)]
pub(crate) struct Excerpt {
    /// The server's time.
    now_ms: u64,
    /// The newest id of the partition.
    clock: EventId,
    /// Cursors below cannot be vouched for.
    horizon: EventId,
    /// The newest id of the channel, while it is remembered.
    head: Option<EventId>,
    expire_ms: u64,
    /// There are more entries: behind these when reading forward, before them when attaching.
    more: bool,
    entries: Vec<(EventId, Option<EventId>, Bytes)>,
}

impl Excerpt {
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
        let count = number(fact()?)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (line, payload) = split_line(rest)?;
            let mut parts = line.split(' ');
            let mut part = || parts.next().ok_or(Malformed);
            let id = parse(part()?)?;
            // Only an entry that somebody else wrote has none.
            let prev = part()?.parse().ok();
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
            entries,
        })
    }

    /// The page behind a cursor.
    pub(crate) fn page_after(self, after: EventId) -> Page {
        let to = match self.entries.last() {
            Some((last, ..)) if self.more => *last,
            _ => self.clock,
        };
        self.page(after, to)
    }

    /// The page of the newest entries; serves every cursor if these are all.
    pub(crate) fn newest_page(self) -> Page {
        let after = match self.entries.first() {
            Some((first, prev, _)) if self.more => prev.unwrap_or_else(|| first.predecessor()),
            _ => EventId::ZERO,
        };
        let to = self.clock;
        self.page(after, to)
    }

    /// Puts the gaps where they lie, by the rules of the protocol: an entry whose `prev` is newer
    /// than what came before it; a head that is newer than the last entry; a cursor below the
    /// horizon; no head and a cursor older than the channel's expiry.
    ///
    /// A gap stands at the newest id that cannot be vouched for, so that it is told to every
    /// cursor below that id and to no other. The rule that needs no item, a cursor newer than the
    /// clock, shows as a page that ends before it begins.
    fn page(self, after: EventId, to: EventId) -> Page {
        let mut items = Vec::with_capacity(self.entries.len() + 1);
        let mut complete = after;
        let gap = |at: EventId| Item {
            at: at.into(),
            kind: Kind::Gap(if at == self.horizon {
                Reason::Forgotten
            } else {
                Reason::Trimmed
            }),
        };
        for (id, prev, payload) in &self.entries {
            let crossed = Some(self.horizon).filter(|horizon| horizon < id);
            let missing = (*prev)
                .max(crossed)
                .filter(|missing| *missing > complete && missing < id);
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
            let missing = self.head.unwrap_or(expired).max(self.horizon);
            if missing > complete
                && (self.head.is_some() || self.entries.is_empty() || missing == self.horizon)
            {
                items.push(gap(missing));
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
