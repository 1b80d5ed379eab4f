//! `Shared`: the parts that all connections of a worker use.

use std::{rc::Rc, sync::Arc};

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::http::AppState;
use crate::http::stream;
use crate::tls::Tls;

/// The state that the connections of a worker share.
pub(crate) struct Shared {
    pub(crate) router: Router,
    pub(crate) streams: Rc<stream::Context>,
    pub(crate) tls: Option<Tls>,
    pub(crate) app_state: Arc<AppState>,
    pub(crate) stop: CancellationToken,
}
