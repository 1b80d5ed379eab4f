//! Writing: each function appends one complete block or line to a buffer and never fails.

use std::{fmt::Display, io::Write};

use memchr::memchr2;

use crate::{Event, Line};

/// Names, colons, line ends and an id of the usual length. The buffer grows if there is more.
const FIELDS_ESTIMATE: usize = 64;

/// Appends `event` as one block: [`encode_fields`], then [`encode_end`].
pub fn encode(event: &Event<'_>, out: &mut Vec<u8>) {
    encode_fields(event, out);
    encode_end(event.id, out);
}

/// Appends the fields of a block but its id: `event`, `retry` and `data`, in this order.
///
/// CR, LF and CRLF in the data each start a new `data` line, so that a client sees them as LF.
/// Nothing else in the data is changed.
pub fn encode_fields(event: &Event<'_>, out: &mut Vec<u8>) {
    out.reserve(event.data.len() + FIELDS_ESTIMATE);
    if let Some(event_type) = event.event {
        field(b"event: ", event_type, out);
    }
    if let Some(milliseconds) = event.retry {
        retry(milliseconds, out);
    }
    data_fields(event.data.as_bytes(), out);
}

/// Ends a block: with its `id`, if it has one, and a blank line. The id has to be a single line.
///
/// It is the last field, because some clients dispatch a block that was cut with the connection. They then keep the id of
/// the event before, and receive this one again.
pub fn encode_end(id: Option<impl Display>, out: &mut Vec<u8>) {
    match id {
        Some(id) => write!(out, "id: {id}\n\n").expect("writing to a Vec does not fail"),
        None => out.push(b'\n'),
    }
}

/// Appends a comment line, which clients ignore: the standard's keep-alive (section 9.2.7).
/// Empty text gives the shortest one, `:`.
///
/// No blank line follows. A blank line ends a block, and a block without an id at the beginning of a connection clears
/// the client's last event id (section 9.2.6: the id buffer begins empty, and every block copies it). A client that is
/// cut then could not resume.
pub fn comment(text: Line<'_>, out: &mut Vec<u8>) {
    out.push(b':');
    if !text.as_str().is_empty() {
        out.push(b' ');
        out.extend_from_slice(text.as_str().as_bytes());
    }
    out.push(b'\n');
}

/// Appends a line that sets the client's reconnection time, in milliseconds. It counts at once;
/// no blank line follows, for the reason given at [`comment`].
pub fn retry(milliseconds: u64, out: &mut Vec<u8>) {
    writeln!(out, "retry: {milliseconds}").expect("writing to a Vec does not fail");
}

/// The space after the colon is always written: a parser removes exactly one (section 9.2.6), so
/// a value that starts with a space of its own keeps it.
fn field(name: &[u8], value: Line<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(value.as_str().as_bytes());
    out.push(b'\n');
}

/// One field per line of the text. There is always at least one, because a block without a data
/// field is not dispatched, while one with an empty data field is.
fn data_fields(mut rest: &[u8], out: &mut Vec<u8>) {
    loop {
        out.extend_from_slice(b"data: ");
        let Some(end) = memchr2(b'\r', b'\n', rest) else {
            out.extend_from_slice(rest);
            out.push(b'\n');
            return;
        };
        let (line, line_end) = rest.split_at(end);
        out.extend_from_slice(line);
        out.push(b'\n');
        rest = line_end
            .strip_prefix(b"\r\n")
            .unwrap_or_else(|| &line_end[1..]);
    }
}
