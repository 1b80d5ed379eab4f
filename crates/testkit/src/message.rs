//! The messages that publishers send: text with the publisher, the channel, the number and the
//! time.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// One numbered message, `publisher channel seq sent_micros`, with any padding after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The publisher that numbered it.
    pub publisher: &'a str,
    /// Where it was published. An event itself does not name its channel.
    pub channel: &'a str,
    /// Counts the publisher's messages on this channel, from 0.
    pub seq: u64,
    /// When it was sent, in microseconds since the epoch.
    pub sent_micros: u64,
}

impl<'a> Message<'a> {
    /// The next message of `publisher`, sent now.
    pub fn now(publisher: &'a str, channel: &'a str, seq: u64) -> Self {
        Self {
            publisher,
            channel,
            seq,
            sent_micros: micros_since_epoch(),
        }
    }

    /// Parses the text of a message. Returns `None` for any other text.
    pub fn parse(data: &'a str) -> Option<Self> {
        let mut words = data.splitn(5, ' ');
        Some(Self {
            publisher: words.next()?,
            channel: words.next()?,
            seq: words.next()?.parse().ok()?,
            sent_micros: words.next()?.parse().ok()?,
        })
    }

    /// The time since it was sent, on the same machine.
    pub fn age(&self) -> Duration {
        Duration::from_micros(micros_since_epoch().saturating_sub(self.sent_micros))
    }

    /// The text, padded to `bytes`.
    pub fn padded(&self, bytes: usize) -> String {
        let mut text = self.to_string();
        if text.len() < bytes {
            text.push(' ');
            text.extend(std::iter::repeat_n('.', bytes - text.len()));
        }
        text
    }
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            publisher,
            channel,
            seq,
            sent_micros,
        } = self;
        write!(f, "{publisher} {channel} {seq} {sent_micros}")
    }
}

/// The time of this machine, in microseconds since the epoch.
pub fn micros_since_epoch() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_written() {
        let message = Message::now("p0", "news", 17);
        assert_eq!(Message::parse(&message.to_string()), Some(message));
        let padded = message.padded(200);
        assert_eq!(padded.len(), 200);
        assert_eq!(Message::parse(&padded), Some(message));
    }

    #[test]
    fn other_text_is_no_message() {
        for text in ["", "tick", "p0 news", "p0 news x 5", "{\"a\": 1, \"b\": 2}"] {
            assert_eq!(Message::parse(text), None, "{text:?}");
        }
    }
}
