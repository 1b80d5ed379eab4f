//! The parser against the text of the WHATWG HTML standard, section 9.2, row by row.

mod support;

use sse::{Parser, TooLarge};
use support::{Seen, parse};

/// A rule, a stream that depends on it, and the events: last event id, type, data.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str, &'a str)]);

const ROWS: &[Row<'_>] = &[
    // 9.2.1, examples of the introduction
    (
        "9.2.1: data lines are joined by a line feed",
        "data: This is the first message.\n\ndata: This is the second message, it\n\
         data: has two lines.\n\n",
        &[
            ("", "message", "This is the first message."),
            (
                "",
                "message",
                "This is the second message, it\nhas two lines.",
            ),
        ],
    ),
    (
        "9.2.1: the event field names the type, for its own block only",
        "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\ndata: 113411\n\n",
        &[
            ("", "add", "73857293"),
            ("", "remove", "2153"),
            ("", "message", "113411"),
        ],
    ),
    // 9.2.6, examples
    (
        "9.2.6 example: three data fields, one event",
        "data: YHOO\ndata: +2\ndata: 10\n\n",
        &[("", "message", "YHOO\n+2\n10")],
    ),
    (
        "9.2.6 example: comment block, id, id reset by an empty id, leading space kept, no end",
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        &[
            ("1", "message", "first event"),
            ("", "message", "second event"),
        ],
    ),
    (
        "9.2.6 example: the same with its last blank line",
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        &[
            ("1", "message", "first event"),
            ("", "message", "second event"),
            ("", "message", " third event"),
        ],
    ),
    (
        "9.2.6 example: empty data dispatches, two empty lines are one LF, the cut block is dropped",
        "data\n\ndata\ndata\n\ndata:",
        &[("", "message", ""), ("", "message", "\n")],
    ),
    (
        "9.2.6 example: the space after the colon is optional",
        "data:test\n\ndata: test\n\n",
        &[("", "message", "test"), ("", "message", "test")],
    ),
    // 9.2.5, grammar
    (
        "9.2.5: CR ends a line",
        "data: a\rdata: b\r\r",
        &[("", "message", "a\nb")],
    ),
    (
        "9.2.5: CRLF ends a line, once",
        "data: a\r\ndata: b\r\n\r\n",
        &[("", "message", "a\nb")],
    ),
    (
        "9.2.5: line ends may be mixed; LF CR is two of them",
        "data: a\n\rdata: b\r\n\ndata: c\r\r\n",
        &[
            ("", "message", "a"),
            ("", "message", "b"),
            ("", "message", "c"),
        ],
    ),
    (
        "9.2.5: no other character ends a line",
        "data: a\u{b}\u{c}\u{1c}\u{85}\u{2028}\u{2029}b\n\n",
        &[("", "message", "a\u{b}\u{c}\u{1c}\u{85}\u{2028}\u{2029}b")],
    ),
    (
        "9.2.5: one byte order mark at the start is skipped",
        "\u{feff}data: a\n\n",
        &[("", "message", "a")],
    ),
    (
        "9.2.5: a second byte order mark is part of a name",
        "\u{feff}\u{feff}data: a\n\n",
        &[],
    ),
    (
        "9.2.5: a byte order mark alone is an empty first line",
        "\u{feff}\ndata: a\n\n",
        &[("", "message", "a")],
    ),
    (
        "9.2.5: a byte order mark later on is text",
        "data: a\n\n\u{feff}data: b\n\ndata: \u{feff}c\n\n",
        &[("", "message", "a"), ("", "message", "\u{feff}c")],
    ),
    // 9.2.6, interpretation
    (
        "9.2.6: a line that starts with a colon is ignored, within a block too",
        "data: a\n: data: no\n:\ndata: b\n\n",
        &[("", "message", "a\nb")],
    ),
    (
        "9.2.6: only the first colon separates",
        "data: a: b:c\nevent:x:y\n\n",
        &[("", "x:y", "a: b:c")],
    ),
    (
        "9.2.6: one space is removed, no tab, none at the end",
        "data:  a \n\ndata:\tb\n\n",
        &[("", "message", " a "), ("", "message", "\tb")],
    ),
    (
        "9.2.6: field names are literal: case, spaces and length count",
        "Data: a\n data: b\ndata : c\ndat: d\ndataa: e\n\n",
        &[],
    ),
    (
        "9.2.6: unknown fields are ignored",
        "foo: a\ndata: b\nfoo\n\n",
        &[("", "message", "b")],
    ),
    (
        "9.2.6: a line without a colon is a field with an empty value",
        "event: a\nevent\ndata\n\n",
        &[("", "message", "")],
    ),
    (
        "9.2.6: the last event field wins",
        "event: a\nevent: b\ndata: c\n\n",
        &[("", "b", "c")],
    ),
    (
        "9.2.6: without data there is no event, and the type is forgotten",
        "event: a\n\ndata: b\n\n",
        &[("", "message", "b")],
    ),
    (
        "9.2.6: an id stays in force until the next one",
        "id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n",
        &[
            ("1", "message", "a"),
            ("1", "message", "b"),
            ("2", "message", "c"),
        ],
    ),
    (
        "9.2.6: an id counts without data",
        "id: 1\n\ndata: a\n\n",
        &[("1", "message", "a")],
    ),
    (
        "9.2.6: an id with NUL is ignored",
        "id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
        &[("1", "message", "a"), ("1", "message", "b")],
    ),
    (
        "9.2.6: NUL elsewhere is text",
        "event: a\0\ndata: \0b\n\n",
        &[("", "a\0", "\0b")],
    ),
    (
        "9.2.6: blank lines between blocks mean nothing",
        "\n\n\ndata: a\n\n\n\ndata: b\n\n",
        &[("", "message", "a"), ("", "message", "b")],
    ),
    (
        "9.2.6: a block without its blank line is discarded",
        "data: a\n\ndata: b\n",
        &[("", "message", "a")],
    ),
];

