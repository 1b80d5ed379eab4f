//! `Received`: the body of a request to publish, and the memory that it takes.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use fair::{Holder, Room, Share};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout, timeout_at};

use crate::http::error::Problem;

/// Time that a publisher has to send its body, and the longest pause within it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_PAUSE: Duration = Duration::from_secs(5);
/// The longest wait for room, for a body and for the answer to a batch. It is shorter than the pause that a body may
/// have, because over HTTP/2 a waiting body can block another body of its connection.
const ROOM_WAIT: Duration = Duration::from_secs(4);
/// Bytes of all bodies that are read or wait to be stored, in the whole process.
const ROOM: usize = 64 << 20;

/// The memory for all bodies.
pub(super) struct Bodies(Arc<Room>);

/// A body, and its room.
pub(crate) struct Received {
    pub(in crate::http) bytes: Vec<u8>,
    pub(super) share: Share,
}

impl Bodies {
    pub(super) fn new() -> Self {
        Self(Room::new(ROOM))
    }

    /// Reads the whole body. Fails if it is larger than `limit` or too slow. It takes room for the bytes that have
    /// arrived; `Content-Length` reserves none. Call this only after the publisher was authorized.
    pub(super) async fn read(
        &self,
        mut body: Body,
        limit: usize,
        holder: &Holder,
    ) -> Result<Received, Problem> {
        let first = timeout(ROOM_WAIT, self.0.wait(holder, 0)).await;
        let mut share = first.ok().flatten().ok_or(Problem::Busy)?;
        let mut bytes = Vec::new();
        let end = Instant::now() + BODY_TIMEOUT;
        loop {
            let pause = Instant::now() + BODY_PAUSE;
            let frame = match timeout_at(end.min(pause), body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => return Err(Problem::BrokenBody),
                Ok(None) => break,
                Err(_) => return Err(Problem::BodyTimeout),
            };
            let Ok(chunk) = frame.into_data() else {
                // Trailers.
                continue;
            };
            if bytes.len() + chunk.len() > limit {
                return Err(Problem::TooLarge(limit));
            }
            room_for(&mut share, chunk.len()).await?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Received { bytes, share })
    }
}

/// Takes room for this many bytes. Waits for other bodies to end.
pub(super) async fn room_for(share: &mut Share, bytes: usize) -> Result<(), Problem> {
    match timeout(ROOM_WAIT, share.wait(bytes)).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Problem::Busy),
    }
}
