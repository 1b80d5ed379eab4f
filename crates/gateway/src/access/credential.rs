//! `Credential`: a publisher of the configuration.

use super::{Patterns, Secret};

/// A secret token, and the channels that it may publish to.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    /// Its position in the configuration. It names the credential where the token must not be shown.
    pub(crate) number: usize,
    pub(crate) token: Secret,
    pub(crate) channels: Patterns,
}
