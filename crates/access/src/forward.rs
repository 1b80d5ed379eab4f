//! Forward-auth: asks the backend that knows the user, with the user's own cookies and headers.

mod answer;
mod cache;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use fair::{Turns, counted};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use percent_encoding::NON_ALPHANUMERIC;
use reqwest::Url;
use sha1::{Digest, Sha1};
use tokio::time::timeout;

use self::{
    answer::{CHANNELS, read},
    cache::{Cache, Cached},
};
use crate::{
    backend::describe, clock::now, denied::Denied, grant::Grant, runtime::MainRuntime,
    secret::Hidden,
};

/// Requests under way at once. The next one waits for one of them to end.
const MAX_REQUESTS: usize = 64;
/// Requests that wait or are under way. One address has half of them.
const MAX_WAITING: usize = 1024;
/// The longest wait of a request in total.
const PATIENCE: Duration = Duration::from_secs(4);

/// An answer with more bytes of text is not cached. A client can ask for many long names, and each combination of
/// names has its own answer.
const MAX_CACHED_BYTES: usize = 2 << 10;

/// The backend, and the contents of requests to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardConfig {
    /// The URL that is asked.
    pub(crate) url: Hidden<Url>,
    /// Headers of the client that are passed on.
    pub(crate) headers: Vec<HeaderName>,
    /// Query parameters that the backend reads. All other names are the gateway's, or unknown.
    pub(crate) parameters: Vec<String>,
    /// Time for which an answer is cached.
    pub(crate) cache: Duration,
}

/// Receives the reason of each request to the backend that failed.
pub type OnFailure = fn(&str);

/// Asks the backend, and caches its answers.
pub(crate) struct ForwardAuth {
    config: ForwardConfig,
    http: reqwest::Client,
    on_failure: OnFailure,
    turns: Turns<IpAddr>,
    cache: Mutex<Cache>,
}

impl ForwardAuth {
    pub(crate) fn new(config: ForwardConfig, http: reqwest::Client, on_failure: OnFailure) -> Self {
        Self {
            config,
            http,
            on_failure,
            turns: Turns::new(MAX_REQUESTS, MAX_WAITING),
            cache: Mutex::new(Cache::new()),
        }
    }

    /// Whether it asks the same backend in the same way.
    pub(crate) fn is_of(&self, config: &ForwardConfig) -> bool {
        self.config == *config
    }

    /// Whether the backend would see credentials that a browser may have added by itself.
    pub(crate) fn passes_credentials(&self, headers: &HeaderMap) -> bool {
        let is_credential = |name: &&HeaderName| {
            [header::AUTHORIZATION, header::COOKIE].contains(*name) && headers.contains_key(*name)
        };
        self.config.headers.iter().any(|name| is_credential(&name))
    }

    /// Asks the backend about this request. If there is no answer, the request is refused.
    pub(crate) async fn ask(
        &self,
        runtime: &MainRuntime,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        channels: &[&str],
    ) -> Result<Grant, Denied> {
        // If not all headers can be passed on, the request is refused without asking.
        let sent = self.headers(headers, uri, client, channels);
        let sent = sent.ok_or(Denied::Backend { known: true })?;
        let digest = digest(&sent);
        let revocations = match self.cached(&digest) {
            Ok(cached) => return cached,
            Err(revocations) => revocations,
        };
        let client = counted(client);
        let names = channels.iter().map(|name| (*name).to_owned()).collect();
        let request = self.http.get(self.config.url.0.clone()).headers(sent);
        let asking = async {
            let turn = self.turns.wait(client).await?;
            let asked = runtime.run(async move {
                // The turn ends with the request, even if the request is given up.
                let _turn = turn;
                let answer = request.send().await;
                answer.map(|answer| (answer.status(), answer.headers().clone()))
            });
            asked.await
        };
        let answer = match timeout(PATIENCE, asking).await {
            Ok(Some(Ok((status, headers)))) => read(status, &headers, names),
            Ok(Some(Err(error))) => Err(describe(&error)),
            Ok(None) => return Err(Denied::Unavailable),
            Err(_) => Err("did not answer in time".to_owned()),
        };
        match answer {
            Ok(answer) => {
                self.remember(digest, client, &answer, revocations);
                answer
            }
            Err(error) => {
                (self.on_failure)(&error);
                Err(Denied::Unavailable)
            }
        }
    }

    pub(crate) fn parameters(&self) -> &[String] {
        &self.config.parameters
    }

    /// Drops the cached answers about a subject, and keeps no answer that is on its way.
    pub(crate) fn forget(&self, subject: &str) {
        let mut cache = self.cache.lock();
        let is_other = |cached: &Cached| match &cached.answer {
            Ok(grant) => grant.subject.as_deref() != Some(subject),
            Err(_) => true,
        };
        cache.permissions.retain(is_other);
        cache.revocations += 1;
    }

    fn headers(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        channels: &[&str],
    ) -> Option<HeaderMap> {
        let mut sent = HeaderMap::new();
        for name in &self.config.headers {
            let mut values = headers.get_all(name).into_iter();
            if *name == header::COOKIE {
                // HTTP/2 may send cookies one by one (RFC 9113, 8.2.3).
                let all: Vec<_> = values.map(HeaderValue::as_bytes).collect();
                if !all.is_empty() {
                    let all = HeaderValue::from_bytes(&all.join(&b"; "[..])).ok()?;
                    sent.insert(name.clone(), all);
                }
                continue;
            }
            values
                .try_for_each(|value| sent.try_append(name, value.clone()).map(drop))
                .ok()?;
        }
        let names = channels.iter().map(|channel| {
            percent_encoding::utf8_percent_encode(channel, NON_ALPHANUMERIC).to_string()
        });
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        for (name, value) in [
            ("x-forwarded-method", "GET"),
            ("x-forwarded-uri", path),
            ("x-forwarded-for", &client.to_string()),
            (CHANNELS, &names.collect::<Vec<_>>().join(",")),
        ] {
            sent.insert(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
        Some(sent)
    }

    /// The cached answer or, without one, the number of revocations before the backend is asked.
    fn cached(&self, digest: &[u8; 20]) -> Result<Result<Grant, Denied>, u64> {
        let cache = self.cache.lock();
        match cache.get(digest) {
            Some(found) => Ok(found.answer.clone()),
            None => Err(cache.revocations),
        }
    }

    /// Keeps an answer for `cache`, but not beyond its own expiry. The answer is not kept if any subject was revoked
    /// while it was on its way. Until it arrives, its subject is unknown, and may be the revoked one.
    fn remember(
        &self,
        digest: [u8; 20],
        client: IpAddr,
        answer: &Result<Grant, Denied>,
        revocations: u64,
    ) {
        let grant = answer.as_ref().ok();
        if grant.is_some_and(|grant| grant.bytes() > MAX_CACHED_BYTES) {
            return;
        }
        let expires = grant.and_then(|grant| grant.expires);
        let left = expires.map(|expires| Duration::from_secs(expires.saturating_sub(now())));
        let good = left.map_or(self.config.cache, |left| left.min(self.config.cache));
        let cached = Cached {
            answer: answer.clone(),
            until: Instant::now() + good,
            client,
        };
        let mut cache = self.cache.lock();
        if cache.revocations == revocations {
            cache.insert(digest, cached);
        }
    }
}

/// Digest of everything that the answer may depend on.
fn digest(headers: &HeaderMap) -> [u8; 20] {
    let mut digest = Sha1::new();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), value.as_bytes()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    }
    digest.finalize().into()
}
