//! `StreamRequest`: a stream that a client may have, before it begins.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use hub::{Channel, Control, Start};

use crate::limits::Place;

/// How a front end writes the control events of its streams.
pub(crate) trait ControlFormat: std::fmt::Debug + Send + Sync {
    /// One block of the event stream.
    fn encode(&self, control: &Control) -> Bytes;
}

/// A requested stream. The response carries it as an extension. The connection takes it out after that, and becomes the
/// stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamRequest {
    pub(crate) channels: Vec<Channel>,
    pub(crate) start: Start,
    pub(crate) format: Arc<dyn ControlFormat>,
    /// Its subject, if known.
    pub(crate) subject: Option<Arc<str>>,
    /// A number for its client.
    pub(crate) owner: u64,
    /// The interval of its heartbeats, if it asked for one.
    pub(crate) heartbeat: Option<Duration>,
    /// The time at which the permissions of its client expire.
    pub(crate) end: Option<SystemTime>,
    /// The time at which the request arrived.
    pub(crate) received_at: Instant,
    /// None for this process itself.
    pub(crate) place: Option<Arc<Place>>,
}

/// Marks the answer to HEAD. It has no Content-Length, because a stream has no length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadOnly;
