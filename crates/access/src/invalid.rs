//! `Invalid`: an error of the access rules.

/// The fault, in one line. It quotes no secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}
