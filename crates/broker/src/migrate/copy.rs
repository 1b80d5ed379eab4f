//! `Copier`: copies channels, idempotency keys and the memory of expired channels, page by page.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryFutureExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Value};
use tokio::sync::watch;

use super::{
    At as _, NotMigrated, Report,
    site::{AT_ONCE, Site, patiently},
};
use crate::{
    Error,
    call::{Call, Function},
    names::{IDEMPOTENCY, IDS},
};

/// Maximum entries and payload bytes of a page. An event larger than that is a page of its own.
const PAGE_ENTRIES: &str = "1000";
const PAGE_BYTES: &str = "1048576";
/// Keys of one SCAN, about.
const SCANNED: u32 = 1000;
/// Idempotency keys, and digests of channels, that one call brings.
const AT_A_TIME: usize = 500;
/// Digests of channels are copied again from this many milliseconds before the last copy.
const OVERLAP: u64 = 10_000;
/// Between two reports of progress.
const PROGRESS: Duration = Duration::from_secs(2);

/// Counts of the copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) channels: u64,
    pub(super) events: u64,
    /// Channels that were left out, because another program wrote to their keys.
    pub(super) left_out: u64,
}

/// Copies from one end to the other. It leaves out the entries that are there already.
pub(super) struct Copier<'a> {
    source: &'a Site,
    target: &'a Site,
    migration: &'a str,
    replica: &'a str,
    /// The target has nothing, so it need not be asked what it has.
    is_fresh: AtomicBool,
    /// All channels are copied now.
    is_whole_pass: AtomicBool,
    channels: AtomicU64,
    events: AtomicU64,
    left_out: AtomicU64,
    /// The command is to stop.
    stopped: watch::Receiver<bool>,
    /// By partition: the clock of the source when the digests were last copied, in milliseconds.
    marked: Mutex<BTreeMap<u16, u64>>,
}

/// A page of a channel.
struct Page {
    /// The times to live of its entries and of its ids.
    ttls: [String; 2],
    more: bool,
    is_whole: bool,
    ids: Vec<Vec<u8>>,
    entries: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
}

/// The changes of a partition since the last look; none if they are not known.
type Changes = Option<(Vec<String>, Vec<String>)>;

impl<'a> Copier<'a> {
    pub(super) fn new(
        source: &'a Site,
        target: &'a Site,
        migration: &'a str,
        replica: &'a str,
        is_fresh: bool,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            source,
            target,
            migration,
            replica,
            is_fresh: AtomicBool::new(is_fresh),
            is_whole_pass: AtomicBool::new(false),
            channels: AtomicU64::new(0),
            events: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            stopped,
            marked: Mutex::default(),
        }
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    pub(super) fn copied(&self) -> Copied {
        Copied {
            channels: self.channels.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
            left_out: self.left_out.load(Ordering::Relaxed),
        }
    }

    /// From now on the source notes which channels change.
    pub(super) async fn trace(&self) -> Result<(), NotMigrated> {
        let by = [self.replica];
        let traced = self.source.partitions().map(|partition| {
            let step = self.source.step(partition, self.migration, "copy", &by);
            step.map_ok(drop)
        });
        let traced = stream::iter(traced).buffer_unordered(AT_ONCE);
        traced.try_collect::<()>().await.from()
    }

