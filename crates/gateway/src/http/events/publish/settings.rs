//! `Settings`: the settings of a single event, from the query of its request.

use std::borrow::Cow;

use broker::{MAX_COPIES, Payload};
use hub::{Channel, Partitions};

use crate::http::{error::Problem, events::query};

/// The names of a query.
const PARAMETERS: [&str; 5] = ["channel", "event", "retry", "end", "replicas"];

/// Settings of a single event, from the query.
pub(super) struct Settings {
    pub(super) channel: Channel,
    event: Option<String>,
    retry: Option<u32>,
    end: bool,
    /// How many copies of Redis have to have the event before the answer.
    pub(super) copies: u8,
}

/// The setting of a batch, from the query: how many copies of Redis have to have its events before the answer.
///
/// # Errors
/// When the query has anything else.
pub(super) fn copies_of_batch(query: &str) -> Result<u8, Problem> {
    let mut copies = 0;
    for (key, value) in query::pairs(query) {
        match key {
            "replicas" => copies = read_copies(&query::decode(value)?)?,
            key if key.starts_with('_') => {}
            _ => return Err(Problem::BatchQuery),
        }
    }
    Ok(copies)
}

fn read_copies(value: &str) -> Result<u8, Problem> {
    let copies = value.parse().ok();
    let copies = copies.filter(|copies| (1..=MAX_COPIES).contains(copies));
    copies.ok_or(Problem::BadSetting("replicas"))
}

impl Settings {
    pub(super) fn read(query: &str, partitions: Partitions) -> Result<Self, Problem> {
        let (mut channel, mut event, mut retry, mut end) = (None, None, None, false);
        let mut copies = 0;
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
                "replicas" => copies = read_copies(&value)?,
                _ => query::unknown(key, &PARAMETERS)?,
            }
        }
        Ok(Self {
            copies,
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
