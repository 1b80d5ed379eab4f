//! Reading, inner half: from lines to events, in the steps of the standard's section 9.2.6.

use memchr::memchr;

/// An event as a client sees it, valid during the call that hands it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The last event id at dispatch, which an earlier block may have set. Empty when there is none.
    pub id: &'a str,
    /// The event type, `message` when the block names none.
    pub event: &'a str,
    /// The data fields, joined by LF.
    pub data: &'a str,
}

/// The block being read, and the state that outlives it.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The event type so far.
    event: String,
    /// Every data field so far, each followed by LF: empty only if there was none.
    data: String,
    /// The id that takes effect when the block ends, if `id_given`. Kept apart from
    /// `last_event_id`, because an event that is cut off must not count as seen.
    id: String,
    /// The block has named an id, which may be empty.
    id_given: bool,
    last_event_id: String,
    retry: Option<u64>,
    comments: u64,
}

impl Block {
    /// Interprets one line, without its line end.
    pub(crate) fn line(&mut self, line: &[u8], on: &mut impl FnMut(Parsed<'_>)) {
        if line.is_empty() {
            return self.dispatch(on);
        }
        let (name, value) = match memchr(b':', line) {
            Some(0) => {
                self.comments += 1;
                return;
            }
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        // Names are compared as they are: case counts, and surrounding spaces are part of a name.
        match name {
            b"data" => {
                push_lossy(&mut self.data, value);
                self.data.push('\n');
            }
            b"event" => {
                self.event.clear();
                push_lossy(&mut self.event, value);
            }
            b"id" if memchr(b'\0', value).is_none() => {
                self.id.clear();
                push_lossy(&mut self.id, value);
                self.id_given = true;
            }
            // In force at once, unlike the id. A cut block does not revoke it.
            b"retry" => self.retry = milliseconds(value).or(self.retry),
            _ => {}
        }
    }

    /// Bytes of the event so far.
    pub(crate) fn size(&self) -> usize {
        self.event.len() + self.data.len()
    }

    pub(crate) fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    pub(crate) fn retry(&self) -> Option<u64> {
        self.retry
    }

    pub(crate) fn comments(&self) -> u64 {
        self.comments
    }

    /// The end of a block. An id counts even if there is no data and so no event.
    fn dispatch(&mut self, on: &mut impl FnMut(Parsed<'_>)) {
        if self.id_given {
            // The old id is overwritten before the buffer is read again.
            std::mem::swap(&mut self.last_event_id, &mut self.id);
            self.id_given = false;
        }
        if let Some(data) = self.data.strip_suffix('\n') {
            on(Parsed {
                id: &self.last_event_id,
                event: match self.event.as_str() {
                    "" => "message",
                    event_type => event_type,
                },
                data,
            });
        }
        self.event.clear();
        self.data.clear();
    }
}

/// Appends `bytes` as text, with U+FFFD for invalid UTF-8. Decoding line by line gives the same text as decoding the
/// whole stream, because no line end or colon is part of a longer character.
fn push_lossy(text: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => text.push_str(valid),
        Err(_) => {
            for chunk in bytes.utf8_chunks() {
                text.push_str(chunk.valid());
                if !chunk.invalid().is_empty() {
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }
}

/// A reconnection time, if it is all ASCII digits, of which there must be at least one.
fn milliseconds(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number: u64, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    }))
}
