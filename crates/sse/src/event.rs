//! The fields that a publisher can set in one event, and the text of its single-line fields.

use std::fmt;

use thiserror::Error;

/// One event, borrowed from its parts.
///
/// ```
/// use sse::{Event, Line};
///
/// let price = Event {
///     id: Some(Line::new("7-0")?),
///     data: "10",
///     ..Event::default()
/// };
/// let mut out = Vec::new();
/// sse::encode(&price, &mut out);
/// assert_eq!(out, b"data: 10\nid: 7-0\n\n");
/// # Ok::<(), sse::NotALine>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    /// A client sends this back as `Last-Event-ID`. An empty line makes it forget its id. `None` leaves that id
    /// unchanged.
    pub id: Option<Line<'a>>,
    /// The event type, which is the name that listeners register for. `None` and an empty line
    /// both mean `message`.
    pub event: Option<Line<'a>>,
    /// How long the client waits before it reconnects, in milliseconds. It stays in force until
    /// another event changes it.
    pub retry: Option<u64>,
    /// The payload. It may be empty and may hold any characters; CR, LF and CRLF each arrive as LF, because the format
    /// does not distinguish them.
    pub data: &'a str,
}

/// Text that is valid in a single-line field: no CR, LF or NUL.
///
/// A line break would start another field. NUL is refused because the standard makes clients
/// ignore an `id` that holds one (section 9.2.6), so that such an event could not be resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a>(&'a str);

impl<'a> Line<'a> {
    /// Accepts `text` of any length, the empty text included.
    ///
    /// # Errors
    ///
    /// [`NotALine`] names the first byte that is invalid in a line.
    pub const fn new(text: &'a str) -> Result<Self, NotALine> {
        let bytes = text.as_bytes();
        let mut at = 0;
        // Not an iterator, so that the names of fixed event types are checked at compile time.
        while at < bytes.len() {
            match bytes[at] {
                b'\r' => return Err(NotALine::CarriageReturn),
                b'\n' => return Err(NotALine::LineFeed),
                b'\0' => return Err(NotALine::Nul),
                _ => at += 1,
            }
        }
        Ok(Self(text))
    }

    /// The text, as it was given.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why a text is not a [`Line`]: its first invalid byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotALine {
    /// CR, U+000D.
    #[error("a carriage return (CR) cannot stand in a single-line field")]
    CarriageReturn,
    /// LF, U+000A.
    #[error("a line feed (LF) cannot stand in a single-line field")]
    LineFeed,
    /// NUL, U+0000.
    #[error("a NUL character cannot stand in a single-line field")]
    Nul,
}
