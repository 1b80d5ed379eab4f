//! `CanaryCredential`: admits this process to its own channel.

use crate::secret::Secret;

/// A credential with which this process, and no other client, subscribes to a channel of its own.
#[derive(Clone, Debug)]
pub struct CanaryCredential {
    pub(crate) token: Secret,
    pub(crate) channel: String,
}

impl CanaryCredential {
    /// A credential for this channel, with a new secret token.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn new(channel: String) -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = Secret::from(&*token);
        Ok(Self { token, channel })
    }

    /// Sent as a bearer token.
    pub fn token(&self) -> &str {
        self.token.as_str()
    }
}
