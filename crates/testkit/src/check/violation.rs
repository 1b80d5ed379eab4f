//! The ways to break a promise.

use std::fmt;

use crate::Id;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are what their names say; Display says it in words"
)]
pub enum Violation {
    /// Numbers that never arrived, without a gap.
    Missing {
        channel: String,
        publisher: String,
        from: u64,
        to: u64,
    },
    /// A number that had arrived before. If `has_moved`, it was over an earlier connection of the client.
    Repeated {
        channel: String,
        publisher: String,
        seq: u64,
        id: String,
        has_moved: bool,
    },
    /// A number that arrived after a greater one. If `has_moved`, the greater one arrived over an earlier connection.
    Reordered {
        channel: String,
        publisher: String,
        seq: u64,
        has_moved: bool,
    },
    /// Another client saw the same message under another id.
    Renumbered {
        channel: String,
        publisher: String,
        seq: u64,
        id: Id,
        elsewhere: Id,
    },
    /// The number of identical texts differs from that of other clients.
    Miscounted {
        text: String,
        came: u64,
        elsewhere: u64,
    },
    /// One of several identical texts arrived without a new id.
    NotNew { text: String, id: String },
    /// A message of a channel that the client did not ask for.
    Leaked { channel: String },
    /// A message without its own id.
    NoId {
        channel: String,
        publisher: String,
        seq: u64,
    },
    /// A gap in which no message is missing.
    FalseGap {
        channel: String,
        after: String,
        oldest: String,
    },
    /// A gap that the same connection has already received.
    RepeatedGap { channel: String },
    /// An event whose id is not after that of the event before it.
    WentBack { from: String, to: String },
    /// An answer after which a browser does not reconnect.
    Refused { answer: String },
    /// Unreadable data.
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
                write!(f, "{channel}: {publisher}'s {from}..={to} did not arrive")
            }
            Self::Repeated {
                channel,
                publisher,
                seq,
                id,
                ..
            } => {
                write!(f, "{channel}: {publisher}'s {seq} arrived again, as {id}")
            }
            Self::Reordered {
                channel,
                publisher,
                seq,
                ..
            } => {
                write!(f, "{channel}: {publisher}'s {seq} arrived late")
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
            } => write!(f, "{text:?} arrived {came} times, elsewhere {elsewhere}"),
            Self::NotNew { text, id } => write!(f, "{text:?} arrived again under {id}"),
            Self::Leaked { channel } => write!(f, "{channel} was not requested"),
            Self::NoId {
                channel,
                publisher,
                seq,
            } => write!(f, "{channel}: {publisher}'s {seq} arrived without an id"),
            Self::FalseGap {
                channel,
                after,
                oldest,
            } => {
                write!(
                    f,
                    "{channel}: nothing is missing between {after} and {oldest}, where a gap was received"
                )
            }
            Self::RepeatedGap { channel } => write!(f, "{channel}: a gap was received again"),
            Self::WentBack { from, to } => write!(f, "id {to} arrived after {from}"),
            Self::Refused { answer } => write!(f, "a browser would not reconnect after {answer}"),
            Self::Unreadable { what } => f.write_str(what),
        }
    }
}
