//! HTTP, configuration and lifecycle: the gateway as a process.
//!
//! [`App`] is the composition root: it builds every part and owns every task. The main thread runs the connections to
//! Redis and the admin routes. Each worker is a thread with its own runtime, hub and listener. It shares no lock with
//! the others while it delivers.
//!
//! Start reading at [`App::run`], then `worker.rs`, then `http/stream.rs`, which serves a stream until it ends.

mod address;
mod alarm;
mod app;
mod canary;
mod code;
mod config;
mod current;
mod doctor;
mod drain;
mod flight;
pub mod health;
mod http;
mod invalid;
mod keys;
mod limits;
mod listener;
mod log;
mod metrics;
mod migrate;
mod open_channels;
pub mod output;
mod process;
mod reload;
mod signals;
pub mod telemetry;
mod ticket_store;
mod tls;
mod traces;
mod value;
mod worker;

pub use broker::{Finding, Verdict};

pub use self::{
    app::App,
    config::{Config, Invocation, UnknownVariable, unknown_variables},
    doctor::Doctor,
    invalid::Invalid,
    log::Log,
    migrate::Migrate,
};

/// Entry points for the fuzzers.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Reads a query and an id as those of a request to subscribe, and of one to publish.
    pub fn read_query(query: &str, last_event_id: &[u8]) {
        crate::http::read_query(query, last_event_id);
    }
}
