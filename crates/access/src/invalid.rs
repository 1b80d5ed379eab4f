//! `Invalid`: an error of the access rules.

/// What is wrong, in one line. It quotes no secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}
