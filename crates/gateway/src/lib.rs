//! HTTP, configuration, lifecycle.
