//! The resources that processes use: CPU time and memory, as Linux counts them.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};

/// The resources of processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all threads, including ended ones.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident: u64,
}

impl Usage {
    /// The total of these processes.
    ///
    /// # Errors
    /// If one has ended, or this is not Linux.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            sum.cpu += cpu(*pid).with_context(|| format!("the CPU time of process {pid}"))?;
            sum.resident +=
                resident(*pid).with_context(|| format!("the memory of process {pid}"))?;
        }
        Ok(sum)
    }
}

/// proc(5): fields 14 and 15 of `stat`, in ticks of a hundredth of a second.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may contain any character.
    let (_, rest) = stat.rsplit_once(") ").context("no name")?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("too short")?.parse()?) };
    Ok(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(1024 * kilobytes.context("no VmRSS")?.parse::<u64>()?)
}

/// The CPU time of each thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Threads(HashMap<(u32, u32), Duration>);

impl Threads {
    /// The CPU time of each thread of these processes.
    pub(crate) fn of(pids: &[u32]) -> Result<Self> {
        let mut threads = HashMap::new();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = task?.path();
                let name = path.file_name().context("no name")?.to_string_lossy();
                // The thread may have ended.
                let Ok(schedstat) = fs::read_to_string(path.join("schedstat")) else {
                    continue;
                };
                // Linux' sched-stats.rst: the first field is the time on a CPU, in nanoseconds.
                let nanoseconds = schedstat.split(' ').next().context("no schedstat")?;
                let used = Duration::from_nanos(nanoseconds.parse()?);
                threads.insert((*pid, name.parse()?), used);
            }
        }
        Ok(Self(threads))
    }

    /// The greatest increase of one thread since `before`.
    pub(crate) fn busiest_since(&self, before: &Self) -> Duration {
        let used = |(thread, now): (&(u32, u32), &Duration)| {
            now.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        };
        self.0.iter().map(used).max().unwrap_or_default()
    }
}
