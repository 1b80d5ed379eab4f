//! No spans: this program is built without the Cargo feature `otlp`.

use std::time::SystemTime;

use axum::http::HeaderMap;
use broker::{AppendObserver, AppendedEvent};
use hub::Published;

use super::TracesConfig;

/// Cannot exist, so all code that has one is removed by the compiler.
#[derive(Clone, Debug)]
pub(crate) enum Traces {}

impl Traces {
    /// The configuration refuses settings of traces, so this is not called.
    pub(crate) fn new(_: &TracesConfig, _: &str) -> Result<Self, &'static str> {
        Err("this program was built without traces")
    }

    pub(crate) fn shut_down(&self) {
        match *self {}
    }

    pub(crate) fn posted(&self, _: &HeaderMap, _: SystemTime, _: impl Iterator<Item = Published>) {
        match *self {}
    }

    pub(super) fn delivered(&self, _: Published) {
        match *self {}
    }
}

impl AppendObserver for Traces {
    fn appended(&self, _: &AppendedEvent<'_>) {
        match *self {}
    }
}
