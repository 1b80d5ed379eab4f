//! The tail against a plain vector that forgets nothing.

use hub::{EventId, Frame, Item, Kind, Page, Position, Tail};
use proptest::prelude::*;

const MAX_ITEMS: usize = 8;
const MAX_BYTES: usize = 400;

#[derive(Clone, Debug)]
enum Step {
    /// An event this many ids later, with this many bytes of data.
    Push { later: u64, bytes: usize },
    /// A frame without an id.
    Relay { bytes: usize },
    /// A repetition of something old.
    Repeat { back: usize },
    /// A new attach with this many newest items.
    Install { newest: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..4_u64, 0..120_usize).prop_map(|(later, bytes)| Step::Push { later, bytes }),
        1 => (0..120_usize).prop_map(|bytes| Step::Relay { bytes }),
        1 => (1..12_usize).prop_map(|back| Step::Repeat { back }),
        1 => (0..12_usize).prop_map(|newest| Step::Install { newest }),
    ];
    prop::collection::vec(step, 0..60)
}

fn item(at: Position, bytes: usize, recorded: bool) -> Item {
    let data = "x".repeat(bytes);
    let event = sse::Event {
        data: &data,
        ..sse::Event::default()
    };
    let id = recorded.then_some(at.id);
    Item {
        at,
        kind: Kind::Frame(Frame::encode(id, &event, false)),
    }
}

fn size(item: &Item) -> usize {
    match &item.kind {
        Kind::Frame(frame) => frame.bytes().len(),
        Kind::Gap(_) => 0,
    }
}

/// The expected state of a tail: the newest items within the bounds, and its start.
#[derive(Default)]
struct Model {
    all: Vec<Item>,
    start: EventId,
    held: usize,
}

impl Model {
    fn push(&mut self, item: Item) {
        self.all.push(item);
        self.held += 1;
        loop {
            let held = &self.all[self.all.len() - self.held..];
            let bytes: usize = held.iter().map(size).sum();
            if held.len() <= MAX_ITEMS && (bytes <= MAX_BYTES || held.len() == 1) {
                break;
            }
            self.start = held[0].at.id;
            self.held -= 1;
        }
    }

    fn held(&self) -> &[Item] {
        &self.all[self.all.len() - self.held..]
    }
}

proptest! {
    #[test]
    fn a_tail_serves_the_same_items_as_a_vector(steps in steps()) {
        let mut tail = Tail::new(MAX_ITEMS, MAX_BYTES);
        let mut model = Model::default();
        let mut at = Position::default();
        for step in steps {
            match step {
                Step::Push { later, bytes } => {
                    at = EventId { ms: at.id.ms + later, seq: 0 }.into();
                    tail.push(item(at, bytes, true));
                    model.push(item(at, bytes, true));
                }
                Step::Relay { bytes } => {
                    at.sub += 1;
                    tail.push(item(at, bytes, false));
                    model.push(item(at, bytes, false));
                }
                Step::Repeat { back } => {
                    if let Some(old) = model.held().iter().rev().nth(back - 1) {
                        tail.push(old.clone());
                    }
                }
                Step::Install { newest } => {
                    let from = model.all.len().saturating_sub(newest);
                    let after = from.checked_sub(1).map_or(EventId::ZERO, |last| model.all[last].at.id);
                    let items = model.all.split_off(from);
                    tail.install(&Page { after, to: at.id, items: items.clone() });
                    model.held = 0;
                    model.start = after;
                    items.into_iter().for_each(|item| model.push(item));
                }
            }
            // Every cursor: at items, between them, and newer than all.
            let newest = Position { id: EventId { ms: at.id.ms + 1, seq: 0 }, sub: 0 };
            let cursors = (0..=at.id.ms).map(|ms| EventId { ms, seq: 0 }.into());
            let cursors = cursors.chain(model.all.iter().map(|item| item.at)).chain([newest]);
            for cursor in cursors {
                prop_assert_eq!(tail.covers(cursor.id), cursor.id >= model.start);
                let found: Vec<_> = tail.items_after(cursor).map(|item| item.at).collect();
                let held = model.held().iter().map(|item| item.at);
                let expected: Vec<_> = held.filter(|at| *at > cursor).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn the_end_is_seen_only_while_it_is_the_newest() {
    let mut tail = Tail::new(MAX_ITEMS, MAX_BYTES);
    let id = |ms| EventId { ms, seq: 0 };
    let event = sse::Event::default();
    let push = |tail: &mut Tail, ms, end| {
        let kind = Kind::Frame(Frame::encode(Some(id(ms)), &event, end));
        tail.push(Item {
            at: id(ms).into(),
            kind,
        });
    };
    assert_eq!(tail.ended(), None);
    push(&mut tail, 1, true);
    assert_eq!(tail.ended(), Some(id(1)));
    push(&mut tail, 2, false);
    assert_eq!(
        tail.ended(),
        None,
        "an event behind the end opens the channel again"
    );
}
