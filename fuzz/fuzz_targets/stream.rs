//! The parser of event streams: any input gives the same events, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (cuts, stream) = input;
    let whole = parse(&[&stream]);
    let mut pieces = Vec::new();
    let mut rest = &stream[..];
    for cut in cuts {
        let (piece, later) = rest.split_at(usize::from(cut).min(rest.len()));
        pieces.push(piece);
        rest = later;
    }
    pieces.push(rest);
    assert_eq!(parse(&pieces), whole);
});

/// The events, and whether the parser gave up.
fn parse(pieces: &[&[u8]]) -> (Vec<(String, String, String)>, bool) {
    let mut parser = sse::Parser::new(1 << 16);
    let mut events = Vec::new();
    for piece in pieces {
        let parsed = parser.push(piece, |event| {
            events.push((event.id.to_owned(), event.event.to_owned(), event.data.to_owned()));
        });
        if parsed.is_err() {
            return (events, true);
        }
    }
    (events, false)
}
