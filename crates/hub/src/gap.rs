//! The `gateway.gap` event: reports missing events at their position.

use bytes::Bytes;

use crate::{Channel, EventId, LastEventId};

crate::words! {
    /// Why events are missing. The words appear in the event and in the metric's label.
    pub enum Reason {
        ALL {
            /// Retention, a delete or an expiry removed them; or they were dropped before they were recorded.
            Trimmed = "trimmed",
            /// Redis lost its memory or its newest writes. So events after older cursors may be missing.
            Forgotten = "forgotten",
            /// The cursor is newer than every id in Redis.
            Future = "future",
            /// The cursor is not one of ours.
            Malformed = "malformed",
        }
    }
}

/// Missing events of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// No event of the channel up to here is missing.
    pub after: EventId,
    /// Why.
    pub reason: Reason,
    /// The channel is not known to have had any event up to here. So this is no gap for a reader that asked for the
    /// existing events.
    pub is_beginning: bool,
}

/// A gap event for one client.
pub(crate) struct Notice<'a> {
    pub(crate) channel: &'a Channel,
    /// The newest id up to which nothing is missing. None when the client's cursor was not one of ours.
    pub(crate) after: Option<EventId>,
    /// The first event after the gap, if there is one yet.
    pub(crate) oldest: Option<EventId>,
    pub(crate) reason: Reason,
    /// The client's cursor after the gap. A client that resumes from it does not receive the gap again. Without it the
    /// client keeps its previous id.
    pub(crate) id: Option<LastEventId>,
}

impl Notice<'_> {
    pub(crate) fn encode(&self) -> Bytes {
        let data = serde_json::json!({
            "channel": self.channel.as_str(),
            "after": self.after.map(|id| id.to_string()),
            "oldest": self.oldest.map(|id| id.to_string()),
            "reason": self.reason.as_str(),
        })
        .to_string();
        own_event("gateway.gap", self.id.as_ref(), &data)
    }
}

/// An event of the gateway's own.
pub(crate) fn own_event(name: &'static str, id: Option<&LastEventId>, data: &str) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 96);
    let event = sse::Event {
        id: None,
        event: Some(sse::Line::new(name).expect("our event names are single lines")),
        retry: None,
        data,
    };
    sse::encode_fields(&event, &mut out);
    sse::encode_end(id, &mut out);
    out.into()
}
