//! Keys that change: read again from their file or URL, without a restart.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use reqwest::Url;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    backend::{describe, fetch},
    keys::{KeySet, read_key},
    secret::Hidden,
};

/// Time after which keys are read again.
const FILE_AGE: Duration = Duration::from_secs(10);
const URL_AGE: Duration = Duration::from_secs(300);
/// After a failure, the URL is read again sooner.
const URL_RETRY: Duration = Duration::from_secs(15);
/// A token with an unknown key causes the keys to be read again, but not more often than this.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest that a request waits for keys.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a set of keys at most.
const MAX_BYTES: usize = 1 << 20;

/// The keys, as every worker sees them.
#[derive(Clone)]
pub(crate) struct Keys {
    /// None until keys have been read.
    known: watch::Receiver<Option<Arc<KeySet>>>,
    reading: Option<Arc<Reading>>,
    /// Their source, if it is a URL.
    url: Option<Hidden<Url>>,
}

/// Asks for keys to be read again.
struct Reading {
    notify: Notify,
    /// The time of the last attempt to read them, and whether it succeeded.
    last: Mutex<Option<(Instant, bool)>>,
}

/// Reads keys repeatedly, in its own task.
pub struct Refresh {
    source: Source,
    keys: watch::Sender<Option<Arc<KeySet>>>,
    reading: Arc<Reading>,
}

enum Source {
    File(PathBuf),
    Url(Hidden<Url>, reqwest::Client),
}

impl Keys {
    /// Keys that never change.
    pub(crate) fn fixed(keys: KeySet) -> Self {
        let (_, known) = watch::channel(Some(Arc::new(keys)));
        Self {
            known,
            reading: None,
            url: None,
        }
    }

    /// Keys of a file, which has been read once.
    pub(crate) fn of_file(path: PathBuf, keys: KeySet) -> (Self, Refresh) {
        Self::of(Source::File(path), Some(keys))
    }

    /// Keys of a URL, which have not been read yet.
    pub(crate) fn of_url(url: Hidden<Url>, client: reqwest::Client) -> (Self, Refresh) {
        let (keys, refresh) = Self::of(Source::Url(url.clone(), client), None);
        let url = Some(url);
        (Self { url, ..keys }, refresh)
    }

    fn of(source: Source, keys: Option<KeySet>) -> (Self, Refresh) {
        let (keys, known) = watch::channel(keys.map(Arc::new));
        let reading = Arc::new(Reading {
            notify: Notify::new(),
            last: Mutex::default(),
        });
        let refresh = Refresh {
            source,
            keys,
            reading: Arc::clone(&reading),
        };
        let reading = Some(reading);
        let url = None;
        (
            Self {
                known,
                reading,
                url,
            },
            refresh,
        )
    }

    /// The keys. None if no keys were read in time.
    pub(crate) async fn current(&self) -> Option<Arc<KeySet>> {
        let mut known = self.known.clone();
        let there = known.wait_for(Option::is_some);
        let there = timeout(PATIENCE, there).await.ok()?.ok()?;
        there.clone()
    }

    /// Whether this URL is their source.
    pub(crate) fn are_of(&self, url: &Hidden<Url>) -> bool {
        self.url.as_ref() == Some(url)
    }

    /// Whether they may change.
    pub(crate) fn change(&self) -> bool {
        self.reading.is_some()
    }

    /// The keys after they have been read again. None if they were read just now, or cannot be read.
    pub(crate) async fn refreshed(&self) -> Option<Arc<KeySet>> {
        let reading = self.reading.as_ref()?;
        if reading.is_too_soon() {
            return None;
        }
        let mut known = self.known.clone();
        known.mark_unchanged();
        reading.notify.notify_one();
        timeout(PATIENCE, known.changed()).await.ok()?.ok()?;
        let keys = known.borrow_and_update().clone();
        let was_read = reading.last().is_some_and(|(_, was_read)| was_read);
        keys.filter(|_| was_read)
    }
}

impl Reading {
    fn is_too_soon(&self) -> bool {
        self.last().is_some_and(|(last, _)| last.elapsed() < PAUSE)
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, bool)>> {
        self.last.lock()
    }
}

impl Refresh {
    /// Reads the keys of a URL for the first time. Keys of a file have been read already.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn first(&mut self) -> Result<(), String> {
        if let Source::Url(..) = &self.source {
            let keys = self.read().await;
            let keys = keys.map_err(|error| format!("jwt: jwks_url: {}: {error}", self.source))?;
            self.keys.send_replace(Some(Arc::new(keys)));
        }
        Ok(())
    }

    /// Reads the keys for as long as a verifier uses them. If the keys cannot be read, the previous keys stay valid.
    pub async fn run(self) {
        loop {
            let read = self.read().await;
            let age = match (&self.source, &read) {
                (Source::File(_), _) => FILE_AGE,
                (Source::Url(..), Ok(_)) => URL_AGE,
                (Source::Url(..), Err(_)) => URL_RETRY,
            };
            *self.reading.last() = Some((Instant::now(), read.is_ok()));
            match read {
                Ok(keys) => drop(self.keys.send_replace(Some(Arc::new(keys)))),
                Err(error) => {
                    tracing::error!(%error, from = %self.source, "the keys of tokens cannot be read");
                    // Requests that wait continue with the previous keys.
                    self.keys.send_modify(|_| {});
                }
            }
            let requested = async {
                // Requests that arrived during the read have been served.
                self.reading.notify.notified().await;
                while self.reading.is_too_soon() {
                    self.reading.notify.notified().await;
                }
            };
            tokio::select! {
                () = sleep(age) => {}
                () = requested => {}
                // Other keys have replaced these.
                () = self.keys.closed() => return,
            }
        }
    }

    async fn read(&self) -> Result<KeySet, String> {
        match &self.source {
            // The read may block, because the file is small, local, and read once in ten seconds.
            Source::File(path) => {
                let text = std::fs::read(path).map_err(|error| error.to_string())?;
                read_key(&text)
            }
            Source::Url(url, client) => {
                let text = fetch(client, url.0.clone(), MAX_BYTES).await;
                KeySet::parse(&text.map_err(|error| describe(&error))?)
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // A path or a query may contain a secret.
            Self::Url(url, _) => f.write_str(url.0.host_str().unwrap_or_default()),
        }
    }
}
