//! `Queue`: the messages that wait to be recorded, in their order, and the bytes that they take.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fmt,
    num::ParseIntError,
    ops::Range,
    str::FromStr,
    time::SystemTime,
};

use bytes::Bytes;
use hub::Channel;
use sha1::{Digest as _, Sha1};

/// Maximum messages of one append.
const BATCH_MESSAGES: usize = 256;
/// Payload bytes after which an append takes no further message.
const BATCH_BYTES: usize = 1 << 20;
/// This many of the waiting messages take turns at once.
const TURNS_MESSAGES: usize = 1024;
/// An append may hold this many tombstones for each message that it could hold otherwise, because they are small.
const TOMBSTONES_PER_MESSAGE: usize = 4;
/// Approximate bytes that a pending message costs besides its payload.
pub(crate) const OVERHEAD: usize = 160;

/// Names a raw message in notices. Equal messages (channel and payload) have equal digests, and are interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest(u128);

/// A message, an end or a barrier that waits to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) content: Content,
    /// The payload of a message. Empty after it was recorded.
    pub(crate) payload: Bytes,
    /// That of a message, or the name of an end or a barrier.
    pub(crate) digest: String,
    pub(crate) received_at: SystemTime,
    /// It arrived so soon after the recorder had subscribed that its notice may have been missed, if a recorder at
    /// another node has recorded it.
    pub(super) is_early: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A raw message.
    Message(Channel),
    /// A raw message whose payload was dropped. A gap is recorded instead.
    Tombstone(Channel),
    /// The end of a channel that a function has stored in Redis. Its digest is the name that it has there.
    End(Channel),
    /// A barrier, which has no entry in Redis.
    Barrier,
    /// A raw message that was recorded before it arrived here. Only its notice is published, for other recorders.
    Recorded,
}

/// Waiting messages. Channels take turns if many bytes wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Pending>,
    bytes: usize,
}

impl Pending {
    /// A raw message that has arrived.
    pub(super) fn message(channel: Channel, payload: Bytes) -> Self {
        let digest = Digest::of(&channel, &payload);
        Self::with_digest(channel, payload, digest)
    }

    /// The same, if the digest is known.
    pub(crate) fn with_digest(channel: Channel, payload: Bytes, digest: Digest) -> Self {
        Self {
            digest: digest.to_string(),
            content: Content::Message(channel),
            payload,
            received_at: SystemTime::now(),
            is_early: false,
        }
    }

    /// The announcement of an end, or a barrier, that has arrived.
    pub(super) fn other(content: Content, digest: String) -> Self {
        Self {
            content,
            payload: Bytes::new(),
            digest,
            received_at: SystemTime::now(),
            is_early: false,
        }
    }

