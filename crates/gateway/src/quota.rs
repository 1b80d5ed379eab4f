//! `Quotas`: how much each of many clients may take in a period.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keys that are counted at most. Beyond that, keys whose quota is full again are forgotten first, and
/// further ones share a quota.
const MAX_KEYS: usize = 10_000;
/// Shortest time between two searches for full quotas: a search looks at all keys.
const SWEEP: Duration = Duration::from_secs(1);

/// Each key may take `most` at once, and as much again in each period.
#[derive(Debug)]
pub(crate) struct Quotas<K> {
    most: f64,
    period: Duration,
    counts: Mutex<Counts<K>>,
}

#[derive(Debug)]
struct Counts<K> {
    keys: HashMap<K, Quota>,
    /// Of all keys beyond [`MAX_KEYS`].
    others: Quota,
    swept: Instant,
}

#[derive(Debug)]
struct Quota {
    left: f64,
    since: Instant,
}

impl<K: Hash + Eq> Quotas<K> {
    /// Zero is no limit.
    pub(crate) fn new(most: u32, period: Duration) -> Self {
        let most = f64::from(most);
        Self {
            most,
            period,
            counts: Mutex::new(Counts {
                keys: HashMap::new(),
                others: Quota::full(most),
                swept: Instant::now(),
            }),
        }
    }

    /// Takes so much of a key's quota, or nothing and answers after how long there is enough. More than a
    /// whole quota is given when the quota is full, and counts.
    pub(crate) fn take(&self, key: K, count: usize) -> Result<(), Duration> {
        if self.most == 0.0 {
            return Ok(());
        }
        let now = Instant::now();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts {
            keys,
            others,
            swept,
        } = &mut *counts;
        if keys.len() >= MAX_KEYS && !keys.contains_key(&key) && swept.elapsed() >= SWEEP {
            *swept = now;
            keys.retain(|_, quota| {
                quota.fill(self.most, self.period, now);
                quota.left < self.most
            });
        }
        let quota = match keys.len() >= MAX_KEYS && !keys.contains_key(&key) {
            true => others,
            false => keys.entry(key).or_insert_with(|| Quota::full(self.most)),
        };
        quota.fill(self.most, self.period, now);
        let missing = (count as f64).min(self.most) - quota.left;
        if missing > 0.0 {
            return Err(self.period.mul_f64(missing / self.most));
        }
        quota.left -= count as f64;
        Ok(())
    }
}

impl Quota {
    fn full(most: f64) -> Self {
        Self {
            left: most,
            since: Instant::now(),
        }
    }

    fn fill(&mut self, most: f64, period: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let more = most * passed.as_secs_f64() / period.as_secs_f64();
        self.left = (self.left + more).min(most);
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_quota_is_of_one_key() {
        let quotas = Quotas::new(3, HOUR);
        quotas.take("a", 2).unwrap();
        let wait = quotas.take("a", 2).unwrap_err();
        assert!(wait > HOUR / 4 && wait < HOUR / 2, "{wait:?}");
        quotas.take("a", 1).unwrap();
        quotas.take("a", 1).unwrap_err();
        // More than a quota: once it is full, and it is owed then.
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
    fn zero_is_no_limit() {
        let quotas = Quotas::new(0, HOUR);
        for _ in 0..3 {
            quotas.take("a", usize::MAX).unwrap();
        }
    }

    #[test]
    fn keys_are_bounded_and_those_known_keep_their_own() {
        let quotas = Quotas::new(1, HOUR);
        for key in 0..2 * MAX_KEYS {
            let taken = quotas.take(key, 1);
            assert_eq!(taken.is_ok(), key <= MAX_KEYS, "{key}");
        }
        let keys = quotas.counts.lock().unwrap().keys.len();
        assert_eq!(keys, MAX_KEYS);
        quotas.take(0, 1).unwrap_err();
    }
}
