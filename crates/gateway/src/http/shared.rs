//! `Shared`: the parts that all connections of a worker use.

use std::{rc::Rc, sync::Arc, time::Duration};

use axum::Router;
use tokio_util::sync::CancellationToken;

use super::{Front, stream};
use crate::tls::Tls;

/// The state that the connections of a worker share.
pub(crate) struct Shared {
    pub(crate) router: Router,
    pub(crate) streams: Rc<stream::Context>,
    pub(crate) tls: Option<Tls>,
    pub(crate) front: Arc<Front>,
    /// Every connection begins with a PROXY header, which names the client.
    pub(crate) proxy_protocol: bool,
    /// Time that a client has for a request's head; also for the next one on the same connection.
    pub(crate) header_timeout: Duration,
    pub(crate) stop: CancellationToken,
}
