//! Encoding and parsing undo each other, and chunks do not matter, for random events and streams.

#[path = "support/generate.rs"]
mod generate;
mod support;

use generate::{Draft, draft, hostile_stream};
use proptest::collection::vec;
use proptest::prelude::*;
use sse::{Event, Line};
use support::{Seen, parse};

proptest! {
    #[test]
    fn events_come_back_with_line_ends_normalised(
        drafts in vec(draft(), 0..4),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        let mut last_id = String::new();
        for Draft { id, event, retry, data } in drafts {
            let line = |text| Line::new(text).expect("generated without CR, LF and NUL");
            let borrowed = Event {
                id: id.as_deref().map(line),
                event: event.as_deref().map(line),
                retry,
                data: &data,
            };
            sse::comment(line("between"), &mut stream);
            sse::encode(&borrowed, &mut stream);
            last_id = id.unwrap_or(last_id);
            expected.push(Seen {
                id: last_id.clone(),
                event: event
                    .filter(|event_type| !event_type.is_empty())
                    .unwrap_or_else(|| "message".to_owned()),
                data: data.replace("\r\n", "\n").replace('\r', "\n"),
            });
        }
        prop_assert_eq!(parse(chunks(&stream, &cuts)), expected);
    }

    #[test]
    fn chunks_do_not_change_the_events(
        stream in hostile_stream(),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let whole = parse([&stream[..]]);
        prop_assert_eq!(&parse(chunks(&stream, &cuts)), &whole);
        prop_assert_eq!(&parse(stream.chunks(1)), &whole);
    }

    #[test]
    fn any_bytes_parse_the_same_in_any_chunks(
        stream in vec(any::<u8>(), 0..200),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        prop_assert_eq!(parse(chunks(&stream, &cuts)), parse([&stream[..]]));
    }
}

/// `bytes` cut at these places. Cuts that coincide leave an empty chunk, which is a case too.
fn chunks<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter()
        .map(|end| &bytes[std::mem::replace(&mut start, end)..end])
        .collect()
}
