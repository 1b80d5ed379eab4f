//! `Channel`: a validated channel name and the partition that it belongs to.

use std::{fmt, hash, sync::Arc};

use sha1::{Digest, Sha1};

/// Longest channel name, in bytes.
const MAX_BYTES: usize = 256;

/// A channel's name. Cheap to clone.
///
/// A name is 1 to 256 bytes of UTF-8 without control characters. Redis keys, log lines and the data of gap events
/// contain it, and a name must not be able to forge any of them.
#[derive(Clone)]
pub struct Channel {
    name: Arc<str>,
    partition: u16,
    partitions: Partitions,
}

/// Why a channel name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChannel {
    /// The name has no byte at all.
    #[error("a channel name cannot be empty")]
    Empty,
    /// The name is longer than 256 bytes.
    #[error("a channel name has at most {MAX_BYTES} bytes")]
    TooLong,
    /// The name holds a control character (U+0000 to U+001F, U+007F to U+009F).
    #[error("a channel name cannot hold control characters")]
    Control,
    /// The name is not UTF-8.
    #[error("a channel name has to be UTF-8")]
    NotUtf8,
}

/// The number of partitions of a deployment. Validates names and makes channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partitions(u16);

impl Partitions {
    /// `count` partitions, 1 to 1024.
    #[must_use]
    pub fn new(count: u16) -> Option<Self> {
        (1..=1024).contains(&count).then_some(Self(count))
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u16 {
        self.0
    }

    /// All partition numbers.
    pub fn all(self) -> impl Iterator<Item = u16> {
        0..self.0
    }

    /// Whether each of these partitions has channels of one partition of `earlier` only: the count is a multiple of that
    /// one.
    #[must_use]
    pub fn divide(self, earlier: Self) -> bool {
        self.0.is_multiple_of(earlier.0)
    }

    /// Validates a channel name.
    ///
    /// # Errors
    /// When the name is empty, too long, or holds control characters.
    pub fn channel(self, name: &str) -> Result<Channel, BadChannel> {
        if name.is_empty() {
            return Err(BadChannel::Empty);
        }
        if name.len() > MAX_BYTES {
            return Err(BadChannel::TooLong);
        }
        if name.chars().any(char::is_control) {
            return Err(BadChannel::Control);
        }
        Ok(Channel {
            name: name.into(),
            partition: self.of(name),
            partitions: self,
        })
    }

    /// [`Partitions::channel`] for bytes from a network connection.
    ///
    /// # Errors
    /// As there, and when the bytes are not UTF-8.
    pub fn channel_from_bytes(self, name: &[u8]) -> Result<Channel, BadChannel> {
        self.channel(std::str::from_utf8(name).map_err(|_| BadChannel::NotUtf8)?)
    }

    /// The partition of a name: the first 8 hex digits of SHA-1(name), modulo the count. The Lua library computes the
    /// same.
    #[must_use]
    pub fn of(self, name: &str) -> u16 {
        if self.0 == 1 {
            return 0;
        }
        let digest = Sha1::digest(name.as_bytes());
        let prefix = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        u16::try_from(prefix % u32::from(self.0)).expect("a remainder is below its u16 divisor")
    }
}

impl Channel {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The partition's number.
    #[must_use]
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// All partitions of the deployment.
    #[must_use]
    pub fn partitions(&self) -> Partitions {
        self.partitions
    }
}

// The partition follows from the name, so the name alone is the identity.
impl PartialEq for Channel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Channel {}

impl hash::Hash for Channel {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl std::borrow::Borrow<str> for Channel {
    fn borrow(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.name, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_is_the_sha1_prefix_modulo_the_count() {
        // `printf news | sha1sum` begins with 3c6bdcdd, and 0x3c6bdcdd % 8 is 5.
        let eight = Partitions::new(8).unwrap();
        assert_eq!(eight.channel("news").unwrap().partition(), 5);
        assert_eq!(
            Partitions::new(1)
                .unwrap()
                .channel("news")
                .unwrap()
                .partition(),
            0
        );
    }

    #[test]
    fn names_that_could_forge_a_line_are_refused() {
        let one = Partitions::new(1).unwrap();
        for (name, expected) in [
            (&b""[..], BadChannel::Empty),
            (b"a\nb", BadChannel::Control),
            (b"a\0", BadChannel::Control),
            (b"a\xc2\x85", BadChannel::Control),
            (b"\xff", BadChannel::NotUtf8),
            (&[b'x'; 257], BadChannel::TooLong),
        ] {
            assert_eq!(
                one.channel_from_bytes(name).unwrap_err(),
                expected,
                "{name:?}"
            );
        }
        for name in ["a", "a b", "{tag}", "ü", "a:b/c?d&e", "*"] {
            one.channel(name).unwrap();
        }
    }
}
