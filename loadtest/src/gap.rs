//! What a client is told when something can no longer be had.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Event;

/// A `gateway.gap` event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The channel that lost something.
    pub channel: String,
    /// Up to here nothing is missing.
    pub after: Option<String>,
    /// The oldest event that can still be had, if there is one.
    pub oldest: Option<String>,
    /// Why.
    pub reason: String,
    /// The position once it is told.
    pub id: String,
}

impl Gap {
    /// Reads the data of a `gateway.gap` event.
    ///
    /// # Errors
    ///
    /// Not JSON, or no channel in it.
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
