//! Reading, outer half: from chunks of bytes to lines. The module `block` interprets the lines.

use memchr::memchr2;
use thiserror::Error;

use crate::block::{Block, Parsed};

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Reads one stream, in chunks of any size (section 9.2.6).
///
/// Buffers are reused from event to event, so that a parser that has seen its largest event does not allocate again. A
/// new one owns no heap memory. A new connection needs a new parser, because the standard discards an unfinished event.
///
/// ```
/// let mut parser = sse::Parser::new(64 * 1024);
/// let mut seen = Vec::new();
/// for chunk in ["id: 7\nda", "ta: hello\n", "\n"] {
///     parser.push(chunk.as_bytes(), |event| seen.push(event.data.to_owned()))?;
/// }
/// assert_eq!(seen, ["hello"]);
/// assert_eq!(parser.last_event_id(), "7");
/// # Ok::<(), sse::TooLarge>(())
/// ```
#[derive(Debug)]
pub struct Parser {
    max_event_bytes: usize,
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The previous line ended in CR at the end of the chunk. An LF that follows is the other half of that line end.
    /// The line itself is not held back for it, because an LF may never arrive.
    after_cr: bool,
    /// No line is complete yet. Only the first one can start with a byte order mark.
    at_start: bool,
    /// An event was over the limit. Its end is unknown, so nothing after it can be trusted.
    failed: bool,
    block: Block,
}

impl Parser {
    /// A parser at the start of a stream.
    ///
    /// `max_event_bytes` bounds what one event may hold: its type and data so far, plus the line
    /// being read, counted as received, with its field name and without its line end. Comments
    /// count only while their own line is being read.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            partial: Vec::new(),
            after_cr: false,
            at_start: true,
            failed: false,
            block: Block::default(),
        }
    }

    /// Feeds the next bytes of the stream and calls `on` for every event they complete.
    ///
    /// Bytes that are not UTF-8 become U+FFFD, as the standard's UTF-8 decode makes them.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when an event exceeds the limit, after `on` was called for the events before
    /// it. Every later push fails as well.
    pub fn push(&mut self, bytes: &[u8], mut on: impl FnMut(Parsed<'_>)) -> Result<(), TooLarge> {
        let mut rest = bytes;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr2(b'\r', b'\n', rest) {
            let (line, line_end) = rest.split_at(end);
            rest = &line_end[1..];
            if line_end.starts_with(b"\r") {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            self.line(line, &mut on)?;
        }
        self.check_size(self.partial.len() + rest.len())?;
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// The id a client reconnects with: of the newest block that was complete and named one, with
    /// or without data. Empty when there was none, or when the newest one was empty.
    pub fn last_event_id(&self) -> &str {
        self.block.last_event_id()
    }

    /// The newest reconnection time, in milliseconds. Values that are not all ASCII digits are ignored. A value that
    /// does not fit becomes the greatest that fits.
    pub fn retry(&self) -> Option<u64> {
        self.block.retry()
    }

    /// The number of comment lines so far. Heartbeats are comments.
    pub fn comments(&self) -> u64 {
        self.block.comments()
    }

    /// Interprets a line. `tail` is the part that was not buffered yet.
    fn line(&mut self, tail: &[u8], on: &mut impl FnMut(Parsed<'_>)) -> Result<(), TooLarge> {
        self.check_size(self.partial.len() + tail.len())?;
        let mut line = tail;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(tail);
            line = &self.partial;
        }
        if self.at_start {
            self.at_start = false;
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        self.block.line(line, on);
        self.partial.clear();
        Ok(())
    }

    /// Checked at each line and at the end of each chunk. The answer depends on the bytes alone:
    /// a line that is too large when cut is too large when whole.
    fn check_size(&mut self, line: usize) -> Result<(), TooLarge> {
        self.failed |= self.block.size() + line > self.max_event_bytes;
        if self.failed {
            return Err(TooLarge {
                limit: self.max_event_bytes,
            });
        }
        Ok(())
    }
}

/// An event exceeds the limit that the parser was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("event exceeds {limit} bytes")]
pub struct TooLarge {
    /// The limit, in bytes.
    pub limit: usize,
}
