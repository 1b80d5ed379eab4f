//! `Credential`: a publisher of the configuration.

use crate::{pattern::Patterns, secret::Secret};

/// A secret token, and the channels that it may publish to.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Its position in the configuration. It names the credential where the token must not be shown.
    pub number: usize,
    /// Sent as a bearer token.
    pub token: Secret,
    /// Channels that it may publish to.
    pub channels: Patterns,
}
