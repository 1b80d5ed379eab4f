//! The control events of a stream as clients see them: `gateway.open`, `gateway.gap`, `gateway.position`, `gateway.end`.

use std::sync::Arc;

use bytes::Bytes;
use hub::{Control, LastEventId};
use serde_json::json;

use crate::http::stream::request::ControlFormat;

/// Encodes control events. docs/api.md describes them.
#[derive(Debug)]
pub(crate) struct ControlEvents {
    /// The name of this replica in `gateway.open`; none in its place if empty.
    replica: Arc<str>,
}

impl ControlEvents {
    pub(crate) fn new(replica: Arc<str>) -> Self {
        Self { replica }
    }
}

impl ControlFormat for ControlEvents {
    fn encode(&self, control: &Control) -> Bytes {
        let (name, id, data) = match control {
            Control::Open { channels, position } => {
                let channels: Vec<_> = channels.iter().map(hub::Channel::as_str).collect();
                let mut data = json!({ "channels": channels });
                if !self.replica.is_empty() {
                    data["replica"] = (*self.replica).into();
                }
                if let Some(position) = position {
                    data["position"] = position.to_string().into();
                }
                ("gateway.open", position.as_ref(), data)
            }
            Control::Gap {
                channel,
                after,
                oldest,
                reason,
                id,
            } => {
                let data = json!({
                    "channel": channel.as_str(),
                    "after": after.map(|id| id.to_string()),
                    "oldest": oldest.map(|id| id.to_string()),
                    "reason": reason.as_str(),
                });
                ("gateway.gap", id.as_ref(), data)
            }
            Control::Position(id) => ("gateway.position", Some(id), position(id)),
            Control::End(id) => ("gateway.end", Some(id), position(id)),
        };
        block(name, id, &data.to_string())
    }
}

fn position(id: &LastEventId) -> serde_json::Value {
    json!({ "position": id.to_string() })
}

fn block(name: &'static str, id: Option<&LastEventId>, data: &str) -> Bytes {
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
