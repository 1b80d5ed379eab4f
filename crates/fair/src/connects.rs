//! `Connects`: how fast streams may be opened, in all and by one address.
//!
//! A stream that is opened counts towards the total, and a page like a stream. A request counts for its address, even
//! if it is refused, so refused requests do not affect other addresses. An address may connect until its own rate
//! reaches the rest of the total. So one address alone gets half of the total, two get a third each, and some is always
//! left for the next address.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{address::counted, quota::forget_least};

/// Maximum of known addresses: 3 MB. An address is forgotten a second or two after its last request. When the maximum
/// is reached, the quarter with the fewest requests is forgotten.
const MAX_ADDRESSES: usize = 1 << 16;
/// An address whose count is below this is forgotten.
const LEAST: f64 = 0.5;
/// The shortest time between two searches for addresses to forget.
const SWEEP: Duration = Duration::from_secs(1);

/// The rate that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// The total rate.
    Streams,
    /// The rate of this address.
    Address,
}

/// The rates of all addresses, and the total.
#[derive(Debug)]
pub struct Connects {
    /// In a second.
    rate: f64,
    opened: Recent,
    addresses: HashMap<IpAddr, Recent>,
    swept: Instant,
}

/// A count that decays over time, so that at a steady rate it is the number of events in a second.
#[derive(Clone, Copy, Debug)]
struct Recent {
    count: f64,
    at: Instant,
}

impl Recent {
    fn none(now: Instant) -> Self {
        Self {
            count: 0.0,
            at: now,
        }
    }

    fn count_at(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        self.count * (-age).exp()
    }

    fn decay(&mut self, now: Instant) -> f64 {
        self.count = self.count_at(now);
        self.at = now;
        self.count
    }
}

impl Connects {
    /// With this many in a second.
    pub fn new(rate: u32) -> Self {
        let now = Instant::now();
        Self {
            rate: f64::from(rate),
            opened: Recent::none(now),
            addresses: HashMap::new(),
            swept: now,
        }
    }

    /// Counts a request of an address, unless there are too many. To be called before the request is decided.
    pub fn ask(&mut self, address: IpAddr, now: Instant) -> Result<(), TooMany> {
        let left = self.rate - self.opened.decay(now);
        if left <= 0.0 {
            return Err(TooMany::Streams);
        }
        let recent = self.of(counted(address), now);
        if recent.decay(now) >= left {
            return Err(TooMany::Address);
        }
        recent.count += 1.0;
        Ok(())
    }

    /// Counts a stream that is opened, or a page.
    pub fn open(&mut self, now: Instant) {
        self.opened.decay(now);
        self.opened.count += 1.0;
    }

    fn of(&mut self, address: IpAddr, now: Instant) -> &mut Recent {
        let is_new = !self.addresses.contains_key(&address);
        if is_new && now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.addresses
                .retain(|_, recent| recent.decay(now) >= LEAST);
            if self.addresses.capacity() > 4 * self.addresses.len().max(16) {
                self.addresses.shrink_to(2 * self.addresses.len());
            }
        }
        if is_new && self.addresses.len() >= MAX_ADDRESSES {
            forget_least(&mut self.addresses, |recent| recent.count_at(now));
        }
        let none = || Recent::none(now);
        self.addresses.entry(address).or_insert_with(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    /// How many requests of one second are admitted. Each admitted request is then opened or refused.
    fn second(connects: &mut Connects, start: Instant, address: IpAddr, opens: bool) -> usize {
        let times = (0..1000).map(|millis| start + Duration::from_millis(millis));
        let asks = times.flat_map(|now| [now; 10]);
        asks.filter(|now| {
            let is_in = connects.ask(address, *now).is_ok();
            if is_in && opens {
                connects.open(*now);
            }
            is_in
        })
        .count()
    }

    #[test]
    fn one_address_alone_has_half_of_the_rate() {
        let start = Instant::now();
        let mut connects = Connects::new(1000);
        second(&mut connects, start, ip(1), true);
        let steady = second(&mut connects, start + Duration::from_secs(1), ip(1), true);
        assert!((450..=550).contains(&steady), "{steady}");
        // The rest is for other addresses.
        let now = start + Duration::from_secs(2);
        let other = (0..200).filter(|_| connects.ask(ip(2), now).is_ok());
        assert_eq!(other.count(), 200);
    }

    #[test]
    fn who_is_refused_costs_nobody_else() {
        let start = Instant::now();
        let mut connects = Connects::new(100);
        let let_in = second(&mut connects, start, ip(1), false);
        assert!((150..=250).contains(&let_in), "{let_in}");
        let now = start + Duration::from_secs(1);
        assert_eq!(connects.ask(ip(1), now), Err(TooMany::Address));
        for number in 2..=90 {
            connects.ask(ip(number), now).unwrap();
            connects.open(now);
        }
    }

    #[test]
    fn in_all_there_is_a_rate() {
        let now = Instant::now();
        let mut connects = Connects::new(10);
        let mut let_in = 0;
        for number in 0..100 {
            if connects.ask(ip(number), now).is_ok() {
                connects.open(now);
                let_in += 1;
            }
        }
        assert_eq!(let_in, 10);
        assert_eq!(connects.ask(ip(200), now), Err(TooMany::Streams));
        connects.ask(ip(200), now + Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let now = Instant::now();
        let mut connects = Connects::new(100);
        while connects.ask(ip(0), now).is_ok() {}
        // Among many addresses none is refused, and an address with too many requests stays refused.
        for number in 1..2 * MAX_ADDRESSES as u32 {
            connects.ask(ip(number), now).unwrap();
        }
        assert!(connects.addresses.len() <= MAX_ADDRESSES);
        assert_eq!(connects.ask(ip(0), now), Err(TooMany::Address));
        let later = now + Duration::from_secs(10);
        connects.ask(ip(u32::MAX), later).unwrap();
        assert_eq!(connects.addresses.len(), 1);
    }
}
