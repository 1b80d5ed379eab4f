//! `Quotas`: how much each of many clients may take in a period.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

/// Maximum of keys that are counted: 3 MB for addresses, 20 MB for the longest subjects. When it is reached, the
/// quarter with the most quota left is forgotten. A forgotten key begins with a full quota again.
const MAX_KEYS: usize = 1 << 16;
/// Up to this many keys, full quotas are not searched for.
const FEW_KEYS: usize = 1 << 10;

/// Each key may take `most` at once, and as much again in each period.
#[derive(Debug)]
pub struct Quotas<K> {
    most: f64,
    period: Duration,
    counts: Mutex<Counts<K>>,
}

#[derive(Debug)]
struct Counts<K> {
    keys: HashMap<K, Quota>,
    /// The number of keys at which full quotas are searched for. It grows with the table, so a search costs little for
    /// each new key.
    search_at: usize,
}

#[derive(Debug)]
struct Quota {
    left: f64,
    since: Instant,
}

impl<K: Hash + Eq> Quotas<K> {
    /// Each key may take `most` per `period`. Zero is no limit.
    pub fn new(most: u32, period: Duration) -> Self {
        Self {
            most: f64::from(most),
            period,
            counts: Mutex::new(Counts {
                keys: HashMap::new(),
                search_at: FEW_KEYS,
            }),
        }
    }

    /// Takes `count` of a key's quota if at least 1 is left. If `count` is more than is left, the key owes the rest. If
    /// less than 1 is left, takes nothing, and returns the time until 1 is left.
    pub fn take(&self, key: K, count: usize) -> Result<(), Duration> {
        if self.most == 0.0 {
            return Ok(());
        }
        let now = Instant::now();
        let mut counts = self.lock();
        if counts.keys.len() >= counts.search_at && !counts.keys.contains_key(&key) {
            counts.forget(|quota| self.left(quota, now), self.most);
        }
        let quota = counts.keys.entry(key).or_insert(Quota {
            left: self.most,
            since: now,
        });
        let left = self.left(quota, now);
        *quota = Quota { left, since: now };
        self.enough(left)?;
        quota.left -= count as f64;
        Ok(())
    }

    /// Whether at least 1 is left, without taking it.
    pub fn ask(&self, key: &K) -> Result<(), Duration> {
        if self.most == 0.0 {
            return Ok(());
        }
        match self.lock().keys.get(key) {
            Some(quota) => self.enough(self.left(quota, Instant::now())),
            None => Ok(()),
        }
    }

    /// Gives back a part that was taken for a request that did not happen.
    pub fn give_back(&self, key: &K, count: usize) {
        if let Some(quota) = self.lock().keys.get_mut(key) {
            quota.left = (quota.left + count as f64).min(self.most);
        }
    }

    fn enough(&self, left: f64) -> Result<(), Duration> {
        match 1.0 - left {
            missing if missing > 0.0 => Err(self.period.mul_f64(missing / self.most)),
            _ => Ok(()),
        }
    }

    fn left(&self, quota: &Quota, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(quota.since);
        let more = self.most * passed.as_secs_f64() / self.period.as_secs_f64();
        (quota.left + more).min(self.most)
    }

    /// Held only briefly.
    fn lock(&self) -> MutexGuard<'_, Counts<K>> {
        self.counts.lock()
    }
}

impl<K: Hash + Eq> Counts<K> {
    /// Forgets full quotas, and others if nearly all are in use.
    fn forget(&mut self, left: impl Fn(&Quota) -> f64, most: f64) {
        self.keys.retain(|_, quota| left(quota) < most);
        if self.keys.len() > MAX_KEYS / 4 * 3 {
            forget_least(&mut self.keys, |quota| -left(quota));
        }
        self.search_at = (2 * self.keys.len()).clamp(FEW_KEYS, MAX_KEYS);
        if self.keys.capacity() > 4 * self.search_at {
            self.keys.shrink_to(self.search_at);
        }
    }
}

/// Removes the quarter of a table's entries with the least weight.
pub(crate) fn forget_least<K: Hash + Eq, V>(table: &mut HashMap<K, V>, weight: impl Fn(&V) -> f64) {
    let mut weights: Vec<_> = table.values().map(&weight).collect();
    let mut surplus = weights.len() / 4;
    if surplus == 0 {
        return;
    }
    let (_, most, _) = weights.select_nth_unstable_by(surplus - 1, f64::total_cmp);
    // Of several entries with the same weight, some stay.
    table.retain(|_, value| {
        let goes = surplus > 0 && weight(value) <= *most;
        surplus -= usize::from(goes);
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_quota_is_of_one_key() {
        let quotas = Quotas::new(3, HOUR);
        quotas.take("a", 2).unwrap();
        // More than is left is owed.
        quotas.take("a", 2).unwrap();
        let wait = quotas.take("a", 1).unwrap_err();
        assert!(wait > HOUR / 2 && wait < HOUR, "{wait:?}");
        assert!(quotas.ask(&"a").is_err() && quotas.ask(&"b").is_ok());
        quotas.take("b", 6).unwrap();
        let wait = quotas.take("b", 1).unwrap_err();
        assert!(wait > HOUR && wait < 2 * HOUR, "{wait:?}");
    }

    #[test]
    fn a_quota_fills_again() {
        let quotas = Quotas::new(1000, Duration::from_millis(100));
        quotas.take("a", 1000).unwrap();
        let start = Instant::now();
        while quotas.take("a", 1).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_no_more() {
        let quotas = Quotas::new(2, HOUR);
        quotas.take("a", 2).unwrap();
        quotas.give_back(&"a", 1);
        quotas.take("a", 1).unwrap();
        quotas.take("a", 1).unwrap_err();
        quotas.give_back(&"a", 100);
        quotas.take("a", 2).unwrap();
        quotas.take("a", 1).unwrap_err();
    }

    #[test]
    fn zero_is_no_limit() {
        let quotas = Quotas::new(0, HOUR);
        for _ in 0..3 {
            quotas.take("a", usize::MAX).unwrap();
        }
        quotas.ask(&"a").unwrap();
    }

    #[test]
    fn a_crowd_of_keys_refuses_no_other_and_frees_none_that_is_used_up() {
        let quotas = Quotas::new(2, HOUR);
        let used_up = usize::MAX;
        quotas.take(used_up, 2).unwrap();
        for key in 0..4 * MAX_KEYS {
            quotas.take(key, 1).unwrap();
        }
        assert!(quotas.lock().keys.len() <= MAX_KEYS);
        quotas.take(used_up, 1).unwrap_err();
    }
}
