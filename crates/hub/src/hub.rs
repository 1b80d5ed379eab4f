//! `Hub`: the channels of one worker, their updates and their readers.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::{Rc, Weak},
};

use slab::Slab;

use crate::{
    Channel, Item, Joined, Kind, Metrics, Occasion, Position, Reader, Tail, Update, Upstream,
};

/// Bounds of a hub.
#[derive(Clone, Debug)]
pub struct Config {
    /// Maximum items of a tail.
    pub tail_items: usize,
    /// Maximum bytes of a tail, beyond its newest item.
    pub tail_bytes: usize,
    /// Bytes after which a batch is handed out. One larger frame still makes a batch.
    pub batch_bytes: usize,
    /// Rounds of [`Hub::pulse`] that a channel without readers stays warm, so that a reconnect
    /// finds its tail.
    pub linger_rounds: u32,
    /// The maximum of channels without readers that are kept warm. They had readers at the end of a round.
    pub lingering: usize,
    /// The same for channels that were read only between two rounds. One client can name any number of channels in a
    /// short time.
    pub lingering_brief: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tail_items: 1024,
            tail_bytes: 1 << 20,
            batch_bytes: 128 << 10,
            linger_rounds: 2,
            lingering: 100_000,
            lingering_brief: 1000,
        }
    }
}

/// Capacity beyond four times the use is released, unless it is no more than this.
const SPARE: usize = 64;

/// A handle to the hub of one thread. Cheap to clone.
#[derive(Clone)]
pub struct Hub(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) upstream: Box<dyn Upstream>,
    channels: RefCell<HashMap<Channel, Rc<Entry>>>,
    /// Entries without readers, the longest idle first. Some of them may have readers again.
    lingering: RefCell<VecDeque<Rc<Entry>>>,
    lingering_brief: RefCell<VecDeque<Rc<Entry>>>,
    /// Every event up to here has arrived in all live channels of the partition.
    positions: RefCell<HashMap<u16, Position>>,
    subscriptions: RefCell<Slab<Listed>>,
    /// Deliveries that are not in the metrics yet. All workers share the metrics.
    delivered: Cell<Delivered>,
    pulses: Cell<usize>,
    /// The first key whose subscription has not had its pulse in this round.
    next_key: Cell<usize>,
    generations: Cell<u64>,
    /// All subscriptions were asked to end. New ones end at once.
    pub(crate) closed: Cell<bool>,
}

/// A subscription's reader.
struct Listed {
    reader: Weak<dyn Reader>,
    /// It was asked to end.
    closing: Cell<bool>,
}

impl Listed {
    fn close(&self) {
        self.closing.set(true);
        turn(&self.reader, Occasion::Close);
    }
}

/// Events and their bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Delivered {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

/// A channel and its readers.
pub(crate) struct Entry {
    pub(crate) channel: Channel,
    pub(crate) tail: RefCell<Tail>,
    /// The tail is complete up to the partition's position.
    pub(crate) live: Cell<bool>,
    /// Its readers are to be given a turn at the end of this one.
    touched: Cell<bool>,
    /// The events that the previous reader received. The others at its position receive the same.
    joined: RefCell<Option<Rc<Joined>>>,
    readers: RefCell<Slab<Weak<dyn Reader>>>,
    /// Distinguishes the answer to this entry's attach from one to a forgotten entry of the same channel.
    generation: u64,
    /// Pulse rounds since the last reader left.
    idle_rounds: Cell<u32>,
    /// It had readers when a pulse round ended.
    was_read: Cell<bool>,
    /// It is in a queue of those without readers.
    queued: Cell<bool>,
}

impl Hub {
    /// A hub without channels.
    #[must_use]
    pub fn new(config: Config, metrics: Metrics, upstream: Box<dyn Upstream>) -> Self {
        Self(Rc::new(Inner {
            config,
            metrics,
            upstream,
            channels: RefCell::default(),
            lingering: RefCell::default(),
            lingering_brief: RefCell::default(),
            positions: RefCell::default(),
            subscriptions: RefCell::default(),
            delivered: Cell::default(),
            pulses: Cell::new(0),
            next_key: Cell::new(0),
            generations: Cell::new(0),
            closed: Cell::new(false),
        }))
    }

