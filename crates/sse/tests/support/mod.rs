//! Events as owned values, so that tests can compare them.

use sse::Parser;

/// A parsed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: String,
}

/// The events that a parser reads from a stream in these chunks.
pub(crate) fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
    let mut parser = Parser::new(usize::MAX);
    let mut seen = Vec::new();
    for chunk in chunks {
        parser
            .push(chunk, |event| {
                seen.push(Seen {
                    id: event.id.to_owned(),
                    event: event.event.to_owned(),
                    data: event.data.to_owned(),
                });
            })
            .expect("there is no limit to exceed");
    }
    seen
}
