//! Fills a channel with more than buffers hold.

use std::{io, net::SocketAddr};

use testkit::lab::{Commands, append_call};

use crate::channels::filler;

/// Appends this many payloads of [`filler`].
///
/// # Errors
///
/// If Redis is stopped at the same time.
pub(super) async fn append(commands: &mut Commands, channel: &str, count: usize) -> io::Result<()> {
    let payload = filler(channel);
    let calls = vec![append_call(channel, &payload).to_vec(); count];
    commands.call_all(&calls).await.map(drop)
}

/// Connects to Redis. Its name distinguishes the connection from those of the gateways.
pub(super) async fn connect(redis: SocketAddr) -> io::Result<Commands> {
    let mut commands = Commands::connect(redis).await?;
    commands.call(&[b"CLIENT", b"SETNAME", b"test"]).await?;
    Ok(commands)
}
