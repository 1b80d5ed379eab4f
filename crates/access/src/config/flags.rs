//! The flags about access.

use crate::{origins::Origins, secret::Secret};

/// Flags about access. Each is also an environment variable.
#[derive(clap::Args, Clone, Debug, Default)]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are the text of --help, in which [jwt] is a table of the file"
)]
pub struct AccessFlags {
    /// Bearer token that may publish to every channel with POST /events. The configuration file can have more tokens, each
    /// for some channels. Without any token or [jwt], POST /events is disabled.
    #[arg(
        long,
        env = "SSE_GATEWAY_PUBLISH_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true,
        global = true
    )]
    pub publish_token: Option<Secret>,

    /// Channels that everyone may subscribe to, as patterns: 'news,public.*', or '*,!private.*'. Without this, [jwt] or
    /// [forward_auth], all channels are public on a loopback address, and the gateway does not start on any other
    /// address.
    #[arg(long, env = "SSE_GATEWAY_PUBLIC_CHANNELS", value_name = "PATTERNS")]
    pub public_channels: Option<String>,

    /// Sites whose pages may use this gateway with their users' cookies: 'https://*.example.com'.
    #[arg(long, env = "SSE_GATEWAY_CORS_ORIGINS", value_name = "ORIGINS")]
    pub cors_origins: Option<Origins>,
}
