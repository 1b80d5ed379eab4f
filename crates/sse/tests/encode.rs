//! The output of the encoder, byte for byte.

use sse::{Event, Line, NotALine};

#[test]
fn events_are_written_as_one_block() -> Result<(), NotALine> {
    let line = |text| Line::new(text).map(Some);
    let full = Event {
        id: line("1-0")?,
        event: line("price")?,
        retry: Some(2_000),
        data: "x",
    };
    let data = |data| Event {
        data,
        ..Event::default()
    };
    let rows = [
        // The id is last, so a block that is cut has none.
        (full, "event: price\nretry: 2000\ndata: x\nid: 1-0\n\n"),
        (
            Event { id: None, ..full },
            "event: price\nretry: 2000\ndata: x\n\n",
        ),
        (
            Event {
                id: line("")?,
                ..data("x")
            },
            "data: x\nid: \n\n",
        ),
        (
            Event {
                event: line(" a: b ")?,
                ..data("x")
            },
            "event:  a: b \ndata: x\n\n",
        ),
        (
            Event {
                retry: Some(u64::MAX),
                ..data("x")
            },
            "retry: 18446744073709551615\ndata: x\n\n",
        ),
        (data(""), "data: \n\n"),
        (data(" x"), "data:  x\n\n"),
        (data("a\nb"), "data: a\ndata: b\n\n"),
        (data("a\rb"), "data: a\ndata: b\n\n"),
        (data("a\r\nb"), "data: a\ndata: b\n\n"),
        (data("a\n\rb"), "data: a\ndata: \ndata: b\n\n"),
        (data("a\r\r\nb"), "data: a\ndata: \ndata: b\n\n"),
        (data("a\n"), "data: a\ndata: \n\n"),
        (data("a\r"), "data: a\ndata: \n\n"),
        (data("\r\n"), "data: \ndata: \n\n"),
        (data("\n\nid: 9"), "data: \ndata: \ndata: id: 9\n\n"),
        (data("\0\u{feff}\u{2028}"), "data: \0\u{feff}\u{2028}\n\n"),
    ];
    for (event, expected) in rows {
        // The existing content of the buffer stays.
        let mut out = b"before\n\n".to_vec();
        sse::encode(&event, &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            format!("before\n\n{expected}"),
            "{event:?}"
        );
    }
    Ok(())
}

#[test]
fn comments_and_reconnection_times_end_no_block() -> Result<(), NotALine> {
    let mut out = Vec::new();
    sse::comment(Line::new("")?, &mut out);
    sse::comment(Line::new("draining: soon")?, &mut out);
    sse::retry(1_500, &mut out);
    assert_eq!(
        String::from_utf8_lossy(&out),
        ":\n: draining: soon\nretry: 1500\n"
    );
    Ok(())
}

#[test]
fn a_line_names_the_first_byte_it_cannot_hold() {
    let rows = [
        ("", Ok("")),
        ("a: \u{feff}\u{85}\u{2028}", Ok("a: \u{feff}\u{85}\u{2028}")),
        ("a\r\n", Err(NotALine::CarriageReturn)),
        ("a\n\r", Err(NotALine::LineFeed)),
        ("\0\n", Err(NotALine::Nul)),
    ];
    for (text, expected) in rows {
        assert_eq!(Line::new(text).map(Line::as_str), expected, "{text:?}");
    }
}
