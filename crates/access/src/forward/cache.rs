//! `Cache`: the newest answers of the backend.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use fair::Parts;

use crate::{denied::Denied, grant::Grant};

/// Maximum cached permissions. One address may use half of them: that of a balancer that names no clients serves many
/// users.
const MAX_CACHED: usize = 20_000;
/// Maximum cached refusals. They are separate from permissions, because a client can cause any number of refusals.
const MAX_CACHED_REFUSALS: usize = 2000;

/// Permissions and refusals.
pub(super) struct Cache {
    pub(super) permissions: Answers,
    refusals: Answers,
    /// The number of revocations. An answer is not kept if this has changed since the backend was asked.
    pub(super) revocations: u64,
}

/// Answers of one kind. Each client has a part of the places, so that it cannot use up those of others.
pub(super) struct Answers {
    /// Keyed by the digest of everything that was sent.
    answers: HashMap<[u8; 20], Cached>,
    places: Parts<IpAddr>,
    /// When old answers were last removed.
    swept: Instant,
}

pub(super) struct Cached {
    pub(super) answer: Result<Grant, Denied>,
    pub(super) until: Instant,
    /// The address that the place belongs to.
    pub(super) client: IpAddr,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            permissions: Answers::new(MAX_CACHED),
            refusals: Answers::new(MAX_CACHED_REFUSALS),
            revocations: 0,
        }
    }

    pub(super) fn get(&self, digest: &[u8; 20]) -> Option<&Cached> {
        let found = self.permissions.answers.get(digest);
        let found = found.or_else(|| self.refusals.answers.get(digest));
        found.filter(|found| found.until > Instant::now())
    }

    pub(super) fn insert(&mut self, digest: [u8; 20], cached: Cached) {
        // The answer may have changed from one kind to the other.
        self.permissions.remove(&digest);
        self.refusals.remove(&digest);
        match &cached.answer {
            Ok(_) => self.permissions.insert(digest, cached),
            Err(_) => self.refusals.insert(digest, cached),
        }
    }
}

impl Answers {
    fn new(places: usize) -> Self {
        Self {
            answers: HashMap::new(),
            places: Parts::new(places),
            swept: Instant::now(),
        }
    }

    /// Keeps an answer, unless its client has used up its places.
    fn insert(&mut self, digest: [u8; 20], cached: Cached) {
        if !self.places.take(&cached.client, 1) {
            if self.swept.elapsed() < Duration::from_secs(1) {
                return;
            }
            self.swept = Instant::now();
            let now = self.swept;
            self.retain(|cached| cached.until > now);
            if !self.places.take(&cached.client, 1) {
                return;
            }
        }
        self.answers.insert(digest, cached);
    }

    fn remove(&mut self, digest: &[u8; 20]) {
        if let Some(cached) = self.answers.remove(digest) {
            self.places.give_back(&cached.client, 1);
        }
    }

    pub(super) fn retain(&mut self, stays: impl Fn(&Cached) -> bool) {
        let places = &mut self.places;
        self.answers.retain(|_, cached| {
            let stays = stays(cached);
            if !stays {
                places.give_back(&cached.client, 1);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(cache: &mut Cache, number: u32, last: u8, answer: Result<Grant, Denied>) -> bool {
        let mut digest = [last; 20];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        let client = [192, 0, 2, last].into();
        let until = Instant::now() + Duration::from_secs(60);
        cache.insert(
            digest,
            Cached {
                answer,
                until,
                client,
            },
        );
        cache.get(&digest).is_some()
    }

    #[test]
    fn one_client_does_not_fill_the_cache() {
        let mut cache = Cache::new();
        let refused = || Err(Denied::Backend { known: false });
        let allowed = || Ok(Grant::default());
        let refusals = (0..5000).filter(|number| keep(&mut cache, *number, 1, refused()));
        assert_eq!(refusals.count(), MAX_CACHED_REFUSALS / 2);
        let most = 2 * MAX_CACHED as u32;
        let permissions = (5000..most).filter(|number| keep(&mut cache, *number, 1, allowed()));
        assert_eq!(permissions.count(), MAX_CACHED / 2);
        assert!(keep(&mut cache, 0, 2, refused()) && keep(&mut cache, 1, 2, allowed()));
        // Another answer to the same request replaces the first.
        assert!(keep(&mut cache, 0, 2, allowed()));
        assert_eq!(cache.refusals.answers.len(), MAX_CACHED_REFUSALS / 2);
        cache.permissions.retain(|_| false);
        assert!(keep(&mut cache, most, 1, allowed()));
    }
}
