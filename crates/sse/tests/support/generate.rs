//! Random events and streams, mostly of parts that parsers get wrong.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// An event to encode.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) retry: Option<u64>,
    pub(crate) data: String,
}

/// Greatest reconnection time drawn: JavaScript numbers are exact up to here.
const MAX_RETRY: u64 = (1 << 53) - 1;

/// Events with any id, type and data that the format can carry.
pub(crate) fn draft() -> impl Strategy<Value = Draft> {
    (
        option::of(line()),
        option::of(line()),
        option::weighted(0.2, 0..=MAX_RETRY),
        text(),
    )
        .prop_map(|(id, event, retry, data)| Draft {
            id,
            event,
            retry,
            data,
        })
}

/// Bytes that are no encoder's output: fields, line ends and garbage in any order, UTF-8 or not.
pub(crate) fn hostile_stream() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        4 => Just(&b"data"[..]),
        2 => Just(&b"event"[..]),
        2 => Just(&b"id"[..]),
        1 => Just(&b"retry"[..]),
        1 => Just(&b"Data"[..]),
        1 => Just(&b" data"[..]),
        1 => Just(&b"datas"[..]),
        1 => Just(&b""[..]),
    ]
    .prop_map(<[u8]>::to_vec);
    let colon = prop_oneof![
        4 => Just(&b": "[..]),
        2 => Just(&b":"[..]),
        1 => Just(&b":  "[..]),
        1 => Just(&b"::"[..]),
        1 => Just(&b" :"[..]),
        1 => Just(&b""[..]),
    ]
    .prop_map(<[u8]>::to_vec);
    let value = prop_oneof![
        6 => line().prop_map(String::into_bytes),
        1 => (0..=MAX_RETRY).prop_map(|number| number.to_string().into_bytes()),
        1 => Just(b"1\x002".to_vec()),
        1 => vec(any::<u8>(), 0..6),
    ];
    let line_end = prop_oneof![
        4 => Just(&b"\n"[..]),
        2 => Just(&b"\r"[..]),
        2 => Just(&b"\r\n"[..]),
        3 => Just(&b"\n\n"[..]),
        1 => Just(&b"\r\r"[..]),
        1 => Just(&b"\r\n\r\n"[..]),
        1 => Just(&b"\n\r"[..]),
        1 => Just(&b"\n\r\n"[..]),
    ]
    .prop_map(<[u8]>::to_vec);
    let start = prop_oneof![
        8 => Just(""),
        1 => Just("\u{feff}"),
        1 => Just("\u{feff}\u{feff}"),
    ];
    let lines = vec((field, colon, value, line_end), 0..16);
    (start, lines).prop_map(|(start, lines)| {
        let mut stream = start.as_bytes().to_vec();
        for (field, colon, value, line_end) in lines {
            stream.extend([field, colon, value, line_end].concat());
        }
        stream
    })
}

/// Text for a single-line field.
fn line() -> impl Strategy<Value = String> {
    text().prop_map(|text| text.replace(['\r', '\n', '\0'], ""))
}

/// Text in which every second piece means something to some parser or to some line splitter.
fn text() -> impl Strategy<Value = String> {
    let line_end = prop_oneof![Just("\n"), Just("\r"), Just("\r\n")];
    let special = prop_oneof![
        Just("\0"),
        Just(" "),
        Just(":"),
        Just("data: x"),
        Just("id: x"),
        Just("event"),
        Just("\u{feff}"),
        // Line ends to Unicode, not to the standard.
        Just("\u{b}"),
        Just("\u{c}"),
        Just("\u{1c}"),
        Just("\u{1e}"),
        Just("\u{85}"),
        Just("\u{2028}"),
        Just("\u{2029}"),
    ];
    let piece = prop_oneof![
        2 => line_end.prop_map(str::to_owned),
        2 => special.prop_map(str::to_owned),
        3 => any::<char>().prop_map(String::from),
        1 => Just("text".to_owned()),
    ];
    vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}