    /// The channel that gets an entry or a gap.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        match &self.content {
            Content::Message(channel) | Content::Tombstone(channel) | Content::End(channel) => {
                Some(channel)
            }
            Content::Barrier | Content::Recorded => None,
        }
    }

    /// The channel as `ssegw_record` takes it: the first byte of a tombstone is 0, that of an end 1. Names hold no
    /// control characters.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        match &self.content {
            Content::Message(channel) => channel.as_str().into(),
            Content::Tombstone(channel) => format!("\0{channel}").into(),
            Content::End(channel) => format!("\u{1}{channel}").into(),
            Content::Barrier | Content::Recorded => "".into(),
        }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        matches!(self.content, Content::Tombstone(_))
    }

    /// Whether it is lost if no recorder records it.
    pub(crate) fn is_raw(&self) -> bool {
        matches!(self.content, Content::Message(_) | Content::Tombstone(_))
    }

    /// The bytes that it counts towards the limit. Tombstones have a limit of their own.
    pub(super) fn size(&self) -> usize {
        match self.is_tombstone() {
            true => 0,
            false => self.payload.len() + OVERHEAD,
        }
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all messages but tombstones.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Pending> + ExactSizeIterator {
        self.entries.iter()
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.bytes += pending.size();
        self.entries.push_back(pending);
    }

    /// Removes the oldest message with this digest. Returns its place.
    pub(super) fn remove(&mut self, digest: &str) -> Option<usize> {
        let mut entries = self.entries.iter();
        let index = entries.position(|pending| pending.digest == digest)?;
        let removed = self.entries.remove(index)?;
        self.bytes -= removed.size();
        Some(index)
    }

    pub(super) fn drop_first(&mut self, count: usize) {
        let dropped = self.entries.drain(..count);
        self.bytes -= dropped.map(|pending| pending.size()).sum::<usize>();
    }

    /// Removes messages whose notices may have been missed.
    pub(super) fn drop_early(&mut self) {
        self.entries.retain(|pending| !pending.is_early);
        self.bytes = self.entries.iter().map(Pending::size).sum();
    }

    /// These messages were recorded. Until the notice arrives, only their digests are needed.
    pub(super) fn forget_payloads(&mut self, recorded: Range<usize>) {
        for pending in self.entries.range_mut(recorded) {
            self.bytes -= pending.payload.len();
            pending.payload = Bytes::new();
        }
    }

    /// The messages of the next append, after the first `sent`.
    pub(super) fn batch(&self, sent: usize) -> Vec<Pending> {
        let (mut bytes, mut room) = (0, BATCH_MESSAGES * TOMBSTONES_PER_MESSAGE);
        let more = |pending: &&Pending| {
            let fits = bytes < BATCH_BYTES && room > 0;
            bytes += pending.payload.len();
            let takes = if pending.is_tombstone() {
                1
            } else {
                TOMBSTONES_PER_MESSAGE
            };
            room = room.saturating_sub(takes);
            fits
        };
        self.entries
            .range(sent..)
            .take_while(more)
            .cloned()
            .collect()
    }

    /// Sorts the messages that the next append takes, and some after them, if many bytes wait. Then channels take turns
    /// by bytes. Each channel's messages keep their order. No message passes a barrier. None but the first `old` passes
    /// one of those. The first `sent` stay where they are.
    pub(super) fn take_turns(&mut self, sent: usize, old: usize) {
        let end = self.len().min(sent + TURNS_MESSAGES);
        let waiting = &mut self.entries.make_contiguous()[sent..end];
        let old = old.saturating_sub(sent).min(waiting.len());
        let (old, new) = waiting.split_at_mut(old);
        let is_barrier = |pending: &Pending| pending.channel().is_none();
        for messages in [old, new]
            .into_iter()
            .flat_map(|all| all.split_mut(is_barrier))
        {
            let mut bytes = HashMap::<Option<Channel>, usize>::new();
            messages.sort_by_cached_key(|pending| {
                let before = bytes.entry(pending.channel().cloned()).or_default();
                *before += pending.size();
                *before
            });
        }
    }

    /// Makes tombstones of the oldest messages of the channels that hold most, until that many bytes are free. Does not
    /// change the first `sent`. Returns how many entries have no payload.
    pub(super) fn shed(&mut self, sent: usize, goal: usize) -> usize {
        let mut held = HashMap::<&Channel, usize>::new();
        for pending in self.entries.range(sent..) {
            if let Content::Message(channel) | Content::Tombstone(channel) = &pending.content {
                *held.entry(channel).or_default() += pending.size();
            }
        }
        let mut most: Vec<_> = held.into_iter().collect();
        most.sort_unstable_by(|(_, a), (_, b)| b.cmp(a));
        let (mut victims, mut left) = (HashMap::new(), goal);
        for (channel, bytes) in most {
            let share = bytes.min(left);
            if share == 0 {
                break;
            }
            victims.insert(channel.clone(), share);
            left -= share;
        }
        let (mut freed, mut tombstones) = (0, 0);
        for pending in self.entries.range_mut(sent..) {
            if let Content::Message(channel) | Content::Tombstone(channel) = &pending.content
                && let Some(share) = victims.get_mut(channel).filter(|share| **share > 0)
            {
                let (size, channel) = (pending.size(), channel.clone());
                *share = share.saturating_sub(size);
                freed += size;
                pending.payload = Bytes::new();
                pending.content = Content::Tombstone(channel);
            }
            tombstones += usize::from(!matches!(pending.content, Content::Message(_)));
        }
        self.bytes -= freed;
        tombstones
    }

    /// When the newest of the first `count` messages was received.
    pub(super) fn newest_received(&self, count: usize) -> Option<SystemTime> {
        let mut messages = self.entries.range(..count).rev();
        let newest = messages.find(|pending| pending.is_raw());
        newest.map(|pending| pending.received_at)
    }
}

impl Digest {
    /// It has to stay the same during a rollout, because recorders of both versions read each other's notices.
    pub(crate) fn of(channel: &Channel, payload: &[u8]) -> Self {
        let mut sha1 = Sha1::new();
        sha1.update(channel.as_str().as_bytes());
        sha1.update([0]);
        sha1.update(payload);
        let digest = sha1.finalize();
        let bytes = digest[..16].iter();
        Self(bytes.fold(0, |digest, byte| digest << 8 | u128::from(*byte)))
    }
}

impl FromStr for Digest {
    type Err = ParseIntError;

    /// As in notices.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl fmt::Display for Digest {
    /// As in notices.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
