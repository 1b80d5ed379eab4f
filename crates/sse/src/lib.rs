//! The text/event-stream format: an encoder and an incremental parser.
//!
//! A stream is UTF-8 text in lines. A line is a field (`name: value`) or, when it starts with a
//! colon, a comment. An empty line ends a block, and a block with a `data` field is an event:
//!
//! ```text
//! event: price
//! data: {"symbol": "YHOO",
//! data:  "price": 10}
//! id: 1763800000000-3
//!
//! ```
//!
//! [`encode`] writes such a block, [`Parser`] reads them back from chunks of any size. Both follow
//! the [WHATWG HTML standard, section 9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html).
//!
//! Invariants:
//! - An encoded event is one block for any text: nothing in `data` can end the block early or add a field. [`Line`]
//!   keeps CR, LF and NUL out of the fields that cannot carry them.
//! - Parsing never fails on malformed input. The one error is an event above the caller's size limit.
//! - How a stream is cut into chunks never changes the events.
//!
//! This crate handles bytes only, neither sockets nor tasks. Start reading at [`Event`].

mod block;
mod encode;
mod event;
mod parse;

pub use block::Parsed;
pub use encode::{comment, encode, encode_end, encode_fields, retry};
pub use event::{Event, Line, NotALine};
pub use parse::{Parser, TooLarge};
