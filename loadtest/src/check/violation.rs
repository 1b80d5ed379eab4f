//! The ways to break a promise.

use std::fmt;

use crate::Id;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are what their names say; Display says it in words"
)]
pub enum Violation {
    /// Numbers that never came, and no gap was announced.
    Missing {
        channel: String,
        publisher: String,
        from: u64,
        to: u64,
    },
    /// A number that had come before; to another connection of the client's, if it has moved.
    Repeated {
        channel: String,
        publisher: String,
        seq: u64,
        id: String,
        has_moved: bool,
    },
    /// A number that came after a greater one; which came to another connection, if the client has moved.
    Reordered {
        channel: String,
        publisher: String,
        seq: u64,
        has_moved: bool,
    },
    /// The same message has another id than another client saw.
    Renumbered {
        channel: String,
        publisher: String,
        seq: u64,
        id: Id,
        elsewhere: Id,
    },
    /// Not as many of a text that is always the same as other clients saw.
    Miscounted {
        text: String,
        came: u64,
        elsewhere: u64,
    },
    /// A text that is always the same came under an id that was there already.
    NotNew { text: String, id: String },
    /// A message of a channel that the client did not ask for.
    Leaked { channel: String },
    /// A message without an id of its own.
    NoId {
        channel: String,
        publisher: String,
        seq: u64,
    },
    /// A gap where nothing is missing.
    FalseGap {
        channel: String,
        after: String,
        oldest: String,
    },
    /// A gap that the same connection has told before.
    RepeatedGap { channel: String },
    /// An event that is not after the one before it.
    WentBack { from: String, to: String },
    /// An answer after which a browser does not come back.
    Refused { answer: String },
    /// Something that cannot be read.
    Unreadable { what: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing {
                channel,
                publisher,
                from,
                to,
            } => {
                write!(f, "{channel}: {publisher}'s {from}..={to} never came")
            }
            Self::Repeated {
                channel,
                publisher,
                seq,
                id,
                ..
            } => {
                write!(f, "{channel}: {publisher}'s {seq} came again, as {id}")
            }
            Self::Reordered {
                channel,
                publisher,
                seq,
                ..
            } => {
                write!(f, "{channel}: {publisher}'s {seq} came late")
            }
            Self::Renumbered {
                channel,
                publisher,
                seq,
                id,
                elsewhere,
            } => {
                write!(
                    f,
                    "{channel}: {publisher}'s {seq} is {id}, elsewhere {elsewhere}"
                )
            }
            Self::Miscounted {
                text,
                came,
                elsewhere,
            } => write!(f, "{text:?} came {came} times, elsewhere {elsewhere}"),
            Self::NotNew { text, id } => write!(f, "{text:?} came again under {id}"),
            Self::Leaked { channel } => write!(f, "{channel} was not asked for"),
            Self::NoId {
                channel,
                publisher,
                seq,
            } => write!(f, "{channel}: {publisher}'s {seq} came without an id"),
            Self::FalseGap {
                channel,
                after,
                oldest,
            } => {
                write!(
                    f,
                    "{channel}: nothing is missing between {after} and {oldest}, where a gap was told"
                )
            }
            Self::RepeatedGap { channel } => write!(f, "{channel}: a gap was told again"),
            Self::WentBack { from, to } => write!(f, "id {to} came after {from}"),
            Self::Refused { answer } => write!(f, "a browser would not come back after {answer}"),
            Self::Unreadable { what } => f.write_str(what),
        }
    }
}
