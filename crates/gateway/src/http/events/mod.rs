//! The front end of `/events` and `/tickets`: its requests, the form of its events and answers.

pub(crate) mod control;
pub(crate) mod page;
pub(crate) mod publish;
mod query;
mod subscribe;
pub(crate) mod tickets;

use std::sync::Arc;

use axum::{Router, routing};

pub(crate) use self::subscribe::{ASKED_WITH, DOCTOR, PARAMETERS, is_own_parameter};
use crate::http::AppState;

/// The routes of this front end.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/events", routing::get(subscribe::subscribe))
        .route("/events", routing::post(publish::publish))
        .route("/tickets", routing::post(tickets::issue))
}

/// For the fuzzers: parses everything that a query may contain.
#[cfg(fuzzing)]
pub(super) fn check(partitions: hub::Partitions, query: &str, headers: &axum::http::HeaderMap) {
    subscribe::check(partitions, query, headers);
    publish::check(partitions, query);
}
