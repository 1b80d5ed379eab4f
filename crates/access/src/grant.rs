//! `Grant`: the permissions of a client or publisher.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::pattern::Patterns;

/// The longest subject, in bytes. OpenID Connect allows 255.
pub const MAX_SUBJECT: usize = 256;

/// The permissions of a client or publisher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The user that has these permissions, if known.
    pub subject: Option<Arc<str>>,
    /// The publisher of the configuration that named the subject, by its number; none if a token or the backend did.
    pub publisher: Option<usize>,
    /// Channels that it may subscribe to.
    pub subscribe: Patterns,
    /// Channels that it may publish to.
    pub publish: Patterns,
    /// The end of these permissions, in seconds since the Unix epoch.
    pub expires: Option<u64>,
}

/// A subject, and the source of its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// A publisher of the configuration, by its number; none if a token or the backend did.
    pub publisher: Option<usize>,
    /// The subject.
    pub subject: Arc<str>,
}

impl Grant {
    /// The holder that its streams count for. A publisher of the configuration can name any subject. Its streams are
    /// counted separately, so that they do not use up the places of the subject itself.
    pub fn holder(&self) -> Option<Holder> {
        let subject = self.subject.clone()?;
        Some(Holder {
            publisher: self.publisher,
            subject,
        })
    }

    /// Bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        let subject = self.subject.as_ref().map_or(0, |subject| subject.len());
        subject + self.subscribe.bytes() + self.publish.bytes()
    }

    /// The time of its expiry.
    pub fn end(&self) -> Option<SystemTime> {
        let expires = Duration::from_secs(self.expires?);
        // A time beyond the range of the clock counts as no expiry.
        SystemTime::UNIX_EPOCH.checked_add(expires)
    }
}
