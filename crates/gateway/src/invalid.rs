//! `Invalid`: an error of the configuration.

/// An error of the configuration, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(crate) String);

impl From<access::Invalid> for Invalid {
    fn from(error: access::Invalid) -> Self {
        Self(error.to_string())
    }
}

impl From<&str> for Invalid {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
