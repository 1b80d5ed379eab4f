//! `Caller`: the sender of a request to publish, or to issue a ticket.

use std::{fmt, sync::Arc};

use crate::{credential::Credential, denied::Denied, grant::Grant, pattern::Patterns};

/// The sender of a request to publish or to issue a ticket.
#[derive(Debug)]
pub enum Caller<'a> {
    /// A credential of the configuration.
    Credential(&'a Credential),
    /// A token.
    Token {
        /// The permissions of the token.
        grant: Box<Grant>,
        /// Digest of the token without its signature, because the same token may have several signatures.
        digest: [u8; 20],
    },
}

/// The owner of requests to publish or for tickets. Rates, quotas, room and idempotency keys belong to one principal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A publisher of the configuration, by its number.
    Credential(usize),
    /// All tokens of a subject.
    Subject(Arc<str>),
    /// One token without a subject, by its digest.
    Token([u8; 20]),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(number) => write!(f, "credential {number}"),
            Self::Subject(subject) => write!(f, "subject {subject}"),
            Self::Token(digest) => {
                f.write_str("token ")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl Caller<'_> {
    /// Checks that it may publish to a channel.
    ///
    /// # Errors
    /// When it may not.
    pub fn may_publish(&self, channel: &str) -> Result<(), Denied> {
        match self.channels().matches(channel) {
            true => Ok(()),
            false => Err(Denied::Channel(channel.to_owned())),
        }
    }

    /// Checks that there is a channel that it may publish to, before it has named any.
    ///
    /// # Errors
    /// When there is none.
    pub fn may_publish_anything(&self) -> Result<(), Denied> {
        match self.channels().is_empty() {
            true => Err(Denied::Publishing),
            false => Ok(()),
        }
    }

    fn channels(&self) -> &Patterns {
        match self {
            Self::Credential(credential) => &credential.channels,
            Self::Token { grant, .. } => &grant.publish,
        }
    }

    /// The idempotency key, unique to this publisher. None for a token without a subject: once renewed, it is another
    /// principal, so its key would not be known again.
    pub fn idempotency_key(&self, key: &str) -> Option<String> {
        let name = match self.principal() {
            Principal::Token(_) => return None,
            named => named.to_string(),
        };
        Some(format!("{}:{name}:{key}", name.len()))
    }

    /// The principal that its requests count for.
    pub fn principal(&self) -> Principal {
        match self {
            Self::Credential(credential) => Principal::Credential(credential.number),
            Self::Token { grant, digest } => match &grant.subject {
                Some(subject) => Principal::Subject(Arc::clone(subject)),
                None => Principal::Token(*digest),
            },
        }
    }
}
