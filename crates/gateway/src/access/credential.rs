//! `Credential`: a publisher of the configuration.

use super::{Patterns, Secret};

/// A secret, and the channels that whoever has it may publish to.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    /// Its place in the configuration: what it is called where it must not be shown.
    pub(crate) number: usize,
    pub(crate) token: Secret,
    pub(crate) channels: Patterns,
}
