//! `Settings`: the settings of a single event, from the query of its request.

use std::borrow::Cow;

use broker::Payload;
use hub::{Channel, Partitions};

use crate::http::{error::Problem, events::query};

/// The names of a query.
const PARAMETERS: [&str; 4] = ["channel", "event", "retry", "end"];

/// Settings of a single event, from the query.
pub(super) struct Settings {
    pub(super) channel: Channel,
    event: Option<String>,
    retry: Option<u32>,
    end: bool,
}

impl Settings {
    pub(super) fn read(query: &str, partitions: Partitions) -> Result<Self, Problem> {
        let (mut channel, mut event, mut retry, mut end) = (None, None, None, false);
        for (key, value) in query::pairs(query) {
            let value = query::decode(value)?;
            match key {
                "type" => {
                    return Err(Problem::UnknownParameter {
                        name: key.to_owned(),
                        advice: "the type of an event is event=".to_owned(),
                    });
                }
                "channel" if channel.is_some() => return Err(Problem::OneChannel),
                "channel" => channel = Some(partitions.channel(&value)?),
                "event" => event = Some(value),
                "retry" => retry = Some(value.parse().map_err(|_| Problem::BadSetting("retry"))?),
                "end" => {
                    end = match &*value {
                        "" | "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(Problem::BadSetting("end")),
                    }
                }
                _ => query::unknown(key, &PARAMETERS)?,
            }
        }
        Ok(Self {
            channel: channel.ok_or(Problem::NoChannel)?,
            event,
            retry,
            end,
        })
    }

    /// The payload to store, and whether it is an end: the body itself, unless the query adds to it.
    pub(super) fn payload<'a>(&self, body: &'a [u8]) -> Result<(Cow<'a, [u8]>, bool), Problem> {
        let payload = Payload::parse(body)?;
        let is_end = self.end || payload.end;
        if self.event.is_none() && self.retry.is_none() && !self.end {
            return Ok((body.into(), is_end));
        }
        let event = self.event.as_deref().map(Cow::from);
        let envelope = Payload {
            event: event.or(payload.event),
            data: payload.data,
            retry: self.retry.or(payload.retry),
            end: is_end,
        }
        .encode();
        // This also checks the event's name from the query.
        Payload::parse(&envelope)?;
        Ok((envelope.into(), is_end))
    }
}
