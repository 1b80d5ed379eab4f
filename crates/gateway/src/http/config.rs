//! `HttpConfig`: the settings of connections, requests and streams.

use std::time::Duration;

use clap::builder::BoolishValueParser;

use crate::{address::Proxies, listener::UNIX_PEER, value};

const SECOND: Duration = Duration::from_secs(1);

/// Settings of connections, requests and streams.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct HttpConfig {
    /// Silence after which the gateway sends a comment, so that proxies do not close the connection.
    #[arg(
        long,
        env = "SSE_GATEWAY_HEARTBEAT",
        value_name = "TIME",
        default_value = "8s",
        value_parser = value::time_from(SECOND)
    )]
    pub(crate) heartbeat: Duration,

    /// Time after which clients reconnect. Each client receives a random time between half and one and a half of it.
    #[arg(
        long,
        env = "SSE_GATEWAY_RETRY",
        value_name = "TIME",
        default_value = "2s",
        value_parser = value::time
    )]
    pub(crate) retry: Duration,

    /// Channels that one connection may subscribe to.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_CHANNELS",
        value_name = "N",
        default_value_t = 100,
        value_parser = value::positive::<usize>
    )]
    pub(crate) max_channels: usize,

    /// Age, ±10 %, at which streams are ended, so that clients spread over the replicas again; 0s: never.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAM_AGE",
        value_name = "TIME",
        default_value = "1h",
        value_parser = value::time_or_off(SECOND, "never")
    )]
    max_stream_age: Duration,

    /// Time that a client has to send a request's head, or to set up TLS. An idle connection is closed after it.
    #[arg(
        long,
        env = "SSE_GATEWAY_HEADER_TIMEOUT",
        value_name = "TIME",
        default_value = "30s",
        value_parser = value::time_from(SECOND)
    )]
    pub(crate) header_timeout: Duration,

    /// Proxies whose X-Forwarded-For is trusted: '10.0.0.0/8,192.0.2.1'.
    #[arg(
        long,
        env = "SSE_GATEWAY_TRUSTED_PROXIES",
        value_name = "NETWORKS",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) trusted_proxies: Proxies,

    /// Every connection begins with a header of the PROXY protocol, version 2, from a trusted proxy.
    #[arg(
        long,
        env = "SSE_GATEWAY_PROXY_PROTOCOL",
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) proxy_protocol: bool,
}

impl HttpConfig {
    /// Age at which streams end, if ever, before jitter.
    pub(crate) fn max_stream_age(&self) -> Option<Duration> {
        Some(self.max_stream_age).filter(|age| !age.is_zero())
    }

    /// For a public address that is a Unix socket. The permissions of the socket decide which process connects. That
    /// process is the balancer.
    pub(crate) fn trust_unix_socket(&mut self) {
        self.trusted_proxies.add(UNIX_PEER);
    }
}