#[test]
fn rows_hold_in_one_chunk_and_byte_by_byte() {
    for (rule, stream, events) in ROWS {
        let expected: Vec<Seen> = events.iter().copied().map(seen).collect();
        assert_eq!(parse([stream.as_bytes()]), expected, "{rule}");
        assert_eq!(
            parse(stream.as_bytes().chunks(1)),
            expected,
            "{rule}, byte by byte"
        );
    }
}

#[test]
fn bytes_that_are_not_utf8_become_replacement_characters() {
    // Section 9.2.6 decodes with "UTF-8 decode": one U+FFFD for each maximal broken prefix.
    let rows: &[(&[u8], &str)] = &[
        (b"data: a\xffb\n\n", "a\u{fffd}b"),
        (b"data: \xf0\x9f\x92\n\n", "\u{fffd}"),
        (b"data: \xf0\x9f\x92\ndata: \xa9\n\n", "\u{fffd}\n\u{fffd}"),
        (b"data: \xed\xa0\x80\n\n", "\u{fffd}\u{fffd}\u{fffd}"),
    ];
    for (stream, data) in rows {
        assert_eq!(
            parse([*stream]),
            [seen(("", "message", data))],
            "{stream:?}"
        );
    }
}

#[test]
fn reconnection_time_is_digits_only_and_in_force_at_once() {
    // 9.2.6: "if the field value consists of only ASCII digits"; no blank line is needed.
    let rows = [
        ("retry: 10\n", Some(10)),
        ("retry:0\n", Some(0)),
        ("retry: 007\n", Some(7)),
        ("retry: 1\nretry: 2\n", Some(2)),
        ("retry: 1\nretry: -2\n", Some(1)),
        ("retry: +1\n", None),
        ("retry: 1.5\n", None),
        ("retry: 1 \n", None),
        ("retry:  1\n", None),
        ("retry: \u{661}\n", None),
        ("retry\n", None),
        ("retry: 1", None),
        ("retry: 18446744073709551616\n", Some(u64::MAX)),
    ];
    for (stream, expected) in rows {
        assert_eq!(pushed(stream).retry(), expected, "{stream:?}");
    }
}

#[test]
fn last_event_id_is_that_of_the_last_complete_block() {
    let rows = [
        ("data: a\n\n", ""),
        ("id: 1\n\n", "1"),
        ("id: 1\nid: 2\n\n", "2"),
        // A client that is cut off here has not seen event 2 and must ask for it again.
        ("id: 1\ndata: a\n\nid: 2\ndata: b\n", "1"),
        ("id: 1\n\nid\n\n", ""),
        ("id: 1\n\nid: \0\n\n", "1"),
        ("id: \u{e9}\n\n", "\u{e9}"),
    ];
    for (stream, expected) in rows {
        assert_eq!(pushed(stream).last_event_id(), expected, "{stream:?}");
    }
}

#[test]
fn comments_are_counted_by_line() {
    assert_eq!(pushed(":\n\n: a\n: b\ndata: :\n\n:cut").comments(), 3);
}

#[test]
fn an_event_above_the_limit_fails_wherever_the_chunks_end() {
    // The limit is 16 bytes: "data: " and ten more in a single line.
    let rows = [
        ("data: 0123456789\n\n", Ok(1)),
        ("data: 0123456789a\n\n", Err(TooLarge { limit: 16 })),
        ("data: 0123456789a", Err(TooLarge { limit: 16 })),
        (": 0123456789abcdef\n", Err(TooLarge { limit: 16 })),
        ("data: 01234\ndata: 0123\n\n", Ok(1)),
        ("data: 01234\ndata: 01234\n\n", Err(TooLarge { limit: 16 })),
        ("data\n\nevent: 01234567\ndata: 01\n\n", Ok(2)),
        (
            "data\n\nevent: 01234567\ndata: 012\n\n",
            Err(TooLarge { limit: 16 }),
        ),
        // Text that is not kept does not count.
        (": 0123\n: 0123\n: 0123\n: 0123\ndata\n\n", Ok(1)),
        ("data: 0123456789\n\ndata: 0123456789\n\n", Ok(2)),
    ];
    for (stream, expected) in rows {
        for chunk in [1, 5, stream.len()] {
            let mut parser = Parser::new(16);
            let mut events = 0;
            let result = stream
                .as_bytes()
                .chunks(chunk)
                .try_for_each(|bytes| parser.push(bytes, |_| events += 1));
            assert_eq!(result.map(|()| events), expected, "{stream:?} by {chunk}");
            if expected.is_err() {
                let later = parser.push(b"\n\ndata\n\n", |_| events += 1);
                assert_eq!(later, Err(TooLarge { limit: 16 }), "{stream:?} by {chunk}");
            }
        }
    }
}

fn seen((id, event, data): (&str, &str, &str)) -> Seen {
    Seen {
        id: id.to_owned(),
        event: event.to_owned(),
        data: data.to_owned(),
    }
}

fn pushed(stream: &str) -> Parser {
    let mut parser = Parser::new(usize::MAX);
    for byte in stream.as_bytes().chunks(1) {
        parser
            .push(byte, |_| ())
            .expect("there is no limit to exceed");
    }
    parser
}
