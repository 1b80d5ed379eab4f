//! Fan-out: many connections reading the recent past of a channel.
