//! `DrainConfig`: how a replica stops.

use std::time::Duration;

use crate::value;

/// The times of a stop.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct DrainConfig {
    /// Delay from SIGTERM until the gateway stops accepting connections. /readyz answers 503 from SIGTERM on. The delay
    /// has to be longer than a balancer takes to notice. SIGINT (Ctrl-C) has no delay.
    #[arg(
        long = "drain-delay",
        env = "SSE_GATEWAY_DRAIN_DELAY",
        value_name = "TIME",
        default_value = "5s",
        value_parser = value::time
    )]
    pub(crate) delay: Duration,

    /// Period over which the gateway ends its streams when it stops.
    #[arg(
        long = "drain-window",
        env = "SSE_GATEWAY_DRAIN_WINDOW",
        value_name = "TIME",
        default_value = "5s",
        value_parser = value::time
    )]
    pub(crate) window: Duration,
}