    /// Applies updates from upstream, in order, and gives a turn to their readers.
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) {
        let mut touched: Vec<Rc<Entry>> = Vec::new();
        for update in updates {
            match update {
                Update::Event { channel, id, frame } => {
                    let position = self.0.advance(channel.partition(), id);
                    let Some(entry) = self.0.entry(&channel).filter(|entry| entry.live.get())
                    else {
                        continue;
                    };
                    entry.tail.borrow_mut().push(Item {
                        at: position,
                        kind: Kind::Frame(frame),
                    });
                    self.0.metrics.events.inc();
                    if !entry.touched.replace(true) {
                        touched.push(entry);
                    }
                }
                Update::Attached {
                    channel,
                    generation,
                    page,
                } => {
                    self.0.advance(channel.partition(), Some(page.to));
                    let attached = |entry: &Rc<Entry>| entry.generation == generation;
                    let Some(entry) = self.0.entry(&channel).filter(attached) else {
                        continue;
                    };
                    entry.tail.borrow_mut().install(&page);
                    entry.live.set(true);
                    if !entry.touched.replace(true) {
                        touched.push(entry);
                    }
                }
                Update::Position { partition, id } => {
                    self.0.advance(partition, Some(id));
                }
                Update::Unconfirmed { channel } => {
                    if let Some(entry) = self.0.entry(&channel) {
                        entry.live.set(false);
                    }
                }
                Update::Lost { partitions } => {
                    for (channel, entry) in self.0.channels.borrow().iter() {
                        if partitions.binary_search(&channel.partition()).is_ok() {
                            entry.live.set(false);
                        }
                    }
                }
            }
        }
        for entry in touched {
            entry.turn();
        }
        self.0.count();
    }

    /// [`Self::pulse`] reaches every subscription once in this many calls. There are many calls, so that the heartbeats
    /// of thousands of streams do not delay an event.
    pub const PULSES_PER_ROUND: usize = 256;

    /// To be called [`Self::PULSES_PER_ROUND`] times per heartbeat interval: makes a heartbeat due for the next few
    /// subscriptions. Once a round it drops channels that had no reader for a while.
    pub fn pulse(&self) {
        let pulse = self.0.pulses.get();
        let subscriptions = self.0.subscriptions.borrow();
        // Computed from the rest of the round, because the number of subscriptions may change at any time.
        let first = self.0.next_key.get().min(subscriptions.capacity());
        let left = Self::PULSES_PER_ROUND - pulse;
        let next = first + (subscriptions.capacity() - first) / left;
        for key in first..next {
            if let Some(listed) = subscriptions.get(key) {
                turn(&listed.reader, Occasion::Pulse);
            }
        }
        drop(subscriptions);
        if left > 1 {
            self.0.pulses.set(pulse + 1);
            self.0.next_key.set(next);
        } else {
            self.0.pulses.set(0);
            self.0.next_key.set(0);
            self.0.sweep();
        }
        self.0.count();
    }

    /// Ends up to `count` subscriptions. Returns how many are left. If none is left, later subscriptions end at once.
    pub fn drain(&self, count: usize) -> usize {
        let subscriptions = self.0.subscriptions.borrow();
        let mut left = 0;
        for (index, (_, listed)) in subscriptions
            .iter()
            .filter(|(_, listed)| !listed.closing.get())
            .enumerate()
        {
            if index < count {
                listed.close();
            } else {
                left += 1;
            }
        }
        self.0.closed.set(left == 0);
        left
    }

    /// Ends one subscription, unless it is ending already.
    pub fn close(&self, key: usize) {
        let subscriptions = self.0.subscriptions.borrow();
        if let Some(listed) = subscriptions.get(key)
            && !listed.closing.get()
        {
            listed.close();
        }
    }

    /// How many subscriptions there are.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.0.subscriptions.borrow().len()
    }
}

impl Inner {
    fn entry(&self, channel: &Channel) -> Option<Rc<Entry>> {
        self.channels.borrow().get(channel).cloned()
    }

    /// The partition's position.
    pub(crate) fn position(&self, partition: u16) -> Position {
        self.positions
            .borrow()
            .get(&partition)
            .copied()
            .unwrap_or_default()
    }

    /// Moves the partition's position to a newer id, or past one more frame without an id.
    fn advance(&self, partition: u16, id: Option<crate::EventId>) -> Position {
        let mut positions = self.positions.borrow_mut();
        let position = positions.entry(partition).or_default();
        match id {
            Some(id) if id > position.id => *position = id.into(),
            // Already known. A repetition keeps its own position, so the tail will ignore it.
            Some(id) => return id.into(),
            None => position.sub += 1,
        }
        *position
    }

    /// Notes a delivery.
    pub(crate) fn delivered(&self, events: u64, bytes: u64) {
        let sum = self.delivered.get();
        self.delivered.set(Delivered {
            events: sum.events + events,
            bytes: sum.bytes + bytes,
        });
    }

    /// Moves the noted deliveries into the metrics.
    fn count(&self) {
        let sum = self.delivered.take();
        self.metrics.deliveries.inc_by(sum.events);
        self.metrics.bytes.inc_by(sum.bytes);
    }

    pub(crate) fn register(&self, reader: &Weak<dyn Reader>) -> usize {
        self.subscriptions.borrow_mut().insert(Listed {
            reader: Weak::clone(reader),
            closing: Cell::new(false),
        })
    }

    pub(crate) fn leave(&self, key: usize) {
        self.subscriptions.borrow_mut().remove(key);
    }

