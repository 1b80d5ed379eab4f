//! Payloads: each payload is either refused or arrives unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let Ok(event) = broker::Payload::parse(payload) else {
        return;
    };
    let line = |name| sse::Line::new(name).expect("a name that was taken stands in a line");
    let encoded = sse::Event {
        id: None,
        event: event.event.as_deref().map(line),
        retry: event.retry.map(u64::from),
        data: &event.data,
    };
    let frame = hub::Frame::encode(Some(hub::EventId { ms: 1, seq: 1 }), &encoded, event.end);
    let mut parser = sse::Parser::new(1 << 24);
    let mut events = Vec::new();
    let parsed = parser.push(frame.bytes(), |event| {
        events.push((event.id.to_owned(), event.event.to_owned(), event.data.to_owned()));
    });
    parsed.expect("what was written can be read");
    // The format has only one line end.
    let data = event.data.replace("\r\n", "\n").replace('\r', "\n");
    let name = event.event.as_deref().filter(|name| !name.is_empty());
    let expected = ("1-1".to_owned(), name.unwrap_or("message").to_owned(), data);
    assert_eq!(events, [expected]);
});
