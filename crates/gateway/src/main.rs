//! The `sse-gateway` binary.
fn main() {}
