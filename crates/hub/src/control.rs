//! `Control`: the events of a stream that no publisher has sent.

use crate::{Channel, EventId, LastEventId, Reason};

/// An event about the stream itself. The front end gives it a name and a format.
///
/// A client that receives the id of a control event resumes from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first event: the channels are live.
    Open {
        /// The channels, by partition and name.
        channels: Vec<Channel>,
        /// The client's position before its first event, so that a client that is cut before then resumes exactly. None
        /// if the client asked for the existing events: such a client repeats its request. None either if the client's
        /// own id was invalid, because the client has not received the gap for that yet.
        position: Option<LastEventId>,
    },
    /// Events of a channel are missing.
    Gap {
        /// The channel.
        channel: Channel,
        /// The newest id up to which nothing is missing. None if the client's cursor was not one of ours.
        after: Option<EventId>,
        /// The first event after the gap, if there is one yet.
        oldest: Option<EventId>,
        /// Why they are missing.
        reason: Reason,
        /// The client's cursor after the gap. A client that resumes from it does not receive the gap again. Without it
        /// the client keeps its previous id.
        id: Option<LastEventId>,
    },
    /// The client has received everything up to here.
    Position(LastEventId),
    /// The channels are complete, and the client has received all of their events. The end of a stream does not show
    /// clients that. They connect again, and many of them ignore the answer 204.
    End(LastEventId),
}
