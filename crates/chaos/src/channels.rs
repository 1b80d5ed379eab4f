//! The channels of a run, and the publishers that number their messages.

/// Channels of numbered messages.
pub(crate) const CHANNELS: [&str; 4] = ["c0", "c1", "c2", "c3"];
/// A channel with few clients, for messages that fill buffers.
pub(crate) const BURST: &str = "burst";

/// A payload of this channel that fills buffers.
pub(crate) fn filler(channel: &str) -> String {
    format!("{channel} {}", "_".repeat(16 * 1024))
}

/// The publishers whose messages are numbered: raw PUBLISH, the function, POST.
pub(crate) const NUMBERED: [&str; 3] = ["raw", "function", "post"];
/// The channel and the payload of the identical messages.
pub(crate) const SAME: &str = "same";

/// Indexes of those publishers in [`NUMBERED`] whose messages every client has to receive.
pub(crate) const RAW: usize = 0;
pub(crate) const FUNCTION: usize = 1;
pub(crate) const POST: usize = 2;
