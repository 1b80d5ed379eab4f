//! The `gateway.gap` event, which reports that a channel's events are missing.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Event;

/// A `gateway.gap` event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The channel with missing events.
    pub channel: String,
    /// No event up to this id is missing.
    pub after: Option<String>,
    /// The oldest event that is still available, if there is one.
    pub oldest: Option<String>,
    /// The reason of the gap.
    pub reason: String,
    /// The position after the gap event.
    pub id: String,
}

impl Gap {
    /// Reads the data of a `gateway.gap` event.
    ///
    /// # Errors
    ///
    /// If the data is not JSON or names no channel.
    pub fn read(event: &Event) -> Result<Self> {
        let data: Value = serde_json::from_str(&event.data)?;
        let text = |key: &str| data[key].as_str().map(ToOwned::to_owned);
        Ok(Self {
            channel: text("channel").context("names no channel")?,
            after: text("after"),
            oldest: text("oldest"),
            reason: text("reason").unwrap_or_default(),
            id: event.id.clone(),
        })
    }
}
