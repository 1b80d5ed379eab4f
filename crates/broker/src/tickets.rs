//! `Tickets`: the permissions of one connection each, kept under a random name, and taken once.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, FromRedisValue};
use serde::{Deserialize, Serialize};

use crate::{Error, call::PlainCommand, throttled, topology::Topology};

/// Bytes that make a name unguessable. The name has them as hexadecimal digits.
const BYTES: usize = 16;

/// The permissions that a ticket gives to one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The subject of the connection, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Arc<str>>,
    /// The number of the configured publisher that named the subject; none if a token did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher: Option<usize>,
    /// Channels that the connection may subscribe to.
    pub subscribe: TicketChannels,
    /// End of the connection, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// Channels of a ticket: these names, and all that match the patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketChannels {
    /// Names, in which no character has a special meaning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Patterns. A pattern that begins with `!` excludes its matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
}

/// A ticket as it is stored.
#[derive(Clone, Debug)]
pub struct EncodedTicket(String);

/// Why a ticket was not issued.
#[derive(Debug, thiserror::Error)]
pub enum NotIssued {
    /// The system has no random bytes for a name.
    #[error("the system has no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// Redis did not keep the ticket.
    #[error("{0}")]
    Redis(#[from] Error),
}

/// A handle; cheap to clone. Its connections belong to the runtime that it is used in.
#[derive(Clone)]
pub struct Tickets(Topology);

impl Ticket {
    /// The form that is stored.
    pub fn encode(&self) -> EncodedTicket {
        let json = serde_json::to_string(self);
        EncodedTicket(json.expect("texts and numbers can be written as JSON"))
    }
}

impl EncodedTicket {
    /// Bytes that it takes in Redis, without its name.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn decode(text: &str) -> Option<Ticket> {
        let decoded = serde_json::from_str(text);
        decoded
            .inspect_err(|error| throttled!(warn, %error, "a ticket that is not in our format"))
            .ok()
    }
}

impl Tickets {
    pub(crate) fn new(topology: Topology) -> Self {
        Self(topology)
    }

    /// Whether a text can be the name of a ticket. Redis need not be asked for any other text.
    pub fn is_name(text: &str) -> bool {
        text.len() == 2 * BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Keeps a ticket under a new random name, and returns the name.
    ///
    /// # Errors
    /// When the system has no random bytes, or Redis did not keep the ticket.
    pub async fn issue(&self, ticket: &EncodedTicket, ttl: Duration) -> Result<String, NotIssued> {
        let name = new_name()?;
        let mut set = Cmd::new();
        set.arg("SET").arg(self.key(&name)).arg(&ticket.0);
        set.arg("PX").arg(ttl.as_millis().to_string());
        self.command::<()>(&name, PlainCommand::Set, &set).await?;
        Ok(name)
    }

    /// Takes a ticket away. Only one of all callers on all replicas receives it.
    ///
    /// # Errors
    /// When Redis did not answer; the ticket may or may not be gone.
    pub async fn take(&self, name: &str) -> Result<Option<Ticket>, Error> {
        if !Self::is_name(name) {
            return Ok(None);
        }
        let mut take = Cmd::new();
        take.arg("GETDEL").arg(self.key(name));
        let text: Option<String> = self.command(name, PlainCommand::GetDel, &take).await?;
        Ok(text.as_deref().and_then(EncodedTicket::decode))
    }

    fn key(&self, name: &str) -> String {
        self.0.deployment().names().ticket(name)
    }

    /// Tickets are spread over the partitions as channels are.
    async fn command<T: FromRedisValue>(
        &self,
        name: &str,
        command: PlainCommand,
        words: &Cmd,
    ) -> Result<T, Error> {
        let partition = self.0.deployment().partitions().of(name);
        self.0.command(partition, command, words).await
    }
}

fn new_name() -> Result<String, getrandom::Error> {
    let mut random = [0; BYTES];
    getrandom::fill(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channels() -> impl Strategy<Value = TicketChannels> {
        let texts = || prop::collection::vec(any::<String>(), 0..4);
        (texts(), texts()).prop_map(|(names, patterns)| TicketChannels { names, patterns })
    }

    proptest! {
        #[test]
        fn an_encoded_ticket_is_decoded_to_the_same(
            subject in prop::option::of(any::<String>()),
            publisher in prop::option::of(any::<usize>()),
            subscribe in channels(),
            expires in prop::option::of(any::<u64>()),
        ) {
            let subject = subject.map(Into::into);
            let ticket = Ticket { subject, publisher, subscribe, expires };
            prop_assert_eq!(EncodedTicket::decode(&ticket.encode().0), Some(ticket));
        }
    }

    #[test]
    fn only_a_new_name_is_a_name() {
        let name = new_name().unwrap();
        assert!(Tickets::is_name(&name) && name != new_name().unwrap());
        let star = format!("*{}", &name[1..]);
        for other in ["", "x", &name[1..], &star] {
            assert!(!Tickets::is_name(other), "{other}");
        }
    }
}