    /// The channel's entry with one more reader. Attaches the channel if it is new.
    pub(crate) fn open(&self, channel: Channel, reader: &Weak<dyn Reader>) -> (Rc<Entry>, usize) {
        let mut channels = self.channels.borrow_mut();
        let entry = channels.entry(channel.clone()).or_insert_with(|| {
            let generation = self.generations.get() + 1;
            self.generations.set(generation);
            self.upstream.attach(&channel, generation);
            self.metrics.channels.inc();
            Rc::new(Entry {
                channel,
                tail: RefCell::new(Tail::new(self.config.tail_items, self.config.tail_bytes)),
                live: Cell::new(false),
                touched: Cell::new(false),
                joined: RefCell::default(),
                readers: RefCell::default(),
                generation,
                idle_rounds: Cell::new(0),
                was_read: Cell::new(false),
                queued: Cell::new(false),
            })
        });
        entry.idle_rounds.set(0);
        let key = entry.readers.borrow_mut().insert(Weak::clone(reader));
        (Rc::clone(entry), key)
    }

    fn sweep(&self) {
        shrink(&mut self.subscriptions.borrow_mut());
        let mut channels = self.channels.borrow_mut();
        channels.retain(|channel, entry| {
            shrink(&mut entry.readers.borrow_mut());
            if !entry.readers.borrow().is_empty() {
                entry.idle_rounds.set(0);
                entry.was_read.set(true);
                return true;
            }
            entry.idle_rounds.set(entry.idle_rounds.get() + 1);
            let keep = entry.idle_rounds.get() <= self.config.linger_rounds;
            if !keep {
                self.upstream.detach(channel);
                self.metrics.channels.dec();
            }
            keep
        });
        if channels.capacity() > SPARE.max(4 * channels.len()) {
            channels.shrink_to_fit();
        }
        for queue in [&self.lingering, &self.lingering_brief] {
            let mut queue = queue.borrow_mut();
            queue.retain(|entry| {
                let waits = entry.readers.borrow().is_empty() && is_in(&channels, entry);
                entry.queued.set(waits);
                waits
            });
            if queue.capacity() > SPARE.max(4 * queue.len()) {
                queue.shrink_to_fit();
            }
        }
    }

    /// A reader leaves. The channel stays warm for a while after the last one, unless too many do.
    pub(crate) fn close(&self, entry: &Rc<Entry>, key: usize) {
        let mut readers = entry.readers.borrow_mut();
        readers.remove(key);
        if !readers.is_empty() {
            return;
        }
        drop(readers);
        // A reconnect would have to wait for an attach in any case.
        if !entry.live.get() {
            return self.forget(entry);
        }
        if entry.queued.replace(true) {
            return;
        }
        let (queue, most) = match entry.was_read.get() {
            true => (&self.lingering, self.config.lingering),
            false => (&self.lingering_brief, self.config.lingering_brief),
        };
        queue.borrow_mut().push_back(Rc::clone(entry));
        while queue.borrow().len() > most {
            let oldest = queue.borrow_mut().pop_front();
            let oldest = oldest.expect("it is longer than some number");
            oldest.queued.set(false);
            if oldest.readers.borrow().is_empty() {
                self.forget(&oldest);
            }
        }
    }

    /// Removes a channel without readers.
    fn forget(&self, entry: &Rc<Entry>) {
        let mut channels = self.channels.borrow_mut();
        if is_in(&channels, entry) {
            channels.remove(&entry.channel);
            self.upstream.detach(&entry.channel);
            self.metrics.channels.dec();
        }
    }
}

/// Whether a channel's entry is this one, and no later one of the same name.
fn is_in(channels: &HashMap<Channel, Rc<Entry>>, entry: &Rc<Entry>) -> bool {
    let present = channels.get(&entry.channel);
    present.is_some_and(|present| Rc::ptr_eq(present, entry))
}

impl Entry {
    fn turn(&self) {
        self.touched.set(false);
        for (_, reader) in self.readers.borrow().iter() {
            turn(reader, Occasion::News);
        }
        // A later reader has another position, so the memory is released.
        self.joined.take();
    }

    /// The events after `from`, up to `to` or `max_bytes`, joined. None if they cannot be joined.
    pub(crate) fn joined(
        &self,
        from: Position,
        to: Position,
        max_bytes: usize,
    ) -> Option<Rc<Joined>> {
        let mut joined = self.joined.borrow_mut();
        if let Some(joined) = &*joined
            && joined.serves(from, to)
        {
            return Some(Rc::clone(joined));
        }
        *joined = Joined::new(&self.tail.borrow(), from, to, max_bytes).map(Rc::new);
        joined.clone()
    }
}

/// Releases the memory of many entries that have left. Keys stay the same, and the last ones may be in use.
fn shrink<T>(slab: &mut Slab<T>) {
    if slab.capacity() > SPARE.max(4 * slab.len()) {
        slab.shrink_to_fit();
    }
}

fn turn(reader: &Weak<dyn Reader>, occasion: Occasion) {
    if let Some(reader) = reader.upgrade() {
        reader.turn(occasion);
    }
}
