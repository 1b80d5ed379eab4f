//! All routes, and how requests become streams.

pub(crate) mod admin;
pub(crate) mod connection;
mod error;
pub(crate) mod publish;
mod query;
pub(crate) mod stream;
mod subscribe;
mod write;

use std::sync::Arc;

use axum::{Router, routing};
use hub::Partitions;

/// The public routes.
pub(crate) fn router(
    partitions: Partitions,
    max_channels: usize,
    publish: publish::Publish,
) -> Router {
    let state = subscribe::State {
        partitions,
        max_channels,
    };
    Router::new()
        .route("/events", routing::get(subscribe::subscribe))
        .with_state(state)
        .route("/events", routing::post(publish::publish))
        .with_state(Arc::new(publish))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
}
