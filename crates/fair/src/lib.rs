//! Fair shares: resources that many clients use at once, and that none of them can use up alone.
//!
//! | resource | type | a client beyond its share |
//! |---|---|---|
//! | places | [`Parts`] | is refused |
//! | calls at once | [`Turns`] | waits in turn |
//! | bytes | [`Room`] | waits in a queue |
//! | a rate of each client | [`Quotas`] | is refused, and learns how long |
//! | a rate in total | [`Connects`] | is refused |
//!
//! [`counted`] decides which addresses are one client. This crate knows nothing of HTTP, Redis or configuration.

mod address;
mod connects;
mod parts;
mod quota;
mod room;
mod turns;

pub use self::{
    address::counted,
    connects::{Connects, TooMany},
    parts::Parts,
    quota::Quotas,
    room::{Holder, Room, Share},
    turns::{Turn, Turns},
};
