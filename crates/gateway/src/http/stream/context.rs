//! `Context`: the state that all streams of a worker share.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use access::Revoked;
use bytes::Bytes;
use hub::{Batch, Hub};

use super::{
    request::StreamRequest,
    roster::Roster,
    stuck::{Resumed, Stuck},
    untaken::Untaken,
    write::Unsent,
};
use crate::{
    http::config::HttpConfig,
    metrics::{Closed, Metrics},
    traces::Deliveries,
};

/// The state that all streams of a worker share.
pub(crate) struct Context {
    pub(crate) hub: Hub,
    pub(crate) roster: Roster,
    pub(crate) revoked: Revoked,
    pub(crate) metrics: Metrics,
    pub(crate) deliveries: Deliveries,
    /// The reason for the streams that are being closed now.
    pub(crate) closing: Cell<Closed>,
    pub(crate) config: Arc<HttpConfig>,
    /// A comment line, which no client ever sees.
    pub(crate) heartbeat: Bytes,
    /// Bytes that clients have not taken.
    pub(crate) untaken: Rc<Untaken>,
    pub(crate) stuck: Stuck,
    /// Used in each turn of a stream, and empty between turns.
    pub(crate) batch: RefCell<Batch>,
    pub(crate) unsent: RefCell<Unsent>,
}

impl Context {
    pub(crate) fn new(
        hub: Hub,
        metrics: Metrics,
        deliveries: Deliveries,
        config: Arc<HttpConfig>,
        revoked: Revoked,
    ) -> Self {
        let mut heartbeat = Vec::new();
        let empty = sse::Line::new("").expect("an empty line is a line");
        sse::comment(empty, &mut heartbeat);
        Self {
            roster: Roster::new(hub.clone()),
            revoked,
            hub,
            metrics,
            deliveries,
            closing: Cell::new(Closed::Drained),
            config,
            heartbeat: heartbeat.into(),
            untaken: Rc::default(),
            stuck: Stuck::default(),
            batch: RefCell::default(),
            unsent: RefCell::default(),
        }
    }

    pub(super) fn retry(&self) -> Bytes {
        retry(self.config.retry)
    }

    /// Ends the streams that have expired. Call this once a second.
    pub(crate) fn expire(&self) {
        self.close(Closed::Expired, || self.roster.expire());
    }

    /// Gives up streams while their clients leave too many bytes untaken. Call this once a second.
    pub(crate) fn relieve(&self) {
        self.metrics.stalled.inc_by(self.untaken.relieve());
    }

    /// Ends the streams of a subject, including streams that are about to begin.
    pub(crate) fn revoke(&self, subject: Arc<str>) {
        self.close(Closed::Revoked, || self.roster.revoke(&subject));
        self.revoked.note(subject);
    }

    /// A client ended a stream itself.
    pub(super) fn client_left(&self, resumed: &Resumed) {
        if !self.stuck.left(resumed, Instant::now()) {
            return;
        }
        self.metrics.stuck.inc();
        broker::throttled!(
            warn,
            channel = %resumed.channel,
            last_event_id = %resumed.after,
            "a client resumes from the same event again and again: the next event is probably larger than it accepts"
        );
    }

    /// Streams that end during `tell` have this reason. All other streams are drained.
    pub(super) fn close(&self, reason: Closed, tell: impl FnOnce()) {
        self.closing.set(reason);
        tell();
        self.closing.set(Closed::Drained);
    }

    /// The time at which a stream that begins now has to end: at the expiry of its permissions, or at its maximum age.
    /// The age varies, so that clients that connected together do not reconnect together.
    pub(super) fn end(&self, request: &StreamRequest) -> Option<Instant> {
        let until = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
        let age = self
            .config
            .max_stream_age()
            .map(|age| age.mul_f64(0.9 + 0.2 * fastrand::f64()));
        let left = request.end.map(until).into_iter().chain(age).min()?;
        // A time beyond the range of the clock counts as no end.
        Instant::now().checked_add(left)
    }
}

/// A random reconnection time for one client, between half and one and a half of `time`. So clients that are cut
/// together do not reconnect together.
pub(crate) fn retry(time: Duration) -> Bytes {
    let jittered = time.mul_f64(0.5 + fastrand::f64());
    let mut out = Vec::with_capacity(24);
    sse::retry(
        u64::try_from(jittered.as_millis()).unwrap_or(u64::MAX),
        &mut out,
    );
    out.into()
}
