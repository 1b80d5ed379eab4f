//! All routes, and how requests become streams.

pub(crate) mod admin;
mod answer;
mod config;
pub(crate) mod connection;
pub(crate) mod console;
mod cors;
mod error;
pub(crate) mod events;
pub(crate) mod stream;
mod under_way;

use std::{net::IpAddr, sync::Arc};

use access::{Access, Origins};
use axum::{Router, http::request::Parts};
use hub::Partitions;

use self::events::{control::ControlEvents, page::Pages, publish::PublishState, tickets::Tickets};
pub(crate) use self::{
    config::HttpConfig,
    connection::Shared,
    console::{Console, ConsoleFlags},
};
use crate::{current::Current, limits::Limits, metrics::Metrics};

/// Bytes of a request's head at most.
const MAX_HEAD: usize = 16 << 10;

/// The state that all routes share.
pub(crate) struct AppState {
    pub(crate) partitions: Partitions,
    pub(crate) config: Arc<HttpConfig>,
    pub(crate) max_payload: usize,
    /// The access rules. The rules in force when a request arrives decide on it.
    pub(crate) access: Current<Access>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) metrics: Metrics,
    pub(crate) controls: Arc<ControlEvents>,
    pub(crate) publish: PublishState,
    pub(crate) pages: Pages,
    pub(crate) tickets: Tickets,
}

/// The origin of a request's connection: the peer, or the client that a PROXY header names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The number of the connection in this process.
    pub(crate) connection: u64,
    /// Whether its X-Forwarded-For counts, if it is a trusted proxy.
    pub(crate) may_forward: bool,
}

impl Peer {
    fn of(head: &Parts) -> Self {
        let peer = head.extensions.get::<Self>().copied();
        peer.expect("the connection says where it comes from")
    }
}

impl AppState {
    /// The client's address.
    fn client(&self, head: &Parts) -> IpAddr {
        let peer = Peer::of(head);
        match peer.may_forward {
            true => self
                .config
                .trusted_proxies
                .client(peer.address, &head.headers),
            false => peer.address,
        }
    }
}

/// The public routes.
pub(crate) fn router(
    app_state: Arc<AppState>,
    origins: Origins,
    console: Option<Console>,
) -> Router {
    let console = console.map(Console::router).unwrap_or_default();
    let router = events::routes()
        .with_state(app_state)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed);
    // Pages of other sites get no access to the console.
    match cors::layer(origins) {
        Some(layer) => router.layer(layer).merge(console),
        None => router.merge(console),
    }
}

/// For the fuzzers: parses everything that a query may contain.
#[cfg(fuzzing)]
pub(crate) fn read_query(query: &str, last_event_id: &[u8]) {
    let partitions = Partitions::new(8).expect("8 is a number of partitions");
    let mut headers = axum::http::HeaderMap::new();
    if let Ok(id) = last_event_id.try_into() {
        headers.insert("last-event-id", id);
    }
    events::check(partitions, query, &headers);
}