    /// Copies all channels.
    pub(super) async fn copy_all(&self, report: Report<'_>) -> Result<(), NotMigrated> {
        self.channels.store(0, Ordering::Relaxed);
        self.left_out.store(0, Ordering::Relaxed);
        self.is_whole_pass.store(true, Ordering::Relaxed);
        let mut reported = Instant::now();
        for master in self.source.config.redis.masters().await.from()? {
            let mut connection = master.connect().await.from()?;
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = Cmd::new();
                scan.arg("SCAN").arg(&cursor).arg("MATCH").arg("ssegw:{*");
                scan.arg("COUNT").arg(SCANNED);
                let scanned = scan.query_async(&mut connection).await.map_err(Error::of);
                let (next, keys): (String, Vec<Vec<u8>>) = scanned.from()?;
                if self.is_stopped() {
                    return Err(NotMigrated::Stopped);
                }
                self.copy_keys(&keys).await?;
                if reported.elapsed() > PROGRESS {
                    reported = Instant::now();
                    let Copied {
                        channels, events, ..
                    } = self.copied();
                    report(&format!("copying: {channels} channels, {events} events"));
                }
                if next == "0" {
                    break;
                }
                cursor = next;
            }
        }
        self.is_fresh.store(false, Ordering::Relaxed);
        self.is_whole_pass.store(false, Ordering::Relaxed);
        self.copy_marks().await
    }

    async fn copy_keys(&self, keys: &[Vec<u8>]) -> Result<(), NotMigrated> {
        let names = self.source.names();
        let (mut channels, mut idempotency) = (Vec::new(), Vec::new());
        for key in keys {
            let Some((partition, rest)) = names.split(key) else {
                continue;
            };
            let Ok(rest) = std::str::from_utf8(rest) else {
                continue;
            };
            if let Some(channel) = rest.strip_prefix(IDS) {
                channels.push(channel.to_owned());
            } else if rest.starts_with(IDEMPOTENCY) {
                idempotency.push(names.name(partition, rest));
            }
        }
        self.copy_channels(channels).await?;
        self.copy_idempotency(&idempotency).await
    }

    /// Copies the channels that have changed since the last look. Returns how many; none if that was not known.
    pub(super) async fn copy_changed(&self) -> Result<Option<usize>, NotMigrated> {
        let copied = self.source.partitions().map(async |partition| {
            let Some((channels, keys)) = self.changes(partition).await? else {
                return Ok(None);
            };
            let count = channels.len() + keys.len();
            self.copy_channels(channels).await?;
            self.copy_idempotency(&keys).await?;
            Ok(Some(count))
        });
        let copied = stream::iter(copied).buffer_unordered(AT_ONCE);
        let copied: Vec<Option<usize>> = copied.try_collect().await?;
        Ok(copied.into_iter().sum())
    }

    async fn changes(&self, partition: u16) -> Result<Changes, NotMigrated> {
        let by = [self.replica];
        let trace = self
            .source
            .step_once(partition, self.migration, "trace", &by);
        // A repeated call would not bring the same.
        let Ok(mut names) = trace.await else {
            return Ok(None);
        };
        let count = names.first().and_then(|count| count.parse().ok());
        let count: usize = count.ok_or(Error::Malformed).from()?;
        if names.len() <= count {
            return Err(NotMigrated::From(Error::Malformed));
        }
        let keys = names.split_off(1 + count);
        names.remove(0);
        Ok(Some((names, keys)))
    }

    async fn copy_channels(&self, channels: Vec<String>) -> Result<(), NotMigrated> {
        let copies = stream::iter(channels).map(|channel| self.copy_channel(channel));
        copies.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn copy_channel(&self, channel: String) -> Result<(), NotMigrated> {
        match self.try_copy_channel(&channel).await {
            // Another program wrote to its keys. The gateways do not read it either.
            Err(NotMigrated::From(Error::Unavailable(error)))
                if error.to_string().contains("WRONGTYPE") =>
            {
                tracing::warn!(%channel, %error, "a channel is left out");
                self.left_out.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            done => done,
        }
    }

    async fn try_copy_channel(&self, channel: &str) -> Result<(), NotMigrated> {
        let from = self.source.names().partitions().of(channel);
        let nothing = || Page {
            ttls: ["-1".to_owned(), "-1".to_owned()],
            more: false,
            is_whole: false,
            ids: Vec::new(),
            entries: Vec::new(),
        };
        let [mut entry, mut id] = match self.is_fresh.load(Ordering::Relaxed) {
            true => ["0-0".to_owned(), "0-0".to_owned()],
            false => self.import(channel, &nothing()).await?,
        };
        // A channel that is copied again counts once.
        let counts = self.is_whole_pass.load(Ordering::Relaxed) || id == "0-0";
        loop {
            let page = patiently(async || {
                let deployment = self.source.topology.deployment();
                let call = deployment.new_call(Function::Export, from);
                let call = call.of_channels([channel]).arg(channel);
                let call = call.arg(&entry).arg(&id).arg(PAGE_ENTRIES).arg(PAGE_BYTES);
                self.source.topology.call::<Value>(&call).await
            });
            let page = Page::read(page.await.from()?)
                .ok_or(Error::Malformed)
                .from()?;
            [entry, id] = self.import(channel, &page).await?;
            self.events
                .fetch_add(page.entries.len() as u64, Ordering::Relaxed);
            if !page.more {
                self.channels.fetch_add(counts.into(), Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    /// Stores a page at the target. Returns the newest entry and the newest id that are there.
    async fn import(&self, channel: &str, page: &Page) -> Result<[String; 2], NotMigrated> {
        let deployment = self.target.topology.deployment();
        let to = deployment.partitions().of(channel);
        let is_whole = u8::from(page.is_whole).to_string();
        let count = page.ids.len().to_string();
        let counts = page
            .entries
            .iter()
            .map(|(_, words)| words.len().to_string());
        let counts: Vec<_> = counts.collect();
        let stored = patiently(async || {
            let call = deployment.new_call(Function::Import, to);
            let call = call.of_channels([channel]).arg(self.migration).arg(channel);
            let call = page.ttls.iter().fold(call, Call::arg);
            let mut call = call.arg(&is_whole).arg(&count);
            for id in &page.ids {
                call = call.arg(id);
            }
            for ((id, words), count) in page.entries.iter().zip(&counts) {
                call = words.iter().fold(call.arg(id).arg(count), Call::arg);
            }
            self.target.topology.call::<Vec<String>>(&call).await
        });
        let stored = stored.await.to()?.try_into();
        stored.map_err(|_| Error::Malformed).to()
    }

    /// Copies which channels have existed, as far as it has changed since the last time.
    pub(super) async fn copy_marks(&self) -> Result<(), NotMigrated> {
        let copied = self.source.partitions().map(|it| self.copy_marks_of(it));
        let copied = stream::iter(copied).buffer_unordered(AT_ONCE);
        copied.try_collect().await
    }

    async fn copy_marks_of(&self, partition: u16) -> Result<(), NotMigrated> {
        let since = self.marked.lock().get(&partition).copied();
        let since = since.unwrap_or_default().saturating_sub(OVERLAP);
        let (marks, _) = self.export_rest(partition, &since.to_string(), &[]).await?;
        let mut newest = since;
        let mut moved = BTreeMap::<u16, Vec<Vec<u8>>>::new();
        for mark in marks.chunks_exact(2) {
            let [digest, time] = mark else { continue };
            let Some(to) = self.partition_of(digest) else {
                continue;
            };
            let time_ms = std::str::from_utf8(time)
                .ok()
                .and_then(|it| it.parse().ok());
            newest = newest.max(time_ms.unwrap_or_default());
            let marks = moved.entry(to).or_default();
            marks.extend([time.clone(), digest.clone()]);
        }
        for (to, marks) in moved {
            for marks in marks.chunks(2 * AT_A_TIME) {
                self.import_rest(to, marks, &[]).await?;
            }
        }
        self.marked.lock().insert(partition, newest);
        Ok(())
    }

    async fn copy_idempotency(&self, keys: &[String]) -> Result<(), NotMigrated> {
        let names = self.source.names();
        let mut by_partition = BTreeMap::<u16, Vec<&String>>::new();
        for key in keys {
            if let Some((partition, _)) = names.split(key.as_bytes()) {
                by_partition.entry(partition).or_default().push(key);
            }
        }
        for (partition, keys) in by_partition {
            for keys in keys.chunks(AT_A_TIME) {
                let (_, values) = self.export_rest(partition, "+inf", keys).await?;
                let mut moved = BTreeMap::<u16, Vec<(String, [Vec<u8>; 2])>>::new();
                for (key, value) in keys.iter().zip(values.chunks_exact(2)) {
                    // The digest of the payload, and the beginning of the digest of the channel.
                    let digest = value[0].get(40..).and_then(|it| self.partition_of(it));
                    let rest = names.split(key.as_bytes()).map(|(_, rest)| rest);
                    let rest = rest.and_then(|rest| std::str::from_utf8(rest).ok());
                    // It may have expired in between.
                    if let (Some(to), Some(rest)) = (digest, rest)
                        && value[1].first() != Some(&b'-')
                    {
                        let key = self.target.names().name(to, rest);
                        let value = [value[0].clone(), value[1].clone()];
                        moved.entry(to).or_default().push((key, value));
                    }
                }
                for (to, keys) in moved {
                    self.import_rest(to, &[], &keys).await?;
                }
            }
        }
        Ok(())
    }

    /// The partition at the target of a channel whose digest begins so.
    fn partition_of(&self, digest: &[u8]) -> Option<u16> {
        let digits = std::str::from_utf8(digest.get(..8)?).ok()?;
        let number = u32::from_str_radix(digits, 16).ok()?;
        let count = u32::from(self.target.names().partitions().count());
        u16::try_from(number % count).ok()
    }

    async fn export_rest(
        &self,
        partition: u16,
        since: &str,
        keys: &[&String],
    ) -> Result<(Vec<Vec<u8>>, Vec<Vec<u8>>), NotMigrated> {
        let rest = patiently(async || {
            let deployment = self.source.topology.deployment();
            let call = deployment.new_call(Function::Export, partition);
            let keys = keys.iter().map(|key| (*key).clone());
            let call = call.of_keys(keys).arg("").arg(since);
            self.source.topology.call(&call).await
        });
        rest.await.from()
    }

    async fn import_rest(
        &self,
        partition: u16,
        marks: &[Vec<u8>],
        keys: &[(String, [Vec<u8>; 2])],
    ) -> Result<(), NotMigrated> {
        let count = (marks.len() / 2).to_string();
        let stored = patiently(async || {
            let deployment = self.target.topology.deployment();
            let call = deployment.new_call(Function::Import, partition);
            let call = call.of_keys(keys.iter().map(|(key, _)| key.clone()));
            let call = call.arg(self.migration).arg("").arg(&count);
            let call = marks.iter().fold(call, Call::arg);
            let values = keys.iter().flat_map(|(_, value)| value);
            let call = values.fold(call, Call::arg);
            self.target.topology.call::<String>(&call).await
        });
        stored.await.map(drop).to()
    }
}

impl Page {
    fn read(answer: Value) -> Option<Self> {
        let Value::Array(parts) = answer else {
            return None;
        };
        let [log, list, more, whole, ids, Value::Array(entries)] = &parts[..] else {
            return None;
        };
        let number = |value: &Value| i64::from_redis_value_ref(value).ok();
        let texts = |value: &Value| Vec::<Vec<u8>>::from_redis_value_ref(value).ok();
        let entry = |value: &Value| {
            let Value::Array(entry) = value else {
                return None;
            };
            let [Value::BulkString(id), words] = &entry[..] else {
                return None;
            };
            Some((id.clone(), texts(words)?))
        };
        Some(Self {
            ttls: [number(log)?.to_string(), number(list)?.to_string()],
            more: number(more)? == 1,
            is_whole: number(whole)? == 1,
            ids: texts(ids)?,
            entries: entries.iter().map(entry).collect::<Option<_>>()?,
        })
    }
}
